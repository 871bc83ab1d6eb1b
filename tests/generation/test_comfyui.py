"""The ComfyUI client against a simulated ComfyUI with its recorded manners, and every failure it may show."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from gpugate_demo.base_server import RecordedRequest
from gpugate_demo.comfyui import (
    EmptyJob,
    FailJob,
    HangJob,
    LoseJob,
    SimulatedComfyUI,
    VanishJob,
)
from gpugate_demo.faults import Answer, BreakAfter, CloseBeforeHead, Fault, Hang, NotReady

from gpugate.errors import ImageFailed
from gpugate.generation.comfyui import MAX_BROKEN_POLLS, ComfyUIBackend, RawImage
from gpugate.lifecycle.leased_call import PodUnreachable
from gpugate.provider_api import Endpoint

SAVED: dict[str, Any] = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 48, "batch_size": 1, "color": 255}},
    "9": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "gpugate/t1"}},
}


@pytest.fixture
async def comfyui() -> AsyncIterator[SimulatedComfyUI]:
    async with SimulatedComfyUI() as comfyui:
        yield comfyui


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


class LargeImages(SimulatedComfyUI):
    """Its images have 3 MiB."""

    def __init__(self, chunked: bool) -> None:
        super().__init__()
        self.chunked = chunked

    async def handle(
        self, request: web.BaseRequest, seen: RecordedRequest, fault: Fault | None
    ) -> web.StreamResponse:
        if request.path != "/view":
            return await super().handle(request, seen, fault)
        response = web.StreamResponse()
        if not self.chunked:
            response.content_length = 3 << 20
        await response.prepare(request)
        await response.write(b"x" * (3 << 20))
        return response


Steps = list[tuple[float, float]]


async def draw(
    session: aiohttp.ClientSession,
    url: str,
    graph: dict[str, Any] | None = None,
    *,
    steps: Steps | None = None,
    poll_s: float = 0.03,
    timeout_s: float = 3.0,
) -> RawImage:
    async def progress(value: float, most: float) -> None:
        if steps is not None:
            steps.append((value, most))

    return await ComfyUIBackend(session, poll_s, timeout_s).generate(Endpoint(url), graph or SAVED, progress)


def sampled(steps: int = 4) -> dict[str, Any]:
    """A real text-to-image graph."""
    return {
        "4": {
            "class_type": "CheckpointLoaderSimple",
            "inputs": {"ckpt_name": "v1-5-pruned-emaonly.safetensors"},
        },
        "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a castle", "clip": ["4", 1]}},
        "3": {
            "class_type": "KSampler",
            "inputs": {
                "seed": 42,
                "steps": steps,
                "cfg": 7.0,
                "sampler_name": "euler",
                "scheduler": "normal",
                "denoise": 1.0,
                "model": ["4", 0],
                "positive": ["6", 0],
                "negative": ["6", 0],
                "latent_image": ["5", 0],
            },
        },
        "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
        "9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0], "filename_prefix": "sd"}},
    }


def deletions(comfyui: SimulatedComfyUI) -> list[object]:
    """What was to be taken out of the queue."""
    return [json.loads(seen.body) for seen in comfyui.calls("/queue") if seen.method == "POST"]


def paths(comfyui: SimulatedComfyUI) -> list[str]:
    return [seen.path for seen in comfyui.seen]


class TestPicture:
    async def test_in_a_subfolder(self, session, comfyui: SimulatedComfyUI):
        """Fetched with subfolder and type; the name that is told is bare."""
        drawn = await draw(session, comfyui.url)
        assert ("t1_00001_.png", b"\x89PNG") == (drawn.filename, drawn.data[:4])
        assert "subfolder=gpugate" in comfyui.calls("/view")[-1].query

    async def test_preview_only(self, session, comfyui: SimulatedComfyUI):
        """A picture of type temp will do."""
        preview = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}
        assert b"\x89PNG" == (await draw(session, comfyui.url, {"1": SAVED["1"], "9": preview})).data[:4]

    async def test_saved_before_preview(self, session, comfyui: SimulatedComfyUI):
        """Where both are there, the saved one is taken."""
        preview = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}
        drawn = await draw(session, comfyui.url, {"1": SAVED["1"], "2": preview, "9": SAVED["9"]})
        assert drawn.filename.startswith("t1_")

    async def test_progress(self, session, comfyui: SimulatedComfyUI):
        """The sampler's steps, up to the last; slow readers may miss some."""
        steps: Steps = []
        await draw(session, comfyui.url, sampled(), steps=steps)
        assert (4, 4) == steps[-1]

    async def test_progress_in_fractions(self, session, comfyui: SimulatedComfyUI):
        """Is told as it is; a whole number is one. What makes no sense is not told."""
        comfyui.plan(HangJob(until := asyncio.Event()))
        steps: Steps = []
        asked = asyncio.ensure_future(draw(session, comfyui.url, steps=steps))
        await comfyui.until(lambda: comfyui.jobs.running is not None)
        job = comfyui.jobs.running
        assert job is not None
        for value, most in (
            (0.5, 1.0),
            (float("nan"), 1),
            (-1, 2),
            (3, 2),
            (0, 0),
            (True, 2**60),
            ("1", 2),
            (1.0, 2.0),
        ):
            comfyui.jobs.tell("progress", {"value": value, "max": most, "prompt_id": job.id}, job.client)
            await asyncio.sleep(0.005)
        until.set()
        await asked
        assert [(0.5, 1), (1, 2)] == steps
        assert isinstance(steps[-1][0], int)

    async def test_name(self, session, comfyui: SimulatedComfyUI):
        """What clients could stumble over does not leave."""
        inputs = {"images": ["1", 0], "filename_prefix": "a\u202eb\x9b31m"}
        drawn = await draw(
            session, comfyui.url, {**SAVED, "9": {"class_type": "SaveImage", "inputs": inputs}}
        )
        assert "a_b_31m_00001_.png" == drawn.filename

    @pytest.mark.parametrize("chunked", [False, True])
    async def test_too_large(self, session, monkeypatch, chunked):
        """Fetched once, and not to its end."""
        monkeypatch.setattr("gpugate.generation.comfyui.MAX_IMAGE_BYTES", 1 << 20)
        async with LargeImages(chunked) as comfyui:
            with pytest.raises(ImageFailed, match="larger than 1 MiB"):
                await draw(session, comfyui.url)
            assert 1 == len(comfyui.calls("/view"))

    async def test_sooner_than_the_next_look(self, session, comfyui: SimulatedComfyUI):
        """The websocket tells that it is done: one look is enough, however long the interval."""
        await draw(session, comfyui.url, poll_s=60)
        assert 1 == sum(path.startswith("/history") for path in paths(comfyui))

    async def test_headers_of_the_endpoint(self, session, comfyui: SimulatedComfyUI):
        """Sent with every call, the websocket's too: a proxy wants them."""
        endpoint = Endpoint(comfyui.url, {"X-Token": "t"})

        async def progress(value: float, most: float) -> None:
            return None

        await ComfyUIBackend(session, 0.05, 3.0).generate(endpoint, SAVED, progress)
        assert {"t"} == {seen.headers.get("X-Token") for seen in comfyui.seen}
        assert "/ws" in paths(comfyui)

    @pytest.mark.parametrize("fault", [Answer(404), Answer(403), CloseBeforeHead()])
    async def test_no_websocket(self, session, comfyui: SimulatedComfyUI, fault):
        """Followed by looking alone."""
        comfyui.faults.add("/ws", fault, times=None)
        assert (await draw(session, comfyui.url, sampled())).filename.startswith("sd_")

    async def test_websocket_that_dies(self, session, comfyui: SimulatedComfyUI):
        """In mid-job: followed by looking from there on."""
        comfyui.plan(HangJob(until := asyncio.Event()))
        asked = asyncio.ensure_future(draw(session, comfyui.url))
        await comfyui.until(lambda: comfyui.jobs.running is not None)
        assert comfyui._web is not None
        comfyui._abort_connections(comfyui._web)
        await comfyui.until(lambda: comfyui.calls("/ws")[-1].cancelled)
        until.set()
        assert (await asked).filename
        assert 1 == len(comfyui.calls("/prompt"))

    async def test_history_late(self, session):
        """The end is told before the history has it: looked again."""
        async with SimulatedComfyUI(history_lag_s=0.1) as comfyui:
            assert (await draw(session, comfyui.url)).filename


