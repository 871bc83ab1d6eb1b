"""A story and its picture: what is told when, what only warns, and what the image model is asked."""

from __future__ import annotations

import pytest
from gpugate_demo.picture import draw
from hypothesis import given
from hypothesis import strategies as st

from gpugate.errors import ImageFailed, StoryFailed
from gpugate.generation.fantasy import EXCERPT, STYLE, FantasyService, image_prompt
from gpugate.generation.image_format import read_checked_image
from gpugate.generation.images import ImageService
from gpugate.generation.stories import StoryService
from gpugate.generation.text_model import GenerationFailed
from gpugate.generation.workflows import load
from gpugate.lifecycle.diagnosis import Diagnosis
from gpugate.lifecycle.leased_call import PodUnreachable
from tests.generation.stay import FakePainter, FakeTexts, leased_call_on, pod

PNG = draw("x", 1, 16, 16)
IMAGE = read_checked_image(PNG)


def fantasies(*script: object, result: object = PNG) -> tuple[FantasyService, FakePainter]:
    painter = FakePainter(result)
    pictures = ImageService(painter, load("", "", "c"))
    return FantasyService(StoryService(FakeTexts([list(script)]), "llava", "tale"), pictures), painter


class Log:
    """A listener that writes all down."""

    def __init__(self) -> None:
        self.heard: list[object] = []

    async def story(self, delta: str) -> None:
        self.heard.append(delta)

    async def progress(self, stage: str, value: int, most: int) -> None:
        self.heard.append((stage, value, most))


async def test_both():
    """Story first, then its picture; told in this order."""
    dreams, painter = fantasies("A cat", " sat.")
    log = Log()
    dream = await dreams.generate(leased_call_on()[0], dreams.story_request(IMAGE, ""), listener=log)
    assert ("A cat sat.", ()) == (dream.story, dream.warnings)
    assert dream.image is not None
    assert ["A cat", " sat.", ("story", 1, 1), ("image", 1, 2)] == log.heard
    assert f"{STYLE}, A cat sat." == painter.graphs[0]["2"]["inputs"]["text"]


def test_always_the_vision_model():
    """Also where another tells stories without a picture."""
    assert "llava" == fantasies()[0].story_request(IMAGE, "sad").model


@pytest.mark.parametrize("trouble", [ImageFailed("it broke"), PodUnreachable("it broke")])
async def test_picture_that_fails(trouble):
    """The story comes, with a warning."""
    dreams, _ = fantasies("A cat.", result=trouble)
    dream = await dreams.generate(leased_call_on()[0], dreams.story_request(IMAGE, ""))
    assert ("A cat.", None) == (dream.story, dream.image)
    assert [("IMAGE_GEN_FAILED", "it broke")] == [(one.code, one.message) for one in dream.warnings]


async def test_story_that_fails():
    """Nothing is drawn."""
    dreams, painter = fantasies("A", GenerationFailed("broke"))
    with pytest.raises(StoryFailed):
        await dreams.generate(leased_call_on()[0], dreams.story_request(IMAGE, ""))
    assert [] == painter.graphs


async def test_no_picture_wanted():
    """None is drawn, and that is no warning."""
    dreams, painter = fantasies("A cat.")
    dream = await dreams.generate(leased_call_on()[0], dreams.story_request(IMAGE, ""), illustrated=False)
    assert (None, (), []) == (dream.image, dream.warnings, painter.graphs)


async def test_pod_lost_between():
    """Costs the picture, not a second story."""
    dreams, painter = fantasies("A cat.")
    visit, lease = leased_call_on()

    class Loser(Log):
        async def progress(self, stage: str, value: int, most: int) -> None:
            lease.lose()

    dream = await dreams.generate(visit, dreams.story_request(IMAGE, ""), listener=Loser())
    assert ("A cat.", 1, []) == (dream.story, len(dream.warnings), painter.graphs)


async def test_pod_lost_while_drawing():
    """The story is there already, so it does not wait through another start for its picture."""
    dreams, painter = fantasies("A cat.", result=PodUnreachable("gone"))
    visit, _ = leased_call_on(pod(1), pod(2), finding=Diagnosis.LOST)
    dream = await dreams.generate(visit, dreams.story_request(IMAGE, ""))
    assert ("A cat.", None, 1) == (dream.story, dream.image, len(painter.graphs))
    assert ["IMAGE_GEN_FAILED"] == [warning.code for warning in dream.warnings]


class TestPrompt:
    def test_whole_sentences(self):
        """As many as fit."""
        story = "One cat sat. " * 100
        prompt = image_prompt(story)
        assert prompt.endswith("One cat sat.")
        assert len(prompt) <= len(STYLE) + 2 + EXCERPT

    def test_syntax_of_image_models(self):
        """Weights, embeddings and markdown are taken out."""
        prompt = image_prompt('# **The (cat:1.5)** [said]:\n"embedding:evil <lora:x:1> Hello."')
        assert f"{STYLE}, The cat,1.5 said , evil x,1 Hello." == prompt

    @given(st.text(max_size=2000))
    def test_any_story(self, story):
        """Short, in one line, without brackets."""
        prompt = image_prompt(story)
        assert len(prompt) <= len(STYLE) + 2 + EXCERPT
        assert not set(prompt) & set("()[]{}<>\n\\")
