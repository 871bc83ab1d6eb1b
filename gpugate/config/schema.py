"""Every setting, its default, its bounds and its one-line help; knows nothing of files and variables.

One class a section (docs/api.md#configuration), one field a key. Durations are floats in seconds, sizes
ints in bytes, money Decimal. A field with `repr=False` is a secret. `metadata` carries what the
written configuration says of the key: `help`, and `text`, the default as people write it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from attrs import field, frozen

from gpugate.config import units
from gpugate.config.validators import (
    Validator,
    above,
    at_least,
    between,
    each,
    filled,
    is_origin,
    one_of,
    that,
    url,
)

ALGORITHMS = (
    *("HS256", "HS384", "HS512"),
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "EdDSA"),
)
SECRET_BYTES = 32  # docs/api.md#configuration; RFC 7518 3.2 for HS256
LEASE_BYTES = 16  # a renewal must not be guessed; only its hash is known outside
DEFAULT_SOURCE = "gpugate.toml"
NO_FILE = "no configuration file"  # where complaints about what is missing would else name one


def _key(default: Any, help: str, *checks: Validator, **more: Any) -> Any:  # noqa: A002
    """Declare a key: default, help for the written configuration, and what its value may be."""
    secret = more.pop("secret", False)
    return field(
        default=default,
        validator=list(checks) or None,
        repr=not secret,
        metadata={"help": help, "kind": "plain", **more},
    )


def _duration(text: str, help: str, *checks: Validator) -> Any:  # noqa: A002
    """Declare a key that is a duration, in seconds inside."""
    shown: object = int(text) if text.isdecimal() else text
    return _key(units.duration(text), help, *checks, kind="duration", text=shown)


def _size(text: str, help: str, *checks: Validator) -> Any:  # noqa: A002
    """Declare a key that is a size, in bytes inside."""
    return _key(units.size(text), help, *checks, kind="size", text=text)


def _money(help: str) -> Any:  # noqa: A002
    """Declare a key that is an amount of money, nothing by default."""
    return _key(Decimal("0.0"), help, at_least(0))


def _file(help: str) -> Any:  # noqa: A002
    """Declare a key that is a path, relative to the configuration's folder; empty for none."""
    return _key("", help, that(lambda path: "\0" not in path, "must be a path"), kind="path")


def _long_enough(secret: str) -> bool:
    return not secret or len(secret.encode()) >= SECRET_BYTES


def _no_duplicates(names: tuple[str, ...]) -> bool:
    return len(set(names)) == len(names)


def _a_name(name: str) -> bool:
    return re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", name) is not None


def _a_bot_secret(text: str) -> bool:
    # Telegram's own rule for the header's value; docs/telegram-comfyui.md#telegram-limits
    return re.fullmatch(r"[A-Za-z0-9_-]{0,256}", text) is not None


def _a_bot_token(text: str) -> bool:
    return not text or re.fullmatch(r"[0-9]+:[!-~]+", text) is not None


@frozen(kw_only=True)
class Server:
    """The listening side."""

    host: str = _key("127.0.0.1", "address to listen on; 0.0.0.0 for every one of this machine", filled())
    port: int = _key(11434, "Ollama's own port, so that clients need no change", between(0, 65535))
    max_body: int = _size(
        "64MiB",
        "of a body that must be kept while its request waits; larger: 413. Blob uploads stream",
        above(0),
    )
    shutdown_grace: float = _duration(
        "5s",
        "SIGTERM: running requests get this long, new and waiting ones a 503; a second signal cuts",
        at_least(0),
    )
    on_exit: str = _key(
        "stop",
        'the pod at a clean exit: "stop" it, or "keep" it for the next start of the gateway to adopt',
        one_of("stop", "keep"),
    )
    stop_wait: float = _duration(
        "60s",
        'with "stop": how long to wait for the proof; without it: an alarm line and exit 1',
        at_least(0),
    )
    cors_origins: tuple[str, ...] = _key(
        (),
        'browser origins that may call, such as "https://chat.example.org", or "*"',
        each(is_origin, 'each must be "*" or an origin such as "https://chat.example.org", without a path'),
    )


