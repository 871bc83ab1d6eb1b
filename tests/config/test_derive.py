"""gpugate/config/derive.py: which pod it is, and which models it has as far as is known beforehand."""

from __future__ import annotations

from gpugate_demo.provider import Demo
from gpugate_runpod.settings import RunPodConfig
from gpugate_testing.fakes import FakeProvider
from gpugate_vastai.settings import VastConfig

from gpugate.config import Settings
from gpugate.config.derive import named_models, pods_of
from gpugate.config.schema import Models, Pod
from gpugate.provider_api import NoConfig


def test_pods() -> None:
    """Known by the provider and the id that is configured."""
    settings = Settings(pod=Pod(provider=("runpod", "vastai", "fake")))
    configs = {
        "runpod": RunPodConfig(api_key="k", pod_id="abc"),
        "vastai": VastConfig(api_key="k", instance_id=7),
        "fake": NoConfig(),
    }
    assert {"runpod": "runpod:abc", "vastai": "vastai:7", "fake": "fake"} == pods_of(settings, configs)


def test_ephemeral_pods() -> None:
    """Known by what they are made of."""
    settings = Settings(pod=Pod(provider=("runpod",)))
    made = RunPodConfig(api_key="k", mode="ephemeral", image="ollama/ollama", gpus=["A40"], volume_id="v1")
    assert {"runpod": "runpod:ollama/ollama:v1"} == pods_of(settings, {"runpod": made})


def test_models() -> None:
    """The model that is loaded at a start and those of the services, but not the bot's local one."""
    settings = Settings(pod=Pod(preload="a:1b"), models=Models(vision="v", story="s", code="c"))
    assert ["a:1b", "v", "s", "c"] == named_models(settings, [FakeProvider])
    assert ["llava", "deepseek-coder"] == named_models(Settings(), [FakeProvider])
    assert ["llava", "deepseek-coder"] == named_models(Settings(pod=Pod(preload="none")), [])


def test_models_of_the_demo() -> None:
    """The demo's provider knows its own."""
    assert "llama3.2:3b" == named_models(Settings(), [Demo])[0]
