"""Checks of several keys together: contradictions, missing keys, and combinations worth a warning."""

from __future__ import annotations

import logging
import os.path
from collections.abc import Iterator
from importlib.util import find_spec

from gpugate.config.schema import Bot, PodSettings, Queue, Settings
from gpugate.config.sources import display
from gpugate.config.units import show_duration
from gpugate.install_hints import install_command

Finding = tuple[str, str]  # dotted key, problem

_MIN_SECRET_BYTES = {"HS384": 48, "HS512": 64}  # RFC 7518 3.2: as long as the hash

_SHORT_IDLE_S = 60.0

NO_SECRET = (
    "is empty, and so is auth.jwks_url: anyone could use your GPU. Make one with: "
    "python3 -c 'import secrets; print(secrets.token_hex(32))'"
)
NO_PROVIDER = (
    "is missing: name a provider (see `gpugate providers`), try `gpugate demo`, which needs none, "
    "or let `gpugate init` write a configuration"
)
NO_PROVIDER_OF_POD = (
    "is missing: name a provider (see `gpugate providers`) here, or in pod.provider for all pods"
)


def contradictions(settings: Settings) -> Iterator[Finding]:
    """Yield keys whose value is impossible beside another key's, or in this file system."""
    auth = settings.auth
    asymmetric = [name for name in auth.algorithms if not name.startswith("HS")]
    if asymmetric and not auth.jwks_url:
        yield "auth.algorithms", f"{asymmetric[0]} needs the keys of an identity provider: set auth.jwks_url"
    for name in auth.algorithms if auth.secret else ():
        if len(auth.secret.encode()) < _MIN_SECRET_BYTES.get(name, 0):
            yield "auth.secret", f"must be at least {_MIN_SECRET_BYTES[name]} bytes long for {name}"
    not_allowed = [str(chat) for chat in settings.bot.news if chat not in settings.bot.allowed_chats]
    if not_allowed:
        yield "bot.news", f"{', '.join(not_allowed)} is not among bot.allowed_chats"
    if settings.cost.user_share and not settings.cost.monthly_budget:
        yield "cost.user_share", "is a share of cost.monthly_budget, which is not set"
    if settings.metrics.listen and not settings.metrics.enabled:
        yield "metrics.listen", "needs metrics.enabled = true"
    for pod in settings.pods:
        if pod.pod.lease and not pod.pod.speaks_ollama:
            yield pod.path_of("lease"), "is renewed by a blob, which only Ollama takes: leave it empty here"
        if pod.pod.pull and not pod.pod.speaks_ollama:
            yield pod.path_of("pull"), "is for Ollama: this engine pulls no models, so leave it empty here"
    yield from _missing_files(settings)
    yield from _unknown_pods(settings)
    yield from _notify(settings.notify.urls)


def _unknown_pods(settings: Settings) -> Iterator[Finding]:
    pods = [pod.name for pod in settings.pods]
    given = [(f"schedule[{number}].pod", one.pod) for number, one in enumerate(settings.schedule)]
    for key, name in [("comfyui.pod", settings.comfyui.pod), *given]:
        if name and name not in pods:
            yield key, f"must be the name of a pod ({', '.join(pods)}), is {display(name)}"


def _missing_files(settings: Settings) -> Iterator[Finding]:
    comfyui = settings.comfyui
    if comfyui.workflow and not os.path.isfile(comfyui.workflow):
        yield "comfyui.workflow", "there is no such file"
    if comfyui.workflows_dir and not os.path.isdir(comfyui.workflows_dir):
        yield "comfyui.workflows_dir", "there is no such folder"
    if settings.state.dir and os.path.exists(settings.state.dir) and not os.path.isdir(settings.state.dir):
        yield "state.dir", "is not a folder"


