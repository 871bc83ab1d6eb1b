"""Faults that a test plans for a path of a simulated server.

A fault is a value. `Faults` keeps them in the order in which they were added and hands out one per
request. Most take the place of the answer; `Slow`, `BreakAfter`, `HangAfter` and `ErrorLine` let
the real answer begin and spoil it under way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from attrs import define, field, frozen

Headers = Mapping[str, str]


@frozen
class Answer:
    """This answer instead of the real one."""

    status: int
    body: bytes = b""
    content_type: str = "application/json; charset=utf-8"
    headers: Headers = field(factory=dict, hash=False)


@frozen
class CloseBeforeHead:
    """Read the request, then close the connection without a byte; `reset` sends RST, not FIN."""

    reset: bool = False
    delay_s: float = 0.0


@frozen
class Garbage:
    """These bytes where an HTTP response should be, then the connection is closed."""

    data: bytes = b"\x00\xffnot http at all\r\n\r\n"


@frozen
class Hang:
    """No byte of an answer, until the client goes away or `until` is set (then the real answer)."""

    until: asyncio.Event | None = field(default=None, hash=False)


@frozen
class NotReady:
    """This answer until `until` is set; afterwards as if the fault had never been."""

    until: asyncio.Event = field(hash=False)
    status: int = 404
    body: bytes = b""
    content_type: str = "text/plain"


@frozen
class Slow:
    """Wait `first_s` before the head and `each_s` before every chunk."""

    first_s: float = 0.0
    each_s: float = 0.0


@frozen
class BreakAfter:
    """Close the connection after `chunks` chunks, unfinished; `reset` sends RST, not FIN."""

    chunks: int = 1
    reset: bool = False


@frozen
class HangAfter:
    """Fall silent after `chunks` chunks, until the client goes away or `until` is set."""

    chunks: int = 1
    until: asyncio.Event | None = field(default=None, hash=False)


@frozen
class CleanEndAfter:
    """End cleanly after `chunks` chunks: the truncation that looks complete."""

    chunks: int = 1


@frozen
class ErrorLine:
    """After `chunks` chunks what the server sends when its model fails, then a clean end."""

    chunks: int = 1
    text: str = "an error was encountered while running the model: simulated failure"


Fault = (
    Answer
    | CloseBeforeHead
    | Garbage
    | Hang
    | NotReady
    | Slow
    | BreakAfter
    | HangAfter
    | CleanEndAfter
    | ErrorLine
)
ANY_PATH = "*"


@define
class _Planned:
    path: str
    fault: Fault
    left: int | None  # None: for ever


@define
class Faults:
    """The planned faults of one server."""

    _planned: list[_Planned] = field(factory=list)

    def add(self, path: str, fault: Fault, *, times: int | None = 1) -> None:
        """Plan `fault` for the next `times` requests (None: all) of `path`, or of `ANY_PATH`."""
        self._planned.append(_Planned(path, fault, times))

    def clear(self) -> None:
        """Forget what is planned; faults already handed out go on."""
        self._planned.clear()

    def take(self, path: str) -> Fault | None:
        """Hand out the first fault planned for `path` and count it off."""
        for planned in self._planned:
            if planned.path not in (path, ANY_PATH):
                continue
            if isinstance(planned.fault, NotReady) and planned.fault.until.is_set():
                continue
            if planned.left is not None:
                planned.left -= 1
                if planned.left <= 0:
                    self._planned.remove(planned)
            return planned.fault
        return None
