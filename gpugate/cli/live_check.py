"""`gpugate check --live`: asks provider, pod and local Ollama how they are; changes nothing anywhere."""

from __future__ import annotations

import asyncio
import os
import ssl
import sys
from collections.abc import AsyncIterator, Mapping

import aiohttp

from gpugate.cli.errors import FAILED, OK
from gpugate.cli.parser import gpugate_version
from gpugate.config import Settings, provider_config
from gpugate.errors import ProviderError, RateLimited, SettingsError
from gpugate.provider_api import Endpoint, Phase, PodReport, Provider
from gpugate.providers import registry
from gpugate.providers.local import Local, command_problem

_PATIENCE_S = 20.0  # for one answer: above any provider's own timeout of one call (10 s)
_LONGEST_WAIT_S = 10.0  # for a provider's rate limit: somebody sits in front of it
Finding = tuple[bool, str]  # whether it is well, and a line about it


def check_live(settings: Settings) -> int:
    """Print a line about each that was asked; return 1 if one of them is not well."""
    # The state folder is handed on to the providers as `serve` does; a local pod is found by it.
    os.environ["GPUGATE_STATE_DIR"] = settings.state.dir
    return asyncio.run(_report(settings))


async def _report(settings: Settings) -> int:
    status = OK
    headers = {"User-Agent": f"gpugate/{gpugate_version()}"}
    async with aiohttp.ClientSession(headers=headers) as session:
        async for well, line in _findings(settings, session):
            print(f"  {line}" if well else f"gpugate: {line}", file=sys.stdout if well else sys.stderr)
            status = status if well else FAILED
    return status


async def _findings(settings: Settings, session: aiohttp.ClientSession) -> AsyncIterator[Finding]:
    for name in settings.pod.provider:
        async for finding in _provider_findings(settings, name, session):
            yield finding
    if settings.bot.enabled:
        yield await _telegram(settings, session)
        yield await _local_ollama(settings, session)


async def _provider_findings(
    settings: Settings, name: str, session: aiohttp.ClientSession
) -> AsyncIterator[Finding]:
    who = f"provider {name}"
    try:
        provider_class = registry.find(name)
        provider = provider_class(provider_config(settings, name, provider_class.Config), session)
        try:
            report = await _look(provider)
        finally:
            await provider.aclose()
    except (ProviderError, SettingsError) as error:
        yield False, f"{who}: {error}"
    except TimeoutError:
        yield False, f"{who}: no answer within {_PATIENCE_S:g} s"
    except Exception as error:  # a stranger's code: its words may hold a secret, so only its kind is told
        yield False, f"{who}: the plugin failed with {type(error).__name__}"
    else:
        if isinstance(provider, Local) and (problem := command_problem(provider.config)):
            yield False, f"{who}: {problem}"
        about = f"pod {report.pod_id or 'unknown'} is {report.phase.value}"
        more = ": ".join(filter(None, (report.detail, report.output)))
        yield report.phase is not Phase.GONE, f"{who}: {about}" + (f" ({more})" if more else "")
        if report.phase is Phase.RUNNING and "ollama" in report.endpoints:
            yield await _pod_health(settings, report.endpoints["ollama"], session)


async def _look(provider: Provider) -> PodReport:
    """One look; asked for too soon after the last (another `check` a moment ago), it is waited out once."""
    try:
        return await asyncio.wait_for(provider.inspect(), _PATIENCE_S)
    except RateLimited as error:
        if error.retry_after is None or not 0 <= error.retry_after <= _LONGEST_WAIT_S:
            raise
        await asyncio.sleep(error.retry_after)
    return await asyncio.wait_for(provider.inspect(), _PATIENCE_S)


async def _pod_health(settings: Settings, endpoint: Endpoint, session: aiohttp.ClientSession) -> Finding:
    url = endpoint.url.rstrip("/") + settings.pod.health_path
    status, _ = await _get(session, url, endpoint.headers, _tls(endpoint.tls))
    if status == 200:
        return True, "pod: its Ollama is healthy"
    return False, f"pod: its Ollama is not healthy: {status}"


async def _telegram(settings: Settings, session: aiohttp.ClientSession) -> Finding:
    bot = settings.bot
    status, answer = await _get(session, f"{bot.api_base.rstrip('/')}/bot{bot.token}/getMe", {}, True)
    if status in (401, 404):
        return False, "bot.token: Telegram does not know this bot"
    me = answer.get("result") if isinstance(answer, dict) else None
    if status != 200 or not isinstance(me, dict):
        return False, f"bot.api_base: Telegram does not answer: {status}"
    return True, f"Telegram: knows the bot as @{me.get('username')!s}"


async def _local_ollama(settings: Settings, session: aiohttp.ClientSession) -> Finding:
    bot = settings.bot
    status, answer = await _get(session, bot.ollama_url.rstrip("/") + "/api/tags", {}, True)
    if status != 200:
        return False, f"bot.ollama_url: the local Ollama does not answer: {status}"
    models = answer.get("models") if isinstance(answer, dict) else None
    names = {model.get("name") for model in models or [] if isinstance(model, dict)}
    if not names & {bot.intent_model, f"{bot.intent_model}:latest"}:
        return False, f"bot.intent_model: the local Ollama does not have {bot.intent_model} (ollama pull)"
    return True, f"local Ollama: has {bot.intent_model}"


async def _get(
    session: aiohttp.ClientSession,
    url: str,
    headers: Mapping[str, str],
    tls: ssl.SSLContext | aiohttp.Fingerprint | bool,
) -> tuple[int | str, object]:
    """Return the status and the JSON of an answer; words instead of a status where there was none."""
    try:
        async with session.get(
            url,
            headers=headers,
            ssl=tls,
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=_PATIENCE_S),
        ) as response:
            return response.status, await response.json(content_type=None) if response.status == 200 else None
    except ValueError:
        return "its answer is no JSON", None
    except TimeoutError:
        return "no answer in time", None
    except (aiohttp.ClientError, OSError) as error:  # their words name the URL; their kind says enough
        return _kind(error), None


def _kind(error: BaseException) -> str:
    inner = getattr(error, "os_error", error)
    number = inner.errno if isinstance(inner, OSError) else None
    return os.strerror(number) if number else type(error).__name__


def _tls(policy: str) -> ssl.SSLContext | aiohttp.Fingerprint | bool:
    """Return what aiohttp wants for an endpoint's TLS policy (`gpugate.Endpoint.tls`)."""
    if policy == "system":
        return True
    if policy == "insecure":
        return False
    if policy.startswith("sha256:"):
        return aiohttp.Fingerprint(bytes.fromhex(policy.removeprefix("sha256:").replace(":", "")))
    return ssl.create_default_context(cafile=policy)