class TestNotUpYet:
    async def test_edge_answers(self, session, comfyui: SimulatedComfyUI):
        """A proxy's 404 is waited out."""
        up = asyncio.Event()
        comfyui.faults.add("*", NotReady(up, 404, b"404 page not found"), times=None)
        asyncio.get_running_loop().call_later(0.1, up.set)
        assert (await draw(session, comfyui.url)).filename

    async def test_nothing_listens(self, session, unused_tcp_port_factory):
        """A refused connection is waited out, too."""
        port = unused_tcp_port_factory()
        asked = asyncio.ensure_future(draw(session, f"http://127.0.0.1:{port}"))
        await asyncio.sleep(0.1)
        async with SimulatedComfyUI(port=port):
            assert (await asked).filename

    async def test_never(self, session, unused_tcp_port_factory):
        """Until the timeout."""
        with pytest.raises(ImageFailed, match=r"not there within 0\.2 s"):
            await draw(session, f"http://127.0.0.1:{unused_tcp_port_factory()}", timeout_s=0.2)

    async def test_wrong_address(self, session, comfyui: SimulatedComfyUI):
        """Looks like a server that is not up yet; the message says what answered."""
        comfyui.faults.add("/prompt", Answer(404, b"not here"), times=None)
        with pytest.raises(ImageFailed, match=r"not there \(its address answered 404\) within 0\.2 s"):
            await draw(session, comfyui.url, timeout_s=0.2)


