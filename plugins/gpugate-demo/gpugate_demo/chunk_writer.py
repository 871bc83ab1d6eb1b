"""Writes a streamed response chunk by chunk and applies the fault that was planned for it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from aiohttp import web

from gpugate_demo.base_server import RecordedRequest, drop_connection
from gpugate_demo.faults import BreakAfter, CleanEndAfter, ErrorLine, Fault, HangAfter, Slow


class EndedEarly(Exception):
    """A fault ended the response; `text` is the error to send in the stream, if any."""

    def __init__(self, text: str | None = None) -> None:
        super().__init__(text)
        self.text = text


class ChunkWriter:
    """One streamed response; the headers are sent with the first chunk, as Go does it."""

    def __init__(
        self,
        request: web.BaseRequest,
        seen: RecordedRequest,
        fault: Fault | None,
        content_type: str,
        headers: Mapping[str, str],
    ) -> None:
        self._request = request
        self._seen = seen
        self._fault = fault
        self._sent = 0
        self.response = web.StreamResponse(headers={"Content-Type": content_type, **headers})
        self.response.enable_chunked_encoding()

    async def send(self, chunk: bytes) -> None:
        """Send one chunk; EndedEarly when a fault has ended the answer before it."""
        await self._spoil()
        await self.raw(chunk)
        self._sent += 1

    async def raw(self, chunk: bytes) -> None:
        """Send one chunk that no fault counts."""
        if not self.response.prepared:
            await self.response.prepare(self._request)
            self._seen.status = self.response.status
        await self.response.write(chunk)

    async def finish(self) -> web.StreamResponse:
        """End the response cleanly, unless a fault is planned for exactly this number of chunks."""
        try:
            await self._spoil()
        except EndedEarly as early:
            if early.text is not None:
                raise
        return self.response

    async def _spoil(self) -> None:
        fault = self._fault
        if fault is None:
            return
        if isinstance(fault, Slow):
            await asyncio.sleep(fault.each_s)
        elif (
            isinstance(fault, BreakAfter | HangAfter | CleanEndAfter | ErrorLine)
            and self._sent >= fault.chunks
        ):
            self._fault = None
            await self._strike(fault)

    async def _strike(self, fault: BreakAfter | HangAfter | CleanEndAfter | ErrorLine) -> None:
        if isinstance(fault, BreakAfter):
            if not self.response.prepared:
                await self.response.prepare(self._request)
            await drop_connection(self._request, self._seen, reset=fault.reset)
        elif isinstance(fault, HangAfter):
            await (fault.until or asyncio.Event()).wait()
        else:
            raise EndedEarly(fault.text if isinstance(fault, ErrorLine) else None)
