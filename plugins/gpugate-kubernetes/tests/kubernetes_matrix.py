"""Every call of the plugin, gone wrong in every way, once and three times in a row: what comes of it."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

from attrs import frozen
from gpugate_testing.clouds import Capacity, Fault, Garbage, Hang, Http, LostResponse, RateLimit, Reset
from gpugate_testing.clouds.kubernetes_objects import status_of
from kubernetes_support import POD, SCALE, House, play

from gpugate.core.states import Status
from gpugate.errors import GateError


def _status(code: int, reason: str, message: str) -> Http:
    return Http(code, status_of(code, reason, message), {"Content-Type": "application/json"})


ALL: dict[str, Fault] = {
    "500": _status(500, "InternalError", "etcdserver: request timed out"),
    "503 of a load balancer": Http(503, b"<html>503</html>", {"Content-Type": "text/html"}),
    "429, wait 2 s": RateLimit(2),
    "429, no hint": RateLimit(None),
    "401": _status(401, "Unauthorized", "Unauthorized"),
    "403": _status(403, "Forbidden", 'is forbidden: User "system:serviceaccount:ai:gpugate" cannot do this'),
    "404": _status(404, "NotFound", 'deployments.apps "ollama" not found'),
    "404 of a proxy": Http(404, b"<html>404</html>", {"Content-Type": "text/html"}),
    "409": _status(409, "Conflict", "the object has been modified"),
    "422": _status(422, "Invalid", "is invalid"),
    "hangs 30 s": Hang(30),
    "reset": Reset(),
    "cut in the answer": Reset(mid_body=True),
    "done, answer lost": LostResponse(),
    "done, answer lost after 30 s": LostResponse(30),
    "200 and no JSON": Garbage(),
}
CAPACITY: dict[str, Fault] = {"unschedulable": Capacity()}
QUOTA: dict[str, Fault] = {"quota": _status(403, "Forbidden", "is forbidden: exceeded quota: gpus")}
OPERATIONS: dict[str, dict[str, dict[str, Fault]]] = {
    "scale": {
        "get_scale": ALL,
        "get_scale while serving": ALL,
        "list_pods": ALL,
        "list_pods while serving": ALL,
        "patch_scale": {**ALL, **CAPACITY},
        "patch_scale while serving": ALL,
    },
    "ephemeral": {
        "create_pod": {**ALL, **CAPACITY, **QUOTA},
        "delete_pod": ALL,
    },
}
SETTINGS: dict[str, dict[str, Any]] = {"scale": SCALE, "ephemeral": {"mode": "ephemeral", "template": POD}}
DOCUMENT = Path(__file__).parent.parent / "FAULTS.md"
_HEAD = """# What comes of a fault

Each call that the plugin makes, gone wrong in each way, once and three times in a row, against the
simulated cluster through gpugate's own lifecycle. One request comes; after it the gateway has the pod
stopped when it was idle for two minutes. A cell says what the client got (an answer, or a 503 with that
`reason`), how many Pods found a GPU, and the seconds that were billed until the gateway had its proof that
nothing runs. Without a fault that is *served, 1 start, 136 s*.

Written by `python tests/kubernetes_matrix.py > FAULTS.md`; `tests/test_kubernetes_faults.py` holds each cell
to it.
"""


@frozen
class Cell:
    """What came of one fault.

    Attributes:
        outcome: "served", or the reason of the 503.
        starts: how often a pod began to be billed.
        billed_s: for how long.
    """

    outcome: str
    starts: int
    billed_s: int

    def __str__(self) -> str:
        said = self.outcome if self.outcome == "served" else f"503 {self.outcome}"
        return f"{said}, {self.starts} start{'' if self.starts == 1 else 's'}, {self.billed_s} s"

    @classmethod
    def of(cls, words: str) -> Cell:
        """Read a cell of the document."""
        outcome, starts, billed = words.split(", ")
        return cls(outcome.removeprefix("503 "), int(starts.split()[0]), int(billed.split()[0]))


async def one(house: House, operation: str, fault: Fault, times: int) -> Cell:
    """One request with the fault planned before it, or once it is served, until nothing runs any more."""
    cloud = house.cloud
    call, _, later = operation.partition(" while ")
    if not later:
        cloud.fail(call, fault, times)
    outcome = "served"
    try:
        await house.ask(hold_s=0)
        if later:
            cloud.fail(call, fault, times)
    except GateError as error:
        outcome = str(error.reason)
    await asyncio.sleep(10)
    await house.off()
    await asyncio.sleep(100)  # whatever may still turn up is adopted, and stopped when it was idle
    await house.off()
    assert [] == cloud.billing, "something still runs"
    assert Status.STOPPED is house.lifecycle.current_status
    return Cell(outcome, cloud.starts, round(cloud.billed_s))


def row(mode: str, operation: str, fault: str) -> list[Cell]:
    """The cells of a row: the fault once, and three times."""
    cells = []
    for times in (1, 3):

        async def scenario(house: House, times: int = times) -> None:
            cells.append(await one(house, operation, OPERATIONS[mode][operation][fault], times))

        play(scenario, SETTINGS[mode])
    return cells


def document() -> str:
    """The whole table."""
    lines = [_HEAD]
    for mode, operations in OPERATIONS.items():
        for operation, faults in operations.items():
            lines += [f"## {mode}: {operation}", "", "| fault | once | three times |", "|---|---|---|"]
            lines += [f"| {name} | {' | '.join(map(str, row(mode, operation, name)))} |" for name in faults]
            lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def expected() -> dict[tuple[str, str, str], list[Cell]]:
    """What the document says, by mode, operation and fault."""
    found: dict[tuple[str, str, str], list[Cell]] = {}
    mode = operation = ""
    for line in DOCUMENT.read_text().splitlines():
        if line.startswith("## "):
            mode, operation = line[3:].split(": ")
        elif line.startswith("| ") and not line.startswith("| fault"):
            name, *cells = (part.strip() for part in line.strip("|").split("|"))
            found[mode, operation, name] = [Cell.of(words) for words in cells]
    return found


if __name__ == "__main__":
    sys.stdout.write(document())