class TestRefused:
    async def test_recorded_kinds(self, session, comfyui: SimulatedComfyUI):
        """Where and what, in one line; a second complaint is counted."""
        graph = json.loads(json.dumps(sampled()))
        graph["4"]["inputs"]["ckpt_name"] = "sd15.safetensors"
        with pytest.raises(ImageFailed) as caught:
            await draw(session, comfyui.url, graph)
        wanted = "node 4 (CheckpointLoaderSimple), ckpt_name: Value not in list: sd15.safetensors"
        assert f"ComfyUI refused the workflow: {wanted}" == caught.value.message

    async def test_graph_that_it_cannot_read(self, session, comfyui: SimulatedComfyUI):
        """500, and no JSON."""
        comfyui.faults.add("/prompt", Answer(500, b"500 Internal Server Error", "text/plain"))
        with pytest.raises(ImageFailed, match="cannot read the workflow"):
            await draw(session, comfyui.url)

    async def test_missing_file(self, session, comfyui: SimulatedComfyUI):
        """Named: the user has to upload it."""
        load = {"class_type": "LoadImage", "inputs": {"image": "mine (1).png"}}
        with pytest.raises(
            ImageFailed, match=r"node 1 \(LoadImage\), image: Invalid image file: mine \(1\)\.png"
        ):
            await draw(session, comfyui.url, {"1": load, "9": SAVED["9"]})

    @pytest.mark.parametrize(
        ("answer", "words"),
        [
            (
                Answer(200, b"<html>Please log in", "text/html"),
                r"another page answered .*\(200\); a login page",
            ),
            (Answer(200, b"{}"), r"another page answered instead of ComfyUI \(200\)"),
            (Answer(302, b""), r"another page answered instead of ComfyUI \(302\)"),
            (Answer(401, b""), r"wants a password or token \(401\)"),
            (Answer(500, b"<html>oops", "text/html"), r"a proxy in front of ComfyUI failed \(500\)"),
            (Answer(405, b'{"detail": "no"}'), "ComfyUI answered 405 to the workflow"),
        ],
    )
    async def test_something_in_front(self, session, comfyui: SimulatedComfyUI, answer, words):
        """Is told apart from ComfyUI."""
        comfyui.faults.add("/prompt", answer)
        with pytest.raises(ImageFailed, match=words):
            await draw(session, comfyui.url)

    async def test_accepted_in_part(self, session, comfyui: SimulatedComfyUI):
        """A 200 with node errors is a failure, and what runs is cancelled."""
        comfyui.plan(HangJob())
        bad = {"class_type": "EmptyImage", "inputs": {"width": 0, "height": 1, "batch_size": 1, "color": 0}}
        save = {"class_type": "SaveImage", "inputs": {"images": ["20", 0], "filename_prefix": "x"}}
        with pytest.raises(ImageFailed, match="node 20"):
            await draw(session, comfyui.url, {**SAVED, "20": bad, "21": save})
        await comfyui.until(lambda: comfyui.jobs.running is None)

    @pytest.mark.parametrize("body", [b"", b"<html>", b"[]"])
    async def test_nonsense(self, session, comfyui: SimulatedComfyUI, body):
        """A 200 that is no answer of ComfyUI's."""
        comfyui.faults.add("/prompt", Answer(200, body))
        with pytest.raises(ImageFailed):
            await draw(session, comfyui.url)


