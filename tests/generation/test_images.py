"""Pictures from words: checked before anything wakes, stripped before anything leaves."""

from __future__ import annotations

import asyncio
import zlib

import pytest
from gpugate_demo.picture import draw, with_text

from gpugate.errors import ImageFailed, InvalidRequest
from gpugate.generation.images import ImageService, _send_filler, random_seed
from gpugate.generation.workflows import ImageRequest, load
from gpugate.lifecycle.diagnosis import Diagnosis
from gpugate.lifecycle.leased_call import PodUnreachable
from gpugate.provider_api import Endpoint
from tests.generation.stay import FakePainter, leased_call_on, pod

PNG = draw("x", 1, 16, 16)
TEXT = b"\0\0\0\0tEXt" + zlib.crc32(b"tEXt").to_bytes(4, "big")
WISH = ImageRequest("a castle", 7)


def pictures(result: object) -> tuple[ImageService, FakePainter]:
    painter = FakePainter(result)
    return ImageService(painter, load("", "", "c.safetensors")), painter


async def test_stripped():
    """What ComfyUI wrote into the picture does not leave."""
    drawing, _ = pictures(with_text(PNG, {"prompt": "a secret castle"}))
    picture = await drawing.generate(leased_call_on()[0], drawing.job(WISH))
    assert (PNG, "x.png", 7) == (picture.image.data, picture.filename, picture.seed)


async def test_metadata_that_was_asked_for():
    """Stays, so that the picture can be dropped into ComfyUI's editor."""
    data = with_text(PNG, {"prompt": "my castle"})
    drawing, _ = pictures(data)
    picture = await drawing.generate(leased_call_on()[0], drawing.job(WISH, metadata=True))
    assert data == picture.image.data


@pytest.mark.parametrize("data", [b"", b"<html>", PNG[:-9], PNG[:-12] + TEXT * 40_000 + PNG[-12:]])
async def test_no_whole_picture(data):
    """Is a failure of ComfyUI's."""
    drawing, _ = pictures(data)
    with pytest.raises(ImageFailed, match="ComfyUI returned something that"):
        await drawing.generate(leased_call_on()[0], drawing.job(WISH))


async def test_pod_without_comfyui():
    """Said at once."""
    drawing, painter = pictures(PNG)
    visit, _ = leased_call_on(pod(1, {"ollama": Endpoint("http://x")}))
    with pytest.raises(ImageFailed, match="the pod has no ComfyUI"):
        await drawing.generate(visit, drawing.job(WISH))
    assert [] == painter.graphs


async def test_comfyui_that_dies_on_a_pod_that_lives():
    """Is not asked twice: a job is not done twice by chance."""
    drawing, painter = pictures(PodUnreachable("ComfyUI does not answer any more"))
    with pytest.raises(ImageFailed, match="does not answer"):
        await drawing.generate(leased_call_on()[0], drawing.job(WISH))
    assert 1 == len(painter.graphs)


async def test_comfyui_that_dies_with_its_pod():
    """Is asked again at the next pod, for another file."""
    drawing, painter = pictures(PodUnreachable("gone"))
    visit, _ = leased_call_on(pod(1), pod(2), finding=Diagnosis.LOST)
    with pytest.raises(AssertionError, match="waits for ever"):
        await drawing.generate(visit, drawing.job(WISH))
    first, second = (graph["7"]["inputs"]["filename_prefix"] for graph in painter.graphs)
    assert first != second


async def test_progress_begins_the_answer():
    """Only for who hears it."""
    drawing, _ = pictures(PNG)
    visit, lease = leased_call_on()
    await drawing.generate(visit, drawing.job(WISH))
    assert 0 == lease.begun

    async def progress(value: int, most: int) -> None:
        assert (1, 2, 1) == (value, most, lease.begun)

    await drawing.generate(visit, drawing.job(WISH), progress)
    assert 1 == lease.begun


@pytest.mark.parametrize(("pause_s", "rests"), [(2.0, [2, 2, 2, 15, 15]), (30.0, [30, 30, 30, 30, 30])])
async def test_pauses_between_fillers(monkeypatch, pause_s, rests):
    """As configured until the first step; then steps come, and 15 s are enough for any proxy."""
    rested: list[float] = []
    begun, sent = asyncio.Event(), 0

    async def sleep(seconds: float) -> None:
        rested.append(seconds)
        if len(rested) == 3:
            begun.set()
        if len(rested) == 5:
            raise ConnectionResetError

    async def send() -> None:
        nonlocal sent
        sent += 1

    monkeypatch.setattr("gpugate.generation.images.asyncio.sleep", sleep)
    await _send_filler(send, pause_s, begun)
    assert (rests, 3) == (rested, sent)


def test_unknown_workflow():
    """Refused before anything wakes."""
    with pytest.raises(InvalidRequest, match=r"^workflow: "):
        pictures(PNG)[0].job(WISH, "none")


def test_seeds():
    """Taken by every node, and the same number in JavaScript."""
    seeds = {random_seed() for _ in range(50)}
    assert len(seeds) == 50
    assert all(0 <= seed < 2**31 for seed in seeds)
