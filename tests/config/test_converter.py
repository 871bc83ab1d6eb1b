"""A plugin's own Config: as strict as gpugate's settings, whatever its class looks like."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

import attrs
import pytest
from attrs import field, frozen, validators
from hypothesis import given
from hypothesis import strategies as st

from gpugate import Duration, Size
from gpugate.config import SourcedValue, structure_provider_config
from gpugate.config.sources import add_environment
from gpugate.errors import SettingsError

HIDDEN = "do-not-show-me"


class Choice(StrEnum):
    """A choice."""

    SMALL = "small"
    LARGE = "large"


@frozen
class Rack:
    """A table within the section."""

    rows: int = 1
    note: str | None = None


@frozen
class Config:
    """All that a plugin may think of."""

    api_key: str = field(default="", repr=False)
    timeout: Duration = 10.0
    memory: Size = 0
    pace: float = 1.0
    port: int = field(default=1, validator=validators.ge(1))
    ratio: Decimal = Decimal("0.5")
    command: list[str] = field(factory=list)
    ids: tuple[int, ...] = ()
    headers: Mapping[str, str] = field(factory=dict, repr=False)
    size: Choice = Choice.SMALL
    scheme: Literal["http", "https"] = "http"
    region: str | None = None
    limit: float | None = None
    folder: Path = Path()
    racks: list[Rack] = field(factory=list)
    rack: Rack = field(factory=Rack)
    flag: bool = False
    upper: str = field(default="", converter=str.upper)
    derived: str = field(init=False, default="x")


def config(raw: Mapping[str, object], env: Mapping[str, str] | None = None) -> Config:
    """Structure a section of the provider "x"."""
    return structure_provider_config("x", Config, {**raw, **of_env(env or {})})


def of_env(env: Mapping[str, str]) -> dict[str, SourcedValue]:
    """Return the values that variables give to the provider "x"."""
    raw: dict[str, Any] = {}
    add_environment(raw, env)
    values: dict[str, SourcedValue] = raw.get("providers", {}).get("x", {})
    return values


def complaints(raw: Mapping[str, object], config_class: type[Any] = Config) -> list[str]:
    """Return what is wrong with a section, without the words that all lines begin with."""
    with pytest.raises(SettingsError) as caught:
        structure_provider_config("x", config_class, raw)
    return [
        line.removeprefix("gpugate.toml: providers.x").partition(" (or ")[0]
        for line in caught.value.complaints
    ]


def test_a_section_with_everything() -> None:
    """Each value becomes what the class says."""
    got = config(
        {
            "api_key": "k",
            "timeout": "1m30s",
            "memory": "2GiB",
            "ratio": 0.44,
            "command": ["a", "b"],
            "ids": [1, 2],
            "headers": {"X-Token": "t"},
            "size": "large",
            "scheme": "https",
            "region": "eu",
            "limit": 3,
            "folder": "/tmp",
            "racks": [{"rows": 3}],
            "rack": {"note": "n"},
            "flag": True,
            "upper": "abc",
        }
    )

    assert (
        Config(
            api_key="k",
            timeout=90.0,
            memory=2**31,
            ratio=Decimal("0.44"),
            command=["a", "b"],
            ids=(1, 2),
            headers={"X-Token": "t"},
            size=Choice.LARGE,
            scheme="https",
            region="eu",
            limit=3.0,
            folder=Path("/tmp"),
            racks=[Rack(rows=3)],
            rack=Rack(note="n"),
            flag=True,
            upper="abc",
        )
        == got
    )


def test_variables_of_a_provider() -> None:
    """Text of variables stands for numbers, lists and tables; other providers' variables do not count."""
    env = {
        "GPUGATE_PROVIDERS__X__PORT": "8188",
        "GPUGATE_PROVIDERS__X__TIMEOUT": "6s",
        "GPUGATE_PROVIDERS__X__COMMAND": '["ollama", "serve"]',
        "GPUGATE_PROVIDERS__X__IDS": "1, 2",
        "GPUGATE_PROVIDERS__X__HEADERS": '{"A": "b"}',
        "GPUGATE_PROVIDERS__X__FLAG": "YES",
        "GPUGATE_PROVIDERS__X__RATIO": "0.10",
        "GPUGATE_PROVIDERS__X__REGION": "12",
        "GPUGATE_PROVIDERS__XY__NO": "1",
        "GPUGATE_POD__NO": "1",
    }

    assert Config(
        port=8188,
        timeout=6.0,
        command=["ollama", "serve"],
        ids=(1, 2),
        headers={"A": "b"},
        flag=True,
        ratio=Decimal("0.10"),
        region="12",
    ) == config({"port": 1}, env)


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("timeout", "soon", ".timeout: must be a duration"),
        ("memory", 1.5, ".memory: must be a size"),
        ("pace", "6s", ".pace: must be a number"),
        ("pace", True, ".pace: must be a number"),
        ("pace", float("nan"), ".pace: must be a number"),
        ("pace", 10**400, ".pace: must be a number"),
        ("port", 1.5, ".port: must be a whole number"),
        ("port", "12", ".port: must be a whole number"),
        ("port", 0, ".port: 'port' must be >= 1: 0"),
        ("command", "ollama serve", ".command: must be a list, is"),
        ("command", ["a", 1], ".command[1]: must be text, is 1"),
        ("ids", [1, [2]], ".ids[1]: must be a whole number, is [2]"),
        ("headers", ["a"], ".headers: must be a table"),
        ("size", "huge", '.size: must be "small" or "large", is "huge"'),
        ("scheme", "ftp", '.scheme: must be "http" or "https", is "ftp"'),
        ("scheme", [], ".scheme: must be"),
        ("region", 3, ".region: must be text"),
        ("folder", 3, ".folder: must be a path"),
        ("rack", 3, ".rack: must be a table"),
        ("rack", {"row": 3}, ".rack.row: unknown key; did you mean providers.x.rack.rows?"),
        ("racks", [{"rows": "3"}], '.racks[0].rows: must be a whole number, is "3"'),
        ("flag", 1, ".flag: must be true or false"),
        ("derived", "y", ".derived: unknown key"),
        ("prt", 3, ".prt: unknown key; did you mean providers.x.port?"),
    ],
)
def test_a_wrong_value(key: str, value: object, problem: str) -> None:
    """Nothing is bent until it fits: each wrong value is one complaint, with its key."""
    (line,) = complaints({key: value})

    assert line.startswith(problem)
    assert "\n" not in line


