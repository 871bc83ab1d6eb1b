"""The provider port: what gpugate asks of a cloud, and nothing of how a cloud is asked.

A plugin subclasses `Provider` and registers it under the entry point group `gpugate.providers`
(docs/api.md#provider-plugins). One call is one try: retries, polling and sleeping belong to the lifecycle.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from attrs import field, frozen

from gpugate.errors import Misconfigured, ProviderError

if TYPE_CHECKING:
    from aiohttp import ClientSession

Duration = Annotated[float, "duration"]
"""Type of a Config's field in seconds: a configuration may say 90, "90s" or "1h30m"."""

Size = Annotated[int, "size"]
"""Type of a Config's field in bytes: a configuration may say 1024, "64MiB" or "20MB"."""

MAIN_POD = "main"
"""The name of the one pod of a configuration without `[pods]`."""


class Phase(StrEnum):
    """Where a pod is, in every provider's words translated (docs/providers.md#vastai-states)."""

    STOPPED = "stopped"
    QUEUED = "queued"
    PROVISIONING = "provisioning"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    FAILED = "failed"
    UNREACHABLE = "unreachable"
    GONE = "gone"


def _frozen_headers(headers: Mapping[str, str]) -> Mapping[str, str]:
    return MappingProxyType(dict(headers))


@frozen
class Endpoint:
    """One service of the pod.

    Attributes:
        url: base URL, with a path prefix if the service has one.
        headers: sent with every request to it, such as a template's own token.
        tls: "system" (verify), "insecure" (self-signed, unverified), "sha256:<hex>" (that very
            certificate), or a path to a CA file.
    """

    url: str
    headers: Mapping[str, str] = field(factory=dict, converter=_frozen_headers, repr=False, hash=False)
    tls: str = "system"


def _as_money(amount: object) -> Decimal | None:
    """Money is Decimal; a float is taken by what it prints as."""
    return None if amount is None else Decimal(str(amount))


@frozen
class Price:
    """What the pod costs per hour, running and stopped; None where it is not known."""

    running_per_hour: Decimal | None = field(default=None, converter=_as_money)
    stopped_per_hour: Decimal | None = field(default=None, converter=_as_money)
    currency: str = "USD"


def _frozen_mapping(endpoints: Mapping[str, Endpoint] | None) -> Mapping[str, Endpoint]:
    return MappingProxyType(dict(endpoints or {}))


def _as_price(price: object) -> Price | None:
    return price if price is None or isinstance(price, Price) else Price(_as_money(price))


def _as_text(value: object) -> str | None:
    return None if value is None else str(value)


_NOT_BILLED = frozenset({Phase.STOPPED, Phase.QUEUED, Phase.UNREACHABLE, Phase.GONE})


def _as_instant(value: object) -> datetime | None:
    """An aware instant; a naive one is taken as UTC, a number as seconds since 1970."""
    if isinstance(value, int | float):
        return datetime.fromtimestamp(value, UTC)
    if isinstance(value, datetime):
        return value if value.tzinfo is not None else value.replace(tzinfo=UTC)
    if value is None:
        return None
    raise TypeError("started_at and ended_at are datetimes")


@frozen
class PodReport:
    """What a provider says of its pod, now.

    Attributes:
        phase: where the pod is.
        pod_id: the provider's name for it.
        endpoints: "ollama" and "comfyui" as far as they are known; may be empty until RUNNING.
        price: what it costs.
        gpu: the model of its GPU, for people.
        started_at: since when this run is billed (aware), if the provider tells.
        detail: one line for people, without secrets.
        alarm: one line, if money may be running away unseen, such as a second pod that is billed; told as an
            alarm.
        cpu_only: the provider itself says that no GPU is attached.
        output: the last that a program of the pod wrote before it ended; for the log and the status alone.
        billed: False: the provider takes nothing for its GPU now, whatever the phase, as for a container
            that ended by itself, or a create that may have made nothing.
        replicas: how many copies of the engine run behind the endpoints; `price` is that of all of them.
        gpu_bytes: the memory of all its GPUs together; None where it is not known.
        failure: with FAILED: the error that `start` would have raised, had it known; `Misconfigured` fails
            the start at once. None: worth another attempt.
        ended_at: when this run's bill ended (aware), if it has ended and the provider tells.
    """

    phase: Phase = field(converter=Phase)
    pod_id: str | None = field(default=None, converter=_as_text)
    endpoints: Mapping[str, Endpoint] = field(factory=dict, converter=_frozen_mapping, hash=False)
    price: Price | None = field(default=None, converter=_as_price)
    gpu: str | None = field(default=None, converter=_as_text)
    started_at: datetime | None = field(default=None, converter=_as_instant)
    detail: str = ""
    alarm: str = ""
    cpu_only: bool = False
    output: str = ""
    billed: bool = True
    replicas: int = 1
    gpu_bytes: int | None = None
    failure: ProviderError | None = field(default=None, eq=False)
    ended_at: datetime | None = field(default=None, converter=_as_instant)

    @property
    def is_billed(self) -> bool:
        """Whether the GPU is paid for now, as far as the provider tells; not known while UNREACHABLE."""
        return self.billed and self.phase not in _NOT_BILLED


