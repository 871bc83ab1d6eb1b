"""From raw values to an attrs class, strictly and with every complaint at once; knows no section by name.

cattrs is lax by default ("false" is True, 3.9 is 3, "abc" is three letters) and loses a validator's
key and text (docs/telegram-comfyui.md#cattrs). So plain types have strict hooks here, and the walk over
a class's fields is ours: each field is structured and validated alone, and nothing hides the next.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal, InvalidOperation
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import attrs
from cattrs import Converter, transform_error
from cattrs.cols import list_structure_factory, mapping_structure_factory
from cattrs.errors import BaseValidationError, IterableValidationError, IterableValidationNote

from gpugate.config import units
from gpugate.config.validators import Impossible, in_words

_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no")
Fault = tuple[str, str, object]  # where below the key ("" or "[1]"), the problem, the value at fault


def keys_of(config_class: type[Any]) -> dict[str, attrs.Attribute[Any]]:
    """Return the fields of an attrs class that a configuration may give, by key."""
    return {a.alias or a.name: a for a in attrs.fields(config_class) if a.init}


def types_of(config_class: type[Any]) -> dict[str, Any]:
    """Return the types of a class's fields, by key; raise Impossible if an annotation has no meaning."""
    try:
        hints = get_type_hints(config_class)
    except Exception as error:
        raise Impossible(f"its class cannot be read: {type(error).__name__}: {error}", say=False) from error
    return {key: hints.get(a.name, Any) for key, a in keys_of(config_class).items()}


def is_secret(attribute: attrs.Attribute[Any], kind: Any) -> bool:
    """Tell whether a field is a secret, which `<key>_file` gives too: text that no repr shows."""
    return attribute.repr is False and _essence(kind) is str


def value_of(attribute: attrs.Attribute[Any], kind: Any, raw: object, *, untyped: bool) -> Any:
    """Return what a field holds for `raw`; raise Impossible, or a group of cattrs, if it cannot be.

    `untyped` says that `raw` is text which may stand for a number, a truth value or a list.
    """
    special = attribute.metadata.get("kind")
    if untyped and isinstance(raw, str):
        raw = from_text(raw, kind, comma_list=special == "names")
    if special == "duration" or (special is None and _has_unit(raw, kind, float)):
        value: Any = _said(units.duration, raw)
    elif special == "size" or (special is None and _has_unit(raw, kind, int)):
        value = _said(units.size, raw)
    elif special == "names":
        value = tuple(name.strip().lower() for name in STRICT.structure(_listed(raw), tuple[str, ...]))
    elif _is_sequence(_essence(kind)) and not isinstance(raw, list | tuple):
        raise Impossible(f"must be a list{_for_example(attribute)}", raw)
    else:
        value = STRICT.structure(raw, kind)
    convert: Any = attribute.converter
    if convert is not None and not isinstance(convert, attrs.Converter):
        value = convert(value)
    _validate(attribute, value)
    return value


def faults_of(error: Exception, raw: object, *, hidden: bool) -> Iterator[Fault]:
    """Yield the faults that an exception of `value_of` stands for; a hidden value is in none of them."""
    if isinstance(error, IterableValidationError):
        for inner in error.exceptions:
            note = _place(inner)
            for below, problem, value in faults_of(inner, raw, hidden=hidden):
                yield f"[{note}]{below}", problem, value
    elif isinstance(error, BaseValidationError):
        for line in transform_error(error, format_exception=_in_brief(hidden)):
            yield "", line.replace(" @ $", " at "), NO_VALUE
    elif isinstance(error, Impossible):
        value = error.value if error.has_value else raw
        yield "", error.problem, value if error.say and not hidden else NO_VALUE
    elif hidden:
        yield "", "is not acceptable (the value is not shown)", NO_VALUE
    else:
        yield "", str(error.args[0] if error.args else type(error).__name__), raw


NO_VALUE = object()


def from_text(text: str, kind: Any, *, comma_list: bool = False) -> object:
    """Return what `text` of a variable stands for where `kind` is wanted; text that does not fit stays.

    Lists are JSON or separated by commas, tables JSON (docs/api.md#configuration).
    """
    kind = _essence(kind)
    origin = get_origin(kind) or kind
    plain = text.strip()
    if comma_list or origin in (list, tuple, set, frozenset):
        return _list_from_text(plain, kind)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _json(plain) if plain.startswith("{") else text
    if origin is bool and plain.lower() in _TRUE + _FALSE:
        return plain.lower() in _TRUE
    if origin is int and re.fullmatch(r"[+-]?[0-9]{1,30}", plain):
        return int(plain)
    if origin in (float, Decimal) and re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)", plain):
        return Decimal(plain) if origin is Decimal else float(plain)
    return text


def _list_from_text(text: str, kind: Any) -> object:
    if text.startswith("["):
        return _json(text)
    of = get_args(kind)[0] if get_args(kind) else str
    return [from_text(part.strip(), of) for part in text.split(",") if part.strip()]


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _has_unit(raw: object, kind: Any, wanted: type) -> bool:
    """Tell whether a plugin's number was written with a unit, such as "6s" or "64MiB"."""
    return isinstance(raw, str) and _essence(kind) is wanted and units.has_unit(raw)


