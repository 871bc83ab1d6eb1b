"""Decodes request bodies as Go's JSON decoder does, with the same error texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

Body = dict[str, Any]
Types = Mapping[str, str]

_OF_GO: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "bool": (bool,),
    "int": (int,),
    "float64": (int, float),
    "map[string]interface {}": (dict,),
}


class Refused(Exception):
    """The request is refused with this status and text; the dialect decides the body."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


def kind_of(value: object) -> str:
    """What Go calls the JSON type of a value."""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, str):
        return "string"
    if isinstance(value, int | float):
        return "number"
    return "array" if isinstance(value, list) else "object"


def decode(body: bytes, struct: str, types: Types, *, empty: str = "missing request body") -> Body:
    """A JSON object whose fields have the types of `struct`.

    Args:
        types: field to Go type; a field that is missing or null is fine, and stays away.
        empty: the text for a body of no bytes; /v1 says "EOF".

    Raises:
        Refused: 400 with Go's text.
    """
    if not body.strip():
        raise Refused(400, empty)
    try:
        value = orjson.loads(body)
    except (orjson.JSONDecodeError, RecursionError):
        raise Refused(400, _syntax_error(body)) from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Refused(400, f"json: cannot unmarshal {kind_of(value)} into Go value of type api.{struct}")
    for name, go_type in types.items():
        if value.get(name) is not None and not _fits(value[name], go_type):
            where = f"Go struct field {struct}.{name} of type {go_type}"
            raise Refused(400, f"json: cannot unmarshal {kind_of(value[name])} into {where}")
    return {name: field for name, field in value.items() if field is not None}


def _fits(value: object, go_type: str) -> bool:
    if go_type.startswith("[]"):
        inner = go_type[2:]
        return isinstance(value, list) and all(
            _fits(item, inner) if inner in _OF_GO else isinstance(item, dict) for item in value
        )
    if isinstance(value, bool):
        return go_type == "bool"
    return isinstance(value, _OF_GO.get(go_type, (object,)))


def _syntax_error(body: bytes) -> str:
    try:
        text = body.decode().strip()
    except UnicodeDecodeError:
        text = body.decode("latin-1").strip()
    if text[:1] in "{[" and text[-1:] not in "}]":
        return "unexpected EOF"
    if text[:1] not in '{["tfn-0123456789':
        return f"invalid character '{text[:1]}' looking for beginning of value"
    return "invalid character in request body"
