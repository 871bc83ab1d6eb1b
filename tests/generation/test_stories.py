"""Stories: who tells them, when they have begun, and what counts as none; visits and their second tries."""

from __future__ import annotations

import asyncio

import pytest
from gpugate_demo.picture import draw

from gpugate.errors import InvalidRequest, PodStopped, QueueTimeout, StoryFailed
from gpugate.generation.image_format import read_checked_image
from gpugate.generation.stories import MAX_TOKENS, StoryService
from gpugate.generation.text_model import GenerationFailed
from gpugate.lifecycle.diagnosis import Diagnosis
from gpugate.lifecycle.leased_call import PodUnreachable
from tests.generation.stay import FakeTexts, leased_call_on, pod

IMAGE = read_checked_image(draw("x", 1, 8, 8))


def stories(*scripts: list[object], text: str = "") -> tuple[StoryService, FakeTexts]:
    texts = FakeTexts([list(script) for script in scripts])
    return StoryService(texts, "llava", text), texts


class TestTelling:
    def test_models(self):
        """The vision model sees; without a picture `models.story` tells, if there is one."""
        told, _ = stories([])
        assert ("llava", "llava") == (told.request("x", None).model, told.request("x", IMAGE).model)
        told, _ = stories([], text="tale")
        assert ("tale", "llava") == (told.request("x", None).model, told.request("x", IMAGE).model)

    def test_end_for_a_model_that_finds_none(self):
        """The pod costs money: a story is bounded."""
        body = stories()[0].request("a cat", None).body()
        assert {"num_predict": MAX_TOKENS} == body["options"]

    def test_nothing_to_tell_of(self):
        """Refused."""
        with pytest.raises(InvalidRequest, match="prompt or image_base64"):
            stories([])[0].request(" ", None)


class TestTold:
    async def test_blanks_at_the_edges(self):
        """Begin no answer and are no part of the story."""
        told, _ = stories([" ", "\n once", " upon ", ""])
        visit, lease = leased_call_on()
        heard: list[str] = []

        async def hear(text: str) -> None:
            assert lease.begun == 1
            heard.append(text)

        assert "once upon" == await told.generate(visit, told.request("x", None), hear)
        assert ["once", " upon ", ""] == heard

    @pytest.mark.parametrize(
        "script", [[], [" ", "\n"], [GenerationFailed("broke")], ["on", GenerationFailed("broke")]]
    )
    async def test_none(self, script):
        """Nothing, blanks, a failure at any time: StoryFailed."""
        told, _ = stories(script)
        with pytest.raises(StoryFailed):
            await told.generate(leased_call_on()[0], told.request("x", None))

    async def test_silent_pod_that_lives(self):
        """Asked twice, then a failure of the model's service."""
        told, texts = stories([PodUnreachable("broke")])
        with pytest.raises(StoryFailed, match="broke"):
            await told.generate(leased_call_on()[0], told.request("x", None))
        assert 2 == len(texts.asked)

    async def test_silent_pod_that_is_lost(self):
        """The next pod tells it."""
        told, texts = stories([PodUnreachable("broke")], [PodUnreachable("broke")], ["once"])
        visit, _ = leased_call_on(pod(1), pod(2), finding=Diagnosis.LOST)
        assert "once" == await told.generate(visit, told.request("x", None))
        assert 3 == len(texts.asked)

    async def test_pod_lost_under_way(self):
        """Given up at once, and told by the next; what was told before is forgotten."""
        visit, lease = leased_call_on(pod(1), pod(2))

        async def lose() -> None:
            lease.lose()
            await asyncio.sleep(5)

        told, _ = stories(["half a ", lose], ["once"])
        assert "once" == await told.generate(visit, told.request("x", None))

    async def test_pod_lost_after_it_has_begun(self):
        """There is no second try, and nobody waits for ever."""
        visit, lease = leased_call_on(pod(1))

        async def lose() -> None:
            lease.lose()
            await asyncio.sleep(5)

        async def hear(text: str) -> None:
            return None

        told, texts = stories(["half a ", lose])
        with pytest.raises(PodStopped):
            await told.generate(visit, told.request("x", None), hear)
        assert 1 == len(texts.asked)

    async def test_refused_while_it_waits(self):
        """The queue's own words."""
        visit, lease = leased_call_on(pod(1))
        lease.pods.clear()
        lease.error = QueueTimeout()
        told, _ = stories([])
        with pytest.raises(QueueTimeout):
            await told.generate(visit, told.request("x", None))

    async def test_cancelled(self):
        """The caller's cancellation is no lost pod."""
        told, _ = stories([lambda: asyncio.sleep(5)])
        task = asyncio.ensure_future(told.generate(leased_call_on()[0], told.request("x", None)))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
