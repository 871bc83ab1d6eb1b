"""Changes single members of a JSON object in its text, so that every other byte stays as the client wrote it.

Parsing and writing anew would lose what two parsers may see differently: doubled keys, numbers that
fit no float, the case of a key. Knows nothing of what the members mean.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import orjson
from attrs import frozen

_MARK = re.compile(rb'["{}\[\],:]')
_SPACE = b" \t\r\n"
_BACKSLASH = ord("\\")


@frozen
class Member:
    """One member of an object.

    Attributes:
        key: decoded.
        begin, end: where its value stands in the text, without the space around it.
    """

    key: str
    begin: int
    end: int


def members(text: bytes) -> Iterator[Member]:
    """The members of the object that `text` begins with; a key may come twice.

    Raises:
        ValueError: it is no object, or not a whole one.
    """
    key, value_at, depth, at = "", -1, 0, 0
    while found := _MARK.search(text, at):
        start, at = found.span()
        mark = found[0]
        if mark == b'"':
            at = _string_end(text, start)
            if depth == 1 and value_at < 0:
                key = orjson.loads(text[start:at])
        elif mark in b"{[":
            depth += 1
        elif depth == 1 and mark == b":":
            value_at = at
        else:
            if depth == 1 and mark != b":" and value_at >= 0:
                yield _member(text, key, value_at, start)
                value_at = -1
            depth -= mark in b"}]"
            if depth <= 0:
                return
    raise ValueError("the object does not end")


def _string_end(text: bytes, start: int) -> int:
    """The place behind the string that begins at `start`; pictures are long, so `find` does the work."""
    end = start
    while (end := text.find(b'"', end + 1)) >= 0:
        before = end
        while text[before - 1] == _BACKSLASH:
            before -= 1
        if (end - before) % 2 == 0:
            return end + 1
    raise ValueError("a string does not end")


def _member(text: bytes, key: str, begin: int, end: int) -> Member:
    while begin < end and text[begin] in _SPACE:
        begin += 1
    while end > begin and text[end - 1] in _SPACE:
        end -= 1
    return Member(key, begin, end)


def set_members(text: bytes, values: Mapping[str, bytes]) -> bytes:
    """`text` with these members, JSON by key: in the place of those it has, in any case, or in front.

    Raises:
        ValueError: it is no object, or not a whole one.
    """
    places = [member for member in members(text) if member.key.lower() in values]
    pieces, at = [], text.index(b"{") + 1
    missing = values.keys() - {member.key.lower() for member in places}
    pieces.append(text[:at])
    pieces += [b'"%b":%b,' % (key.encode(), value) for key, value in values.items() if key in missing]
    for member in places:
        pieces += [text[at : member.begin], values[member.key.lower()]]
        at = member.end
    pieces.append(text[at:])
    return b"".join(pieces)
