"""Which pod serves a request, by the request alone."""

from __future__ import annotations

from collections.abc import Set
from functools import partial
from types import SimpleNamespace
from typing import cast

import pytest
from attrs import frozen

from gpugate.config.schema import PodSettings
from gpugate.errors import PathNotFound
from gpugate.fleet import MAX_REMEMBERED, Fleet, FleetPod
from gpugate.ollama.routes import WakePaths, match_route
from gpugate.ollama.validation import MAX_MODEL_NAME


@frozen
class Remembered:
    """A catalogue that has these models."""

    names: Set[str] = frozenset()

    def has(self, names: Set[str]) -> bool:
        """As `CatalogCache.has`."""
        return not names.isdisjoint(self.names)


def pod(
    name: str, *models: str, has: Set[str] = frozenset(), engine: str = "ollama", extra: str = "/score"
) -> FleetPod:
    """A pod with these patterns, whose catalogue has these models; nothing else of it is asked."""
    made = SimpleNamespace(
        name=name,
        settings=PodSettings(name=name, models=models),
        catalog=SimpleNamespace(catalog=Remembered(has)),
        speaks_ollama=engine == "ollama",
        extra_paths=WakePaths.of([extra]),
    )
    made.has_path = partial(FleetPod.has_path, cast(FleetPod, made))
    return cast(FleetPod, made)


def test_one_pod_serves_everything():
    """Whatever the model is."""
    fleet = Fleet([pod("main", "llava*")])
    assert "main" == fleet.pod_for("qwen3:8b").name
    assert fleet.only is fleet.first


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("llava", "pictures"),
        ("llava:13b", "pictures"),
        ("qwen2.5-coder:7b", "code"),
        ("qwen2.5-coder", "code"),  # has the tag "latest", and the catalogue of "code" has that one
        ("llama3.2:3b", "pictures"),  # by the second pattern of "pictures", before "code" is asked
        ("Llama3.2:3b", "home"),  # patterns look at the case
        ("never-heard-of", "home"),
        (None, "home"),
        ("", "home"),
    ],
)
def test_pod_of_a_model(model, name):
    """Patterns first, in the file's order; then the catalogues; then the first pod."""
    fleet = Fleet(
        [
            pod("home"),
            pod("pictures", "llava*", "llama3.?:3b"),
            pod("code", "qwen2.5-coder:7b", "llama3.2:3b", has={"qwen2.5-coder:latest"}),
        ]
    )
    assert None is fleet.only
    assert name == fleet.pod_for(model).name
    assert name == fleet.pod_for(model).name  # as remembered


def test_pod_by_name():
    """Another name is refused, and the refusal does not repeat it."""
    fleet = Fleet([pod("home"), pod("code")])
    assert "code" == fleet.named("code").name
    with pytest.raises(PathNotFound, match="no such pod; there is home, code"):
        fleet.named("<script>")


def test_models_without_end():
    """Clients can name any number of models: what is remembered of them is bounded."""
    fleet = Fleet([pod("home"), pod("code", "code*")])
    for number in range(2 * MAX_REMEMBERED + 1):
        assert "home" == fleet.pod_for(f"model-{number}").name
    assert len(fleet._by_pattern) <= MAX_REMEMBERED
    assert "code" == fleet.pod_for("code-x").name


@pytest.mark.parametrize("length", [MAX_MODEL_NAME + 1, 1_000_000])
def test_a_model_of_any_length(length):
    """It is matched in no time, whatever the patterns, and not remembered."""
    fleet = Fleet([pod("home"), pod("code", "*a*b*c*d"), pod("rest", "*a*")])
    assert "rest" == fleet.pod_for("a" * length).name
    assert {} == fleet._by_pattern


@pytest.mark.parametrize(
    ("pattern", "model", "matches"),
    [
        ("llava", "llava:latest", True),
        ("llava:latest", "llava", True),
        ("llava", "llava:13b", False),
        ("llava*", "llava:13b", True),
        ("hf.co/a/b", "hf.co/a/b:latest", True),
        ("hf.co:443/a", "hf.co:443/a:latest", True),
        ("q?en", "qwen", True),
        ("q?en", "qen", False),
        ("a.b", "axb", False),
        ("[ab]", "a", False),
        ("a+", "aa", False),
        ("llava:*", "llava", True),  # that is llava:latest
        ("a[b", "a[b:latest", True),
        ("*", "two\nlines", True),
    ],
)
def test_pattern(pattern, model, matches):
    """Only `*` and `?` are wild."""
    fleet = Fleet([pod("home"), pod("code", "no", pattern)])
    assert ("code" if matches else "home") == fleet.pod_for(model).name


EXTRA = WakePaths.of(["/score", "/tokenize"])


@pytest.mark.parametrize(
    ("path", "model", "name"),
    [
        ("/api/chat", None, "home"),
        ("/api/chat", "never-heard-of", "home"),
        ("/api/chat", "both:1b", "home"),
        ("/api/chat", "Qwen/7B", "fast"),
        ("/api/chat", "own:1b", "fast"),
        ("/v1/chat/completions", None, "fast"),
        ("/v1/chat/completions", "both:1b", "fast"),
        ("/tokenize", None, "home"),
        ("/tokenize", "Qwen/7B", "fast"),
        ("/tokenize", "never-heard-of", "home"),
        ("/score", None, "fast"),
    ],
)
def test_other_engines(path: str, model: str | None, name: str):
    """A path that not every pod has is one more reason, behind the patterns."""
    fast = pod("fast", "Qwen/*", has={"both:1b", "own:1b"}, engine="openai")
    fleet = Fleet([fast, pod("home", has={"both:1b"}, extra="/tokenize")])
    assert name == fleet.pod_for(model, match_route("POST", path, extra_paths=EXTRA)).name
