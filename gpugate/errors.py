"""Every error of the house; knows nothing of HTTP.

GateError                       what a client is told: `code`, `retry_after_s`, `reason`
├── AuthError
│   ├── InvalidToken            missing, malformed, or wrongly signed: the message says which
│   └── TokenExpired
├── Forbidden                   the token's scope does not cover it
├── RequestError
│   ├── InvalidRequest
│   ├── PayloadTooLarge
│   ├── BodyTooSlow
│   ├── UnknownTransferCoding
│   ├── PathNotFound
│   ├── ModelNotFound           the pod is known not to have the model
│   └── MethodNotAllowed
├── QueueError
│   ├── QueueFull
│   └── QueueTimeout
├── PodError
│   ├── PodStartFailed
│   ├── WarmupTimeout
│   ├── PodStopped
│   ├── PodBusy
│   ├── BudgetExceeded
│   ├── WakeDenied              a wake rule forbids the start; the message names it
│   ├── ProviderUnavailable
│   ├── ShuttingDown
│   └── StandingBy              another gateway is the active one
├── UpstreamError
│   ├── UpstreamBroken
│   │   └── EdgeOutage          the provider's edge answers for a pod that it cannot reach
│   ├── UpstreamTimeout
│   ├── StoryFailed
│   └── ImageFailed
└── InternalError
ProviderError                   what a provider plugin raises (docs/api.md#provider-plugins)
├── Transient                   a network error, a 5xx: worth another attempt
├── RateLimited                 with `retry_after` seconds; no attempt is counted
├── NoCapacity                  no GPU free; `queued` when the start waits at the provider
├── NoFunds
├── AuthFailed
├── Blocked                     an edge refused us (a CDN's 1010), not the API
├── NotFound
├── Conflict                    not valid in the pod's present state
├── Misconfigured
└── Ambiguous                   the outcome is unknown: look before asking again
SettingsError                   one or more complaints, each naming its key
LedgerError                     the ledger cannot be read or written: one line that says what to do
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class GateError(Exception):
    """Something a client is told, in the dialect of the path it called.

    Attributes:
        message: one line for people.
        retry_after_s: when to try again, in seconds, or None.
        reason: a machine-readable refinement of `code`, such as "capacity".
    """

    code: ClassVar[str] = "INTERNAL_ERROR"
    default_message: ClassVar[str] = "internal error"

    def __init__(
        self, message: str = "", *, retry_after_s: float | None = None, reason: str | None = None
    ) -> None:
        self.message = message or self.default_message
        self.retry_after_s = retry_after_s
        self.reason = reason
        super().__init__(self.message)


class AuthError(GateError):
    """Who asks is not known.

    Attributes:
        detail: what is wrong, for the log alone; nothing of the token.
    """

    def __init__(self, message: str = "", *, detail: str = "") -> None:
        super().__init__(message)
        self.detail = detail


class InvalidToken(AuthError):
    """The token is missing, malformed or wrongly signed."""

    code = "INVALID_TOKEN"
    default_message = "token is missing or malformed"


class TokenExpired(AuthError):
    """The token was good once."""

    code = "TOKEN_EXPIRED"
    default_message = "token has expired"


class Forbidden(GateError):
    """The token's scope does not cover this."""

    code = "FORBIDDEN"
    default_message = "the token's scope does not cover this"


class RequestError(GateError):
    """The request itself is at fault."""

    code = "INVALID_REQUEST"


class InvalidRequest(RequestError):
    """Not JSON, or a missing or wrong field, which the message names."""

    default_message = "invalid request"


class PayloadTooLarge(RequestError):
    """A body that would have to be kept is larger than `server.max_body`."""

    code = "PAYLOAD_TOO_LARGE"
    default_message = "request body is too large"


class BodyTooSlow(RequestError):
    """A body came slower than `server.body_timeout` allows, or not at all."""

    code = "REQUEST_TIMEOUT"
    default_message = "the request body came too slowly (server.body_timeout)"


class UnknownTransferCoding(RequestError):
    """The body has a `Transfer-Encoding` other than chunked."""

    code = "NOT_IMPLEMENTED"
    default_message = "the only Transfer-Encoding of a request that is understood is chunked"


class PathNotFound(RequestError):
    """There is nothing at this path."""

    code = "NOT_FOUND"
    default_message = "not found"


class ModelNotFound(RequestError):
    """The model is not among those that were learned from the pod; told in Ollama's words."""

    code = "MODEL_NOT_FOUND"
    default_message = "model not found"

    def __init__(self, model: str = "", failure: str = "") -> None:
        """Name the model, behind what could not be done for want of it."""
        message = f"model '{model}' not found" if model else self.default_message
        super().__init__(f"{failure}: {message}" if failure else message)


