"""The generation feature: stories, images, fantasies and code, under `/api/v1`."""

from __future__ import annotations

import aiohttp

from gpugate.api.generation import GenerationApi
from gpugate.config import Settings
from gpugate.fleet import Fleet
from gpugate.generation.code_assist import SYSTEM, CodeAssist, CodeStream
from gpugate.generation.comfyui import ComfyUIBackend
from gpugate.generation.fantasy import FantasyService
from gpugate.generation.images import ImageService
from gpugate.generation.stories import StoryService
from gpugate.generation.text_model import OllamaTextModel
from gpugate.generation.workflows import Workflows
from gpugate.proxy.request_context import BodyLimits
from gpugate.relay.relay import Relay


def generation_api(
    settings: Settings,
    workflows: Workflows,
    *,
    fleet: Fleet,
    session: aiohttp.ClientSession,
) -> GenerationApi:
    """Make the services with the models and workflows of the settings, and their endpoints."""
    models, comfyui = settings.models, settings.comfyui
    texts = OllamaTextModel(session)
    stories = StoryService(texts, models.vision, models.story)
    pictures = ImageService(ComfyUIBackend(session, comfyui.poll_interval, comfyui.timeout), workflows)
    return GenerationApi(
        fleet=fleet,
        picture_pod=fleet.named(comfyui.pod) if comfyui.pod else fleet.first,
        texts=texts,
        coding=CodeAssist(models.code, models.code_system or SYSTEM),
        code_stream=CodeStream(Relay()),
        stories=stories,
        images=pictures,
        fantasies=FantasyService(stories, pictures),
        limits=BodyLimits(settings.server.max_body, settings.server.body_timeout),
        heartbeat_s=settings.queue.heartbeat,
    )
