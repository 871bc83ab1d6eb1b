"""What no key alone can tell: keys that contradict each other, or that are needed and missing."""

from __future__ import annotations

import os.path
from collections.abc import Iterator
from importlib.util import find_spec

from gpugate.config.schema import Bot, Settings
from gpugate.config.units import show_duration

Finding = tuple[str, str]  # dotted key, problem

_SECRET_BYTES = {"HS384": 48, "HS512": 64}  # RFC 7518 3.2: a key as long as the hash

NO_SECRET = (
    "is empty, and so is auth.jwks_url: anybody could use your GPU. Make one with: "
    "python3 -c 'import secrets; print(secrets.token_hex(32))'"
)
NO_PROVIDER = (
    "is missing: name a provider (see `gpugate providers`), try `gpugate demo`, which needs none, "
    "or let `gpugate init` write a configuration"
)


def contradictions(settings: Settings) -> Iterator[Finding]:
    """Yield the keys that cannot be as another one is."""
    auth = settings.auth
    foreign = [name for name in auth.algorithms if not name.startswith("HS")]
    if foreign and not auth.jwks_url:
        yield "auth.algorithms", f"{foreign[0]} needs the keys of an identity provider: set auth.jwks_url"
    for name in auth.algorithms if auth.secret else ():
        if len(auth.secret.encode()) < _SECRET_BYTES.get(name, 0):
            yield "auth.secret", f"must be at least {_SECRET_BYTES[name]} bytes long for {name}"
    stray = [str(chat) for chat in settings.bot.news if chat not in settings.bot.allowed_chats]
    if stray:
        yield "bot.news", f"{', '.join(stray)} is not among bot.allowed_chats"
    if settings.cost.user_share and not settings.cost.monthly_budget:
        yield "cost.user_share", "is a share of cost.monthly_budget, which is not set"
    yield from _missing_files(settings)


def _missing_files(settings: Settings) -> Iterator[Finding]:
    comfyui = settings.comfyui
    if comfyui.workflow and not os.path.isfile(comfyui.workflow):
        yield "comfyui.workflow", "there is no such file"
    if comfyui.workflows_dir and not os.path.isdir(comfyui.workflows_dir):
        yield "comfyui.workflows_dir", "there is no such folder"
    if settings.state.dir and os.path.exists(settings.state.dir) and not os.path.isdir(settings.state.dir):
        yield "state.dir", "is not a folder"


def notes(settings: Settings) -> Iterator[Finding]:
    """Yield what is allowed and may yet surprise."""
    pod, max_wait = settings.pod, settings.queue.max_wait
    if 0 < pod.max_session <= pod.warmup_timeout:
        yield (
            "pod.max_session",
            f"{show_duration(pod.max_session)} is no longer than pod.warmup_timeout "
            f"({show_duration(pod.warmup_timeout)}): a session may be over before its pod is ready",
        )
    # With one provider only the words differ, of one and the same 503.
    if pod.start_timeout > max_wait or (len(pod.provider) > 1 and pod.start_timeout == max_wait):
        yield (
            "pod.start_timeout",
            f"{show_duration(pod.start_timeout)} is no shorter than queue.max_wait "
            f"({show_duration(max_wait)}): requests give up before a start that hangs is given up",
        )


def lacks(settings: Settings) -> Iterator[Finding]:
    """Yield what is missing for the gateway to run."""
    if not settings.auth.secret and not settings.auth.jwks_url:
        yield "auth.secret", NO_SECRET
    if not settings.pod.provider:
        yield "pod.provider", NO_PROVIDER
    if not settings.state.dir:
        yield "state.dir", "is needed: this user has no home folder for a default"
    if settings.bot.enabled:
        yield from _bot_lacks(settings.bot)


def _bot_lacks(bot: Bot) -> Iterator[Finding]:
    if find_spec("aiogram") is None:  # looked for, not imported: that takes 3 s
        yield "bot.enabled", "needs the extra: pip install 'gpugate[telegram]'"
    if not bot.token:
        yield "bot.token", "is needed while bot.enabled is true: @BotFather gives it"
    if bot.mode == "webhook":
        if not bot.secret_token:
            yield "bot.secret_token", "is needed in webhook mode: without it anybody could play Telegram"
        if not bot.public_url:
            yield (
                "bot.public_url",
                'is needed in webhook mode; without a public address use bot.mode = "polling"',
            )
