"""The seeded faults themselves: quick checks that `make mutants` would still mean something."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.mutants.faults import FAULTS, Fault

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.why)
def test_a_seeded_fault_has_its_place(fault: Fault) -> None:
    """Its text stands in the code exactly once, and something else would stand there afterwards."""
    text = (ROOT / "gpugate" / fault.file).read_text()
    assert text.count(fault.old) == 1
    assert fault.old != fault.new
    compile(text.replace(fault.old, fault.new), fault.file, "exec")


def test_the_count_in_the_docs() -> None:
    """`core/design.md` says how many there are."""
    said = re.search(r"(\d+) seeded faults", (ROOT / "gpugate/core/design.md").read_text())
    assert said is not None
    assert int(said[1]) == len(FAULTS)
