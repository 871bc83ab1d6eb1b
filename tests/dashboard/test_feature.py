"""The dashboard's files: which there are, their headers, and that they need nothing from elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import gpugate.dashboard.feature as dashboard
from gpugate.dashboard.feature import FILES, PAGE, dashboard_routes

STATIC = Path(dashboard.__file__).parent / "static"
OURS = sorted(path.name for path in STATIC.iterdir() if not path.name.startswith("uplot"))


def test_every_file_is_served() -> None:
    """No file lies there for nothing, and the page is at one path only."""
    assert {"index.html", *FILES} == {path.name for path in STATIC.iterdir()}
    assert {PAGE, f"{PAGE}/", *(f"{PAGE}/{name}" for name in FILES)} == set(dashboard_routes())


@pytest.mark.parametrize("name", OURS)
def test_nothing_inline_and_nothing_from_elsewhere(name: str) -> None:
    """The policy forbids it: a browser would leave it out without a word."""
    text = (STATIC / name).read_text()

    assert not re.search(r"<style|\bstyle=|<script>|\bon\w+=\"|innerHTML|javascript:", text)
    assert not re.search(r"https?://(?!www\.w3\.org/)", text)
    assert not re.search(r"""(?:src|href)=["']/""", text)  # a path prefix would be lost
