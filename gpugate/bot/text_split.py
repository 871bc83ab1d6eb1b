"""Splits texts to the lengths that Telegram allows, which counts UTF-16 code units."""

from __future__ import annotations

TEXT_UNITS = 4096  # of one message, in UTF-16 code units; docs/telegram-comfyui.md#telegram-limits
CAPTION_UNITS = 1024

_SEAMS = ("\n\n", "\n", ". ", " ")


def units(text: str) -> int:
    """A text's length as Telegram counts it: in UTF-16 code units."""
    return len(text) + sum(character > "\uffff" for character in text)


def sane(text: str) -> str:
    """The text without what cannot be sent: halves of surrogate pairs, and NUL."""
    whole = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return whole.replace("\0", "").strip()


def split(text: str, limit: int = TEXT_UNITS) -> list[str]:
    """Cut a text into pieces of at most `limit` units, at paragraphs, lines, sentences or words.

    A word is cut only where it is longer than half a piece; a character (a surrogate pair) never is.
    """
    rest = sane(text)
    pieces: list[str] = []
    while rest:
        end = _fitting(rest, limit)
        if end < len(rest):
            end = _seam(rest, end)
        pieces.append(rest[:end].rstrip())
        rest = rest[end:].lstrip()
    return pieces


def _fitting(text: str, limit: int) -> int:
    """How many characters of `text` have room."""
    room = limit
    for at, character in enumerate(text[:limit]):
        room -= 2 if character > "\uffff" else 1
        if room < 0:
            return at
    return min(len(text), limit)


def _seam(text: str, end: int) -> int:
    """Where to cut at or before `end`: what is behind it goes to the next piece."""
    for seam in _SEAMS:
        at = text.rfind(seam, end // 2, end + 1)
        if at > 0:
            return min(at + len(seam.rstrip()), end)
    return end
