"""Reads settings from a file, the environment and flags, and validates them; all complaints come at once."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import attrs
from attrs import define, evolve, field

from gpugate.config import consistency
from gpugate.config.converter import Problem, fields_of, secret_files_of, structure
from gpugate.config.schema import (
    DEFAULT_SOURCE,
    LISTS,
    NO_FILE,
    SECTIONS,
    PodSettings,
    Settings,
    State,
)
from gpugate.config.sources import (
    Raw,
    SourcedValue,
    add_environment,
    complaint,
    credential_files,
    default_state_dir,
    display,
    put,
    read_file,
    variable_of,
)
from gpugate.config.validators import NOT_SHOWN, InvalidValue
from gpugate.errors import SettingsError

C = TypeVar("C")
ConfigOf = Callable[[str], type[Any]]
_MAX_SECRET_BYTES = 64 * 1024


def load_settings(
    path: Path | None,
    env: Mapping[str, str],
    *,
    overrides: Mapping[str, object] | None = None,
    complete: bool = True,
    config_of: ConfigOf | None = None,
    state_problem: Callable[[Path], str | None] | None = None,
) -> Settings:
    """Return the settings of a file (None: no file), variables over it, and `overrides` over both.

    Args:
        path: the file; relative paths in it are relative to its folder, those in variables are not.
        env: the environment; only `GPUGATE_<SECTION>__<KEY>` variables are used.
        overrides: dotted keys with a plain value, or with a SourcedValue that names its flag.
        complete: False does not require the keys that only `serve` needs.
        config_of: returns a provider's Config class by its name; if given, the sections of the selected
            providers are validated too.
        state_problem: returns what is wrong with the folder of `state.dir`, or None; for commands that use
            the folder.

    Raises:
        SettingsError: with every complaint.
    """
    raw = read_file(path) if path else {}
    add_environment(raw, env)
    for key, value in (overrides or {}).items():
        put(raw, key.split("."), _with_source(value, "command line"))

    complaints = _Complaints(str(path) if path else NO_FILE, raw, known_keys())
    complaints.reject_single_underscores(env)
    complaints.reject_single_tables(env)
    providers = _provider_sections(raw.pop("providers", {}), complaints)
    credentials = credential_files(env)
    _use_credentials(raw, credentials)
    _read_secret_files(raw, SECTIONS, complaints)
    structured, problems = structure(raw, Settings)
    complaints.add_problems(problems)
    settings = structured or Settings()
    for name in settings.pod.provider:  # a variable's name has no "-"
        if "-" in name and (of_variables := providers.pop(name.replace("-", "_"), None)):
            providers[name] = {**providers.get(name, {}), **of_variables}
    _use_provider_credentials(providers, settings.pod.provider, credentials)
    folder = path.parent if path else Path()
    settings = evolve(settings, providers=providers, source=complaints.source, folder=folder)
    if not settings.state.dir:
        settings = evolve(settings, state=State(dir=str(default_state_dir(env) or "")))

    complaints.add_all(consistency.contradictions(settings))
    complaints.add_all(consistency.missing(settings) if complete else ())
    if config_of:
        for name in settings.pod.provider:
            _check_provider(name, config_of, providers.get(name, {}), complaints)
    if state_problem and settings.state.dir and not complaints.is_faulty("state.dir"):
        found = state_problem(Path(settings.state.dir))
        complaints.add_all([("state.dir", f"{settings.state.dir} {found}")] if found else [])
    if complaints.lines:
        raise SettingsError(complaints.lines)
    return settings


def provider_config(
    settings: Settings, name: str, config_class: type[C], pod: PodSettings | None = None
) -> C:
    """Return a provider's Config, as `[providers.<name>]` and the pod's own section say.

    Args:
        pod: whose provider it is; None: the first pod's.

    Raises:
        SettingsError: with every complaint.
    """
    raw = (pod or settings.pods[0]).providers.get(name, {})
    return structure_provider_config(name, config_class, raw, source=settings.source, folder=settings.folder)


def structure_provider_config(
    name: str,
    config_class: type[C],
    raw: Mapping[str, object],
    *,
    source: str = DEFAULT_SOURCE,
    folder: Path | None = None,
) -> C:
    """Return a provider's Config of its section, validated as strictly as gpugate's own sections.

    Args:
        raw: the section's keys with plain values or SourcedValues.
        source: names the configuration in complaints.
        folder: what relative paths in plain values are relative to.

    Raises:
        SettingsError: with every complaint.
    """
    section = {key: _with_source(value, source, folder or Path()) for key, value in raw.items()}
    complaints = _Complaints(source, {"providers": {name: section}})
    config = _structure_provider(name, config_class, section, complaints)
    if complaints.lines or config is None:
        raise SettingsError(complaints.lines)
    return config


def known_keys() -> list[str]:
    """Return every dotted key of the settings, `<secret>_file` included, in the order of the classes."""
    return [
        f"{section}.{key}"
        for section, section_class in SECTIONS.items()
        for key in (*fields_of(section_class), *secret_files_of(section_class))
    ]


@define
class _Complaints:
    """Collects what is wrong with one configuration.

    Attributes:
        source: the configuration's name in complaints about keys that were not given.
        raw: what was given.
        known: every dotted key, for "did you mean".
        lines: the complaints, one line each.
        faulty: dotted keys and sections that were complained about.
    """

    source: str
    raw: Raw
    known: Sequence[str] = ()
    lines: list[str] = field(factory=list)
    faulty: set[str] = field(factory=set)

    def add(
        self, key: str, problem: str, given: SourcedValue | None = None, *, at: str = "", hint: bool = True
    ) -> None:
        """Add a complaint about a dotted key; `at` is the part of its value that is meant, such as "[1]"."""
        given = given or self._find(key.split("."))[0] or SourcedValue(None, self.source)
        self.lines.append(complaint(given, key, problem, at=at, hint=hint))
        self.faulty.add(key)

    def is_faulty(self, key: str) -> bool:
        """Return whether there is a complaint about a key, or about its section as a whole."""
        return not self.faulty.isdisjoint({key, key.partition(".")[0]})

    def add_all(self, findings: Iterable[tuple[str, str]]) -> None:
        """Add complaints, except about keys that have their default because their own value was at fault."""
        for key, problem in findings:
            if not self.is_faulty(key):
                self.add(key, problem)

    def add_problems(self, problems: Iterable[Problem], *prefix: str) -> None:
        """Add the problems of a class that was structured from the table at `prefix`."""
        for problem in problems:
            path = [*prefix, *problem.path]
            given, rest = self._find(path)
            key = ".".join(map(str, path[: len(path) - len(rest)]))
            is_list = key in LISTS
            at = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in rest)
            if problem.known is not None:
                self._add_unknown([*map(str, path)], problem.known, given, at if is_list else "")
            elif problem.text != "is missing" or key not in self.faulty:  # its file may be at fault
                bare = given is not None and given.is_text and not rest
                value = (
                    "" if problem.value is NOT_SHOWN else f", is {display(problem.value, quoted=not bare)}"
                )
                hint = len(path) > len(prefix) and not is_list  # no variable sets a list of tables
                self.add(key, problem.text + value, given, at=at, hint=hint)

    def reject_single_underscores(self, env: Mapping[str, str]) -> None:
        """Complain about variables with one underscore in place of two, which would be ignored silently."""
        meant_by = {variable_of(key).replace("__", "_"): variable_of(key) for key in self.known}
        for name in sorted(env):
            meant = meant_by.get(name)
            if name.startswith(variable_of("providers") + "_") and "__" not in name:
                meant = variable_of("providers.<name>.<key>")
            # GPUGATE_STATE_DIR passes the state folder to providers; Docker and Kubernetes set <SERVICE>_PORT
            if meant is None or name == "GPUGATE_STATE_DIR" or env[name].startswith(("tcp://", "udp://")):
                continue
            self.lines.append(f"{name}: unknown variable; did you mean {meant} (two underscores)?")

    def reject_single_tables(self, env: Mapping[str, str]) -> None:
        """Complain about a list of tables that is given as one table, or by variables."""
        for name in LISTS:
            wrong = [variable for variable in sorted(env) if variable.startswith(variable_of(name) + "__")]
            if isinstance(self.raw.get(name), dict):
                del self.raw[name]
                wrong = wrong or [f"{self.source}: {name}"]
            problem = f"must be tables in the file, each with the head [[{name}]]"
            self.lines += [f"{place}: {problem}" for place in wrong]

    def _find(self, path: Sequence[str | int]) -> tuple[SourcedValue | None, Sequence[str | int]]:
        """Return what was given along a path, and the part of the path that is within its value."""
        found: Any = self.raw
        for depth, part in enumerate(path):
            if isinstance(found, SourcedValue):
                return found, path[depth:]
            found = found.get(part) if isinstance(found, dict) else None
        return found if isinstance(found, SourcedValue) else None, ()

    def _add_unknown(
        self, path: list[str], known: Sequence[str], given: SourcedValue | None, at: str
    ) -> None:
        """Name the key that was probably meant: the same one of another section, or a similar one of this."""
        *section, last = path
        if at:  # in a list of tables
            place, close = f"{path[0]}{at.rpartition('.')[0]}", difflib.get_close_matches(last, known, n=1)
            says = f"did you mean {place}.{close[0]}?" if close else f"{place} has {', '.join(known)}"
            self.add(path[0], f"unknown key; {says}", given, at=at, hint=False)
            return
        names = [*known, "providers"] if not section else known
        meant = next((key for key in self.known if key.rpartition(".")[2] == last), None)
        if meant is None and (close := difflib.get_close_matches(last.lower(), names, n=1)):
            meant = ".".join([*section, close[0]])
        says = f"{'.'.join(section) or 'the configuration'} has {', '.join(names) or 'no keys'}"
        if meant is not None:
            also = f" ({variable_of(meant)})" if given is not None and given.is_text else ""
            says = f"did you mean {meant}{also}?"
        # of an unknown section: one complaint for the file, and one for each variable
        values = [given] if given else [*self.raw[last].values()]
        for value in {value.source: value for value in values}.values() or [None]:
            self.add(".".join(path), f"unknown {'key' if given else 'section'}; {says}", value, hint=False)


def _provider_sections(providers: Any, complaints: _Complaints) -> dict[str, dict[str, SourcedValue]]:
    """Return `[providers.<name>]` by name, not yet structured: their classes may not be installed."""
    if isinstance(providers, SourcedValue):
        complaints.add("providers", "must be sections, [providers.<name>]", providers, hint=False)
        return {}
    for name, section in providers.items():
        if isinstance(section, SourcedValue):
            how = f"[providers.{name}], with keys (a variable is GPUGATE_PROVIDERS__<NAME>__<KEY>)"
            complaints.add(f"providers.{name}", f"must be a section, {how}", section, hint=False)
    return {name: section for name, section in providers.items() if isinstance(section, dict)}


def _use_credentials(raw: Raw, credentials: Mapping[str, SourcedValue]) -> None:
    """Take each secret that is given nowhere else from the service manager's file of its name."""
    for section, section_class in SECTIONS.items():
        for file_key, key in secret_files_of(section_class).items():
            _use_credential(raw, section, key, file_key, credentials.get(f"{section}_{key}"))


