"""Converts raw values to attrs classes: strictly, and with every problem reported, not only the first.

cattrs walks the classes and collects the errors (`detailed_validation`). Two things are replaced. Its hooks
for plain types are lax ("false" is True, 3.9 is 3, "abc" is a list of three letters:
docs/telegram-comfyui.md#cattrs), so there are strict ones here. And attrs runs the validators only when the
instance is made, where the first failure hides the others and loses its key, so each field's hook also runs
the field's validator.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from enum import Enum
from functools import partial
from operator import eq
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import attrs
from attrs import evolve, frozen
from cattrs import ClassValidationError, Converter, ForbiddenExtraKeysError, IterableValidationError, override
from cattrs.cols import is_mapping, list_structure_factory, mapping_structure_factory
from cattrs.gen import make_dict_structure_fn

from gpugate.config import units
from gpugate.config.schema import FilePath, Hosts, ProviderNames
from gpugate.config.sources import SourcedValue
from gpugate.config.validators import NOT_SHOWN, WHOLE_VALUE, InvalidValue
from gpugate.core.policy import Replicas
from gpugate.provider_api import Duration, Size

C = TypeVar("C")
_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no")
_LIST_TYPES = (list, tuple, set, frozenset)
_ONE_OR_MORE = (ProviderNames, Hosts)


@frozen
class Problem:
    """One thing that is wrong with a configuration.

    Attributes:
        path: where: keys and indices from the class down, () for the class as a whole.
        text: completes the sentence "<key> ...".
        value: the value to quote, or NOT_SHOWN.
        known: for an unknown key, the keys that exist beside it.
    """

    path: tuple[str | int, ...]
    text: str
    value: object = NOT_SHOWN
    known: Sequence[str] | None = None


def fields_of(config_class: type[Any]) -> dict[str, attrs.Attribute[Any]]:
    """Return the fields of an attrs class that a configuration may set, by key, their types resolved.

    Raises:
        InvalidValue: an annotation of the class cannot be resolved.
    """
    try:
        attrs.resolve_types(config_class)
    except Exception as error:
        raise InvalidValue(f"its class cannot be read: {type(error).__name__}: {error}", NOT_SHOWN) from error
    fields: Sequence[attrs.Attribute[Any]] = attrs.fields(config_class)
    return {a.alias or a.name: a for a in fields if a.init and a.metadata.get("is_key", True)}


def secret_files_of(config_class: type[Any]) -> dict[str, str]:
    """Return {"<key>_file": "<key>"} for each secret of a class: text with `repr=False`, or a list of it."""
    fields = fields_of(config_class)
    secrets = (key for key, a in fields.items() if a.repr is False and _plain_type(a.type) in _TEXTS)
    return {f"{key}_file": key for key in secrets if f"{key}_file" not in fields}


def structure(raw: Mapping[str, Any], config_class: type[C]) -> tuple[C | None, list[Problem]]:
    """Return an instance of a class and the problems of `raw`, a tree of tables with SourcedValues.

    With problems the instance has defaults in place of the values at fault; it is None where that cannot be,
    because a key without a default is missing or at fault, or because the class itself refuses the values.
    """
    try:
        return _CONVERTER.structure(raw, config_class), []
    except ClassValidationError as error:
        problems = _hide_secrets([*_problems_of(error)], raw, config_class)
    for problem in problems:
        raw = _without_key(raw, problem.path)
    try:
        return _CONVERTER.structure(raw, config_class), problems
    except ClassValidationError:
        return None, problems


def parse_text(text: str, kind: Any) -> object:
    """Return what a variable's text stands for where `kind` is wanted; text that does not fit is kept.

    Numbers, lists and tables are JSON; a list may also be separated by commas.
    """
    kind, plain = _plain_type(kind), text.strip()
    if _is_or_choice(kind):
        word, other = _split_choice(kind)
        return plain if plain in get_args(word) else parse_text(text, other)
    if kind in (str, Path) or _is_choice(kind):
        return text
    if kind is bool and plain.lower() in _TRUE + _FALSE:
        return plain.lower() in _TRUE
    if is_list(kind) and not plain.startswith("["):
        element = (get_args(kind) or (str,))[0]
        return [parse_text(part.strip(), element) for part in plain.split(",") if part.strip()]
    try:
        return json.loads(plain, parse_float=Decimal if kind is Decimal else float)
    except (ValueError, RecursionError):
        return text


def _problems_of(
    error: BaseException, path: tuple[str | int, ...] = (), *, hidden: bool = False
) -> Iterator[Problem]:
    """Yield the problems that a tree of cattrs' errors stands for; with `hidden`, no value is quoted."""
    if isinstance(error, ClassValidationError):
        fields = {a.name: a for a in attrs.fields(error.cl)}
        of_fields, of_class = error.group_exceptions()
        for inner, note in of_fields:
            field = fields[note.name]
            here = (*path, field.alias or field.name)
            yield from _problems_of(inner, here, hidden=hidden or field.repr is False)
        for inner in of_class:
            if isinstance(inner, ForbiddenExtraKeysError):
                known = [*fields_of(error.cl), *secret_files_of(error.cl)]
                for key in sorted(map(str, inner.extra_fields)):
                    yield Problem((*path, key), "unknown key", known=known)
            else:
                yield from _problems_of(inner, path, hidden=hidden)
    elif isinstance(error, IterableValidationError):
        for inner, index_note in error.group_exceptions()[0]:
            yield from _problems_of(inner, (*path, index_note.index), hidden=hidden)
    elif isinstance(error, KeyError):
        yield Problem(path, "is missing")
    elif isinstance(error, InvalidValue):
        yield Problem(path, error.problem, NOT_SHOWN if hidden else error.value)
    else:
        yield Problem(path, "is not acceptable (the value is not shown)" if hidden else _text_of(error))


