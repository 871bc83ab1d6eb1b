"""Lets somebody wait for what comes of a start or a stop: a listener of the lifecycle; knows no chat."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from attrs import define, field

from gpugate.lifecycle.event_bus import News

T = TypeVar("T")


@define
class EventWaiter:
    """Hands news to whoever waits for one."""

    _waiting: list[tuple[Callable[[News], Any], asyncio.Future[Any]]] = field(factory=list)

    def on_event(self, news: News) -> None:
        """Listen to the lifecycle."""
        for judge, future in tuple(self._waiting):
            if future.done():
                continue
            try:
                found = judge(news)
            except Exception as error:  # told to the one who waits, and to nobody else
                future.set_exception(error)
                continue
            if found is not None:
                future.set_result(found)

    def first_match(self, judge: Callable[[News], T | None]) -> asyncio.Future[T]:
        """What `judge` makes of the first news that it does not answer with None; cancel it to give up."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        entry = (judge, future)
        self._waiting.append(entry)
        future.add_done_callback(lambda _: self._waiting.remove(entry))
        return future
