"""How much GPU memory the models need: sizes by name and by catalogue, and the next size up."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from gpugate_testing.fakes import FakeCloud, FakePod, FakeProvider

from gpugate.errors import SettingsError
from gpugate.lifecycle.gpu_need import GpuNeed, gpu_need_of, size_of_name
from gpugate.provider_api import Endpoint, Provider
from tests.lifecycle.support import Stage, play

GIB = 1 << 30


@pytest.mark.parametrize(
    ("name", "gigabytes"),
    [
        ("llava:13b", 8.0),
        ("qwen2.5-coder:7b", 4.7),
        ("llama3.1:70b", 42.5),
        ("gemma3:270m", 0.2),
        ("deepseek-r1:1.5b", 1.1),
        ("qwen3:30b-a3b", 18.6),
        ("llama3:8b-instruct-fp16", 16.0),
        ("hf.co/unsloth/Model-8B-GGUF:Q8_0", 8.5),
        ("hf.co/x/model-8b:IQ2_M", 3.4),
        ("LLaVA:13B", 8.0),
        ("llava", None),
        ("gpt-oss", None),
        ("phi3:mini", None),
        ("model-v2b", None),
    ],
)
def test_the_size_that_a_name_tells(name: str, gigabytes: float | None) -> None:
    """Within a tenth, or 0.5 GB, of what Ollama's registry has."""
    size = size_of_name(name)
    if gigabytes is None:
        assert size is None
    else:
        assert size is not None
        assert abs(size / 1e9 - gigabytes) <= max(0.5, gigabytes / 10)


def need_of(tmp_path: Path, *pull: str, **sizes: int) -> GpuNeed:
    """The need of these models; those of the catalogue with their sizes."""
    known = {f"{name}:latest": size for name, size in sizes.items()}
    return GpuNeed(pull, lambda: known, tmp_path / "gpu-need.json", lambda _: None)


def gpu_bytes(need: GpuNeed) -> int:
    """What is needed."""
    found = need.need()
    assert found is not None
    return found.gpu_bytes


def test_the_largest_model_counts(tmp_path: Path) -> None:
    """Times 1.2, and 2 GiB; the catalogue knows better than a name."""
    assert 10 * 10**9 * 6 // 5 + 2 * GIB == gpu_bytes(need_of(tmp_path, small=10**9, large=10 * 10**9))
    assert "9.6 GiB for small:latest (6.8 GB)" == str(need_of(tmp_path, "small", small=6_800_000_000).need())
    assert gpu_bytes(need_of(tmp_path, "x:13b")) > gpu_bytes(need_of(tmp_path, "x:7b", small=10**9))
    assert need_of(tmp_path, "llava").need() is None


def test_the_next_size_up(tmp_path: Path) -> None:
    """More than the GPU had that was too small, also after a restart; as long as no less is needed."""
    need = need_of(tmp_path, large=10 * 10**9)
    need.note_too_small(24 * GIB)
    again = need_of(tmp_path, large=10 * 10**9)
    assert gpu_bytes(need) == gpu_bytes(again)
    assert 24 * GIB < gpu_bytes(again) <= 26 * GIB
    assert 13 * GIB > gpu_bytes(need_of(tmp_path, large=8 * 10**9))


def test_it_is_noted_once_for_each_start(tmp_path: Path) -> None:
    """However often it is seen; a larger GPU that is too small as well is followed by a larger one yet."""
    need = need_of(tmp_path, large=10 * 10**9)
    for _ in range(3):
        need.note_too_small(24 * GIB)
    once = gpu_bytes(need)
    assert 24 * GIB < once <= 26 * GIB
    need.for_start()
    need.note_too_small(32 * GIB)
    assert 32 * GIB < gpu_bytes(need) <= 34 * GIB
    assert gpu_bytes(need) == gpu_bytes(need_of(tmp_path, large=10 * 10**9))


