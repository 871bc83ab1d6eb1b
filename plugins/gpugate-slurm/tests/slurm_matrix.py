"""Every call of the plugin, gone wrong in every way, once and three times in a row: what comes of it."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from attrs import frozen
from gpugate_testing.clouds import (
    Capacity,
    Fault,
    Garbage,
    Hang,
    Http,
    LostResponse,
    RateLimit,
    Reset,
    Stale,
)
from slurm_sim import Said
from slurm_support import House, play

from gpugate.core.states import Status
from gpugate.errors import GateError


def _error(number: int, words: str, status: int = 500) -> Http:
    return Http(status, {"meta": {}, "errors": [{"error_number": number, "error": words}]})


ALL: dict[str, Fault | Said] = {
    "500 Unspecified error": _error(-1, "Unspecified error"),
    "500 Unable to contact slurm controller": _error(
        1800, "Unable to contact slurm controller (connect failure)"
    ),
    "500 and no JSON": Http(500, b"<html>500</html>", {"Content-Type": "text/html"}),
    "503 of a proxy": Http(503, b"<html>503</html>", {"Content-Type": "text/html"}),
    "429, wait 2 s": RateLimit(2),
    "401": Http(401, b"Authentication failure", {"Content-Type": "text/plain"}),
    "403 of a proxy": Http(403, b"<html>403</html>", {"Content-Type": "text/html"}),
    "404": Http(404, b"Unable find requested URL.", {"Content-Type": "text/plain"}),
    "hangs 30 s": Hang(30),
    "reset": Reset(),
    "cut in the answer": Reset(mid_body=True),
    "done, answer lost": LostResponse(),
    "done, answer lost after 30 s": LostResponse(30),
    "200 and no JSON": Garbage(),
}
SUBMIT: dict[str, Fault | Said] = {
    "Socket timed out, not done": _error(5004, "Socket timed out on send/recv operation"),
    "Invalid account": _error(2045, "Invalid account or account/partition combination specified"),
    "Invalid qos": _error(2066, "Invalid qos specification"),
    "invalid partition": _error(2000, "Invalid partition name specified"),
    "unknown field": _error(9001, "Failure during parsing", 400),
    "waits 100 s for a GPU": Capacity(100),
    "waits for a GPU for ever": Capacity(),
}
GONE: dict[str, Fault | Said] = {"Invalid job id": _error(2017, "Invalid job id specified")}
WORDS: dict[str, Fault | Said] = {
    "Unable to contact slurm controller": Said("Unable to contact slurm controller (connect failure)"),
    "Socket timed out, not done": Said("Socket timed out on send/recv operation"),
    "Socket timed out, done": Said("Socket timed out on send/recv operation", done=True),
    "temporarily unable": Said("Resource temporarily unavailable"),
    "Access denied": Said("Access/permission denied"),
    "no munge": Said('Munge encode failed: Failed to access "/run/munge/munge.socket.2"'),
    "no program": Said("", code=127),
    "hangs 30 s, not done": Said("", hangs_s=30.0),
    "hangs 30 s, done": Said("", hangs_s=30.0, done=True),
    "no words": Said(""),
}
SBATCH: dict[str, Fault | Said] = {
    "Invalid account": Said("Invalid account or account/partition combination specified"),
    "Invalid qos": Said("Invalid qos specification"),
    "invalid partition": Said("invalid partition specified: nope"),
    "submit limit": Said(
        "QOSMaxSubmitJobPerUserLimit\nsbatch: error: Batch job submission failed: Job violates"
    ),
    "no job's id": Said("", code=0),
}
OPERATIONS: dict[str, dict[str, dict[str, Fault | Said]]] = {
    "rest": {
        "openapi": ALL,
        "list": {**ALL, "stale": Stale()},
        "list while serving": {**ALL, "stale": Stale()},
        "submit": {**ALL, **SUBMIT},
        "cancel": {**ALL, **GONE},
        "sign while serving": {**ALL, **GONE},
    },
    "commands": {
        "squeue": WORDS,
        "squeue while serving": WORDS,
        "sbatch": {**WORDS, **SBATCH},
        "scancel": {**WORDS, "Invalid job id": Said("Invalid job id specified")},
    },
}
DOCUMENT = Path(__file__).parent.parent / "FAULTS.md"
_HEAD = """# What comes of a fault

