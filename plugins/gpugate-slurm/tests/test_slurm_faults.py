"""Every call × every fault, once and three times: FAULTS.md says what comes of it, and is held to it."""

from __future__ import annotations

import pytest
from slurm_matrix import OPERATIONS, expected, row

EXPECTED = expected()
ROWS = [
    (way, call, fault)
    for way, calls in OPERATIONS.items()
    for call, faults in calls.items()
    for fault in faults
]
TOLERANCE_S = 5


def test_the_document() -> None:
    """It has a row for every fault of every call, and no other."""
    assert list(EXPECTED) == ROWS


@pytest.mark.parametrize(("way", "call", "fault"), ROWS, ids=["-".join(row) for row in ROWS])
def test_a_fault(way: str, call: str, fault: str) -> None:
    """The client's outcome, the number of jobs and their time are as documented; nothing is left running."""
    for wanted, got in zip(EXPECTED[way, call, fault], row(way, call, fault), strict=True):
        assert (wanted.outcome, wanted.jobs) == (got.outcome, got.jobs)
        assert wanted.ran_s == pytest.approx(got.ran_s, abs=TOLERANCE_S)


@pytest.mark.parametrize("row", EXPECTED.values(), ids=["-".join(row) for row in EXPECTED])
def test_two_jobs_never(row: list) -> None:
    """No fault makes a second job that runs."""
    assert all(cell.jobs <= 1 for cell in row)