def test_a_gpu_of_which_nothing_is_known(tmp_path: Path) -> None:
    """More than was asked for."""
    need = need_of(tmp_path, large=10 * 10**9)
    before = gpu_bytes(need)
    need.note_too_small(None)
    assert gpu_bytes(need) > before


def test_a_damaged_file(tmp_path: Path) -> None:
    """It is as if there were none, and is told."""
    told: list[str] = []
    (tmp_path / "gpu-need.json").write_text('["x", 2]')
    need = GpuNeed(["llava:13b"], dict, tmp_path / "gpu-need.json", told.append)
    assert gpu_bytes(need) < 13 * GIB
    assert 1 == len(told)


class Choosing(Provider):
    """A provider that chooses the GPU."""

    @classmethod
    def chooses_gpu(cls, config: Any) -> bool:
        return True


def test_a_provider_that_chooses(tmp_path: Path) -> None:
    """Without a size it is refused with the key that helps; for another provider nothing is looked for."""
    path, kinds, configs = tmp_path / "x.json", {"runpod": Choosing}, {"runpod": None}
    with pytest.raises(SettingsError, match=r"^pod\.pull: name the pod's models.*providers\.runpod"):
        gpu_need_of(["llava"], dict, path, print, kinds, configs)
    assert gpu_need_of(["llava:13b"], dict, path, print, kinds, configs) is not None
    assert gpu_need_of([], dict, path, print, {"local": Provider}, {"local": None}) is None


class ChoosingFake(FakeProvider):
    """A fake that chooses the GPU."""

    @classmethod
    def chooses_gpu(cls, config: Any) -> bool:
        return True


class Small(FakePod):
    """A pod whose models run partly on the CPU."""

    async def partly_on_cpu(self, endpoint: Endpoint) -> bool:
        return True


def test_the_next_start_takes_the_next_size(tmp_path: Path) -> None:
    """The provider is told the need before the start; a model that runs partly on the CPU raises it."""

    async def story() -> None:
        need = GpuNeed(["x:13b"], dict, tmp_path / "need.json", lambda _: None)
        before, provider = gpu_bytes(need), ChoosingFake(FakeCloud())
        async with Stage([provider.cloud], pod_class=Small, wrap=lambda _: provider) as stage:
            stage.lifecycle.set_gpu_need(need)
            lease = stage.lifecycle.acquire(model="x:13b")
            await lease.wait_admitted()
            assert before == provider.needed_gpu_bytes
            assert gpu_bytes(need) > before
            stage.lifecycle.release(lease)

    play(story())


class LaterSmall(Small):
    """A pod with enough memory for the first model, and not for what is loaded later."""

    async def partly_on_cpu(self, endpoint: Endpoint) -> bool:
        return self.cloud.now > 100


def test_a_model_that_is_loaded_later(tmp_path: Path) -> None:
    """It is seen at the next look at the provider, once."""

    async def story() -> None:
        need = GpuNeed(["x:13b"], dict, tmp_path / "need.json", lambda _: None)
        before, provider = gpu_bytes(need), ChoosingFake(FakeCloud())
        async with Stage([provider.cloud], pod_class=LaterSmall, wrap=lambda _: provider) as stage:
            stage.lifecycle.set_gpu_need(need)
            await stage.ask(model="x:13b")
            assert before == gpu_bytes(need)
            await asyncio.sleep(200)
            after = gpu_bytes(need)
            assert after > before
            await asyncio.sleep(200)
            assert after == gpu_bytes(need)

    play(story())


def test_another_provider_changes_nothing(tmp_path: Path) -> None:
    """A provider that does not choose its GPU has the one that it has."""

    async def story() -> None:
        need = GpuNeed(["x:13b"], dict, tmp_path / "need.json", lambda _: None)
        before = gpu_bytes(need)
        async with Stage([FakeCloud()], pod_class=Small) as stage:
            stage.lifecycle.set_gpu_need(need)
            await stage.ask(model="x:13b")
            assert before == gpu_bytes(need)

    play(story())
