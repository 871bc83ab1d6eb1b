"""Texts cut to Telegram's lengths."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpugate.bot.sender import split, units


@pytest.mark.parametrize(
    ("text", "limit", "expected"),
    [
        ("", 5, []),
        (" \n ", 5, []),
        ("short", 5, ["short"]),
        ("two words", 5, ["two", "words"]),
        ("one. two three", 9, ["one. two", "three"]),
        ("first line\nsecond", 12, ["first line", "second"]),
        ("a paragraph\n\nanother one", 20, ["a paragraph", "another one"]),
        ("abcdefghij", 4, ["abcd", "efgh", "ij"]),
        ("🙂🙂🙂", 3, ["🙂", "🙂", "🙂"]),
        ("a🙂b", 2, ["a", "🙂", "b"]),
    ],
)
def test_where_a_text_is_cut(text: str, limit: int, expected: list[str]) -> None:
    """At the best seam of the second half; never inside a character."""
    assert expected == split(text, limit)


@given(st.text(alphabet="ab \n.🙂\ud800", max_size=200), st.integers(2, 40))
def test_any_text(text: str, limit: int) -> None:
    """Every piece fits and says something; nothing but white space is lost."""
    pieces = split(text, limit)

    assert all(piece.strip() and units(piece) <= limit for piece in pieces)
    whole = "".join(text.replace("\ud800", "\ufffd").split())
    assert whole == "".join("".join(pieces).split())