@frozen(kw_only=True)
class Charge:
    """A line of the provider's own bill.

    Attributes:
        pod_id: for which pod, as reports name it; None for what belongs to no pod.
        began_at, ended_at: the time that the line is about (aware); may be wider than what was asked for,
            where a cloud bills by the day.
        amount: what was taken, exactly.
        what: "gpu", "disk" or another word of the provider's; empty where it does not tell.
    """

    pod_id: str | None = field(converter=_as_text)
    began_at: datetime
    ended_at: datetime
    amount: Decimal
    currency: str = "USD"
    what: str = ""


def _as_settings(settings: Mapping[str, object]) -> Mapping[str, object]:
    return MappingProxyType(dict(settings))


@frozen(kw_only=True)
class PodChoice:
    """Something that `gpugate setup` may choose: a pod of the account, or a GPU to make one with.

    Attributes:
        id: how it is named on the command line.
        title: one line for people: name, GPU, what it does now.
        settings: the keys of `[providers.<name>]` that mean it; with the API key they are enough.
        per_hour: its price while it runs; None where it is not known.
        problems: what is missing for gpugate, such as a port or a volume; a line each.
    """

    id: str
    title: str
    settings: Mapping[str, object] = field(converter=_as_settings, hash=False)
    per_hour: Decimal | None = field(default=None, converter=_as_money)
    currency: str = "USD"
    problems: Sequence[str] = ()


@frozen
class Capabilities:
    """What a provider can and cannot do (docs/providers.md#what-gpugate-models).

    Attributes:
        resume: a stopped pod can be started again.
        ephemeral: pods can be created and destroyed.
        stable_urls: addresses survive a stop and start.
        billing_api: the provider's own bill can be read: there is a `bill`.
        logs: the pod's log can be read.
        stop_keeps_disk: models survive a stop.
        simulated: the pod is a simulation and costs nothing: its sessions stand in a ledger of their own, and
            count for no sum and no budget.
        queue_on_capacity: a start without capacity may fire later by itself.
        min_poll_s: shortest pause between two `inspect` calls.
        min_change_s: shortest pause between two `start` or `stop` calls.
        min_probe_s: shortest pause between two health checks of the pod.
        first_byte_limit_s: the provider's proxy gives up on a request silent for so long.
        max_replicas: up to how many copies of the engine one pod may have; more than 1: there is a `scale`.
        can_overlap: a second pod can run beside the first while that one ends: see `Provider.slot`.
    """

    resume: bool = True
    ephemeral: bool = False
    stable_urls: bool = True
    billing_api: bool = False
    logs: bool = False
    stop_keeps_disk: bool = True
    queue_on_capacity: bool = False
    min_poll_s: float = 0.0
    min_probe_s: float = 0.0
    first_byte_limit_s: float | None = None
    simulated: bool = False
    min_change_s: float = 0.0
    max_replicas: int = 1
    can_overlap: bool = False


class ActiveRole(ABC):
    """The role of the active one among several gateways, as a provider keeps it (docs/api.md#two-gateways).

    Attributes:
        duration_s: who has not confirmed the role for so long has lost it.
        holder: who has it, for people; empty where that is not known.
        is_awaited: another gateway stands by.
    """

    duration_s: float
    holder: str = ""
    is_awaited: bool = False

    @abstractmethod
    async def take(self) -> bool:
        """Take the role if it is free, confirm it if it is ours; return whether it is ours now. One try.

        Raises:
            ProviderError: it is not known; what was ours stays so until `duration_s` is over.
        """

    @abstractmethod
    async def give_back(self) -> None:
        """Let another gateway take it at once, if it is ours. Raises ProviderError."""

    @abstractmethod
    async def aclose(self) -> None:
        """Let go of what this object holds."""