class TestFailing:
    @pytest.mark.parametrize(
        ("fault", "words"),
        [
            (FailJob("cannot read '/opt/comfyui/x'", "PIL.UnidentifiedImageError"), "PIL.Unidentified"),
            (FailJob("CUDA", "torch.OutOfMemoryError"), "out of GPU memory"),
            (EmptyJob(), "without an image"),
            (VanishJob(), "file is gone"),
            (LoseJob(), "lost the job"),
        ],
    )
    async def test_job(self, session, comfyui: SimulatedComfyUI, fault, words):
        """One line each, and never a path of the server."""
        comfyui.plan(fault)
        with pytest.raises(ImageFailed, match=words) as caught:
            await draw(session, comfyui.url)
        assert "/opt" not in caught.value.message

    async def test_interrupted_by_somebody_else(self, session, comfyui: SimulatedComfyUI):
        """Told apart from a failure."""
        comfyui.plan(HangJob())
        asked = asyncio.ensure_future(draw(session, comfyui.url))
        await comfyui.until(lambda: comfyui.jobs.running is not None)
        comfyui.jobs.interrupt(None)
        with pytest.raises(ImageFailed, match="interrupted"):
            await asked

    async def test_restart_in_mid_job(self, session, comfyui: SimulatedComfyUI):
        """A server that has forgotten everything has lost the job; a running one has not."""
        comfyui.plan(HangJob())
        asked = asyncio.ensure_future(draw(session, comfyui.url))
        await comfyui.until(lambda: comfyui.jobs.running is not None)
        await asyncio.sleep(0.15)
        assert not asked.done()
        comfyui.jobs.forget()
        await comfyui.until(lambda: comfyui.jobs.running is None)
        comfyui.jobs.history.clear()
        with pytest.raises(ImageFailed, match=r"lost the job|interrupted"):
            await asked

    async def test_looks_that_break(self, session, comfyui: SimulatedComfyUI):
        """A few are no matter."""
        comfyui.faults.add("*", CloseBeforeHead(), times=1)  # the websocket
        comfyui.plan(HangJob(until := asyncio.Event()))
        asked = asyncio.ensure_future(draw(session, comfyui.url))
        await comfyui.until(lambda: comfyui.jobs.running is not None)
        comfyui.faults.add("*", CloseBeforeHead(), times=MAX_BROKEN_POLLS - 2)
        await asyncio.sleep(0.1)
        until.set()
        assert (await asked).filename

    async def test_server_that_dies(self, session, comfyui: SimulatedComfyUI):
        """Silent: perhaps the whole pod is no more."""
        comfyui.plan(HangJob())
        asked = asyncio.ensure_future(draw(session, comfyui.url))
        await comfyui.until(lambda: comfyui.jobs.running is not None)
        await comfyui.stop()
        with pytest.raises(PodUnreachable):
            await asked

    async def test_submission_that_breaks_after_it_arrived(self, session, comfyui: SimulatedComfyUI):
        """Not sent twice: the job is found by its name."""
        comfyui.faults.add("/prompt", BreakAfter(0))
        assert (await draw(session, comfyui.url)).filename
        assert 1 == len(comfyui.calls("/prompt"))

    async def test_proxy_that_gives_up_waiting(self, session, comfyui: SimulatedComfyUI):
        """524 at the submission: ComfyUI may have the job, so it is looked for and never sent again."""
        comfyui.faults.add("/prompt", Answer(524, b"a proxy's page", "text/html"))
        with pytest.raises(ImageFailed, match="lost the job"):
            await draw(session, comfyui.url)
        assert 1 == len(comfyui.calls("/prompt"))

    async def test_fetch_that_breaks(self, session, comfyui: SimulatedComfyUI):
        """Asked for once more; a picture in part is none."""
        comfyui.faults.add("/view", BreakAfter(1))
        drawn = await draw(session, comfyui.url)
        assert drawn.data.endswith(b"IEND\xaeB`\x82")


