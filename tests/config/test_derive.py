"""gpugate/config/derive.py: which pod it is, and which models it has as far as is known beforehand."""

from __future__ import annotations

from gpugate_demo.provider import Demo
from gpugate_runpod.settings import RunPodConfig
from gpugate_testing.fakes import FakeProvider
from gpugate_vastai.settings import VastConfig

from gpugate.config import Settings
from gpugate.config.derive import named_models, pods_of, policy_of
from gpugate.config.schema import Models, Pod, PodSettings
from gpugate.provider_api import NoConfig, Provider


def test_pods() -> None:
    """Known by the provider and the id that is configured."""
    pod = PodSettings(pod=Pod(provider=("runpod", "vastai", "fake")))
    configs = {
        "runpod": RunPodConfig(api_key="k", pod_id="abc"),
        "vastai": VastConfig(api_key="k", instance_id=7),
        "fake": NoConfig(),
    }
    assert {"runpod": "runpod:abc", "vastai": "vastai:7", "fake": "fake"} == pods_of(pod, configs)


def test_ephemeral_pods() -> None:
    """Known by what they are made of."""
    pod = PodSettings(pod=Pod(provider=("runpod",)))
    made = RunPodConfig(api_key="k", mode="ephemeral", image="ollama/ollama", gpus=["A40"], volume_id="v1")
    assert {"runpod": "runpod:ollama/ollama:v1"} == pods_of(pod, {"runpod": made})


def models_of(settings: Settings, *providers: type[Provider], pod: int = 0) -> list[str]:
    """Those of one of the pods."""
    return named_models(settings, settings.pods[pod], providers)


def test_models() -> None:
    """The model that is loaded at a start and those of the services, but not the bot's local one."""
    settings = Settings(pod=Pod(preload="a:1b"), models=Models(vision="v", story="s", code="c"))
    assert ["a:1b", "v", "s", "c"] == models_of(settings, FakeProvider)
    assert ["llava", "deepseek-coder"] == models_of(Settings(), FakeProvider)
    assert ["llava", "deepseek-coder"] == models_of(Settings(pod=Pod(preload="none")))


def test_models_of_the_demo() -> None:
    """The demo's provider knows its own."""
    assert "llama3.2:3b" == models_of(Settings(), Demo)[0]


def test_each_pod_has_what_is_its_own() -> None:
    """Policy and models come of the pod's own keys; the services' models are counted to the first."""
    pods = (PodSettings(name="a"), PodSettings(name="b", pod=Pod(idle_timeout=5, preload="x")))
    settings = Settings(named_pods=pods)

    assert [900, 5] == [policy_of(settings, pod, []).idle_timeout for pod in pods]
    assert [["llava", "deepseek-coder"], ["x"]] == [models_of(settings, pod=number) for number in (0, 1)]


def test_another_engine() -> None:
    """Nothing is preloaded, no service's model is its own, and its health has another path."""
    pod = PodSettings(pod=Pod(engine="openai", preload="a:1b"))
    assert "none" == policy_of(Settings(), pod, []).preload
    assert [] == named_models(Settings(), pod, [FakeProvider])
    assert "llama3.2:3b" == named_models(Settings(), pod, [Demo])[0]
    assert ["/health", "/up"] == [pod.pod.probe_path, Pod(engine="openai", health_path="/up").probe_path]
    assert "/api/version" == Pod().probe_path