@frozen
class NoConfig:
    """The configuration of a provider that needs none."""


class Provider(ABC):
    """One pod at one cloud.

    `start` and `stop` return once the provider has *accepted*; both are idempotent and safe to
    cancel. `stop` also cancels a start that is queued at the provider. `inspect` changes nothing.
    Each is one try: no retries, no polling, no sleeping. They raise `ProviderError` and its
    children only; "I could not look" is such an error, never `Phase.STOPPED`.

    Attributes:
        Config: an attrs class, structured from `[providers.<name>]`; secrets are `field(repr=False)`.
        capabilities: what this provider can do.
        models: of the pod's Ollama, where they are known before it has ever run.
        needed_gpu_bytes: what the largest model needs of the GPUs' memory together; set before each `start`
            where `chooses_gpu`.
        pod_name: the name that the configuration gives to this pod; set before the first call.
        slot: 0 or 1, set before the first call; 1 only with `capabilities.can_overlap`. Then two objects of
            the class, with the same Config, stand for two pods that replace each other before a time limit.
            Each sees, starts and stops the pod of its slot alone, and knows it by a mark on that pod.
        max_session_s: `pod.max_session`, set before the first call; 0: none.
    """

    Config: ClassVar[type[Any]] = NoConfig
    capabilities: ClassVar[Capabilities] = Capabilities()
    models: ClassVar[Sequence[str]] = ()
    pod_name: str = MAIN_POD
    slot: int = 0
    max_session_s: float = 0.0
    needed_gpu_bytes: int | None = None

    def __init__(self, config: Any, session: ClientSession) -> None:
        self.config = config
        self.session = session

    @classmethod
    def chooses_gpu(cls, config: Any) -> bool:
        """Whether `start` takes the cheapest GPU with `needed_gpu_bytes`; then some size must be known."""
        return False

    @classmethod
    def active_role(cls, config: Any) -> ActiveRole | None:
        """Return the role that this gateway has to have before it serves; None: it is the only one."""
        return None

    @classmethod
    async def list_choices(
        cls, settings: Mapping[str, object], session: ClientSession
    ) -> Sequence[PodChoice]:
        """Return what `gpugate setup` may choose from; changes nothing. Empty: this provider cannot list.

        Args:
            settings: what is known of `[providers.<name>]`: `api_key`, and perhaps others such as `api_base`.

        Raises:
            AuthFailed: the key is wrong.
            ProviderError: it cannot be asked now.
            ValueError: a setting is impossible.
        """
        return ()

    @property
    def time_limit_s(self) -> float:
        """After how long from its start the provider itself ends a pod; 0: never.

        The gateway reads it after it has set the attributes above. It stops the pod, or replaces it, in time.
        """
        return 0.0

    @abstractmethod
    async def start(self) -> PodReport:
        """Ask for the pod to run; return once that is accepted."""

    @abstractmethod
    async def stop(self) -> PodReport:
        """Ask for the pod to stop, a queued start included; return once that is accepted."""

    @abstractmethod
    async def inspect(self) -> PodReport:
        """Say what the pod is doing, changing nothing."""

    async def scale(self, replicas: int) -> PodReport:
        """Ask for so many copies of the engine, 1 to `capabilities.max_replicas`; only while the pod runs.

        One try, idempotent and safe to cancel, as `start`; returns once it is accepted. The provider balances
        requests over the copies, and `PodReport.replicas` says how many there are. A `stop` never waits for
        it.
        """
        raise Misconfigured("this provider has no replicas")

    async def bill(self, since: datetime, until: datetime) -> Sequence[Charge]:
        """What the provider billed in this span; only with `capabilities.billing_api`.

        Whole or an error: a page that is missing would read as money saved. It may name pods of others on
        the same account; gpugate knows its own.
        """
        raise Misconfigured("this provider has no billing API")

    async def sweep(self) -> None:  # noqa: B027  (optional: most providers have one pod, known by its id)
        """End what is ours and billed beside the pod that `inspect` reports; only called while that serves.

        One try, at each look whose report has an `alarm`; what came of it is what the next look shows.
        """

    async def aclose(self) -> None:  # noqa: B027  (optional: most providers hold nothing)
        """Let go of what this object holds; the pod itself is not touched."""
