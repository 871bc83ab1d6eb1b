"""Every setting: its type, default, validator and comment.

One class per section of the configuration, one field per key. Durations are floats in seconds, sizes ints
in bytes, money is Decimal. A text field with `repr=False` is a secret: it may also be given as `<key>_file`,
and no complaint quotes it. `metadata["help"]` is the comment in the configuration that `gpugate init` writes,
and `metadata["text"]` the default as it is written there, where that is not simply the value.
"""
# ruff: noqa: RUF009  (the functions called in class bodies declare fields, as attrs.field does)

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import attrs
from attrs import field, frozen

from gpugate.config import origins, units
from gpugate.config.hours import SHAPE, is_cron, is_hours
from gpugate.config.validators import (
    Validator,
    above,
    at_least,
    between,
    each,
    is_own_path,
    is_time_zone,
    is_wake_path,
    not_blank,
    predicate,
    split_address,
    url,
)
from gpugate.core.policy import PodPolicy, QueuePolicy
from gpugate.provider_api import MAIN_POD, Duration, Size

Hosts = Annotated[tuple[str, ...], "hosts"]
"""Addresses without brackets; one may also be given as plain text."""

FilePath = Annotated[str, "path"]
"""A path, relative to the folder of the configuration that names it; empty for none."""

ProviderNames = Annotated[tuple[str, ...], "provider names"]
"""Names in lower case; one name may also be given as plain text."""

Notice = Literal["alarm", "start_failed", "budget", "stopped", "started", "summary"]
NOTICES: tuple[Notice, ...] = get_args(Notice)

ALGORITHMS = (
    *("HS256", "HS384", "HS512"),
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "EdDSA"),
)
SCOPES = ("chat", "pod", "cost", "metrics", "admin")  # docs/api.md#tokens-and-scopes
MIN_SECRET_BYTES = 32  # docs/api.md#configuration; RFC 7518 3.2, for HS256
MIN_LEASE_BYTES = 16  # a pod's lease must not be guessed; outside the gateway only its hash is known
DEFAULT_SOURCE = "gpugate.toml"
NO_FILE = "no configuration file"  # begins complaints about missing keys where no file was read


def _key(default: Any, help: str, *validators: Validator, secret: bool = False, **more: Any) -> Any:  # noqa: A002
    """Declare a key with its default, its comment and its validators."""
    validator = list(validators) or None
    hashed = None if not isinstance(default, Mapping) else False
    metadata = {"help": help, **more}
    return field(default=default, validator=validator, repr=not secret, hash=hashed, metadata=metadata)


def _duration(text: str, help: str, *validators: Validator) -> Any:  # noqa: A002
    """Declare a duration; its default is text such as "15m"."""
    return _key(units.duration(text), help, *validators, text=text)


def _size(text: str, help: str, *validators: Validator) -> Any:  # noqa: A002
    """Declare a size; its default is text such as "64MiB"."""
    return _key(units.size(text), help, *validators, text=text)


def _money(help: str) -> Any:  # noqa: A002
    """Declare an amount of money, 0 by default."""
    return _key(Decimal("0.0"), help, at_least(0))


def _own_keys_first(_class: type[Any], fields: list[Any]) -> list[Any]:
    """Put `provider`, the one required key, before the keys inherited from the core's policy."""
    return sorted(fields, key=lambda attribute: attribute.inherited)


def _is_long_enough(secret: str) -> bool:
    return not secret or len(secret.encode()) >= MIN_SECRET_BYTES


def _is_long_enough_lease(lease: str) -> bool:
    return not lease or len(lease.encode()) >= MIN_LEASE_BYTES


def _are_scopes(text: str) -> bool:
    return set(SCOPES).issuperset(text.split())


def _maps_to_scopes(words: Mapping[str, str]) -> bool:
    return all(word.strip() and scopes.strip() and _are_scopes(scopes) for word, scopes in words.items())


def _has_no_duplicates(names: tuple[str, ...]) -> bool:
    return len(set(names)) == len(names)


def _is_provider_name(name: str) -> bool:
    return re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", name) is not None


def _is_telegram_secret(text: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9_-]{0,256}", text) is not None  # docs/telegram-comfyui.md#telegram-limits


def _is_telegram_token(text: str) -> bool:
    return not text or re.fullmatch(r"[0-9]+:[!-~]+", text) is not None


