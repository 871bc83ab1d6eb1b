"""Reads JSON and durations the way Ollama (Go) does, and complains in its words; knows no endpoint.

Refusing a request that Ollama would have taken is worse than waking a pod for one that it refuses. So
where Go is more lenient than our parser (text behind the value, bytes that are no UTF-8, lone
surrogates, keys in any case) this is lenient too, and what cannot be told for sure is `Unjudged`.
"""

from __future__ import annotations

import json
import re
from typing import Final, NoReturn

import orjson

_SPACE = b" \t\r\n"
_SMALL: Final = 1 << 20
"""Bytes that may be parsed whatever they hold: some 20 ms and 25 MB at worst (measured)."""
_LARGE: Final = 16 << 20
"""Bytes that are parsed at all: some 50 ms, in which nobody else is served (measured)."""
_MAX_VALUES: Final = 250_000
"""Values in a larger body: pictures are few and long, but 16 MiB of `[]` would take 350 MB as lists."""
_GO_MAX_DEPTH: Final = 10_000


class Malformed(Exception):
    """Go's decoder refuses it; the text is what it says."""


class Unjudged(Exception):
    """Whether Go would take it cannot be told here."""


def read(body: bytes) -> object:
    """Return the first JSON value of `body`.

    Raises:
        Malformed: there is none; "EOF" if there is nothing at all.
        Unjudged: too large, or too deeply nested, to be looked at.
    """
    if len(body) > _LARGE or (len(body) > _SMALL and _values(body) > _MAX_VALUES):
        raise Unjudged
    try:
        value: object = orjson.loads(body)
    except orjson.JSONDecodeError:
        return _read_leniently(body)
    return value


def _values(body: bytes) -> int:
    return body.count(b",") + body.count(b"[") + body.count(b"{")


def _no_constant(text: str) -> NoReturn:
    raise Malformed(f"invalid character {_quoted(text.lstrip('-')[0])} looking for beginning of value")


_LENIENT = json.JSONDecoder(parse_int=float, parse_constant=_no_constant)


def _read_leniently(body: bytes) -> object:
    start = len(body) - len(body.lstrip(_SPACE))
    if start == len(body):
        raise Malformed("EOF")
    if len(body) > _SMALL:
        raise Unjudged
    text = body[start:].decode("utf-8", "replace")
    try:
        value: object = _LENIENT.raw_decode(text)[0]
    except json.JSONDecodeError as error:
        raise Malformed(_complaint(text, error)) from None
    except RecursionError:
        if _is_deeper(body, _GO_MAX_DEPTH):
            raise Malformed("exceeded max depth") from None
        raise Unjudged from None
    return value


_LOOKED_AT = 64 * 1024
_BRACKET = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)


def _is_deeper(body: bytes, limit: int) -> bool:
    depth = 0
    for found in _BRACKET.finditer(body, 0, _LOOKED_AT):
        if found[0] in b"[{":
            depth += 1
            if depth > limit:
                return True
        elif found[0] in b"]}":
            depth -= 1
    return False


_PLACES = (
    ("Expecting property name", "looking for beginning of object key string"),
    ("Illegal trailing comma", "looking for beginning of object key string"),
    ("Expecting ':'", "after object key"),
    ("Expecting ','", "after object key:value pair"),
    ("Invalid control character", "in string literal"),
    ("Invalid \\u", "in \\u hexadecimal character escape"),
    ("Invalid \\", "in string escape code"),
)


def _complaint(text: str, error: json.JSONDecodeError) -> str:
    rest = text[error.pos :]
    word = rest.strip()
    cut_off = not word or any(whole.startswith(word) for whole in ("true", "false", "null", "-"))
    if cut_off or error.msg.startswith("Unterminated"):
        return "unexpected EOF"
    place = next(
        (go for python, go in _PLACES if error.msg.startswith(python)), "looking for beginning of value"
    )
    return f"invalid character {_quoted(rest[0])} {place}"


def _quoted(character: str) -> str:
    character = chr(character.encode("utf-8", "replace")[0])  # Go reads bytes
    if character == "'":
        return r"'\''"
    return f"'{character}'" if character.isprintable() else f"'{repr(character)[1:-1]}'"


_MODEL = re.compile(rb'(?<!\\)"model"\s*:\s*"([^"\\]{1,256})"')
_ENDS = 4096


def guess_model(body: bytes) -> str | None:
    """Return what is probably the model that a body names which is too large to be read."""
    found = _MODEL.search(body, 0, _ENDS) or _MODEL.search(body, max(0, len(body) - _ENDS))
    return found[1].decode("utf-8", "replace").strip() or None if found else None


def field(document: dict[str, object], name: str) -> object:
    """Return the field as Go finds it, in any case; None when it is missing or null."""
    if name in document:
        return document[name]
    for key, value in document.items():
        if key.lower() == name:
            return value
    return None


def as_text(value: object) -> str:
    """Return a string field, "" for anything else, and as Go keeps it: no lone surrogates."""
    if not isinstance(value, str):
        return ""
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return value


_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
_ESCAPED = re.compile("[<>&\u2028\u2029]")


def write(value: object) -> bytes:
    """Return `value` as Go writes it: compact, with the characters escaped that HTML would read."""
    text = orjson.dumps(value).decode()
    return _ESCAPED.sub(lambda found: _ESCAPES[found[0]], text).encode()


def kind_of(value: object) -> str:
    """Return the word that Go's decoder has for the type of a JSON value."""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, str):
        return "string"
    if isinstance(value, list):
        return "array"
    return "null" if value is None else "object"


_UNITS_NS = {
    "ns": 1,
    "us": 10**3,
    "µs": 10**3,
    "μs": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}
_TERM = re.compile(r"(?P<whole>[0-9]*)(?P<point>\.(?P<part>[0-9]*))?(?P<unit>[^.0-9]*)")
_MAX_NS = 2**63


def duration_ns(text: str) -> int:
    """Return the nanoseconds of a Go duration such as "5m", "-1s" or "0".

    Raises:
        Malformed: it is none; a bare "-1" lacks its unit.
    """
    quoted = json.dumps(text, ensure_ascii=False)
    rest, total = text.removeprefix(text[:1] if text[:1] in "+-" else ""), 0
    if rest == "0":
        return 0
    if not rest:
        raise Malformed(f"time: invalid duration {quoted}")
    while rest:
        found = _TERM.match(rest)
        if found is None or not (found["whole"] or found["part"]):
            raise Malformed(f"time: invalid duration {quoted}")
        if not found["unit"]:
            raise Malformed(f"time: missing unit in duration {quoted}")
        if found["unit"] not in _UNITS_NS:
            raise Malformed(f"time: unknown unit {json.dumps(found['unit'])} in duration {quoted}")
        total += _term_ns(found)
        if total > _MAX_NS:
            raise Malformed(f"time: invalid duration {quoted}")
        rest = rest[found.end() :]
    return -total if text.startswith("-") else total


def _term_ns(found: re.Match[str]) -> int:
    whole, part = found["whole"][:32], (found["part"] or "")[:32]  # more digits overflow, or vanish
    unit = _UNITS_NS[found["unit"]]
    scale = int("1" + "0" * len(part))
    return int(whole or "0") * unit + int(part or "0") * unit // scale
