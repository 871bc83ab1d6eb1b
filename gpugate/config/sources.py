"""Where settings stand: the file, the environment, the flags; knows no key's meaning."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpugate.config.given import ENV_PREFIX, Given
from gpugate.config.schema import DEFAULT_SOURCE
from gpugate.errors import SettingsError

Raw = dict[str, Any]  # {section: {key: Given}}, with one more floor under "providers"


def find_config(env: Mapping[str, str], folder: Path) -> Path | None:
    """Return the configuration to use when none is named: `./gpugate.toml`, else the user's, else None."""
    here = folder / DEFAULT_SOURCE
    if here.exists():
        return Path(DEFAULT_SOURCE) if folder == Path() else here
    home = _xdg(env, "XDG_CONFIG_HOME", ".config")
    there = home / "gpugate" / DEFAULT_SOURCE if home else None
    return there if there and there.exists() else None


def default_state_dir(env: Mapping[str, str]) -> Path | None:
    """Return `$XDG_STATE_HOME/gpugate`, else `~/.local/state/gpugate`, else (no home) None."""
    home = _xdg(env, "XDG_STATE_HOME", ".local/state")
    return home / "gpugate" if home else None


def _xdg(env: Mapping[str, str], name: str, fallback: str) -> Path | None:
    given = Path(env.get(name, ""))
    if given.is_absolute():  # the XDG specification: a relative one is to be ignored
        return given
    if env.get("HOME"):
        return Path(env["HOME"]) / fallback
    try:
        return Path.home() / fallback
    except RuntimeError:
        return None


def read_file(path: Path) -> dict[str, Any]:
    """Return a TOML file's content; raise SettingsError with one line, which says where a slip is."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
        return tomllib.loads(text)
    except OSError as error:
        problem = f"cannot be read: {error.strerror or type(error).__name__}"
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        problem = f"line {line}: is not UTF-8 text"
    except tomllib.TOMLDecodeError as error:
        problem = _syntax_problem(str(error), text)
    except RecursionError:
        problem = "is nested too deeply"
    except ValueError:
        problem = "holds a value that is no TOML"
    raise SettingsError([f"{path}: {problem}"])


def _syntax_problem(message: str, text: str) -> str:
    """Return "line 3: ..." for tomllib's "... (at line 3, column 10)"."""
    words, _, place = message.partition(" (at ")
    if place.startswith("line "):
        line = place.removeprefix("line ").partition(",")[0]
    else:  # "(at end of document)"
        line = str(text.count("\n") + 1)
    return f"line {line}: is no valid TOML: {words[:1].lower()}{words[1:]}"


def from_file(content: Mapping[str, Any], source: str) -> Raw:
    """Return a file's content, each value with its source; a section that is none is a Given."""
    return {
        section: _given_section(value, source, floors=2 if section == "providers" else 1)
        for section, value in content.items()
    }


def _given_section(value: Any, source: str, *, floors: int) -> Any:
    if not isinstance(value, dict):
        return Given(value, source)
    if floors == 1:
        return {key: Given(inner, source) for key, inner in value.items()}
    return {key.lower(): _given_section(inner, source, floors=floors - 1) for key, inner in value.items()}


def add_environment(raw: Raw, env: Mapping[str, str], provider_names: list[str]) -> None:
    """Put `GPUGATE_<SECTION>__<KEY>` variables over `raw`.

    A variable has no "-": GPUGATE_PROVIDERS__MY_CLOUD__KEY means the provider "my-cloud" if that is
    one of `provider_names` or of the file.
    """
    for name in sorted(env):
        if not name.startswith(ENV_PREFIX) or "__" not in name:
            continue
        section, *keys = name.removeprefix(ENV_PREFIX).lower().split("__")
        given = Given(env[name], name, untyped=True)
        if section == "providers" and len(keys) >= 2:
            names = [*provider_names, *_names(raw.get("providers"))]
            provider = next((n for n in names if n.replace("-", "_") == keys[0]), keys[0])
            _put(raw, ["providers", provider, "__".join(keys[1:])], given)
        else:
            _put(raw, [section, "__".join(keys)], given)


def add_overrides(raw: Raw, overrides: Mapping[str, object]) -> None:
    """Put dotted keys over `raw`; a plain value is taken as typed and called "command line"."""
    for dotted, value in overrides.items():
        given = value if isinstance(value, Given) else Given(value, "command line")
        _put(raw, dotted.split("."), given)


def _names(providers: object) -> list[str]:
    return list(providers) if isinstance(providers, dict) else []


def _put(raw: Raw, path: list[str], given: Given) -> None:
    *floors, key = path
    for floor in floors:
        below = raw.setdefault(floor, {})
        if not isinstance(below, dict):
            return  # `pod = 3` in the file: that is complained about anyway
        raw = below
    raw[key] = given
