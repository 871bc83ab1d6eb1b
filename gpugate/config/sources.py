"""Where settings come from: the file, the environment, flags. Every value keeps its source for complaints."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import field, frozen

from gpugate.config.schema import DEFAULT_SOURCE
from gpugate.errors import SettingsError

ENV_PREFIX = "GPUGATE_"
SYSTEM_FOLDER = Path("/etc/gpugate")
CREDENTIALS = "CREDENTIALS_DIRECTORY"
"""The variable in which a service manager names a folder of secrets."""
_MAX_SHOWN = 60


@frozen
class SourcedValue:
    """A raw value and where it was given.

    Attributes:
        value: as the file, the variable or the flag has it; not in the repr, for it may be a secret.
        source: name of the file, the variable or the flag.
        is_text: True for text of a variable or a flag, which may stand for a number, a truth value or a list.
        folder: what a relative path is relative to.
    """

    value: object = field(repr=False)
    source: str
    is_text: bool = False
    folder: Path = Path()

    def resolve(self, path: str) -> Path:
        """Return `path` relative to `folder`, `~` expanded; raise OSError if this user has no home folder."""
        try:
            return self.folder / Path(path).expanduser()
        except RuntimeError as error:
            raise OSError(str(error)) from None


Raw = dict[str, Any]
"""{section: {key: SourcedValue}}; under "providers" and "pods" {name: {key: SourcedValue}}, and under a pod's
name also {provider: {key: SourcedValue}}."""
_DEPTHS = {"providers": 2, "pods": 3}


def default_configs(env: Mapping[str, str], folder: Path) -> list[Path]:
    """Return where a configuration is looked for: in `folder`, the user's folder, the system's."""
    base = _xdg_folder(env, "XDG_CONFIG_HOME", ".config")
    places = [folder, *([base / "gpugate"] if base else []), SYSTEM_FOLDER]
    return [place / DEFAULT_SOURCE for place in places]


def find_config(env: Mapping[str, str], folder: Path) -> Path | None:
    """Return the first of `default_configs` that exists, else None."""
    return next((path for path in default_configs(env, folder) if path.exists()), None)


def default_state_dir(env: Mapping[str, str]) -> Path | None:
    """Return the folder that a service manager names in STATE_DIRECTORY, the first of its list; else
    `$XDG_STATE_HOME/gpugate`, else `~/.local/state/gpugate`, else (no home folder) None.
    """
    given = Path(env.get("STATE_DIRECTORY", "").partition(":")[0])
    if given.is_absolute():
        return given
    base = _xdg_folder(env, "XDG_STATE_HOME", ".local/state")
    return base / "gpugate" if base else None


def _xdg_folder(env: Mapping[str, str], name: str, fallback: str) -> Path | None:
    folder = Path(env.get(name, ""))
    if folder.is_absolute():  # the XDG specification: a relative one is to be ignored
        return folder
    if env.get("HOME"):
        return Path(env["HOME"]) / fallback
    try:
        return Path.home() / fallback
    except RuntimeError:
        return None


def variable_of(key: str) -> str:
    """Return the environment variable of a dotted key: "pod.provider" is GPUGATE_POD__PROVIDER."""
    return ENV_PREFIX + key.upper().replace("-", "_").replace(".", "__")


def read_file(path: Path) -> Raw:
    """Return a TOML file's values; raise SettingsError with one line, which names the line at fault."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
        content = tomllib.loads(text)
    except OSError as error:
        problem = f"cannot be read: {error.strerror or type(error).__name__}"
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        problem = f"line {line}: is not UTF-8 text"
    except tomllib.TOMLDecodeError as error:
        message, _, place = str(error).partition(" (at ")
        found = re.match(r"line (\d+)", place)  # else it is "end of document"
        line = int(found[1]) if found else text.count("\n") + 1
        problem = f"line {line}: is no valid TOML: {message[:1].lower()}{message[1:]}"
    except RecursionError:
        problem = "is nested too deeply"
    except ValueError:
        problem = "holds a value that is not valid TOML"
    else:
        return {
            name: _sourced(value, str(path), path.parent, depth=_DEPTHS.get(name, 1))
            for name, value in content.items()
        }
    raise SettingsError([f"{path}: {problem}"])


def _sourced(value: Any, source: str, folder: Path, *, depth: int) -> Any:
    if depth == 0 or not isinstance(value, dict):
        return SourcedValue(value, source, folder=folder)
    return {
        key.lower() if depth == 2 and isinstance(inner, dict) else key:  # a provider's name
        _sourced(inner, source, folder, depth=depth - 1)
        for key, inner in value.items()
    }


def add_environment(raw: Raw, env: Mapping[str, str]) -> None:
    """Put the variables over `raw`: `GPUGATE_<SECTION>__<KEY>`, `GPUGATE_PROVIDERS__<NAME>__<KEY>`,
    `GPUGATE_PODS__<NAME>__<KEY>` and `GPUGATE_PODS__<NAME>__<PROVIDER>__<KEY>`.
    """
    in_file = raw.get("pods")
    pods = {name.replace("-", "_"): name for name in in_file} if isinstance(in_file, dict) else {}
    for variable in sorted(env):
        if not variable.startswith(ENV_PREFIX) or "__" not in variable:
            continue
        section, *rest = variable.removeprefix(ENV_PREFIX).lower().split("__")
        names = rest[: min(len(rest), _DEPTHS.get(section, 1)) - 1]
        key = "__".join(rest[len(names) :])
        path = [section, *names, key]
        if section == "pods":
            path[1] = pods.get(path[1], path[1].replace("_", "-"))
        put(raw, path, SourcedValue(env[variable], variable, is_text=True))


def credential_files(env: Mapping[str, str]) -> dict[str, SourcedValue]:
    """Return the files in the folder of CREDENTIALS_DIRECTORY, by name; empty without one.

    A file is named after the key that it is for: `auth_secret`, `providers_runpod_api_key`.
    """
    folder = Path(env.get(CREDENTIALS, ""))
    try:
        names = sorted(file.name for file in folder.iterdir()) if folder.is_absolute() else []
    except OSError as error:
        raise SettingsError([f"{CREDENTIALS}: {folder} cannot be read: {error.strerror}"]) from error
    return {name: SourcedValue(str(folder / name), CREDENTIALS, is_text=True) for name in names}


def put(raw: Raw, path: list[str], value: SourcedValue) -> None:
    """Set one value; a section that the file has as a plain value is left alone, it is refused later."""
    *sections, key = path
    table: Any = raw
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            return
    table[key] = value


def complaint(given: SourcedValue, key: str, problem: str, *, at: str, hint: bool) -> str:
    """Return one line: source, dotted key, problem, and with `hint` the variable that also sets the key.

    `at` is the part of the key's value that is meant, such as "[1]".
    """
    also = f" (or {variable_of(key)})" if hint and not given.is_text else ""
    text = f"{given.source}: {key}{at}: {problem}{also}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def display(value: object, *, quoted: bool = True) -> str:
    """Return a value as it is written, short and on one line.

    A number as text of a variable or a flag (`quoted` is False) is shown without the quotes it never had.
    """
    if not quoted and isinstance(value, str) and re.fullmatch(r"[+-]?\.?[0-9][\w. ]*", value, re.ASCII):
        text = value
    elif isinstance(value, dict):
        text = "a table"
    else:
        try:
            text = json.dumps(value, ensure_ascii=False, default=str)
        except ValueError:  # Python writes no integer of more than 4,300 digits
            text = "a huge number"
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."