@frozen(kw_only=True)
class Server:
    """Where the gateway listens, and how it ends."""

    host: Hosts = _key(
        ("127.0.0.1",),
        'address to listen on, or a list; "0.0.0.0": all of IPv4, "::": all addresses of this machine',
        predicate(
            lambda hosts: hosts and all(hosts),
            'must not be empty; "::" stands for all addresses',
            show_value=False,
        ),
        text="127.0.0.1",
    )
    port: int = _key(11434, "Ollama's own port, so that clients need no change", between(0, 65535))
    wake_paths: tuple[str, ...] = _key(
        (),
        'further POST paths that compute, such as "/v1/rerank" of an engine that has it; "*" at the end '
        "stands for the rest",
        each(is_wake_path, 'each must be a path such as "/v1/rerank", with "*" at most at its end'),
        each(
            lambda path: not is_own_path(path), "may have no path of gpugate's own (/api/v1, /k, /dashboard)"
        ),
    )
    keepalive: Duration = _duration(
        "620s",
        "idle client connections; longer than the load balancers and tunnels in front keep theirs",
        above(0),
    )
    body_timeout: Duration = _duration(
        "30s", "a request body that brings less than 1 KiB/s over this time: 408", above(0)
    )
    max_body: Size = _size(
        "64MiB",
        "largest body of a request that may have to wait; larger: 413. Blob uploads are streamed and exempt",
        above(0),
    )
    shutdown_grace: Duration = _duration(
        "5s",
        "after SIGTERM, for running requests; new and waiting ones get a 503. A second signal cuts all",
        at_least(0),
    )
    on_exit: Literal["stop", "keep"] = _key(
        "stop", 'the pod at a clean exit: "stop" it, or "keep" it for the next start of the gateway to adopt'
    )
    stop_wait: Duration = _duration(
        "60s",
        'with on_exit = "stop": how long to wait until the pod is seen stopped; then: an alarm and exit 1',
        at_least(0),
    )
    cors_origins: tuple[str, ...] = _key(
        (),
        'browser origins that may call: exact ones, "*", "null", or one * in host or port: "http://localhost:*"',
        each(origins.is_origin, origins.SHAPE),
    )


@frozen(kw_only=True)
class Auth:
    """Which tokens are accepted."""

    secret: str = _key(
        "",
        "HS256; at least 32 bytes: python3 -c 'import secrets; print(secrets.token_hex(32))'",
        predicate(_is_long_enough, f"must be at least {MIN_SECRET_BYTES} bytes long", show_value=False),
        secret=True,
    )
    algorithms: tuple[str, ...] = _key(
        ("HS256",),
        "signature algorithms that are accepted",
        predicate(bool, "must name at least one algorithm", show_value=False),
        each(lambda name: name in ALGORITHMS, "must be algorithms out of " + ", ".join(ALGORITHMS)),
    )
    jwks_url: str = _key(
        "",
        "RS256/ES256/EdDSA keys of an identity provider; then the secret may stay empty",
        url("https", "http", or_empty=True),
    )
    issuer: str = _key("", "if set, a token's iss must be this")
    audience: str = _key("", "if set, a token's aud must contain this")
    scope_claims: tuple[str, ...] = _key(
        ("scope", "scp"),
        "of an identity provider's token; the first that holds one of our scopes counts",
        each(lambda name: bool(name.strip()), "must be names of claims"),
    )
    scope_map: Mapping[str, str] = _key(
        {},
        'its words to ours, such as {"gpu-users" = "chat pod"}',
        predicate(_maps_to_scopes, f"must map words to scopes out of {', '.join(SCOPES)}"),
    )
    default_scope: str = _key(
        "chat",
        "of an identity provider's token in which none of our scopes stands; empty: none",
        predicate(_are_scopes, f"must be scopes out of {', '.join(SCOPES)}"),
    )
    leeway: Duration = _duration("10s", "tolerated difference between two clocks", at_least(0))
    require_exp: bool = _key(
        True, "a token without an expiry is refused as malformed; false for a static token"
    )
    path_tokens: bool = _key(
        False, "true: also accept /k/<token>/api/... and /k/<token>/v1/..., for the Ollama command line"
    )


