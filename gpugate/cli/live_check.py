"""Read-only requests to providers, pod, Telegram and local Ollama: for `check --live` and `doctor`."""

from __future__ import annotations

import asyncio
import os
import ssl
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from decimal import Decimal

import aiohttp
from attrs import evolve, frozen

from gpugate.billing.cost_math import SECONDS_PER_HOUR
from gpugate.cli.cost_commands import amount
from gpugate.cli.errors import FAILED, OK
from gpugate.cli.parser import gpugate_version
from gpugate.config import Settings, provider_config, show_duration
from gpugate.config.derive import fallback_price_of
from gpugate.config.schema import PodSettings
from gpugate.errors import (
    AuthFailed,
    Blocked,
    Misconfigured,
    NoFunds,
    NotFound,
    ProviderError,
    RateLimited,
    SettingsError,
    Transient,
)
from gpugate.provider_api import Endpoint, Phase, PodReport, Provider
from gpugate.providers import registry
from gpugate.providers.local import Local, command_problem

_TIMEOUT_S = 20.0  # of one request: longer than the providers' own timeout of a call (10 s)
_MAX_RATE_LIMIT_S = 10.0  # a longer one is reported: the user is waiting
_KEYWORDS = "until then the bot goes by English keywords"
HOURS_PER_MONTH = 730  # 365 days in 12 months
_REMEDIES: tuple[tuple[type[ProviderError], str], ...] = (
    (AuthFailed, "make a new API key at the provider and put it into providers.{name}"),
    (NoFunds, "add credit to the account"),
    (NotFound, "gpugate setup lists the account's pods"),
    (Blocked, "ask from another network, or see the plugin's README"),
    (RateLimited, "wait a minute and ask again"),
    (Misconfigured, "mend providers.{name} in the configuration"),
    (Transient, "see whether this machine reaches the provider, and its status page"),
)


@frozen
class Finding:
    """What one check found: `state` is "ok", "note" or "wrong"; with what to do, if anything is."""

    state: str
    text: str
    remedy: str = ""


def check_live(settings: Settings) -> int:
    """Print a line for each request's result; return 1 if one of them failed."""
    return asyncio.run(_report(settings))


async def _report(settings: Settings) -> int:
    status = OK
    async with client_session() as session:
        async for one in live_findings(settings, session):
            if one.state == "wrong":
                print(f"gpugate: {one.text}", file=sys.stderr)
                status = FAILED
            else:
                print(f"  {'note: ' * (one.state == 'note')}{one.text}")
    return status


def client_session(traces: Sequence[aiohttp.TraceConfig] = ()) -> aiohttp.ClientSession:
    """Return a session for a command's requests to providers."""
    headers = {"User-Agent": f"gpugate/{gpugate_version()}"}
    return aiohttp.ClientSession(headers=headers, trace_configs=[*traces])


async def live_findings(settings: Settings, session: aiohttp.ClientSession) -> AsyncIterator[Finding]:
    """Yield what each request finds."""
    # Providers read the state folder from this variable, as under `serve`: a local pod is found by it.
    os.environ["GPUGATE_STATE_DIR"] = settings.state.dir
    for pod in settings.pods:
        for name in pod.pod.provider:
            async for result in _provider_results(settings, pod, name, session):
                if len(settings.pods) > 1:
                    result = evolve(result, text=f"pod {pod.name}: {result.text.removeprefix('pod: ')}")
                yield result
    if settings.bot.enabled:
        yield await _telegram(settings, session)
        yield await _local_ollama(settings, session)


async def _provider_results(
    settings: Settings, pod: PodSettings, name: str, session: aiohttp.ClientSession
) -> AsyncIterator[Finding]:
    who = f"provider {name}"
    try:
        provider_class = registry.find(name)
        provider = provider_class(provider_config(settings, name, provider_class.Config, pod), session)
        provider.pod_name = pod.name
        try:
            report = await _inspect(provider)
        finally:
            await provider.aclose()
    except (ProviderError, SettingsError) as error:
        yield Finding("wrong", f"{who}: {error}", remedy_for(error, name))
    except TimeoutError:
        yield Finding("wrong", f"{who}: no answer within {_TIMEOUT_S:g} s", remedy_for(Transient(""), name))
    except Exception as error:  # from a plugin: its message may contain a secret, so only its type is printed
        yield Finding(
            "wrong", f"{who}: the plugin failed with {type(error).__name__}", "report it to its author"
        )
    else:
        if isinstance(provider, Local) and (problem := command_problem(provider.config)):
            yield Finding("wrong", f"{who}: {problem}", "install it, or set providers.local.command")
        about = f"pod {report.pod_id or 'unknown'} is {report.phase.value}"
        more = ": ".join(filter(None, (report.detail, report.output)))
        state = "wrong" if report.phase is Phase.GONE else "ok"
        remedy = remedy_for(NotFound(""), name) if state == "wrong" else ""
        yield Finding(state, f"{who}: {about}" + (f" ({more})" if more else ""), remedy)
        if state == "ok" and not provider.capabilities.simulated:
            yield Finding("ok", f"{who}: {_costs(settings, pod, report)}")
        if report.phase is Phase.RUNNING and "ollama" in report.endpoints:
            yield await _pod_health(pod, report.endpoints["ollama"], session)
        if report.phase is Phase.RUNNING and "comfyui" in report.endpoints:
            yield await _comfyui(report.endpoints["comfyui"], session)


