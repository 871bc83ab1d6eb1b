"""The models of the simulated Ollama: installed and loaded ones."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta

from attrs import define, evolve, field, frozen

DEFAULT_KEEP_ALIVE_S = 300.0
FOREVER_S = 292 * 365.25 * 86400.0  # Go's longest Duration, which a negative keep_alive means
_LATEST_YEAR = datetime(2318, 1, 1, tzinfo=UTC)
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*(/[A-Za-z0-9_.\-]+){0,2}(:[A-Za-z0-9_][A-Za-z0-9_.\-]*)?")
_GO_PARTS = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_GO_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


@frozen
class Model:
    """One model; sizes in bytes."""

    name: str
    size: int
    family: str
    parameter_size: str
    quantization: str = "Q4_K_M"
    capabilities: tuple[str, ...] = ("completion",)
    context_length: int = 32768
    embedding_length: int = 3072
    modified_at: datetime = datetime(2026, 8, 21, 9, 30, tzinfo=UTC)

    @property
    def digest(self) -> str:
        """64 hexadecimal characters, derived from the name."""
        return hashlib.sha256(f"simulated {self.name}".encode()).hexdigest()

    @property
    def licence_digest(self) -> str:
        """Of the small layer beside the weights."""
        return hashlib.sha256(f"licence of {self.name}".encode()).hexdigest()

    def details(self) -> dict[str, object]:
        """As in /api/tags, /api/ps and /api/show."""
        return {
            "parent_model": "",
            "format": "gguf",
            "family": self.family,
            "families": [self.family, "clip"] if "vision" in self.capabilities else [self.family],
            "parameter_size": self.parameter_size,
            "quantization_level": self.quantization,
        }


DEFAULT_MODELS = (
    Model(
        "llama3.2:3b",
        2019393189,
        "llama",
        "3.2B",
        capabilities=("completion", "tools"),
        context_length=131072,
    ),
    Model(
        "llava:latest",
        4733363377,
        "llama",
        "7B",
        "Q4_0",
        capabilities=("completion", "vision"),
        embedding_length=4096,
    ),
    Model(
        "deepseek-coder:latest", 776080839, "llama", "1B", "Q4_0", context_length=16384, embedding_length=2048
    ),
    Model(
        "qwen2.5-coder:7b",
        4683087519,
        "qwen2",
        "7.6B",
        capabilities=("completion", "tools", "insert"),
        embedding_length=3584,
    ),
    Model(
        "nomic-embed-text:latest",
        274302450,
        "nomic-bert",
        "137M",
        "F16",
        capabilities=("embedding",),
        context_length=2048,
        embedding_length=768,
    ),
)


def keep_alive_s(value: object) -> float | None:
    """Seconds of a `keep_alive`, negative meaning for ever; None where it was not said.

    Raises:
        ValueError: with the words of Go's decoder (facts 1.3: a bare "-1" string is one).
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"Unsupported type: '{type(value).__name__}'")
    seconds = _go_duration_s(value) if isinstance(value, str) else float(value)
    return FOREVER_S if seconds < 0 else seconds


def _go_duration_s(text: str) -> float:
    sign, rest = (-1.0, text[1:]) if text[:1] == "-" else (1.0, text.removeprefix("+"))
    if rest == "0":
        return 0.0
    if re.fullmatch(r"[\d.]+", rest) and rest != ".":
        raise ValueError(f'time: missing unit in duration "{text}"')
    if not rest or _GO_PARTS.sub("", rest):
        raise ValueError(f'time: invalid duration "{text}"')
    return sign * sum(float(number) * _GO_UNITS[unit] for number, unit in _GO_PARTS.findall(rest))


LOAD_OPTIONS = ("num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread")


def load_options(request: Mapping[str, object]) -> tuple[object, ...]:
    """What of a request makes Ollama load the model anew, where it differs from what it was loaded with."""
    options = request.get("options")
    given = options if isinstance(options, Mapping) else {}
    return (*(given.get(name) for name in LOAD_OPTIONS), request.get("shift"))