@frozen(kw_only=True, field_transformer=_own_keys_first)
class Pod(PodPolicy):
    """When the pod is started and stopped. The inherited keys are those that the state machine uses."""

    provider: ProviderNames = _key(
        (),
        "required: a provider's name (see `gpugate providers`), or a list, tried in this order; "
        'an entry may be {name = "vastai", spot = true}',
        predicate(_has_no_duplicates, "must name each provider once"),
        each(_is_provider_name, "must be a provider's name (see `gpugate providers`)"),
        text="",
    )
    idle_policy: Literal["fixed", "learned"] = _key(
        "fixed",
        '"learned": from past use; stops earlier than idle_timeout, and starts before an expected request',
    )
    engine: Literal["ollama", "openai"] = _key(
        "ollama",
        'what the pod runs; "openai": vLLM, llama.cpp, SGLang, TabbyAPI, used by /v1 and extra_paths alone',
    )
    extra_paths: tuple[str, ...] = _key(
        (),
        'what the engine has outside of /v1, such as "/tokenize"; a POST starts the pod; "*" at the end '
        "stands for the rest",
        each(is_wake_path, 'each must be a path such as "/tokenize", with "*" at most at its end'),
        each(
            lambda path: not is_own_path(path) and not f"{path}/".startswith("/api/"),
            "may have no path of gpugate's own (/api, /k, /dashboard, /metrics)",
        ),
    )
    health_path: str = _key(
        "/api/version",
        'requested from the engine to see whether it is up; with engine = "openai" the default is /health',
        predicate(
            lambda path: re.fullmatch(r"/[!-~]*", path) is not None, "must be a path that begins with /"
        ),
    )
    lease: str = _key(
        "",
        "16 bytes or more: renewed in a pod that stops itself without it (examples/pod); empty: off",
        predicate(_is_long_enough_lease, f"must be at least {MIN_LEASE_BYTES} bytes long", show_value=False),
        secret=True,
    )

    @property
    def speaks_ollama(self) -> bool:
        """Whether its engine has Ollama's own API, /api."""
        return self.engine == "ollama"

    @property
    def probe_path(self) -> str:
        """The path of health probes: `health_path`, or its default for the engine."""
        is_default = self.health_path == attrs.fields(Pod).health_path.default
        return "/health" if is_default and not self.speaks_ollama else self.health_path


@frozen(kw_only=True, field_transformer=_own_keys_first)
class NamedPod(Pod):
    """One of several pods. It has every key of [pod], with the value there as the default, and these.

    The keys of [pods.NAME.<provider>] go before those of [providers.<provider>].
    """

    models: tuple[str, ...] = _key(
        (),
        'patterns of the models that it serves, such as "llava*" (* and ?, case-sensitive)',
        each(lambda pattern: bool(pattern.strip()), "must be patterns of names of models"),
    )


@frozen(kw_only=True)
class Queue(QueuePolicy):
    """Requests that wait for the pod. The inherited keys are those that the state machine uses."""

    heartbeat: Duration = _duration(
        "0s", "> 0: send a waiting client filler that it ignores, this often", at_least(0)
    )
    progress: Literal["off", "thinking"] = _key(
        "off", '"thinking": a streamed chat that is held shows what is being waited for, as thinking'
    )


@frozen(kw_only=True)
class Catalog:
    """The model list while the pod is off."""

    when_stopped: Literal["remembered", "empty", "static"] = _key(
        "remembered", '"remembered": the last good answer, kept on disk; "empty"; "static"'
    )
    models: tuple[str, ...] = _key(
        (),
        'for "static", and for "remembered" until the first real answer',
        each(lambda model: bool(model.strip()), "must be names of models"),
    )


@frozen(kw_only=True)
class Models:
    """Which of the pod's models is used for stories and code questions."""

    vision: str = _key("llava", "writes a story about a picture", not_blank)
    story: str = _key("", "writes a story without a picture; empty: the vision model")
    code: str = _key("deepseek-coder", "answers questions about code", not_blank)
    code_system: str = _key("", "its system prompt; empty: gpugate's own")


@frozen(kw_only=True)
class ComfyUI:
    """Image generation."""

    pod: str = _key("", "the name of the pod that makes the pictures; empty: the first")
    workflow: FilePath = _key("", "a ComfyUI API-format workflow file; empty: the built-in text-to-image one")
    workflows_dir: FilePath = _key("", "folder of further workflow files, chosen per request by name")
    checkpoint: str = _key(
        "v1-5-pruned-emaonly.safetensors",
        "of the built-in workflow; another value goes into your own, too",
        not_blank,
    )
    poll_interval: Duration = _duration("3s", "between two checks whether an image is done", above(0))
    timeout: Duration = _duration("5m", "from the submission to the fetched image", above(0))