def remedy_for(error: Exception, name: str) -> str:
    """Return what to do about an error of the provider `name`."""
    return next((words.format(name=name) for kind, words in _REMEDIES if isinstance(error, kind)), "")


def _costs(settings: Settings, pod: PodSettings, report: PodReport) -> str:
    """Say what the pod has and costs: while it runs, before each idle stop, and while it is stopped."""
    price = report.price
    if price is None or price.running_per_hour is None:
        price = fallback_price_of(settings)
    running, stopped, currency = price.running_per_hour, price.stopped_per_hour, price.currency
    words = [report.gpu or "GPU unknown"]
    if running is None:
        words.append("price unknown: set cost.hourly_rate")
    else:
        idle_s = pod.pod.idle_timeout
        idle = amount(running * Decimal(idle_s) / SECONDS_PER_HOUR)
        words.append(f"{amount(running)} {currency} an hour")
        words.append(f"{idle} {currency} for the {show_duration(idle_s)} before an idle stop")
    if stopped:
        words.append(f"its disk {amount(stopped * HOURS_PER_MONTH)} {currency} a month while it is stopped")
    return ", ".join(words)


async def _inspect(provider: Provider) -> PodReport:
    """Return the provider's report; a short rate limit (of a `check` a moment ago) is waited for once."""
    try:
        return await asyncio.wait_for(provider.inspect(), _TIMEOUT_S)
    except RateLimited as error:
        if error.retry_after is None or not 0 <= error.retry_after <= _MAX_RATE_LIMIT_S:
            raise
        await asyncio.sleep(error.retry_after)
    return await asyncio.wait_for(provider.inspect(), _TIMEOUT_S)


async def _pod_health(pod: PodSettings, endpoint: Endpoint, session: aiohttp.ClientSession) -> Finding:
    url = endpoint.url.rstrip("/") + pod.pod.health_path
    status, _ = await _get(session, url, endpoint.headers, _tls(endpoint.tls))
    if status == 200:
        return Finding("ok", "pod: its Ollama is healthy")
    remedy = "see whether it runs in the pod, and whether its port is exposed"
    return Finding("wrong", f"pod: its Ollama is not healthy: {status}", remedy)


async def _comfyui(endpoint: Endpoint, session: aiohttp.ClientSession) -> Finding:
    url = endpoint.url.rstrip("/") + "/system_stats"
    status, _ = await _get(session, url, endpoint.headers, _tls(endpoint.tls))
    if status == 200:
        return Finding("ok", "pod: its ComfyUI answers")
    return Finding("note", f"pod: its ComfyUI does not answer: {status}; only pictures need it")


async def _telegram(settings: Settings, session: aiohttp.ClientSession) -> Finding:
    bot = settings.bot
    status, answer = await _get(session, f"{bot.api_base.rstrip('/')}/bot{bot.token}/getMe", {}, True)
    if status in (401, 404):
        remedy = "take the token from @BotFather"
        return Finding("wrong", "bot.token: Telegram does not know this bot", remedy)
    me = answer.get("result") if isinstance(answer, dict) else None
    if status != 200 or not isinstance(me, dict):
        remedy = "see whether this machine reaches it"
        return Finding("wrong", f"bot.api_base: Telegram does not answer: {status}", remedy)
    return Finding("ok", f"Telegram: knows the bot as @{me.get('username')!s}")


async def _local_ollama(settings: Settings, session: aiohttp.ClientSession) -> Finding:
    bot = settings.bot
    status, answer = await _get(session, bot.ollama_url.rstrip("/") + "/api/tags", {}, True)
    if status != 200:
        return Finding("note", f"bot.ollama_url: the local Ollama does not answer: {status}; {_KEYWORDS}")
    models = answer.get("models") if isinstance(answer, dict) else None
    names = {model.get("name") for model in models or [] if isinstance(model, dict)}
    if not names & {bot.intent_model, f"{bot.intent_model}:latest"}:
        return Finding("note", f"bot.intent_model: needs `ollama pull {bot.intent_model}`; {_KEYWORDS}")
    return Finding("ok", f"local Ollama: has {bot.intent_model}")


async def _get(
    session: aiohttp.ClientSession,
    url: str,
    headers: Mapping[str, str],
    tls: ssl.SSLContext | aiohttp.Fingerprint | bool,
) -> tuple[int | str, object]:
    """Return the status and the JSON of a response; in place of the status an error text if there is none."""
    try:
        async with session.get(
            url,
            headers=headers,
            ssl=tls,
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S),
        ) as response:
            return response.status, await response.json(content_type=None) if response.status == 200 else None
    except ValueError:
        return "its answer is not JSON", None
    except TimeoutError:
        return "no answer in time", None
    except (aiohttp.ClientError, OSError) as error:  # their messages contain the URL, and with it a token
        return _error_name(error), None


def _error_name(error: BaseException) -> str:
    inner = getattr(error, "os_error", error)
    number = inner.errno if isinstance(inner, OSError) else None
    return os.strerror(number) if number else type(error).__name__


def _tls(policy: str) -> ssl.SSLContext | aiohttp.Fingerprint | bool:
    """Return aiohttp's `ssl` argument for an endpoint's TLS policy (`gpugate.Endpoint.tls`)."""
    if policy == "system":
        return True
    if policy == "insecure":
        return False
    if policy.startswith("sha256:"):
        return aiohttp.Fingerprint(bytes.fromhex(policy.removeprefix("sha256:").replace(":", "")))
    return ssl.create_default_context(cafile=policy)