def test_a_list_that_is_text() -> None:
    """Where the class has a default, it shows how a list is written."""

    @frozen
    class Runs:
        command: list[str] = field(factory=lambda: ["ollama", "serve"])

    said = '.command: must be a list such as ["ollama", "serve"], is "ollama serve"'
    assert [said] == complaints({"command": "ollama serve"}, Runs)


def test_a_duration_of_a_provider() -> None:
    """A field that says so is read, and complained about, as a duration."""

    @frozen
    class Slow:
        cold_start: Duration = 6.0

    (line,) = complaints({"cold_start": "x"}, Slow)
    assert line.startswith('.cold_start: must be a duration such as "90s", "15m" or "1h30m"')
    assert Slow(90.0) == structure_provider_config("x", Slow, {"cold_start": "1m30s"})


def test_several_wrong_values() -> None:
    """All of them are told."""
    assert 3 == len(complaints({"port": 0, "timeout": "x", "nonsense": 1}))


@frozen
class Careful:
    """A Config whose own checks would quote a secret."""

    api_key: str = field(repr=False, validator=validators.matches_re("[a-z]+"))
    headers: dict[str, str] = field(factory=dict, repr=False)
    other: str = ""

    def __attrs_post_init__(self) -> None:
        if self.other:
            raise ValueError(f"no {self.other} with {self.api_key}")


@pytest.mark.parametrize(
    "raw",
    [
        {"api_key": HIDDEN},
        {"api_key": [HIDDEN]},
        {"api_key": "abc", "headers": HIDDEN},
        {"api_key": "abc", "headers": {"a": [HIDDEN]}},
    ],
)
def test_a_plugins_secret_is_never_quoted(raw: dict[str, object]) -> None:
    """A validator that quotes the value is not repeated where the value is a secret."""
    (line,) = complaints(raw, Careful)

    assert HIDDEN not in line


def test_a_check_of_the_whole_class() -> None:
    """What the class itself refuses is told, unless that would show a secret."""
    assert [": is refused (the reason would show a secret)"] == complaints(
        {"api_key": "abc", "other": "o"}, Careful
    )


def test_a_needed_key() -> None:
    """A key without a default is missing by name; a file may give it."""
    assert [".api_key: is missing"] == complaints({}, Careful)


def test_a_plugins_secret_file(tmp_path: Path) -> None:
    """Text with repr=False is a secret, which <key>_file gives too."""
    (tmp_path / "key").write_text("abc\n")

    got = structure_provider_config("x", Careful, {"api_key_file": "key"}, folder=tmp_path)

    assert "abc" == got.api_key
    assert [".headers_file: unknown key; did you mean providers.x.headers?"] == complaints(
        {"api_key": "abc", "headers_file": "key"}, Careful
    )


def test_a_plugin_that_has_the_file_key_itself() -> None:
    """A field named <secret>_file is the plugin's own."""

    @frozen
    class Own:
        key: str = field(default="", repr=False)
        key_file: str = ""

    assert "k" == structure_provider_config("x", Own, {"key_file": "k"}).key_file


def test_a_validator_that_looks_at_the_whole() -> None:
    """A validator that needs the instance is heard when there is one."""

    @frozen
    class Pair:
        low: int = 0
        high: int = field(default=1)

        @high.validator
        def _above(self, _attribute: object, value: int) -> None:
            if value < self.low:
                raise ValueError("must be at least low")

    assert Pair(1, 2) == structure_provider_config("x", Pair, {"low": 1, "high": 2})
    assert [": must be at least low"] == complaints({"low": 3, "high": 2}, Pair)


def test_a_config_that_is_none() -> None:
    """A class that is no attrs class, or whose annotations mean nothing, is the plugin's fault."""

    class Plain:
        pass

    broken = attrs.make_class("Broken", {"a": field(default=0, type="Nowhere")})  # type: ignore[arg-type]

    assert [": its Config is no attrs class: ask its author"] == complaints({}, Plain)
    (line,) = complaints({}, broken)
    assert line.startswith(": its class cannot be read: NameError")


Raw = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


KEYS = st.sampled_from([a.name for a in attrs.fields(Config)])


def outcome(raw: Mapping[str, object], env: Mapping[str, str] | None = None) -> list[str] | Config:
    """Return a Config, or the complaints."""
    try:
        return config(raw, env)
    except SettingsError as error:
        return list(error.complaints)


@given(KEYS, Raw)
def test_any_value(key: str, value: object) -> None:
    """Whatever a key is given, it is structured or complained about; nothing else happens."""
    got = outcome({key: value})

    complaints = [] if isinstance(got, Config) else got
    assert [] == [line for line in complaints if "\n" in line or f"providers.x.{key}" not in line]
    assert isinstance(got, Config) or complaints


@given(KEYS, st.text(max_size=12))
def test_any_variable(key: str, text: str) -> None:
    """The same for text of a variable."""
    got = outcome({}, {f"GPUGATE_PROVIDERS__X__{key.upper()}": text})

    assert isinstance(got, Config) or (got and not any("\n" in line for line in got))