@frozen
class Loaded:
    """A model in memory until `expires_at`; `options`: what it was loaded with."""

    model: Model
    expires_at: datetime
    options: tuple[object, ...] = ()


def _key(name: str) -> str:
    base = name if ":" in name.rsplit("/", 1)[-1] else f"{name}:latest"
    return base.lower()


def valid_name(name: str) -> bool:
    """Whether Ollama takes this as a model's name."""
    return bool(_NAME.fullmatch(name)) and len(name) <= 256


def guessed(name: str) -> Model:
    """A model for a name that is new here, with what the name suggests."""
    full = name if ":" in name.rsplit("/", 1)[-1] else f"{name}:latest"
    lower = name.lower()
    if "embed" in lower or "minilm" in lower:
        return Model(full, 274302450, "bert", "137M", "F16", ("embedding",), 2048, 768, datetime.now(UTC))
    capabilities = (
        ("completion", "vision") if "llava" in lower or "vision" in lower else ("completion", "tools")
    )
    return Model(full, 2019393189, "llama", "3.2B", capabilities=capabilities, modified_at=datetime.now(UTC))


@define
class Store:
    """The models of one server.

    Attributes:
        blobs: digest ("sha256:...") to size; the bytes themselves are not kept.
        pulled: digest of a layer to how many bytes of it are there, also after a pull that broke off.
        loads: the name and the options of each model that was loaded, in order.
    """

    _models: dict[str, Model] = field(factory=dict)
    _loaded: dict[str, Loaded] = field(factory=dict)
    blobs: dict[str, int] = field(factory=dict)
    pulled: dict[str, int] = field(factory=dict)
    loads: list[tuple[str, tuple[object, ...]]] = field(factory=list)

    @classmethod
    def of(cls, models: Iterable[Model]) -> Store:
        """A store with these models and nothing loaded."""
        store = cls()
        for model in models:
            store.put(model)
        return store

    def find(self, name: str) -> Model | None:
        """The model of this name, whatever its case, with or without ":latest"."""
        return self._models.get(_key(name))

    def put(self, model: Model) -> None:
        """Add a model, or replace the one of its name."""
        self._models[_key(model.name)] = model

    def copy(self, source: Model, name: str) -> None:
        """Give `source` a second name."""
        full = name if ":" in name.rsplit("/", 1)[-1] else f"{name}:latest"
        self.put(evolve(source, name=full, modified_at=datetime.now(UTC)))

    def remove(self, name: str) -> bool:
        """Delete and unload; False if there was none."""
        self._loaded.pop(_key(name), None)
        return self._models.pop(_key(name), None) is not None

    def listed(self) -> list[Model]:
        """All models, the latest first."""
        return sorted(self._models.values(), key=lambda model: model.modified_at, reverse=True)

    def load(self, model: Model, keep_s: float | None, options: tuple[object, ...] = ()) -> bool:
        """Load, or go on keeping, for `keep_s` seconds; True if it was not loaded before with `options`."""
        now = datetime.now(UTC)
        present = {_key(loaded.model.name): loaded.options for loaded in self.loaded(now)}
        fresh = present.get(_key(model.name)) != options
        if fresh:
            self.loads.append((model.name, options))
        seconds = DEFAULT_KEEP_ALIVE_S if keep_s is None else keep_s
        expires_at = _LATEST_YEAR if seconds >= FOREVER_S else now + timedelta(seconds=seconds)
        self._loaded[_key(model.name)] = Loaded(model, expires_at, options)
        return fresh

    def unload(self, model: Model) -> None:
        """Unload it if it is loaded."""
        self._loaded.pop(_key(model.name), None)

    def loaded(self, now: datetime | None = None) -> list[Loaded]:
        """What is in memory, the one that stays longest first."""
        now = now or datetime.now(UTC)
        for key in [key for key, loaded in self._loaded.items() if loaded.expires_at <= now]:
            del self._loaded[key]
        return sorted(self._loaded.values(), key=lambda loaded: loaded.expires_at, reverse=True)
