"""Reload: what differs, what of it is taken, and a whole gateway that reads its file again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpugate.config import Settings, load_settings
from gpugate.operation.reload import RELOADABLE, changed_keys, merged
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


def test_the_keys_that_a_reload_takes_exist() -> None:
    """A key that was renamed must be renamed here."""
    whole: Any = Settings()
    assert [] == [
        key
        for key in RELOADABLE
        if "." in key and not hasattr(getattr(whole, key.split(".")[0]), key.split(".")[1])
    ]
