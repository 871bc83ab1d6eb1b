"""Closing a connection to a client."""

from __future__ import annotations

import asyncio
import gc
import weakref

from gpugate.relay.transport import close_within


class Closing:
    """A transport that has something to send yet."""

    aborted = False

    def close(self) -> None:
        """Nothing."""

    def get_write_buffer_size(self) -> int:
        """One byte."""
        return 1

    def abort(self) -> None:
        """Note it."""
        self.aborted = True


async def test_what_is_not_taken_in_time_is_dropped():
    """And until then the timer does not keep in memory what is gone."""
    here, gone = Closing(), Closing()
    left = weakref.ref(gone)
    for transport in (here, gone):
        close_within(transport, 0.01)
    del transport, gone
    gc.collect()
    assert left() is None
    await asyncio.sleep(0.03)
    assert here.aborted