def _text_of(error: BaseException) -> str:
    return str(error.args[0] if error.args else type(error).__name__)


def _hide_secrets(problems: list[Problem], raw: Mapping[str, Any], config_class: type[Any]) -> list[Problem]:
    """Replace texts that contain a secret value: a class may quote its values when it refuses them."""
    values = [getattr(raw.get(k), "value", None) for k, a in fields_of(config_class).items() if not a.repr]
    flat = [part for value in values for part in (value.values() if isinstance(value, dict) else [value])]
    secrets = [str(part) for part in flat if part]
    hidden = "is refused (the reason would show a secret)"
    return [evolve(p, text=hidden) if any(s in p.text for s in secrets) else p for p in problems]


def _without_key(raw: Mapping[str, Any], path: Sequence[str | int]) -> Mapping[str, Any]:
    if not path:
        return raw
    key, *rest = path
    if rest and isinstance(below := raw.get(str(key)), dict):
        return {**raw, str(key): _without_key(below, rest)}
    return {k: value for k, value in raw.items() if k != key}


# Hooks. Each gets a raw value and the type that is wanted.

Hook = Callable[[Any, Any], Any]
HookFactory = Callable[[Any, Converter], Hook]


def _field_hook(attribute: attrs.Attribute[Any], converter: Converter) -> Hook:
    """Return a hook for one field: text is parsed, the value structured, and the field's validator run."""

    def hook(given: object, kind: Any) -> Any:
        sourced = given if isinstance(given, SourcedValue) else SourcedValue(given, "")
        raw: Any = sourced.value
        try:
            if sourced.is_text and isinstance(raw, str):
                raw = parse_text(raw, kind)
            if is_list(kind) and kind not in _ONE_OR_MORE and not isinstance(raw, list | tuple):
                raise InvalidValue(f"must be a list{_example_of(attribute)}")
            value = converter.structure(raw, kind)
            if kind == FilePath and value:
                value = str(sourced.resolve(value).absolute())
            _validate(attribute, value)
        except (ClassValidationError, IterableValidationError):
            raise
        except InvalidValue as error:
            raise InvalidValue(
                error.problem, sourced.value if error.value is WHOLE_VALUE else error.value
            ) from error
        except Exception as error:
            raise InvalidValue(_text_of(error), raw) from error
        return value

    return hook


def _validate(attribute: attrs.Attribute[Any], value: Any) -> None:
    """Run a field's validator on the value that attrs would give it, so after the field's converter."""
    if attribute.validator is None:
        return
    convert: Any = attribute.converter
    if convert is not None and not isinstance(convert, attrs.Converter):
        value = convert(value)
    try:
        attribute.validator(None, attribute, value)
    except (ValueError, TypeError):
        raise
    except Exception:  # noqa: S110  (it reads other fields of the instance: run again when that is made)
        pass


def _example_of(attribute: attrs.Attribute[Any]) -> str:
    default = default_of(attribute)
    return f" such as {json.dumps(list(default))}" if isinstance(default, list | tuple) and default else ""


def default_of(attribute: attrs.Attribute[Any]) -> Any:
    """Return a field's default, or attrs.NOTHING."""
    default: Any = attribute.default
    return default.factory() if isinstance(default, attrs.Factory) else default  # type: ignore[arg-type]


def _exactly(wanted: type, words: str) -> Hook:
    def hook(raw: object, kind: Any) -> Any:
        if kind is not wanted:  # cattrs takes an enum of text for text
            return _choice(raw, kind)
        if type(raw) is not wanted:
            raise InvalidValue(f"must be {words}", raw)
        return raw

    return hook


def _number(raw: Any, kind: Any) -> float | Decimal:
    try:
        if isinstance(raw, int | float | Decimal) and not isinstance(raw, bool) and math.isfinite(raw):
            return float(raw) if kind is float else Decimal(str(raw))  # str: 0.44 means 0.44, not its float
    except OverflowError:
        pass
    raise InvalidValue("must be a number", raw)


def _path(raw: Any, kind: Any) -> Path | str:
    if not isinstance(raw, str) or "\0" in raw:
        raise InvalidValue("must be a path", raw)
    return Path(raw).expanduser() if kind is Path else raw


