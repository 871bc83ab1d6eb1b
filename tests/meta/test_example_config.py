"""examples/gpugate.toml is what `gpugate init` writes with all plugins of this repository installed."""

from __future__ import annotations

import re
import tomllib
from decimal import Decimal
from pathlib import Path
from typing import Any

import attrs
import pytest

from gpugate.config import commented_config, load_settings, structure_provider_config
from gpugate.config.converter import fields_of
from gpugate.config.schema import SECTIONS
from gpugate.config.template import written_default
from gpugate.providers import registry

EXAMPLE = Path(__file__).parents[2] / "examples" / "gpugate.toml"
PROVIDERS = {plugin.name: plugin.load() for plugin in registry.installed()}
OURS = {"demo", "local", "runpod", "vastai"}


def parsed() -> dict[str, Any]:
    """Return the example as TOML has it."""
    return tomllib.loads(EXAMPLE.read_text())


def test_the_example_is_what_init_writes() -> None:
    """There is one source of it: the classes (`gpugate init --force examples/gpugate.toml`)."""
    if missing := OURS - set(PROVIDERS):
        pytest.skip(f"not installed: {', '.join(sorted(missing))}")
    assert commented_config({name: PROVIDERS[name] for name in OURS}) == EXAMPLE.read_text()


def test_the_sections_and_their_order() -> None:
    """Every section is there, in the order of the classes."""
    assert [*SECTIONS, "providers"] == list(parsed())


@pytest.mark.parametrize("section", SECTIONS)
def test_the_keys_and_their_order(section: str) -> None:
    """Every key is there with its default, in the order of its class."""
    given = parsed()[section]
    fields = fields_of(SECTIONS[section])

    assert list(fields) == list(given)
    for key, attribute in fields.items():
        default = written_default(attribute)
        default = list(default) if isinstance(default, tuple) else default
        assert (key, float(default) if isinstance(default, Decimal) else default) == (key, given[key])


def test_every_key_is_explained() -> None:
    """No line of a key is without a comment."""
    bare = [line for line in EXAMPLE.read_text().splitlines() if re.match(r"\w+ = ", line)]

    assert [] == [line for line in bare if "  # " not in line]


def test_the_example_is_accepted() -> None:
    """With a secret and a provider it is a whole configuration, and it says nothing but the defaults."""
    env = {"HOME": "/h", "GPUGATE_AUTH__SECRET": "s" * 32, "GPUGATE_POD__PROVIDER": "demo"}

    example, nothing = load_settings(EXAMPLE, env), load_settings(None, env)

    assert nothing == attrs.evolve(
        example, providers=nothing.providers, source=nothing.source, folder=nothing.folder
    )


CREDENTIALS = {"api_key": "key", "pod_id": "pod", "instance_id": 1}


@pytest.mark.parametrize("name", sorted(OURS & set(PROVIDERS)))
def test_a_providers_section(name: str) -> None:
    """A provider's section has every key of its Config with its default, in the order of the class."""
    config_class = PROVIDERS[name].Config
    given = parsed()["providers"][name]
    required = {key: value for key, value in CREDENTIALS.items() if key in given}

    assert list(given) == list(fields_of(config_class))
    assert structure_provider_config(name, config_class, required) == structure_provider_config(
        name, config_class, {**given, **required}
    )


def test_a_providers_values() -> None:
    """Defaults that TOML cannot hold are commented out; tables and required keys are written."""

    @attrs.frozen
    class Config:
        """Short words."""

        key: str = attrs.field(repr=False, metadata={"help": "secret"})
        limit: float | None = None
        tags: dict[str, str] = attrs.field(factory=lambda: {"a": "b"})

    text = commented_config({"x": type("X", (), {"Config": Config})})

    section = text[text.index("[providers.x]") :].splitlines()
    assert [
        "[providers.x]  # Short words.",
        'key = ""                    # secret (or key_file)',
        "# limit =",
        'tags = {"a" = "b"}',
    ] == section
