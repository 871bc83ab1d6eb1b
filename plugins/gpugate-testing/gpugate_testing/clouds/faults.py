"""What can go wrong at a cloud, as values, and who gets which next; knows no cloud and no HTTP server."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from attrs import define, field, frozen


@frozen
class Http:
    """This answer instead of the work; a mapping as body is sent as JSON."""

    status: int
    body: Mapping[str, Any] | bytes = b""
    headers: Mapping[str, str] = field(factory=dict, hash=False)


@frozen
class RateLimit:
    """Too many requests, in the cloud's own words; `retry_after` in seconds, None leaves it unsaid."""

    retry_after: int | None = 1


@frozen
class Hang:
    """No answer for so many of the cloud's seconds, then the work is done as if nothing had been."""

    seconds: float


@frozen
class Reset:
    """The connection is closed: before the work is done, or done and in the middle of the answer's body."""

    mid_body: bool = False


@frozen
class LostResponse:
    """The work is done; the answer never comes, and after `seconds` the connection is closed."""

    seconds: float = 0.0


@frozen
class Garbage:
    """The work is done, and 200 comes with a body that is no answer."""

    body: bytes = b"<html><body>Just a moment...</body></html>"


@frozen
class Stale:
    """The pod is shown as it was before the last command."""


@frozen
class Capacity:
    """No GPU is free. `queued_s`: the start is kept and runs after so long; `inf` keeps it for ever."""

    queued_s: float | None = None


@frozen
class BalanceZero:
    """The account cannot pay."""


@frozen
class Locked:
    """The pod must not be stopped."""


@frozen
class Html1010:
    """The CDN in front of the API refuses the client (docs/providers.md#user-agent)."""


Fault = (
    Http
    | RateLimit
    | Hang
    | Reset
    | LostResponse
    | Garbage
    | Stale
    | Capacity
    | BalanceZero
    | Locked
    | Html1010
)


@define
class Faults:
    """Planned faults by operation, first in first out; one that lasts for ever stands behind the counted."""

    _counted: dict[str, deque[Fault]] = field(factory=dict)
    _lasting: dict[str, Fault] = field(factory=dict)

    def plan(self, operation: str, fault: Fault, times: int | None = 1) -> None:
        """Let the next `times` calls of `operation` go wrong; None: every one until `heal`."""
        if times is None:
            self._lasting[operation] = fault
        else:
            self._counted.setdefault(operation, deque()).extend([fault] * times)

    def heal(self, operation: str | None = None) -> None:
        """Forget what is planned for this operation, or for all."""
        for planned in (self._counted, self._lasting):
            if operation is None:
                planned.clear()
            else:
                planned.pop(operation, None)

    def take(self, operation: str) -> Fault | None:
        """What goes wrong with this call, if anything."""
        if counted := self._counted.get(operation):
            return counted.popleft()
        return self._lasting.get(operation)
