"""Every call of the plugin, gone wrong in every way, once and three times in a row: what comes of it."""

from __future__ import annotations

import asyncio
import sys
from math import inf
from pathlib import Path

from attrs import frozen
from gpugate_testing.clouds import (
    BalanceZero,
    Capacity,
    Fault,
    Garbage,
    Hang,
    Html1010,
    Http,
    LostResponse,
    RateLimit,
    Reset,
    Stale,
)
from vast_support import EPHEMERAL, FIXED, House, play

from gpugate.core.states import Status
from gpugate.errors import GateError


def _error(status: int, code: str, message: str) -> Http:
    return Http(status, {"success": False, "error": code, "msg": message})


ALL: dict[str, Fault] = {
    "500": _error(500, "server_error", "internal error"),
    "503 from the edge": Http(503, b"<html>503</html>", {"Content-Type": "text/html"}),
    "429, as usual": RateLimit(None),
    "429, wait 7 s": RateLimit(7),
    "429 as JSON": Http(429, {"detail": "API requests too frequent"}),
    "401": _error(401, "auth_error", "Invalid user key"),
    "404 for a wrong key": Http(404, {"msg": "Invalid user key"}),
    "403": _error(403, "forbidden", "this key may not do that"),
    "403 of the CDN": Html1010(),
    "404": _error(404, "no_such_instance", "Instance with that ID does not exist."),
    "404 of another server": Http(404, b"404 page not found", {"Content-Type": "text/plain"}),
    "redirect": Http(302, b"", {"Location": "/api/v0/elsewhere/"}),
    "400": _error(400, "invalid_args", "Invalid args"),
    "200 and success: false": Http(200, {"success": False, "msg": "try again later"}),
    "hangs 30 s": Hang(30),
    "reset": Reset(),
    "cut in the answer": Reset(mid_body=True),
    "done, answer lost": LostResponse(),
    "done, answer lost after 30 s": LostResponse(30),
    "200 and no JSON": Garbage(),
}
BALANCE: dict[str, Fault] = {"balance is 0": BalanceZero()}
STALE: dict[str, Fault] = {"stale": Stale()}
QUEUED: dict[str, Fault] = {
    "no capacity": Capacity(),
    "queued, runs in a minute": Capacity(queued_s=60),
    "queued for ever": Capacity(queued_s=inf),
}
OPERATIONS: dict[str, dict[str, dict[str, Fault]]] = {
    "fixed": {
        "start": {**ALL, **QUEUED, **BALANCE},
        "get": {**ALL, **STALE},
        "get while serving": {**ALL, **STALE},
        "stop": ALL,
    },
    "ephemeral": {
        "list": {**ALL, **STALE},
        "list while serving": {**ALL, **STALE},
        "search": {**ALL, "no offer": Capacity()},
        "create": {**ALL, "the offer is gone": Capacity(), **BALANCE},
        "delete": ALL,
    },
}
SETTINGS = {"fixed": FIXED, "ephemeral": EPHEMERAL}
DOCUMENT = Path(__file__).parent.parent / "FAULTS.md"
_HEAD = """\
# What comes of a fault

Each call that the plugin makes, gone wrong in each way, once and three times in a row, against the
simulated Vast.ai through gpugate's own lifecycle, with `pod.capacity_wait` 0. One request comes; after it
the gateway has the instance stopped when it was idle for two minutes. A cell says what the client got (an
answer, or a 503 with that `reason`), how many instances were started, and the seconds that were billed until
the gateway had its proof that nothing runs. Without a fault that is *served, 1 start, 128 s* or a few more:
loading is not billed, and the state is read every five seconds.

Written by `python tests/vast_matrix.py > FAULTS.md`; `tests/test_vast_faults.py` holds every cell to it.
"""


@frozen
class Cell:
    """What came of one fault.

    Attributes:
        outcome: "served", or the reason of the 503.
        starts: how often an instance began to come up.
        billed_s: seconds on the simulated bill.
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