class TestCancelled:
    async def test_running_job(self, session, comfyui: SimulatedComfyUI):
        """Deleted from the queue and interrupted, both by name."""
        comfyui.plan(HangJob())
        asked = asyncio.ensure_future(draw(session, comfyui.url))
        await comfyui.until(lambda: comfyui.jobs.running is not None)
        asked.cancel()
        await asyncio.wait([asked])
        await comfyui.until(lambda: comfyui.jobs.running is None)
        assert asked.cancelled()

    async def test_waiting_job(self, session, comfyui: SimulatedComfyUI):
        """Taken out of the queue; another's job runs on, also where an interrupt stops any job."""
        comfyui.old = True
        comfyui.plan(HangJob())
        other = asyncio.ensure_future(draw(session, comfyui.url))
        await comfyui.until(lambda: comfyui.jobs.running is not None)
        mine = asyncio.ensure_future(draw(session, comfyui.url, sampled()))
        await comfyui.until(lambda: len(comfyui.jobs.pending()) == 1)
        mine.cancel()
        await asyncio.wait([mine])
        assert ([], True) == (comfyui.jobs.pending(), comfyui.jobs.running is not None)
        other.cancel()
        await asyncio.wait([other])

    async def test_during_the_submission(self, session, comfyui: SimulatedComfyUI):
        """What arrives all the same is cancelled by the name that it was given."""
        comfyui.faults.add("/prompt", Hang(until := asyncio.Event()))
        asked = asyncio.ensure_future(draw(session, comfyui.url))
        await comfyui.until(lambda: bool(comfyui.calls("/prompt")))
        asked.cancel()
        await asyncio.sleep(0.05)
        until.set()
        await asyncio.wait([asked])
        job = json.loads(comfyui.calls("/prompt")[0].body)["prompt_id"]
        assert [{"delete": [job]}] == deletions(comfyui)

    async def test_submission_that_arrives_late(self, session, comfyui: SimulatedComfyUI, monkeypatch):
        """Nobody waits for it any more; it is cancelled once it has arrived."""
        monkeypatch.setattr("gpugate.generation.comfyui.CANCEL_S", 0.05)
        comfyui.faults.add("/prompt", Hang(until := asyncio.Event()))
        comfyui.plan(HangJob())
        asked = asyncio.ensure_future(draw(session, comfyui.url))
        await comfyui.until(lambda: bool(comfyui.calls("/prompt")))
        asked.cancel()
        await asyncio.wait([asked])
        await comfyui.until(lambda: len(deletions(comfyui)) == 1)
        until.set()
        await comfyui.until(lambda: len(comfyui.calls("/interrupt")) == 1)
        await comfyui.until(lambda: comfyui.in_flight == 0)
        assert ([], None) == (comfyui.jobs.pending(), comfyui.jobs.running)

    async def test_server_that_names_jobs_itself(self, session, comfyui: SimulatedComfyUI):
        """An older one takes no name for a job: it is cancelled by the one that it answers with."""
        named = b'{"prompt_id": "its-own", "number": 1, "node_errors": {}}'
        queued = b'{"queue_running": [[1, "its-own", {}, {}, []]], "queue_pending": []}'
        comfyui.faults.add("/prompt", Answer(200, named))
        asked = asyncio.ensure_future(draw(session, comfyui.url, poll_s=60))
        await comfyui.until(lambda: bool(comfyui.calls("/prompt")))
        await asyncio.sleep(0.05)
        comfyui.faults.add("/queue", Answer(200))
        comfyui.faults.add("/queue", Answer(200, queued))
        asked.cancel()
        await asyncio.wait([asked])
        assert [{"delete": ["its-own"]}] == deletions(comfyui)
        assert {"prompt_id": "its-own"} == json.loads(comfyui.calls("/interrupt")[-1].body)

    async def test_timeout(self, session, comfyui: SimulatedComfyUI):
        """The job does not go on."""
        comfyui.plan(HangJob())
        with pytest.raises(ImageFailed, match="not done within"):
            await draw(session, comfyui.url, timeout_s=0.2)
        await comfyui.until(lambda: comfyui.jobs.running is None)

    async def test_timeout_of_a_job_that_never_began(self, session, comfyui: SimulatedComfyUI):
        """Said so: other jobs are before it."""
        comfyui.plan(HangJob())
        other = asyncio.ensure_future(draw(session, comfyui.url))
        await comfyui.until(lambda: comfyui.jobs.running is not None)
        with pytest.raises(ImageFailed, match=r"did not begin the job, others are before it, within 0\.3 s"):
            await draw(session, comfyui.url, sampled(), timeout_s=0.3)
        other.cancel()
        await asyncio.wait([other])

    async def test_finished_job(self, session, comfyui: SimulatedComfyUI):
        """Nothing is cancelled that is over."""
        await draw(session, comfyui.url)
        assert {"/interrupt"}.isdisjoint(paths(comfyui))