@frozen(kw_only=True)
class Cost:
    """Prices and budgets."""

    currency: str = _key(
        "USD",
        "three letters",
        predicate(lambda code: re.fullmatch("[A-Z]{3}", code) is not None, 'must be letters such as "USD"'),
    )
    hourly_rate: Decimal = _money("used where the provider reports no price")
    timezone: str = _key(
        "UTC",
        'of days, months, budgets and the dates that cost queries take, such as "Europe/Berlin"',
        predicate(is_time_zone, 'must be the name of a time zone, such as "Europe/Berlin"'),
    )
    monthly_budget: Decimal = _money("0 = none; once spent: no new start, 402 BUDGET_EXCEEDED")
    user_share: Decimal = _key(
        Decimal("0.0"),
        "of monthly_budget, for each token's subject; once spent, it can start no pod; 0 = no limit",
        between(0, 1),
    )


@frozen(kw_only=True)
class Bot:
    """The Telegram bot."""

    enabled: bool = _key(False, "needs gpugate's extra telegram; `gpugate check` says how to install it")
    token: str = _key(
        "",
        "from @BotFather",
        predicate(_is_telegram_token, "must look like 123456:ABC-DEF", show_value=False),
        secret=True,
    )
    mode: Literal["webhook", "polling"] = _key("webhook", '"polling" needs no public address')
    secret_token: str = _key(
        "",
        "webhook mode: Telegram sends it back in X-Telegram-Bot-Api-Secret-Token",
        predicate(
            _is_telegram_secret,
            "must be up to 256 characters out of A-Z, a-z, 0-9, _ and -",
            show_value=False,
        ),
        secret=True,
    )
    public_url: str = _key(
        "",
        "webhook mode, https: registered as {public_url}/api/v1/bot/telegram",
        url("https", or_empty=True),
    )
    allowed_chats: tuple[int, ...] = _key((), "chat ids; empty: none is allowed")
    api_base: str = _key(
        "https://api.telegram.org", "Telegram, or a Bot API server of your own", url("https", "http")
    )
    ollama_url: str = _key(
        "http://127.0.0.1:11435", "the LOCAL Ollama, never the pod's", url("http", "https")
    )
    intent_model: str = _key("phi3:mini", "the local model that interprets messages", not_blank)
    intent_timeout: Duration = _duration("8s", "of the local model; then keywords are used", above(0))
    ask_above_rate: Decimal = _money("per hour; a start above it asks with buttons first; 0 = never")
    news: tuple[int, ...] = _key((), "chats that get notifications, a part of allowed_chats")


@frozen(kw_only=True)
class State:
    """Files that outlive a restart."""

    dir: FilePath = _key(
        "", "default $XDG_STATE_HOME/gpugate; holds the ledger, the catalogue, the demo secret"
    )


@frozen(kw_only=True)
class Log:
    """Log lines, on standard error."""

    format: Literal["auto", "console", "json"] = _key("auto", '"auto": "console" on a terminal, else "json"')
    level: Literal["debug", "info", "warning", "error", "critical"] = _key(
        "info", '"debug", "info", "warning", "error" or "critical"'
    )


@frozen(kw_only=True)
class Metrics:
    """Prometheus metrics (docs/metrics.md)."""

    enabled: bool = _key(
        False, "GET /metrics, for tokens with the scope metrics; needs gpugate's extra metrics"
    )
    listen: str = _key(
        "",
        'also there, without a token and nothing else there: "127.0.0.1:9090"; empty: not',
        predicate(
            lambda text: not text or split_address(text) is not None, 'must look like "127.0.0.1:9090"'
        ),
    )


@frozen(kw_only=True)
class Traces:
    """OpenTelemetry traces (docs/tracing.md)."""

    enabled: bool = _key(
        False, "where to is said by the variables OTEL_EXPORTER_OTLP_*; needs gpugate's extra otel"
    )


@frozen(kw_only=True)
class Notify:
    """Notices of what happens, through apprise (docs/rules.md#notices)."""

    urls: tuple[str, ...] = _key(
        (),
        'recipients, such as "ntfy://topic" or "mailto://..."; needs gpugate\'s extra notify; empty: none',
        each(bool, "must not be empty"),
        secret=True,
    )
    events: tuple[Notice, ...] = _key(NOTICES, "which of them are sent")