def _use_provider_credentials(
    providers: dict[str, dict[str, SourcedValue]],
    names: Iterable[str],
    credentials: Mapping[str, SourcedValue],
) -> None:
    """Do the same for the configured providers, whose classes need not be installed."""
    for name in names:
        prefix = f"providers_{name.replace('-', '_')}_"
        for file, value in credentials.items():
            if file.startswith(prefix):
                key = file.removeprefix(prefix)
                _use_credential(providers, name, key, f"{key}_file", value)


def _use_credential(raw: Raw, section: str, key: str, file_key: str, credential: SourcedValue | None) -> None:
    given: Any = raw.get(section, {})
    if credential is None or not isinstance(given, dict):
        return
    if all(one not in given or given[one].value == "" for one in (key, file_key)):
        raw.setdefault(section, {})[file_key] = credential


def _check_provider(name: str, config_of: ConfigOf, section: Raw, complaints: _Complaints) -> None:
    try:
        config_class = config_of(name)
    except SettingsError as error:
        for line in error.complaints:
            complaints.add("pod.provider", line.removeprefix("pod.provider: "), hint=False)
    else:
        complaints.raw["providers"] = {name: section}
        _structure_provider(name, config_class, section, complaints)


def _structure_provider(name: str, config_class: type[C], section: Raw, complaints: _Complaints) -> C | None:
    path = f"providers.{name}"
    try:
        if not attrs.has(cast("type[Any]", config_class)):
            raise InvalidValue("its Config is no attrs class: ask its author")
        _read_secret_files({path: section}, {path: config_class}, complaints)
        config, problems = structure(section, config_class)
    except InvalidValue as error:  # also: an annotation of the class means nothing
        complaints.add(path, error.problem, hint=False)
        return None
    complaints.add_problems(problems, "providers", name)
    return config


def _read_secret_files(raw: Raw, classes: Mapping[str, type[Any]], complaints: _Complaints) -> None:
    """Replace each `<key>_file` of a section by `<key>` with the file's content."""
    for path, config_class in classes.items():
        section: Any = raw.get(path)
        for file_key, key in secret_files_of(config_class).items() if isinstance(section, dict) else ():
            file, given = section.pop(file_key, None), section.get(key)
            if file is None or file.value == "":
                continue
            if given is not None and given.value != "":
                del section[key]
                problem = f"is given twice, also as {path}.{file_key}"
                complaints.add(f"{path}.{key}", problem, file, hint=False)
                continue
            section.pop(key, None)
            try:
                section[key] = evolve(file, value=_read_secret(file))
            except InvalidValue as error:
                complaints.add(f"{path}.{file_key}", error.problem, file)
                complaints.faulty.add(f"{path}.{key}")


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


def _with_source(value: object, source: str, folder: Path = Path()) -> SourcedValue:
    return value if isinstance(value, SourcedValue) else SourcedValue(value, source, folder=folder)
