"""One section of the configuration, with its secrets' files; collects complaints and raises none of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs
from attrs import define, field

from gpugate.config.converter import NO_VALUE, faults_of, is_secret, keys_of, types_of, value_of
from gpugate.config.given import Given, complaint, nearest, shown, variable
from gpugate.config.validators import Impossible

Section = Mapping[str, Given]
_LARGEST_SECRET = 64 * 1024


@define
class Reader:
    """Structures sections of one configuration, and keeps what is wrong with them.

    Attributes:
        source: the configuration's name in complaints.
        folder: what relative paths in it are relative to.
        known: every dotted key there is, for "did you mean".
        complaints: one line per mistake, in the order of the file.
        faulty: the dotted keys that were complained about.
    """

    source: str
    folder: Path
    known: Iterable[str] = ()
    complaints: list[str] = field(factory=list)
    faulty: set[str] = field(factory=set)

    def complain(
        self, given: Given | None, key: str, problem: str, *, hint: bool = True, at: str = ""
    ) -> None:
        """Keep one complaint about a dotted key; `at` is the part of it, such as "[1]"."""
        given = given or Given(None, self.source)
        self.complaints.append(complaint(given, key, problem, hint=hint, at=at))
        self.faulty.add(key)

    def section(self, path: str, config_class: type[Any], raw: Section) -> Any | None:
        """Return an instance of `config_class`, with defaults where a value is at fault.

        None where that cannot be: a needed key is missing or at fault, or the class itself refuses.
        """
        try:
            fields, types = keys_of(config_class), types_of(config_class)
        except Impossible as error:
            self.complain(None, path, error.problem, hint=False)
            return None
        secrets = {f"{key}_file": key for key, a in fields.items() if is_secret(a, types[key])}
        secrets = {file: key for file, key in secrets.items() if file not in fields}
        self._refuse_unknown(path, raw, {**fields, **secrets})
        values: dict[str, Any] = {}
        for key, attribute in fields.items():
            given = self._given(path, key, raw, f"{key}_file" if f"{key}_file" in secrets else None)
            if given is not None:
                self._add_value(values, path, key, attribute, types[key], given)
            elif attribute.default is attrs.NOTHING and f"{path}.{key}" not in self.faulty:
                self.complain(None, f"{path}.{key}", "is missing")
        return self._build(path, config_class, values, self._secrets_of(fields, values))

    def _refuse_unknown(self, path: str, raw: Section, known: Iterable[str]) -> None:
        keys = list(known)
        for key, given in raw.items():
            if key not in keys:
                self.unknown(given, f"{path}.{key}", [f"{path}.{k}" for k in keys])

    def unknown(self, given: Given, key: str, near: list[str]) -> None:
        """Complain about a key that nobody knows, with the nearest one: of its section, else of all."""
        section, _, last = key.rpartition(".")
        names = {k.rpartition(".")[2]: k for k in near}
        meant = names.get(nearest(last, names) or "")
        meant = meant or next((k for k in self.known if k.rpartition(".")[2] == last), None)
        if meant is not None:
            also = f" ({variable(meant)})" if given.untyped else ""
            self.complain(given, key, f"unknown key; did you mean {meant}{also}?", hint=False)
        else:
            has = f"[{section}] has {', '.join(names) or 'no keys'}" if section else "every key has a section"
            self.complain(given, key, f"unknown key; {has}", hint=False)

    def _given(self, path: str, key: str, raw: Section, file_key: str | None) -> Given | None:
        """Return what was given for a key, by itself or as a file that holds it."""
        given, file = raw.get(key), raw.get(file_key) if file_key else None
        if file is None or file.value == "":
            return given
        if given is not None and given.value != "":
            self.complain(file, f"{path}.{key}", f"is given twice, also as {path}.{file_key}", hint=False)
            return None
        return self._from_file(f"{path}.{key}", f"{path}.{file_key}", file)

    def _from_file(self, key: str, file_key: str, file: Given) -> Given | None:
        problem = "must be the path of a file that holds the secret"
        if isinstance(file.value, str):
            try:
                text = self.resolve(file).read_bytes()[:_LARGEST_SECRET].decode().rstrip("\r\n")
            except OSError as error:
                problem = f"cannot be read: {error.strerror or type(error).__name__}"
            except ValueError:
                problem = "cannot be read: it is no text file"
            else:
                if text:
                    return Given(text, file.source, file.untyped)
                problem = "cannot be used: the file is empty"
        self.complain(file, file_key, problem)
        self.faulty.add(key)
        return None

    def resolve(self, given: Given) -> Path:
        """Return a path, relative to the file that names it; raise OSError if `~` has no home."""
        try:
            path = Path(str(given.value)).expanduser()
        except RuntimeError as error:
            raise OSError(str(error)) from None
        return path if given.untyped else self.folder / path

    def _add_value(
        self, values: dict[str, Any], path: str, key: str, a: attrs.Attribute[Any], kind: Any, given: Given
    ) -> None:
        hidden = a.repr is False
        try:
            value = value_of(a, kind, given.value, untyped=given.untyped)
            if a.metadata.get("kind") == "path" and value:
                value = str(self.resolve(Given(value, given.source, given.untyped)).absolute())
        except Exception as error:
            for below, problem, at_fault in faults_of(error, given.value, hidden=hidden):
                quoted = not given.untyped or bool(below)  # in a JSON list of a variable, too
                tail = "" if at_fault is NO_VALUE else f", is {shown(at_fault, quoted=quoted)}"
                self.complain(given, f"{path}.{key}", problem + tail, at=below)
        else:
            values[key] = value

    def _build(
        self, path: str, config_class: type[Any], values: dict[str, Any], secrets: list[str]
    ) -> Any | None:
        try:
            return config_class(**values)
        except Exception as error:
            if not any(key.startswith(f"{path}.") for key in self.faulty):
                words = str(error)
                if any(secret in words for secret in secrets):
                    words = "is refused (the reason would show a secret)"
                self.complain(None, path, words, hint=False)
            return None

    @staticmethod
    def _secrets_of(fields: Mapping[str, attrs.Attribute[Any]], values: Mapping[str, Any]) -> list[str]:
        hidden = (values.get(key) for key, a in fields.items() if a.repr is False)
        flat = (part for v in hidden for part in (v.values() if isinstance(v, Mapping) else [v]))
        return [str(part) for part in flat if part]