@frozen(kw_only=True)
class Auth:
    """Who may call."""

    secret: str = _key(
        "",
        "HS256; at least 32 bytes: python3 -c 'import secrets; print(secrets.token_hex(32))'",
        that(_long_enough, f"must be at least {SECRET_BYTES} bytes long", say=False),
        secret=True,
    )
    algorithms: tuple[str, ...] = _key(
        ("HS256",),
        "signatures that are accepted",
        that(bool, "must name at least one algorithm", say=False),
        each(lambda name: name in ALGORITHMS, "must be algorithms out of " + ", ".join(ALGORITHMS)),
    )
    jwks_url: str = _key(
        "",
        "RS256/ES256/EdDSA keys of an identity provider; then the secret may stay empty",
        url("https", "http", or_empty=True),
    )
    issuer: str = _key("", "when set, a token's iss must be this")
    audience: str = _key("", "when set, a token's aud must contain this")
    leeway: float = _duration("10s", "how far two clocks may differ", at_least(0))
    require_exp: bool = _key(
        True, "a token without an expiry is refused as malformed; false for a static token"
    )
    path_tokens: bool = _key(
        False, "true: also accept /k/<token>/api/... and /k/<token>/v1/..., for the Ollama command line"
    )


@frozen(kw_only=True)
class Pod:
    """The pod's life."""

    provider: tuple[str, ...] = _key(
        (),
        'required: "runpod", "vastai", "local" or "demo"; or a list, tried in this order',
        that(_no_duplicates, "must name each provider once"),
        each(_a_name, "must be a provider's name (see `gpugate providers`)"),
        kind="names",
        text="",
    )
    idle_timeout: float = _duration("15m", "nothing in flight for so long: the pod is stopped", above(0))
    idle_policy: str = _key(
        "fixed",
        '"learned": sooner, and started before it is asked for, where habits say so',
        one_of("fixed", "learned"),
    )
    start_attempts: int = _key(3, "per provider, for transient errors, with exponential backoff", at_least(1))
    start_backoff: float = _duration("1s", "the first pause between two attempts; doubles", above(0))
    start_timeout: float = _duration(
        "10m", "accepted by the provider, but not running: that provider has failed", above(0)
    )
    capacity_wait: float = _duration(
        "0s", "how long to keep asking a provider that has no GPU free before the next one", at_least(0)
    )
    warmup_timeout: float = _duration("3m", "running, but Ollama not healthy", above(0))
    health_interval: float = _duration(
        "5s", "upper bound between two looks while the pod starts, warms up or stops", above(0)
    )
    reconcile_interval: float = _duration(
        "30s", "how often the provider is asked what is really there, while stopped or ready", above(0)
    )
    stop_retry: float = _duration(
        "5s", "first pause before an unproved stop is sent again; doubles up to 5 minutes, for ever", above(0)
    )
    health_path: str = _key(
        "/api/version",
        "what is asked of Ollama to see that it is up",
        that(lambda path: re.fullmatch(r"/[!-~]*", path) is not None, "must be a path that begins with /"),
    )
    preload: str = _key(
        "requested",
        'load the model of the first waiting request before the pod is ready; "none", or a model\'s name',
        filled(),
    )
    max_session: float = _duration("0s", "hard limit of one paid session; 0 = none", at_least(0))
    retry_after: float = _duration("60", "seconds, the hint in a 503 for a failed start", above(0))
    lease: str = _key(
        "",
        "16 bytes or more: renewed in a pod that stops itself without it (examples/pod); empty: off",
        that(
            lambda text: not text or len(text.encode()) >= LEASE_BYTES,
            f"must be at least {LEASE_BYTES} bytes long",
            say=False,
        ),
        secret=True,
    )


@frozen(kw_only=True)
class Queue:
    """Requests that wait for the pod."""

    max_waiting: int = _key(100, "more than so many: 503 QUEUE_FULL", at_least(1))
    max_wait: float = _duration("10m", "longer than this: 503 QUEUE_TIMEOUT", above(0))
    drain_concurrency: int = _key(1, "held requests forwarded at once when the pod is ready", at_least(1))
    heartbeat: float = _duration(
        "0s", "> 0: while held, send filler that clients ignore, this often", at_least(0)
    )


@frozen(kw_only=True)
class Catalog:
    """The model list while the pod is off."""

    when_stopped: str = _key(
        "remembered",
        '"remembered": the last good answer, kept on disk; "empty"; "static"',
        one_of("remembered", "empty", "static"),
    )
    models: tuple[str, ...] = _key(
        (),
        'for "static", and for "remembered" until the first real answer',
        each(lambda model: bool(model.strip()), "must be names of models"),
    )


@frozen(kw_only=True)
class Models:
    """Which of the pod's models does what."""

    vision: str = _key("llava", "tells a story of a picture", filled())
    story: str = _key("", "tells a story without one; empty: the vision model")
    code: str = _key("deepseek-coder", "answers questions about code", filled())
    code_system: str = _key("", "its system prompt; empty: gpugate's own")