class MethodNotAllowed(RequestError):
    """The path exists, with another method: one of `allow`."""

    code = "METHOD_NOT_ALLOWED"
    default_message = "method not allowed"

    def __init__(self, message: str = "", *, allow: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.allow = allow


class QueueError(GateError):
    """The queue could not keep the request."""


class QueueFull(QueueError):
    """`queue.max_waiting` requests wait already."""

    code = "QUEUE_FULL"
    default_message = "too many requests are waiting for the pod"


class QueueTimeout(QueueError):
    """The request waited `queue.max_wait`."""

    code = "QUEUE_TIMEOUT"
    default_message = "waited too long for the pod"


class PodError(GateError):
    """The pod cannot serve."""


class PodStartFailed(PodError):
    """Every provider failed to start; `reason` is the last one's."""

    code = "POD_START_FAILED"
    default_message = "pod could not be started"


class WarmupTimeout(PodError):
    """The pod runs, but its Ollama never became healthy."""

    code = "WARMUP_TIMEOUT"
    default_message = "pod failed to become ready"


class PodStopped(PodError):
    """Stopped by hand, or lost, while this request needed it."""

    code = "POD_STOPPED"
    default_message = "the pod is stopped"


class PodBusy(PodError):
    """A stop was asked for while requests are in flight or waiting."""

    code = "POD_BUSY"
    default_message = "requests are in flight or waiting; use force to stop anyway"


class BudgetExceeded(PodError):
    """The month's budget is spent: nothing new starts."""

    code = "BUDGET_EXCEEDED"
    default_message = "the monthly budget is spent"


class WakeDenied(PodError):
    """A wake rule forbids the start; the message names the rule."""

    code = "WAKE_DENIED"
    default_message = "a wake rule forbids the start"


class ProviderUnavailable(PodError):
    """A status that was asked for cannot be had."""

    code = "PROVIDER_UNAVAILABLE"
    default_message = "the provider cannot be asked right now"


class ShuttingDown(PodError):
    """The gateway is going down."""

    code = "SHUTTING_DOWN"
    default_message = "the gateway is shutting down"


class StandingBy(PodError):
    """Another gateway is the active one."""

    code = "STANDBY"
    default_message = "another gateway is the active one; this one stands by"


class UpstreamError(GateError):
    """The pod's service failed."""


class UpstreamBroken(UpstreamError):
    """The pod's service broke before the first byte, and the request could not be retried."""

    code = "UPSTREAM_ERROR"
    default_message = "the pod's service broke the connection"


class EdgeOutage(UpstreamBroken):
    """The provider's edge answers in the pod's place: the pod may be no more, and another may do it."""


class UpstreamTimeout(UpstreamError):
    """The pod's service, or the provider's proxy before it, gave up waiting; the job may still run."""

    code = "UPSTREAM_TIMEOUT"
    default_message = "the pod's service did not answer in time; the job may still run"


class StoryFailed(UpstreamError):
    """The model told no story, or not to its end."""

    code = "STORY_FAILED"
    default_message = "the story could not be told"


class ImageFailed(UpstreamError):
    """ComfyUI drew no picture; the message is one readable line."""

    code = "IMAGE_GEN_FAILED"
    default_message = "the picture could not be drawn"


class InternalError(GateError):
    """A fault of ours; no detail leaks."""


class ProviderError(Exception):
    """What a provider plugin raises; the message is for people and carries no secret.

    Attributes:
        reason: the word a client is told (docs/api.md#which-provider).
        message: what a client is told.
        output: what a program of the pod wrote itself; it may be anything, a prompt even, so it is for the
            log and the status alone.
    """

    reason: ClassVar[str] = "transient"
    output: str = ""

    def __init__(self, message: str = "", *, output: str = "") -> None:
        self.message = str(message) if message else type(self).__name__
        self.output = output
        super().__init__(self.message)

    @property
    def in_full(self) -> str:
        """The message and what the program wrote."""
        return f"{self.message}: {self.output}" if self.output else self.message


class Transient(ProviderError):
    """A network error, a 5xx, an answer that is no answer: worth another attempt."""


class RateLimited(ProviderError):
    """Asked too often; `retry_after` is what the provider wants us to wait, in seconds, if it said."""

    def __init__(self, message: str | float | None = "", retry_after: float | None = None) -> None:
        if not isinstance(message, str):  # RateLimited(30) reads well, so it works
            message, retry_after = "", None if message is None else float(message)
        super().__init__(message or "rate limited")
        self.retry_after = retry_after


class NoCapacity(ProviderError):
    """No GPU is free; `queued` when the provider keeps the start and may run it later."""

    reason = "capacity"

    def __init__(self, message: str | bool = "", queued: bool = False) -> None:
        if not isinstance(message, str):
            message, queued = "", bool(message)
        super().__init__(message or "no GPU is free")
        self.queued = queued


class NoFunds(ProviderError):
    """The account cannot pay."""

    reason = "funds"


class AuthFailed(ProviderError):
    """The provider does not accept the credentials."""

    reason = "auth"


class Blocked(ProviderError):
    """Something in front of the API refused us."""

    reason = "blocked"


class NotFound(ProviderError):
    """There is no such pod."""

    reason = "not_found"


class Conflict(ProviderError):
    """Not valid in the pod's present state: look, then decide."""

    reason = "conflict"


class Misconfigured(ProviderError):
    """The request to the provider is wrong, and will be wrong again."""

    reason = "config"


class Ambiguous(ProviderError):
    """The outcome is not known; it must be looked up before anything is asked again."""

    reason = "timeout"


class SettingsError(Exception):
    """The configuration is wrong; `complaints` holds one line per mistake, each naming its key."""

    def __init__(self, complaints: Sequence[str]) -> None:
        self.complaints = tuple(complaints)
        super().__init__("\n".join(self.complaints))


class LedgerError(Exception):
    """The ledger cannot be read or written; one line that says what to do, and is shown to clients.

    Attributes:
        detail: the same with the file's path, for the log.
    """

    def __init__(self, message: str, path: object = None) -> None:
        self.detail = message if path is None else f"{path}: {message}"
        super().__init__(message)
