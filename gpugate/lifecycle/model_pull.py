"""Has the pod's Ollama pull one model, and says in one line why it could not (docs/ollama.md#pull)."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import orjson
from attrs import define, field, frozen

from gpugate.relay.transport import CALL_ERRORS

TRIES = 3
"""In a row without a byte more; Ollama goes on where the last one ended."""
PAUSE_S = 2.0
STALLED_S = 120.0
"""Without a byte more from the registry for so long, a try is given up."""
LONGEST_TEXT = 200

_UNKNOWN = re.compile(r"file does not exist|manifest: (400|404)\b")
_DISK_FULL = re.compile(r"no space left on device|not enough space|disk quota exceeded")
_QUERY = re.compile(r"\?[^\s\"']*")

Report = Callable[[int, int], None]
"""Takes how many bytes are there and how many there are to be, of what is known so far."""
Post = Callable[[], AbstractAsyncContextManager[Any]]
"""Sends `POST /api/pull` once more."""


@frozen
class PullFailure:
    """Why a model could not be pulled.

    Attributes:
        message: one line for people.
        anywhere: another pod could not pull it either.
        again: another try may work.
    """

    message: str
    anywhere: bool = False
    again: bool = True


@define
class ModelPull:
    """The pull of one model, try after try."""

    post: Post
    report: Report
    _layers: dict[str, tuple[int, int]] = field(
        factory=dict
    )  # by digest: bytes that are there, and of how many
    _moved_at: float = 0.0
    _downloads: bool = True  # else it verifies and writes, which takes its time in silence

    async def run(self) -> PullFailure | None:
        """Return None once the pod has the model. The caller limits how long that may take."""
        failures = 0
        while True:
            before = self._done
            failure = await self._try()
            if failure is None:
                return None
            failures = failures + 1 if self._done <= before else 1
            if not failure.again or failures >= TRIES:
                return failure
            await asyncio.sleep(PAUSE_S)

    @property
    def _done(self) -> int:
        return sum(done for done, _ in self._layers.values())

    async def _try(self) -> PullFailure | None:
        self._moved_at, self._downloads = _now(), True
        try:
            async with self.post() as answer:
                if answer.status != 200:
                    body = await answer.content.read(64 * 1024)
                    return _refused(answer.status, _error_of(_parsed(body)))
                return await self._follow(answer.content)
        except TimeoutError:
            return PullFailure(
                f"no progress for {STALLED_S:g} s{self._reached()}: the registry is slow or away"
            )
        except CALL_ERRORS as error:
            return PullFailure(f"the connection to the pod broke ({type(error).__name__})")

    async def _follow(self, content: asyncio.StreamReader) -> PullFailure | None:
        """Read the progress to its end; raises TimeoutError where there is none for too long."""
        while True:
            async with asyncio.timeout_at(self._moved_at + STALLED_S if self._downloads else None):
                line = await content.readline()
            if not line:
                return PullFailure("the pod's answer ended too early")
            told = _parsed(line)
            if error := _error_of(told):
                return _failed(error)
            if told.get("status") == "success":
                return None
            self._take(told)

    def _take(self, told: dict[str, Any]) -> None:
        digest, total, done = told.get("digest"), told.get("total"), told.get("completed", 0)
        self._downloads = str(told.get("status")).startswith("pulling")
        if not isinstance(digest, str) or not isinstance(total, int) or not isinstance(done, int):
            return
        if self._layers.get(digest) != (done, total):
            self._moved_at = _now()
            self._layers[digest] = (done, total)
            self.report(self._done, sum(size for _, size in self._layers.values()))

    def _reached(self) -> str:
        size = sum(size for _, size in self._layers.values())
        return f" at {100 * self._done // size} %" if size else ""


def _refused(status: int, error: str) -> PullFailure:
    if status == 400:
        return PullFailure(_line(error) or "/api/pull answered 400", anywhere=True, again=False)
    return _failed(error) if error else PullFailure(f"/api/pull answered {status}")


def _failed(error: str) -> PullFailure:
    """Return what an error of Ollama's means (docs/ollama.md#pull)."""
    if _UNKNOWN.search(error):
        return PullFailure(f"the registry has no such model ({_line(error)})", anywhere=True, again=False)
    if _DISK_FULL.search(error):
        return PullFailure("the pod's disk is full", again=False)
    return PullFailure(_line(error))


def _line(text: str) -> str:
    """Return a text as one short line, without the queries of URLs: they may be signed."""
    line = _QUERY.sub("", " ".join(text.split()))
    return line if len(line) <= LONGEST_TEXT else line[: LONGEST_TEXT - 1] + "…"


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        told = orjson.loads(line)
    except orjson.JSONDecodeError:
        return {}
    return told if isinstance(told, dict) else {}


def _error_of(told: dict[str, Any]) -> str:
    error = told.get("error")
    return error if isinstance(error, str) else ""


def _now() -> float:
    return asyncio.get_running_loop().time()
