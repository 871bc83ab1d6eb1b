"""How much GPU memory a pod's models need, for providers that choose the GPU by it.

See docs/api.md#the-gpu-that-fits.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from attrs import frozen

from gpugate.core.request_queue import full_name
from gpugate.errors import SettingsError
from gpugate.json_file import JsonFile
from gpugate.provider_api import Provider

MARGIN_BYTES = 2 << 30
NEXT_SIZE = 1.05
"""A GPU with so many times the memory is another size; cards of the same size differ by less."""

NO_SIZE = (
    'name the pod\'s models, with the size in the name as in "llava:13b": {} chooses the GPU ("auto") by the '
    "largest one, and no size is known yet"
)

_PARAMETERS = re.compile(r"(?<![a-z0-9.])(?:(\d+)x)?(\d+(?:\.\d+)?)([bm])(?![a-z0-9])")
_BYTES_EACH: Mapping[str, float] = {"q2": 0.42, "q3": 0.5, "q4": 0.61, "q5": 0.72, "q6": 0.83, "q8": 1.07}
_FULL_BYTES = 2.0  # fp16, bf16


@frozen
class Need:
    """The largest model, and the GPU memory that it needs, in bytes."""

    model: str
    model_bytes: int
    gpu_bytes: int

    def __str__(self) -> str:
        return f"{self.gpu_bytes / (1 << 30):.1f} GiB for {self.model} ({self.model_bytes / 1e9:.1f} GB)"


class GpuNeed:
    """The need of one pod.

    Args:
        pull: `pod.pull`.
        sizes: returns the size in bytes of each model that the pod is known to have, by its full name.
        path: of the file that remembers which GPU was too small.
        log: takes one line for people.
    """

    def __init__(
        self,
        pull: Iterable[str],
        sizes: Callable[[], Mapping[str, int]],
        path: Path,
        log: Callable[[str], None],
    ) -> None:
        self._pull = tuple(pull)
        self._sizes = sizes
        self._file = JsonFile(path)
        self._log = log
        self._too_small = self._file.load(_two_numbers, (0, 0), log)  # by sizes, and memory of the GPU
        self._noted = False  # since the last start

    def need(self) -> Need | None:
        """Return what the largest model needs; None if no size is known.

        A model that is not there yet has the size that its name tells, such as "llava:13b".
        """
        known = dict(self._sizes())
        for name in self._pull:
            if full_name(name) not in known and (size := size_of_name(name)) is not None:
                known[full_name(name)] = size
        if not known:
            return None
        model, size = max(known.items(), key=lambda item: item[1])
        wanted = _by_size(size)
        needed_then, too_small = self._too_small
        if too_small and wanted >= needed_then:
            wanted = max(wanted, int(too_small * NEXT_SIZE))
        return Need(model, size, wanted)

    def for_start(self) -> int | None:
        """Return the GPU memory for a start that is made now, in bytes, and log it."""
        self._noted = False
        need = self.need()
        if need is not None:
            self._log(f"choosing a GPU with {need}")
        return None if need is None else need.gpu_bytes

    def note_too_small(self, gpu_bytes: int | None) -> None:
        """A model ran partly on the CPU with so much GPU memory, if that is known: take more next time.

        Counts once for each start, however often it is seen.
        """
        need = self.need()
        if need is None or self._noted:
            return
        self._noted = True
        self._too_small = _by_size(need.model_bytes), gpu_bytes or need.gpu_bytes
        self._file.save(self._too_small, self._log)
        self._log("a model runs partly on the CPU: the next start takes a GPU with more memory")


def _by_size(model_bytes: int) -> int:
    return model_bytes * 6 // 5 + MARGIN_BYTES


def gpu_need_of(
    pull: Iterable[str],
    sizes: Callable[[], Mapping[str, int]],
    path: Path,
    log: Callable[[str], None],
    kinds: Mapping[str, type[Provider]],
    configs: Mapping[str, Any],
) -> GpuNeed | None:
    """Return the need of a pod one of whose providers chooses the GPU by it; None if none does.

    Args:
        kinds: the classes of its providers, by name; `configs` their configurations.

    Raises:
        SettingsError: no size is known to choose by.
    """
    choosing = [name for name, kind in kinds.items() if kind.chooses_gpu(configs[name])]
    if not choosing:
        return None
    need = GpuNeed(pull, sizes, path, log)
    if need.need() is None:
        names = ", ".join(f"providers.{name}" for name in choosing)
        raise SettingsError([f"pod.pull: {NO_SIZE.format(names)}"])
    return need


def size_of_name(name: str) -> int | None:
    """Return about how many bytes a model has, by the parameters and the quantization in its name.

    Ollama's own tags are Q4_K_M where they say nothing: "llava:13b" has 8.0 GB.
    """
    text = name.lower().replace("_", "-")
    found = [*_PARAMETERS.finditer(text)]
    if not found:
        return None
    experts, number, unit = found[-1].groups()
    parameters = int(experts or 1) * float(number) * (1e9 if unit == "b" else 1e6)
    if re.search(r"\b(?:fp16|bf16|f16)\b", text):
        return int(parameters * _FULL_BYTES)
    quantized = re.search(r"\bi?(q[234568])", text)
    return int(parameters * _BYTES_EACH[quantized[1] if quantized else "q4"])


def _two_numbers(content: object) -> tuple[int, int]:
    if not isinstance(content, list) or len(content) != 2 or not all(isinstance(n, int) for n in content):
        raise ValueError("not two numbers")
    return content[0], content[1]