@frozen(kw_only=True)
class ComfyUI:
    """Pictures."""

    workflow: str = _file("a ComfyUI API-format workflow file; empty: the built-in text-to-image one")
    workflows_dir: str = _file("more of them, chosen per request by name")
    checkpoint: str = _key("v1-5-pruned-emaonly.safetensors", "of the built-in workflow", filled())
    poll_interval: float = _duration("3s", "between two looks whether a picture is done", above(0))
    timeout: float = _duration("5m", "from the submission to the fetched picture", above(0))


@frozen(kw_only=True)
class Cost:
    """Money."""

    currency: str = _key(
        "USD",
        "three letters",
        that(lambda code: re.fullmatch("[A-Z]{3}", code) is not None, 'must be letters such as "USD"'),
    )
    hourly_rate: Decimal = _money("used where the provider tells no price")  # noqa: RUF009
    monthly_budget: Decimal = _money("0 = none; reached: no new start, 402 BUDGET_EXCEEDED")  # noqa: RUF009
    user_share: Decimal = _key(  # noqa: RUF009
        Decimal("0.0"),
        "of monthly_budget, for each token's subject: who has spent it can start nothing; 0 = all of it",
        between(0, 1),
    )


@frozen(kw_only=True)
class Bot:
    """The Telegram bot."""

    enabled: bool = _key(False, "needs the extra: pip install 'gpugate[telegram]'")
    token: str = _key(
        "",
        "from @BotFather",
        that(_a_bot_token, "must look like 123456:ABC-DEF", say=False),
        secret=True,
    )
    mode: str = _key(
        "webhook", 'or "polling", for homes without a public address', one_of("webhook", "polling")
    )
    secret_token: str = _key(
        "",
        "webhook mode: Telegram sends it back in X-Telegram-Bot-Api-Secret-Token",
        that(_a_bot_secret, "must be up to 256 characters out of A-Z, a-z, 0-9, _ and -", say=False),
        secret=True,
    )
    public_url: str = _key(
        "",
        "webhook mode, https: registered as {public_url}/api/v1/bot/telegram",
        url("https", or_empty=True),
    )
    allowed_chats: tuple[int, ...] = _key((), "ids; empty: nobody")
    api_base: str = _key(
        "https://api.telegram.org", "Telegram, or a Bot API server of your own", url("https", "http")
    )
    ollama_url: str = _key(
        "http://127.0.0.1:11435", "the LOCAL Ollama, never the pod's", url("http", "https")
    )
    intent_model: str = _key("phi3:mini", "the local model that understands what is asked", filled())
    intent_timeout: float = _duration("8s", "then the keyword fallback", above(0))
    ask_above_rate: Decimal = _money("per hour; a start above it asks with buttons first; 0 = never")  # noqa: RUF009
    news: tuple[int, ...] = _key((), "chats that get unasked news, a part of allowed_chats")


@frozen(kw_only=True)
class State:
    """What outlives a restart."""

    dir: str = _file("default $XDG_STATE_HOME/gpugate; holds the ledger, the catalogue, the demo secret")


@frozen(kw_only=True)
class Log:
    """Log lines, on standard error."""

    format: str = _key("auto", '"console" on a terminal, else "json"', one_of("auto", "console", "json"))
    level: str = _key(
        "info",
        '"debug", "info", "warning", "error" or "critical"',
        one_of("debug", "info", "warning", "error", "critical"),
    )


@frozen(kw_only=True)
class Settings:
    """The whole configuration, checked.

    Attributes:
        providers: `[providers.<name>]` as it was given, variables included and not yet structured;
            `provider_config` makes a provider's own Config of its part.
        source: how complaints call the configuration.
        folder: what relative paths in it are relative to.
    """

    server: Server = field(factory=Server)
    auth: Auth = field(factory=Auth)
    pod: Pod = field(factory=Pod)
    queue: Queue = field(factory=Queue)
    catalog: Catalog = field(factory=Catalog)
    models: Models = field(factory=Models)
    comfyui: ComfyUI = field(factory=ComfyUI)
    cost: Cost = field(factory=Cost)
    bot: Bot = field(factory=Bot)
    state: State = field(factory=State)
    log: Log = field(factory=Log)
    providers: Mapping[str, Mapping[str, object]] = field(factory=dict, repr=False, hash=False)
    source: str = DEFAULT_SOURCE
    folder: Path = field(factory=Path)


SECTIONS: Mapping[str, type[Any]] = {
    "server": Server,
    "auth": Auth,
    "pod": Pod,
    "queue": Queue,
    "catalog": Catalog,
    "models": Models,
    "comfyui": ComfyUI,
    "cost": Cost,
    "bot": Bot,
    "state": State,
    "log": Log,
}
