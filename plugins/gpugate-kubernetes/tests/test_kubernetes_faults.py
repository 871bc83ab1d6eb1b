"""Every call × every fault, once and three times: FAULTS.md says what comes of it, and is held to it."""

from __future__ import annotations

import pytest
from kubernetes_matrix import OPERATIONS, expected, row

EXPECTED = expected()
ROWS = [
    (mode, call, fault)
    for mode, calls in OPERATIONS.items()
    for call, faults in calls.items()
    for fault in faults
]
TOLERANCE_S = 5


def test_the_document() -> None:
    """It has a row for every fault of every call, and no other."""
    assert list(EXPECTED) == ROWS


@pytest.mark.parametrize(("mode", "call", "fault"), ROWS, ids=["-".join(row) for row in ROWS])
def test_a_fault(mode: str, call: str, fault: str) -> None:
    """The client's outcome, the number of starts and the bill are as documented; nothing is left running."""
    for wanted, got in zip(EXPECTED[mode, call, fault], row(mode, call, fault), strict=True):
        assert (wanted.outcome, wanted.starts) == (got.outcome, got.starts)
        assert wanted.billed_s == pytest.approx(got.billed_s, abs=TOLERANCE_S)


@pytest.mark.parametrize("row", EXPECTED.values(), ids=["-".join(row) for row in EXPECTED])
def test_two_pods_never(row: list) -> None:
    """No fault makes a second Pod."""
    assert all(cell.starts <= 1 for cell in row)
