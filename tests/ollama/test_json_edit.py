"""Single members of a JSON object change; every other byte stays."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpugate.ollama.json_edit import Member, members, set_members

TRUE = {"stream": b"true"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b'{"model":"m"}', b'{"stream":true,"model":"m"}'),
        (b' {\n "stream" : false ,\r\n "model":"m"}\n', b' {\n "stream" : true ,\r\n "model":"m"}\n'),
        (b'{"a":{"stream":false},"stream":false}', b'{"a":{"stream":false},"stream":true}'),
        (b'{"a":["stream",{"stream":1}],"stream":null}', b'{"a":["stream",{"stream":1}],"stream":true}'),
        (b'{"stream":false,"Stream":false}', b'{"stream":true,"Stream":true}'),
        (b'{"str\\u0065am":false}', b'{"str\\u0065am":true}'),
        (b'{"a":"\\\\\\"stream\\":false","stream":false}', b'{"a":"\\\\\\"stream\\":false","stream":true}'),
        (b'{"a":"\\\\","stream":false}', b'{"a":"\\\\","stream":true}'),
        (b'{"n":1e999,"stream":false}x', b'{"n":1e999,"stream":true}x'),
        (b'{"a":"stream"}', b'{"stream":true,"a":"stream"}'),
    ],
)  # fmt: skip
def test_a_member_is_changed(text: bytes, expected: bytes) -> None:
    """In its place, however it is spelled, only at the top; in front where there is none."""
    assert expected == set_members(text, TRUE)


@pytest.mark.parametrize("text", [b"", b"[]", b'{"a":1', b'{"a', b'"a"', b"nothing"])
def test_no_whole_object(text: bytes) -> None:
    """It is not touched."""
    with pytest.raises(ValueError, match=r"not end|not found|substring"):
        set_members(text, TRUE)


def test_two_members() -> None:
    """One is changed, one is new."""
    text = b'{"stream":false,"model":"m"}'
    assert b'{"options":{},"stream":true,"model":"m"}' == set_members(text, {**TRUE, "options": b"{}"})


def test_a_large_picture() -> None:
    """A body of 8 MB is no trouble."""
    picture = b"A" * (8 << 20)
    assert set_members(b'{"images":["' + picture + b'"],"stream":false}', TRUE).endswith(b'"stream":true}')


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), VALUES, min_size=1, max_size=6), st.booleans(), st.sampled_from([None, 1]))
def test_any_object(document: dict[str, object], ascii_only: bool, indent: int | None) -> None:
    """Each member's text reads as its value; the change reads as the object with it."""
    text = json.dumps(document, ensure_ascii=ascii_only, indent=indent).encode("utf-8", "surrogatepass")
    try:
        text.decode()
    except UnicodeDecodeError:
        return
    found = {member.key: json.loads(text[member.begin : member.end]) for member in members(text)}
    assert document == found
    asked = {key: value for key, value in document.items() if key.lower() != "stream"}
    changed = json.loads(set_members(text, TRUE))
    assert asked == {key: value for key, value in changed.items() if key.lower() != "stream"}
    assert {True} == {value for key, value in changed.items() if key.lower() == "stream"}


def test_where_a_value_stands() -> None:
    """Without the space around it."""
    assert [Member("a", 7, 8)] == list(members(b'{ "a": 1 }'))
