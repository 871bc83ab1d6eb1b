"""The fields of a request's body."""

from __future__ import annotations

import asyncio
import threading

from gpugate.api import generation
from gpugate.api.generation import SMALL, JsonRequest


async def test_large_images_are_decoded_one_at_a_time(monkeypatch):
    """Each thread more would take turns from the event loop, which answers everybody else."""
    threads: list[str] = []

    def decode(text: str, name: str) -> None:
        threads.append(threading.current_thread().name)

    monkeypatch.setattr(generation, "decode_image", decode)
    request = JsonRequest({"image_base64": "A" * (SMALL + 1)})
    await asyncio.gather(*(request.image() for _ in range(5)))
    assert (5, 1) == (len(threads), len(set(threads)))
    assert threading.current_thread().name not in threads
