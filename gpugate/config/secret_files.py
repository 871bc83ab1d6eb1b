"""Secrets in files of their own: `<key>_file`, and the files of a service manager (CREDENTIALS_DIRECTORY)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from attrs import evolve

from gpugate.config.complaints import Complaints
from gpugate.config.converter import fields_of, is_list, secret_files_of
from gpugate.config.sources import Raw, SourcedValue
from gpugate.config.validators import InvalidValue

_MAX_SECRET_BYTES = 64 * 1024
_EMPTY: tuple[object, ...] = ("", [])


def use_credentials(
    raw: Raw, classes: Mapping[str, type[Any]], credentials: Mapping[str, SourcedValue], prefix: str = ""
) -> None:
    """Take each secret that is given nowhere else from the service manager's file of its name.

    Args:
        raw: the sections.
        classes: the class of each section.
        prefix: what the names of the files begin with.
    """
    for section, section_class in classes.items():
        for file_key, key in secret_files_of(section_class).items():
            _use_credential(raw, section, key, file_key, credentials.get(f"{prefix}{section}_{key}"))


def use_provider_credentials(
    providers: Raw, names: Iterable[str], credentials: Mapping[str, SourcedValue], prefix: str
) -> None:
    """Do the same for the sections of these providers, whose classes need not be installed."""
    for name in names:
        start = f"{prefix}_{name}_".replace("-", "_")
        for file, value in credentials.items():
            if file.startswith(start):
                key = file.removeprefix(start)
                _use_credential(providers, name, key, f"{key}_file", value)


def _use_credential(raw: Raw, section: str, key: str, file_key: str, credential: SourcedValue | None) -> None:
    given: Any = raw.get(section, {})
    if credential is None or not isinstance(given, dict):
        return
    if all(one not in given or given[one].value in _EMPTY for one in (key, file_key)):
        raw.setdefault(section, {})[file_key] = credential


def read_secret_files(
    section: Any, config_class: type[Any], path_of: Callable[[str], str], complaints: Complaints
) -> None:
    """Replace each `<key>_file` of a section by `<key>` with the file's content; a list has one text a line.

    Args:
        section: its keys; anything but a table is left alone.
        path_of: returns the dotted path of one of its keys.
    """
    fields = fields_of(config_class)
    for file_key, key in secret_files_of(config_class).items() if isinstance(section, dict) else ():
        file, given = section.pop(file_key, None), section.get(key)
        if file is None or file.value == "":
            continue
        if given is not None and given.value not in _EMPTY:
            del section[key]
            problem = f"is given twice, also as {path_of(file_key)}"
            complaints.add(path_of(key), problem, file, hint=False)
            continue
        section.pop(key, None)
        try:
            text = _read_secret(file)
            lines = [line.strip() for line in text.splitlines() if line.strip()]
            takes_list = is_list(fields[key].type)
            section[key] = (
                evolve(file, value=lines, is_text=False) if takes_list else evolve(file, value=text)
            )
        except InvalidValue as error:
            complaints.add(path_of(file_key), error.problem, file)
            complaints.faulty.add(path_of(key))


def _read_secret(file: SourcedValue) -> str:
    """Return the content of a secret's file, without the newline at its end; raise InvalidValue."""
    if not isinstance(file.value, str):
        raise InvalidValue("must be the path of a file that holds the secret")
    try:
        text = file.resolve(file.value).read_bytes()[:_MAX_SECRET_BYTES].decode().rstrip("\r\n")
    except OSError as error:
        raise InvalidValue(f"cannot be read: {error.strerror or type(error).__name__}") from error
    except ValueError as error:
        raise InvalidValue("cannot be read: it is not a text file") from error
    if not text:
        raise InvalidValue("cannot be used: the file is empty")
    return text
