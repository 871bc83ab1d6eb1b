"""`gpugate check --live`: read-only requests to the providers, the pod, Telegram and the local Ollama."""

from __future__ import annotations

import asyncio
import os
import ssl
import sys
from collections.abc import AsyncIterator, Mapping
from decimal import Decimal

import aiohttp

from gpugate.billing.cost_math import SECONDS_PER_HOUR
from gpugate.cli.cost_commands import amount
from gpugate.cli.errors import FAILED, OK
from gpugate.cli.parser import gpugate_version
from gpugate.config import Settings, provider_config, show_duration
from gpugate.config.derive import fallback_price_of
from gpugate.errors import ProviderError, RateLimited, SettingsError
from gpugate.provider_api import Endpoint, Phase, PodReport, Provider
from gpugate.providers import registry
from gpugate.providers.local import Local, command_problem

_TIMEOUT_S = 20.0  # of one request: longer than the providers' own timeout of a call (10 s)
_MAX_RATE_LIMIT_S = 10.0  # a longer one is reported: the user is waiting
_KEYWORDS = "until then the bot goes by English keywords"
HOURS_PER_MONTH = 730  # 365 days in 12 months
LiveResult = tuple[bool, str]  # whether it works, and a line about it


def check_live(settings: Settings) -> int:
    """Print a line for each request's result; return 1 if one of them failed."""
    # Providers read the state folder from this variable, as under `serve`: a local pod is found by it.
    os.environ["GPUGATE_STATE_DIR"] = settings.state.dir
    return asyncio.run(_report(settings))


async def _report(settings: Settings) -> int:
    status = OK
    headers = {"User-Agent": f"gpugate/{gpugate_version()}"}
    async with aiohttp.ClientSession(headers=headers) as session:
        async for ok, line in _results(settings, session):
            print(f"  {line}" if ok else f"gpugate: {line}", file=sys.stdout if ok else sys.stderr)
            status = status if ok else FAILED
    return status


async def _results(settings: Settings, session: aiohttp.ClientSession) -> AsyncIterator[LiveResult]:
    for name in settings.pod.provider:
        async for result in _provider_results(settings, name, session):
            yield result
    if settings.bot.enabled:
        yield await _telegram(settings, session)
        yield await _local_ollama(settings, session)


async def _provider_results(
    settings: Settings, name: str, session: aiohttp.ClientSession
) -> AsyncIterator[LiveResult]:
    who = f"provider {name}"
    try:
        provider_class = registry.find(name)
        provider = provider_class(provider_config(settings, name, provider_class.Config), session)
        try:
            report = await _inspect(provider)
        finally:
            await provider.aclose()
    except (ProviderError, SettingsError) as error:
        yield False, f"{who}: {error}"
    except TimeoutError:
        yield False, f"{who}: no answer within {_TIMEOUT_S:g} s"
    except Exception as error:  # from a plugin: its message may contain a secret, so only its type is printed
        yield False, f"{who}: the plugin failed with {type(error).__name__}"
    else:
        if isinstance(provider, Local) and (problem := command_problem(provider.config)):
            yield False, f"{who}: {problem}"
        about = f"pod {report.pod_id or 'unknown'} is {report.phase.value}"
        more = ": ".join(filter(None, (report.detail, report.output)))
        yield report.phase is not Phase.GONE, f"{who}: {about}" + (f" ({more})" if more else "")
        if not provider.capabilities.simulated:
            yield True, f"{who}: {_costs(settings, report)}"
        if report.phase is Phase.RUNNING and "ollama" in report.endpoints:
            yield await _pod_health(settings, report.endpoints["ollama"], session)


def _costs(settings: Settings, report: PodReport) -> str:
    """Say what the pod has and costs: while it runs, before each idle stop, and while it is stopped."""
    price = report.price
    if price is None or price.running_per_hour is None:
        price = fallback_price_of(settings)
    running, stopped, currency = price.running_per_hour, price.stopped_per_hour, price.currency
    words = [report.gpu or "GPU unknown"]
    if running is None:
        words.append("price unknown: set cost.hourly_rate")
    else:
        idle_s = settings.pod.idle_timeout
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


async def _pod_health(settings: Settings, endpoint: Endpoint, session: aiohttp.ClientSession) -> LiveResult:
    url = endpoint.url.rstrip("/") + settings.pod.health_path
    status, _ = await _get(session, url, endpoint.headers, _tls(endpoint.tls))
    if status == 200:
        return True, "pod: its Ollama is healthy"
    return False, f"pod: its Ollama is not healthy: {status}"


async def _telegram(settings: Settings, session: aiohttp.ClientSession) -> LiveResult:
    bot = settings.bot
    status, answer = await _get(session, f"{bot.api_base.rstrip('/')}/bot{bot.token}/getMe", {}, True)
    if status in (401, 404):
        return False, "bot.token: Telegram does not know this bot"
    me = answer.get("result") if isinstance(answer, dict) else None
    if status != 200 or not isinstance(me, dict):
        return False, f"bot.api_base: Telegram does not answer: {status}"
    return True, f"Telegram: knows the bot as @{me.get('username')!s}"


async def _local_ollama(settings: Settings, session: aiohttp.ClientSession) -> LiveResult:
    bot = settings.bot
    status, answer = await _get(session, bot.ollama_url.rstrip("/") + "/api/tags", {}, True)
    if status != 200:
        return True, f"note: bot.ollama_url: the local Ollama does not answer: {status}; {_KEYWORDS}"
    models = answer.get("models") if isinstance(answer, dict) else None
    names = {model.get("name") for model in models or [] if isinstance(model, dict)}
    if not names & {bot.intent_model, f"{bot.intent_model}:latest"}:
        return (
            True,
            f"note: bot.intent_model: needs `ollama pull {bot.intent_model}`; {_KEYWORDS}",
        )
    return True, f"local Ollama: has {bot.intent_model}"


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