Each call that the plugin makes, gone wrong in each way, once and three times in a row, against a simulated
Slurm through gpugate's own lifecycle: by slurmrestd (`rest`) and by Slurm's commands (`commands`). One
request comes, with a `capacity_wait` of ten minutes; after it the gateway has the job cancelled when it was
idle for two minutes. A cell says what the client got (an answer, or a 503 with that `reason`), how many jobs
ran, and for how many seconds, until the gateway had its proof that nothing runs. Without a fault that is
*served, 1 job, 128 s*.

Written by `python tests/slurm_matrix.py > FAULTS.md`; `tests/test_slurm_faults.py` holds every cell to it.
"""


@frozen
class Cell:
    """What came of one fault.

    Attributes:
        outcome: "served", or the reason of the 503.
        jobs: how many ran.
        ran_s: for how long.
    """

    outcome: str
    jobs: int
    ran_s: int

    def __str__(self) -> str:
        said = self.outcome if self.outcome == "served" else f"503 {self.outcome}"
        return f"{said}, {self.jobs} job{'' if self.jobs == 1 else 's'}, {self.ran_s} s"

    @classmethod
    def of(cls, words: str) -> Cell:
        """Read a cell of the document."""
        outcome, jobs, ran = words.split(", ")
        return cls(outcome.removeprefix("503 "), int(jobs.split()[0]), int(ran.split()[0]))


def _plan(house: House, call: str, fault: Fault | Said, times: int) -> None:
    if isinstance(fault, Said):
        house.runner.says.setdefault(call, []).extend([fault] * times)
    else:
        house.cloud.fail(call, fault, times)


async def one(house: House, operation: str, fault: Fault | Said, times: int) -> Cell:
    """One request with the fault planned before it, or once it is served, until nothing runs any more."""
    cloud = house.cloud
    call, _, later = operation.partition(" while ")
    if call == "openapi":
        house.provider._client._version = ""  # as a gateway that has just begun
    if not later:
        _plan(house, call, fault, times)
    outcome = "served"
    try:
        await house.ask(hold_s=0)
        if later:
            _plan(house, call, fault, times)
    except GateError as error:
        outcome = str(error.reason)
    await asyncio.sleep(10)
    await house.off()
    await asyncio.sleep(100)  # whatever may still turn up is adopted, and stopped when it was idle
    await house.off()
    assert [] == cloud.billing, "something still runs"
    assert Status.STOPPED is house.lifecycle.current_status
    ran = [pod for pod in cloud.pods.values() if pod.billed_s]
    return Cell(outcome, len(ran), round(cloud.billed_s))


def row(way: str, operation: str, fault: str) -> list[Cell]:
    """The cells of a row: the fault once, and three times."""
    cells = []
    for times in (1, 3):

        async def scenario(house: House, times: int = times) -> None:
            cells.append(await one(house, operation, OPERATIONS[way][operation][fault], times))

        play(scenario, way)
    return cells


def document() -> str:
    """The whole table."""
    lines = [_HEAD]
    for way, operations in OPERATIONS.items():
        for operation, faults in operations.items():
            lines += [f"## {way}: {operation}", "", "| fault | once | three times |", "|---|---|---|"]
            lines += [f"| {name} | {' | '.join(map(str, row(way, operation, name)))} |" for name in faults]
            lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def expected() -> dict[tuple[str, str, str], list[Cell]]:
    """What the document says, by way, operation and fault."""
    found: dict[tuple[str, str, str], list[Cell]] = {}
    way = operation = ""
    for line in DOCUMENT.read_text().splitlines():
        if line.startswith("## "):
            way, operation = line[3:].split(": ")
        elif line.startswith("| ") and not line.startswith("| fault"):
            name, *cells = (part.strip() for part in line.strip("|").split("|"))
            found[way, operation, name] = [Cell.of(words) for words in cells]
    return found


if __name__ == "__main__":
    sys.stdout.write(document())