def _essence(kind: Any) -> Any:
    """Return T for T | None."""
    if get_origin(kind) in (Union, UnionType):
        kinds = [k for k in get_args(kind) if k is not NoneType]
        return kinds[0] if len(kinds) == 1 else kind
    return kind


def _listed(raw: object) -> object:
    if isinstance(raw, str):
        return [raw] if raw else []
    return raw


def _for_example(attribute: attrs.Attribute[Any]) -> str:
    """A list's default shows best how one is written."""
    default: Any = attribute.default
    value = default.factory() if isinstance(default, attrs.Factory) and not default.takes_self else default  # type: ignore[arg-type]
    return f" such as {json.dumps(list(value))}" if isinstance(value, list | tuple) and value else ""


def _said(read: Any, raw: object) -> Any:
    try:
        return read(raw)
    except ValueError as error:
        raise Impossible(str(error)) from None


def _validate(attribute: attrs.Attribute[Any], value: Any) -> None:
    if attribute.validator is None:
        return
    try:
        attribute.validator(None, attribute, value)
    except (ValueError, TypeError):
        raise
    except Exception:  # noqa: S110  (it looks at the whole object, which exists only later: judged there)
        pass


def _place(error: BaseException) -> object:
    notes = [n for n in getattr(error, "__notes__", ()) if isinstance(n, IterableValidationNote)]
    return notes[-1].index if notes else "?"


def _in_brief(hidden: bool) -> Any:
    def brief(error: BaseException, _kind: type | None) -> str:
        if isinstance(error, KeyError):
            return f"{error.args[0]} is missing"
        if isinstance(error, Impossible) or not hidden:
            return str(error)
        return "is not acceptable (the value is not shown)"

    return brief


def _strict(wanted: type, words: str) -> Any:
    def hook(raw: object, kind: Any) -> Any:
        if _is_enum(kind):  # a StrEnum is a str to cattrs, too
            return _enum(raw, kind)
        if type(raw) is not wanted:
            raise Impossible(f"must be {words}", raw)
        return raw

    return hook


def _number(raw: object, _kind: Any) -> float:
    if isinstance(raw, bool) or not isinstance(raw, int | float) or not _is_finite(raw):
        raise Impossible("must be a number", raw)
    return float(raw)


def _decimal(raw: object, _kind: Any) -> Decimal:
    if isinstance(raw, bool) or not isinstance(raw, int | float | Decimal) or not _is_finite(raw):
        raise Impossible("must be a number", raw)
    try:
        return Decimal(str(raw))  # by way of text: 0.44 is meant, not the float beside it
    except InvalidOperation:
        raise Impossible("must be a number", raw) from None


def _is_finite(number: float | Decimal) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:
        return False


def _path(raw: object, _kind: Any) -> Path:
    if not isinstance(raw, str) or "\0" in raw:
        raise Impossible("must be a path", raw)
    return Path(raw).expanduser()


def _literal(raw: object, kind: Any) -> Any:
    if not isinstance(raw, str | int) or raw not in get_args(kind):
        raise Impossible("must be " + in_words(map(str, get_args(kind))), raw)
    return raw


def _enum(raw: object, kind: type[Enum]) -> Enum:
    for member in kind:
        if type(raw) is type(member.value) and raw == member.value:
            return member
    raise Impossible("must be " + in_words(str(member.value) for member in kind), raw)


def _is_sequence(kind: Any) -> bool:
    origin, inner = get_origin(kind) or kind, get_args(kind)
    return origin in (list, set, frozenset) or (origin is tuple and (not inner or inner[1:] == (...,)))


def _is_literal(kind: Any) -> bool:
    origin: Any = get_origin(kind)
    return origin is Literal


def _is_enum(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Enum)


def _is_mapping(kind: Any) -> bool:
    origin = get_origin(kind) or kind
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _sequences(kind: Any, converter: Converter) -> Any:
    elements: Any = list[get_args(kind)[0] if get_args(kind) else Any]  # type: ignore[misc]
    inside = list_structure_factory(elements, converter)

    def hook(raw: object, _kind: Any) -> Any:
        if not isinstance(raw, list | tuple):
            raise Impossible("must be a list", raw)
        return (get_origin(kind) or kind)(inside(raw, kind))

    return hook


def _mappings(kind: Any, converter: Converter) -> Any:
    inside = mapping_structure_factory(kind, converter)

    def hook(raw: object, _kind: Any) -> Any:
        if not isinstance(raw, Mapping):
            raise Impossible("must be a table", raw)
        return inside(raw, kind)

    return hook


_HOOKS = {
    str: _strict(str, "text"),
    int: _strict(int, "a whole number"),
    bool: _strict(bool, "true or false"),
    float: _number,
    Decimal: _decimal,
    Path: _path,
}


def _converter() -> Converter:
    converter = Converter(forbid_extra_keys=True)
    for kind, hook in _HOOKS.items():
        converter.register_structure_hook(kind, hook)
    converter.register_structure_hook_func(_is_literal, _literal)
    converter.register_structure_hook_func(_is_enum, _enum)
    converter.register_structure_hook_factory(_is_sequence, _sequences)
    converter.register_structure_hook_factory(_is_mapping, _mappings)
    return converter


STRICT = _converter()
