"""The pod's status and events as people say them, and colour on a terminal."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import IO, Any

from gpugate.provider_api import MAIN_POD
from gpugate.wording import at_provider, count, duration, money, short_gpu

_COLOURS = {"READY": 32, "STARTING": 33, "WARMING": 33, "STOPPING": 33, "problem": 31, "ok": 32}
_CAUSES = {
    "request": "for a request",
    "hand": "by hand",
    "adopted": "found running",
    "prewarm": "ahead of time",
    "schedule": "by schedule",
}


def plain(value: object) -> str:
    """Return a value as one line, without control characters that a terminal would obey."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return "".join(c if c.isprintable() else " " for c in text)


def coloured(text: str, kind: str, stream: IO[str]) -> str:
    """Return the text in the colour of a status, of "problem" or of "ok"; on a terminal only.

    The variable NO_COLOR switches colours off (https://no-color.org).
    """
    number = _COLOURS.get(kind)
    wanted = stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return f"\033[{number}m{text}\033[0m" if number and wanted else text


def describe_status(
    status: Mapping[str, Any], session: Mapping[str, Any], now: datetime | None
) -> tuple[str, str | None]:
    """Return the status in a sentence, and the last problem if there is one.

    Args:
        status: the data of `GET /api/v1/gpu/status`, or of a `state` event.
        session: the open session's row of `GET /api/v1/cost/sessions`, as far as it is known; for the GPU.
        now: by the gateway's clock; None: it is not said for how long.
    """
    problem = status.get("last_error")
    if status.get("status") is None:
        return "not known yet what it does", plain(problem) if problem else None
    name = plain(status["status"])
    parts = [_headline(name, status, now)]
    if gpu := session.get("gpu"):
        parts.append(short_gpu(plain(gpu)))
    parts += _work(status)
    parts += _next_step(name, status)
    if status.get("estimated_cost") is not None:
        parts.append(f"{price(status['estimated_cost'], session.get('currency'))} so far")
    return ", ".join(parts), plain(problem) if problem else None


def _headline(name: str, status: Mapping[str, Any], now: datetime | None) -> str:
    place = (
        f" {at_provider(plain(status['provider']))}" if status.get("provider") and name != "STOPPED" else ""
    )
    try:
        since = datetime.fromisoformat(str(status.get("since")))
        lasted = f" for {duration((now - since).total_seconds(), coarse=True)}" if now else ""
    except (ValueError, TypeError):
        lasted = ""
    return f"{name}{place}{lasted}"


def _work(status: Mapping[str, Any]) -> Iterator[str]:
    if running := status.get("in_flight"):
        yield f"answering {count(running, 'request')}"
    if waiting := status.get("waiting"):
        yield f"{count(waiting, 'request')} waiting"


def _next_step(name: str, status: Mapping[str, Any]) -> Iterator[str]:
    if isinstance(pulling := status.get("pulling"), dict):
        yield _pull(pulling)
    if name == "STOPPED":
        yield "the next request starts it"
    elif name in ("STARTING", "WARMING") and status.get("ready_in_seconds") is not None:
        late = status["ready_in_seconds"] < 0.5
        yield "longer than last time" if late else f"ready in about {duration(status['ready_in_seconds'])}"
    elif name == "STOPPING":
        yield "until the provider shows it stopped"
    elif status.get("stops_in_seconds") is not None:
        yield f"stops in {duration(status['stops_in_seconds'])}"


def _pull(progress: Mapping[str, Any]) -> str:
    done = "" if progress.get("percent") is None else f" ({plain(progress['percent'])} %)"
    return f"pulling {plain(progress['model'])}{done}"


def describe_event(event: Mapping[str, Any], currency: str | None = None) -> str:
    """Return one event of `GET /api/v1/gpu/events` in a sentence; one that is not known, key by key."""
    kind, data = plain(event.get("event")), event.get("data")
    if not isinstance(data, dict):
        return f"{kind} {plain(data)}"
    try:
        if (sentence := _sentence(kind, data, currency)) is not None:
            return sentence if data.get("pod") in (None, MAIN_POD) else f"{plain(data['pod'])}: {sentence}"
    except (KeyError, TypeError, ValueError):
        pass  # of another version: it is shown as it is
    pairs = (f"{key}={plain(value)}" for key, value in data.items() if value is not None)
    return " ".join([kind, *pairs])


def _sentence(kind: str, data: Mapping[str, Any], currency: str | None) -> str | None:
    match kind:
        case "state":
            sentence, problem = describe_status(data, {"currency": currency}, None)
            data["waiting"], data["in_flight"]  # KeyError: not a whole status
            return sentence + (f" (last problem: {problem})" if problem else "")
        case "queue":
            return ", ".join(_work(data)) or "no request waits or is being answered"
        case "session":
            where, cause = at_provider(plain(data["provider"])), plain(data["cause"])
            if data["event"] == "began":
                return f"a session began {where}, {_CAUSES.get(cause, cause)}"
            cost = "" if data["cost"] is None else f": {price(data['cost'], currency)}"
            return f"the session {where} ended ({cause}){cost}"
        case "pull":
            return f"{_pull(data)}{'' if data['goes_on'] else ', ended'}"
        case "budget":
            spent, budget = price(data["spent"], currency), price(data["budget"], currency)
            which = f"{plain(data['percent'])} % of the budget of {plain(data['month'])}"
            return f"{which} is spent: {spent} of {budget}"
        case "provider_error":
            return f"{'ALARM: ' * bool(data['alarm'])}{plain(data['provider'])}: {plain(data['message'])}"
    return None


def price(amount: object, currency: object) -> str:
    """Return a sum such as "$0.13" or "0.13 EUR"; "?" for what is no number."""
    try:
        return money(Decimal(str(amount)), plain(currency) if currency else "").strip()
    except InvalidOperation:
        return "?"