def _zone(help: str) -> Any:  # noqa: A002
    """Declare the name of a time zone, empty by default."""
    return _key(
        "",
        help,
        predicate(
            lambda name: not name or is_time_zone(name),
            'must be the name of a time zone, such as "Europe/Berlin"',
        ),
    )


@frozen(kw_only=True)
class WakeRule:
    """Who may start a pod, when and for what; the first rule that matches decides (docs/rules.md)."""

    name: str = _key("", "named in the refusal; empty: the rule's number is")
    allow: bool = _key(False, "false: what matches may start no pod")
    users: tuple[str, ...] = _key((), "patterns of the token's subject, with * and ?; empty: any")
    models: tuple[str, ...] = _key((), "of the model that the request names")
    paths: tuple[str, ...] = _key((), "of its path; a start by hand has /api/v1/gpu/start")
    agents: tuple[str, ...] = _key((), "of its User-Agent")
    hours: str = _key("", '"Mon-Fri 08:00-18:00; Sat,Sun"; empty: always', predicate(is_hours, SHAPE))
    timezone: str = _zone("of the hours; empty: cost.timezone")


@frozen(kw_only=True)
class Schedule:
    """When the pod is started without a request, and for how long it is kept (docs/rules.md)."""

    cron: str = _key(
        attrs.NOTHING,
        'required: minute hour day month weekday, such as "0 8 * * 1-5"',
        predicate(is_cron, 'must be five fields such as "0 8 * * 1-5"'),
    )
    timezone: str = _zone("of cron; empty: cost.timezone")
    pod: str = _key("", "its name; empty: the first")
    keep: Duration = _duration("30m", "from READY on, or from then if it serves already", above(0))
    model: str = _key("", "loaded before the pod serves; empty: as pod.preload says")


@frozen(kw_only=True)
class PodSettings:
    """One pod of the fleet: `[pods.<name>]`, or `[pod]` where there is no `[pods]`.

    Attributes:
        pod: its keys; those that `[pods.<name>]` leaves out are as in `[pod]`.
        models: patterns of the models whose requests it serves, with `*` and `?`.
        providers: as `Settings.providers`, with the keys of `[pods.<name>.<provider>]` over them.
        own: the keys that `[pods.<name>]` itself has, as `idle_timeout` and `runpod.api_key`.
    """

    name: str = MAIN_POD
    pod: Pod = field(factory=Pod)
    models: tuple[str, ...] = ()
    providers: Mapping[str, Mapping[str, object]] = field(factory=dict, repr=False, hash=False)
    own: frozenset[str] = frozenset()

    def path_of(self, key: str, *others: str) -> str:
        """Return the dotted path at which a key of `[pod]` is given for this pod, or one of `others` is."""
        return f"pods.{self.name}.{key}" if self.own.intersection((key, *others)) else f"pod.{key}"


@frozen(kw_only=True)
class Settings:
    """The whole configuration, validated.

    Attributes:
        named_pods: `[pods.<name>]`, in the file's order.
        providers: `[providers.<name>]` as SourcedValues, variables included and not yet validated;
            `provider_config` makes a provider's Config of its part.
        source: the configuration's name in complaints.
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
    metrics: Metrics = field(factory=Metrics)
    tracing: Traces = field(factory=Traces)
    notify: Notify = field(factory=Notify)
    wake: tuple[WakeRule, ...] = field(default=(), metadata={"is_list": True})
    schedule: tuple[Schedule, ...] = field(default=(), metadata={"is_list": True})
    providers: Mapping[str, Mapping[str, object]] = field(
        factory=dict, repr=False, hash=False, metadata={"is_key": False}
    )
    named_pods: tuple[PodSettings, ...] = field(default=(), metadata={"is_key": False})
    source: str = field(default=DEFAULT_SOURCE, metadata={"is_key": False})
    folder: Path = field(factory=Path, metadata={"is_key": False})

    @property
    def pods(self) -> tuple[PodSettings, ...]:
        """The pods, in the file's order; at least one."""
        return self.named_pods or (PodSettings(pod=self.pod, providers=self.providers),)


_KEYS = [a for a in attrs.fields(attrs.resolve_types(Settings)) if a.metadata.get("is_key", True)]
SECTIONS: Mapping[str, Any] = {a.name: a.type for a in _KEYS if not a.metadata.get("is_list")}
LISTS: Mapping[str, Any] = {a.name: get_args(a.type)[0] for a in _KEYS if a.metadata.get("is_list")}
"""Sections that may be there any number of times: `[[wake]]`."""
