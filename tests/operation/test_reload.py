"""Reload: what differs, what of it is taken, and a whole gateway that reads its file again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpugate.config import Settings, load_settings
from gpugate.operation.reload import RELOADABLE, changed_keys, is_reloadable, merged
from tests.config.support import ENOUGH, write


def settings(tmp_path: Path, text: str) -> Settings:
    """Settings of this file."""
    return load_settings(write(tmp_path, text), ENOUGH)


def test_what_differs(tmp_path: Path) -> None:
    """Dotted keys, by value: sections, lists of tables, providers."""
    old = settings(tmp_path, '[pod]\nidle_timeout = "15m"\n[providers.demo]\ncold_start = "1s"\n')
    new = settings(
        tmp_path,
        '[pod]\nidle_timeout = "5m"\n[server]\nport = 1\n[[wake]]\n[providers.demo]\ncold_start = "2s"\n',
    )

    assert [] == [*changed_keys(old, old)]
    assert ["server.port", "pod.idle_timeout", "wake", "providers.demo.cold_start"] == [
        *changed_keys(old, new)
    ]


def test_only_some_are_taken(tmp_path: Path) -> None:
    """The others keep their value, so that the next reload names them again."""
    old, new = settings(tmp_path, ""), settings(tmp_path, "[server]\nport = 1\n[pod]\nidle_timeout = 5\n")
    taken = merged(old, new, [key for key in changed_keys(old, new) if key in RELOADABLE])

    assert (11434, 5.0) == (taken.server.port, taken.pod.idle_timeout)
    assert ["server.port"] == [*changed_keys(taken, new)]


PODS = """
[pod]
idle_timeout = "15m"
[pods.a]
models = ["x"]
[pods.a.demo]
cold_start = "1s"
[pods.b]
idle_timeout = "5m"
"""


def taken_of(tmp_path: Path, before: str, after: str) -> tuple[list[str], Settings]:
    """The keys that differ, and the settings in force after a reload."""
    old, new = settings(tmp_path, before), settings(tmp_path, after)
    keys = [*changed_keys(old, new)]
    return keys, merged(old, new, [key for key in keys if is_reloadable(key)])


def idle_times(of: Settings) -> list[float]:
    """Of each pod."""
    return [pod.pod.idle_timeout for pod in of.pods]


def test_a_key_of_one_pod(tmp_path: Path) -> None:
    """It is named with the pod, and no other pod takes it."""
    keys, taken = taken_of(tmp_path, PODS, PODS.replace('"5m"', '"6m"'))
    assert (["pods.b.idle_timeout"], [900, 360]) == (keys, idle_times(taken))

    keys, taken = taken_of(tmp_path, PODS, PODS.replace('idle_timeout = "5m"', ""))
    assert (["pods.b.idle_timeout"], [900, 900]) == (keys, idle_times(taken))
    assert "pod.idle_timeout" == taken.pods[1].path_of("idle_timeout")


def test_a_key_of_all_pods(tmp_path: Path) -> None:
    """It is named once, and those take it that have none of their own."""
    keys, taken = taken_of(tmp_path, PODS, PODS.replace('"15m"', '"20m"'))
    assert (["pod.idle_timeout"], [1200, 300]) == (keys, idle_times(taken))


def test_what_of_pods_waits_for_a_restart(tmp_path: Path) -> None:
    """Patterns, providers, and pods that come, go or change places; the next reload names them again."""
    after = PODS.replace('["x"]', '["y"]').replace('"1s"', '"2s"') + "[pods.c]\n"
    keys, taken = taken_of(tmp_path, PODS, after)
    assert ["pods.a.models", "pods.a.demo.cold_start", "pods.c"] == keys
    assert taken == settings(tmp_path, PODS)

    assert ["pods.a"] == taken_of(tmp_path, "[pods.a]\n[pods.b]\n", "[pods.b]\n")[0]
    keys, taken = taken_of(tmp_path, "[pods.a]\n[pods.b]\n", "[pods.b]\n[pods.a]\n")
    assert (["pods"], ["a", "b"]) == (keys, [pod.name for pod in taken.pods])


def test_the_keys_that_a_reload_takes_exist() -> None:
    """A key that was renamed must be renamed here."""
    whole: Any = Settings()
    assert [] == [
        key
        for key in RELOADABLE
        if "." in key and not hasattr(getattr(whole, key.split(".")[0]), key.split(".")[1])
    ]