def _choice(raw: object, kind: Any) -> Any:
    options = {o: o for o in get_args(kind)} or {o.value: o for o in kind}
    for value, option in options.items():
        if type(raw) is type(value) and raw == value:
            return option
    *some, last = (f'"{value}"' for value in options)
    raise InvalidValue(f"must be {', '.join(some)} or {last}" if some else f"must be {last}", raw)


def _is_or_choice(kind: Any) -> bool:
    """Say whether this is `T | Literal["word", …]`."""
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else ()
    return len(kinds) == 2 and any(_is_choice(one) for one in kinds)


def _split_choice(kind: Any) -> tuple[Any, Any]:
    """Return the `Literal` and the other type of `T | Literal["word", …]`."""
    word, other = sorted(get_args(kind), key=lambda one: not _is_choice(one))
    return word, other


def _word_or(raw: object, kind: Any) -> Any:
    word, other = _split_choice(kind)
    return raw if isinstance(raw, str) and raw in get_args(word) else _CONVERTER.structure(raw, other)


def _provider_names(raw: object, _kind: Any) -> tuple[str, ...]:
    names = ([raw] if raw else []) if isinstance(raw, str) else raw
    return tuple(name.strip().lower() for name in _CONVERTER.structure(names, tuple[str, ...]))


def _hosts(raw: object, _kind: Any) -> tuple[str, ...]:
    hosts = _CONVERTER.structure(raw.split(",") if isinstance(raw, str) else raw, tuple[str, ...])
    return tuple(re.sub(r"^\[(.*)\]$", r"\1", host.strip()) for host in hosts)


def _container(wanted: Any, words: str, make_hook: HookFactory) -> HookFactory:
    """Return a factory of hooks that check the type of the raw value and leave the rest to cattrs' hook."""

    def factory(kind: Any, converter: Converter) -> Hook:
        inner = make_hook(kind, converter)

        def hook(raw: object, _kind: Any) -> Any:
            if not isinstance(raw, wanted):
                raise InvalidValue(f"must be {words}", raw)
            return inner(raw, kind)

        return hook

    return factory


def _list_hook(kind: Any, converter: Converter) -> Hook:
    elements: Any = list[(get_args(kind) or (Any,))[0]]  # type: ignore[misc]
    from_list = list_structure_factory(elements, converter)
    return lambda raw, _kind: (get_origin(kind) or kind)(from_list(raw, kind))


def _class_hook(config_class: Any, converter: Converter) -> Hook:
    keys = {a.name for a in fields_of(config_class).values()}
    overrides = {
        a.name: override(struct_hook=_field_hook(a, converter)) if a.name in keys else override(omit=True)
        for a in attrs.fields(config_class)
    }
    return make_dict_structure_fn(config_class, converter, _cattrs_use_alias=True, **overrides)  # type: ignore[arg-type]


_TEXTS = (str, tuple[str, ...])


def _plain_type(kind: Any) -> Any:
    """Return T for Annotated[T, ...] and for T | None."""
    if get_origin(kind) is Annotated:
        return _plain_type(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        kinds = [k for k in get_args(kind) if k is not NoneType]
        return _plain_type(kinds[0]) if len(kinds) == 1 else kind
    return kind


def _is_choice(kind: Any) -> bool:
    origin: Any = get_origin(kind)
    return origin is Literal or (isinstance(kind, type) and issubclass(kind, Enum))


def is_list(kind: Any) -> bool:
    """Say whether a field of this type takes a list."""
    kind = _plain_type(kind)
    origin, inner = get_origin(kind) or kind, get_args(kind)
    return origin in _LIST_TYPES and (origin is not tuple or not inner or inner[1:] == (...,))


def _make_converter() -> Converter:
    converter = Converter(forbid_extra_keys=True)
    for kind, hook in {
        str: _exactly(str, "text"),
        int: _exactly(int, "a whole number"),
        bool: _exactly(bool, "true or false"),
        float: _number,
        Decimal: _number,
        Path: _path,
    }.items():
        converter.register_structure_hook(kind, hook)
    converter.register_structure_hook_func(_is_choice, _choice)
    converter.register_structure_hook_func(_is_or_choice, _word_or)
    for predicate, factory in (
        (is_list, _container((list, tuple), "a list", _list_hook)),
        (is_mapping, _container(Mapping, "a table", mapping_structure_factory)),
        (attrs.has, _container(Mapping, "a table", _class_hook)),
    ):
        converter.register_structure_hook_factory(predicate, factory)
    for annotated, hook in (
        (Duration, lambda raw, _kind: units.duration(raw)),
        (Size, lambda raw, _kind: units.size(raw)),
        (Replicas, lambda raw, _kind: converter.structure(str(raw) if type(raw) is int else raw, str)),
        (FilePath, _path),
        (ProviderNames, _provider_names),
        (Hosts, _hosts),
    ):
        converter.register_structure_hook_func(partial(eq, annotated), hook)
    return converter


_CONVERTER = _make_converter()
