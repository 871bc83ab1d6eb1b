"""The example configuration, the classes and the contract's defaults are one and the same."""

from __future__ import annotations

import re
import tomllib
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import attrs
import pytest

from gpugate.config import commented_config, load_settings, structure_provider_config
from gpugate.config.converter import keys_of
from gpugate.config.schema import SECTIONS
from gpugate.config.template import default_of

EXAMPLE = Path(__file__).parents[2] / "examples" / "gpugate.toml"
PROVIDERS = {
    "runpod": ("gpugate_runpod", "RunPod"),
    "vastai": ("gpugate_vastai", "VastAi"),
    "local": ("gpugate.providers.local", "Local"),
    "demo": ("gpugate_demo.provider", "Demo"),
}


def parsed() -> dict[str, Any]:
    """Return the example as TOML has it."""
    return tomllib.loads(EXAMPLE.read_text())


def test_the_example_is_what_init_writes() -> None:
    """There is one source of it: the classes (`gpugate init --force examples/gpugate.toml`)."""
    assert commented_config() == EXAMPLE.read_text()


def test_the_sections_and_their_order() -> None:
    """Every section is there, in the order of the classes."""
    assert [*SECTIONS, "providers"] == list(parsed())


@pytest.mark.parametrize("section", SECTIONS)
def test_the_keys_and_their_order(section: str) -> None:
    """Every key is there with its default, in the order of its class."""
    given = parsed()[section]
    fields = keys_of(SECTIONS[section])

    assert list(fields) == list(given)
    for key, attribute in fields.items():
        default = default_of(attribute)
        default = list(default) if isinstance(default, tuple) else default
        assert (key, float(default) if isinstance(default, Decimal) else default) == (key, given[key])


def test_every_key_is_explained() -> None:
    """No line of a key is without a comment."""
    bare = [
        line
        for line in EXAMPLE.read_text().partition("# Providers.")[0].splitlines()
        if re.match(r"\w+ = ", line)
    ]

    assert [] == [line for line in bare if "  # " not in line]


def test_the_example_is_accepted() -> None:
    """With a secret and a provider it is a whole configuration, and it says nothing but the defaults."""
    env = {"HOME": "/h", "GPUGATE_AUTH__SECRET": "s" * 32, "GPUGATE_POD__PROVIDER": "demo"}

    example, nothing = load_settings(EXAMPLE, env), load_settings(None, env)

    assert nothing == attrs.evolve(
        example, providers=nothing.providers, source=nothing.source, folder=nothing.folder
    )


CREDENTIALS = {"api_key": "key", "pod_id": "pod", "instance_id": 1}


@pytest.mark.parametrize("name", PROVIDERS)
def test_a_providers_section(name: str) -> None:
    """What it shows of a provider's section are keys of its Config, with their defaults, in its order."""
    module, class_name = PROVIDERS[name]
    if not _is_there(module):
        pytest.skip(f"{name} is not installed")
    config_class = _config_class(module, class_name)
    given = parsed()["providers"][name]

    needed = {key: value for key, value in CREDENTIALS.items() if key in given}
    shown = structure_provider_config(name, config_class, {**given, **needed})

    assert list(given) == [key for key in keys_of(config_class) if key in given]
    assert structure_provider_config(name, config_class, needed) == shown


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _config_class(module: str, class_name: str) -> type[Any]:
    found = __import__(module, fromlist=[class_name])
    names = {name.lower(): value for name, value in vars(found).items()}
    return names[class_name.lower()].Config