def warnings(settings: Settings) -> Iterator[Finding]:
    """Yield keys whose value is allowed but probably not meant (`gpugate check` prints them)."""
    auth = settings.auth
    if auth.scope_map and not auth.jwks_url:
        yield "auth.scope_map", "is for tokens of an identity provider, and auth.jwks_url is not set"
    if auth.jwks_url and not auth.audience:
        yield "auth.audience", "is empty: tokens that the identity provider made for other programs count too"
    yield from dict.fromkeys(found for pod in settings.pods for found in _pod_warnings(pod, settings.queue))


def _pod_warnings(settings: PodSettings, queue: Queue) -> Iterator[Finding]:
    pod, max_wait, path_of = settings.pod, queue.max_wait, settings.path_of
    if pod.idle_timeout < _SHORT_IDLE_S:
        yield (
            path_of("idle_timeout"),
            f"{show_duration(pod.idle_timeout)} is short: a pause between two messages stops the pod, and "
            'the next one waits for a start. A number without a unit is seconds; "15m" is minutes',
        )
    if 0 < pod.max_session <= pod.warmup_timeout:
        yield (
            path_of("max_session", "warmup_timeout"),
            f"{show_duration(pod.max_session)} is no longer than {path_of('warmup_timeout')} "
            f"({show_duration(pod.warmup_timeout)}): a session may be over before its pod is ready",
        )
    # At the same time with a single provider both end in a 503 that differs only in its message.
    if pod.start_timeout > max_wait or (len(pod.provider) > 1 and pod.start_timeout == max_wait):
        yield (
            path_of("start_timeout"),
            f"{show_duration(pod.start_timeout)} is no shorter than queue.max_wait "
            f"({show_duration(max_wait)}): requests give up before a start that hangs is given up",
        )


def missing(settings: Settings) -> Iterator[Finding]:
    """Yield keys that must be set before the gateway can run."""
    if not settings.auth.secret and not settings.auth.jwks_url:
        yield "auth.secret", NO_SECRET
    if not settings.named_pods and not settings.pod.provider:
        yield "pod.provider", NO_PROVIDER
    for pod in settings.named_pods:
        if not pod.pod.provider:
            yield f"pods.{pod.name}.provider", NO_PROVIDER_OF_POD
    if not settings.state.dir:
        yield "state.dir", "is needed: this user has no home folder for a default"
    if settings.bot.enabled:
        yield from _missing_for_bot(settings.bot)
    if settings.metrics.enabled and find_spec("prometheus_client") is None:
        yield "metrics.enabled", f"needs the extra: {install_command('gpugate', 'gpugate[metrics]')}"
    if settings.tracing.enabled and not _has_otlp_exporter():
        yield "tracing.enabled", f"needs the extra: {install_command('gpugate', 'gpugate[otel]')}"


def _has_otlp_exporter() -> bool:
    try:
        return find_spec("opentelemetry.exporter.otlp.proto.http") is not None
    except ModuleNotFoundError:  # of a package above it
        return False


def _notify(urls: tuple[str, ...]) -> Iterator[Finding]:
    if urls and find_spec("apprise") is None:
        yield "notify.urls", f"needs the extra: {install_command('gpugate', 'gpugate[notify]')}"
        return
    logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)  # its lines may show a URL
    for number, url in enumerate(urls):
        import apprise  # only where there are notices: it takes 0.3 s

        if not apprise.Apprise().add(url):
            yield "notify.urls", f"apprise does not know what number {number + 1} is (it is not shown)"


def _missing_for_bot(bot: Bot) -> Iterator[Finding]:
    if find_spec("aiogram") is None:  # not imported: that takes 3 s
        yield "bot.enabled", f"needs the extra: {install_command('gpugate', 'gpugate[telegram]')}"
    if not bot.token:
        yield "bot.token", "is needed while bot.enabled is true: @BotFather gives it"
    if bot.mode == "webhook":
        if not bot.secret_token:
            yield "bot.secret_token", "is needed in webhook mode: without it anyone could send fake updates"
        if not bot.public_url:
            yield (
                "bot.public_url",
                'is needed in webhook mode; without a public address use bot.mode = "polling"',
            )
