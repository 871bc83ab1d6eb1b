"""The texts of the bot's answers: statuses, costs and errors as English sentences. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import ROUND_HALF_UP, Decimal

from gpugate.billing.reports import CostSummary, SessionCost
from gpugate.core.events import Cause
from gpugate.core.states import Status
from gpugate.errors import GateError
from gpugate.lifecycle.status import PodStatus
from gpugate.wording import CENT, count, money

TENTH = Decimal("0.1")
MAX_ERROR_CHARS = 300
"""Of a provider's error text; the log and the status have the rest."""

HELP = (
    "You can ask about pod status, cost, or ask me to start or stop the pod, in your own words.\n"
    "Send me a photo and I tell a fantasy story of it, with an illustration; a caption says what it shall be "
    "about.\n"
    "\n"
    "/status - what the pod does\n"
    "/start_pod - start it\n"
    "/stop_pod - stop it\n"
    "/cost - this month; /cost today, /cost session\n"
    "/health - is all well\n"
    "/help - this text"
)
NOT_UNDERSTOOD = (
    "I did not understand that. You can ask about pod status, cost, or ask me to start or stop the pod. "
    "/help shows all I can do."
)
WENT_BY_KEYWORDS = "({trouble}; I went by keywords)"
TOO_LATE = "That question is not open any more, so I did nothing. Ask me again if you still want it."
LEFT_AS_IT_IS = "All right, I leave it as it is."
NOT_KNOWN = "I do not know yet how the pod is: the provider has not answered. Ask me again in a moment."
STARTS_WHEN_KNOWN = "The provider does not answer. I start the pod as soon as it does."
OUR_FAULT = "Something went wrong inside the gateway. Its log says more."
NO_LEDGER = "The costs cannot be read right now. The gateway's log says why."

STOPPING_NOW = "Shutting down the pod now"
ALREADY_STOPPED = "The pod is not running, there is nothing to stop."
ALREADY_STOPPING = "The pod is being stopped already."
WANTED_AGAIN = "Somebody asked for the pod meanwhile, so it goes on."
NO_PHOTO = "Send me a photo and I tell a fantasy story of it. Its caption may say what it shall be about."
ON_IT = "On it! Generating your fantasy story and illustration, this may take up to a minute"
ON_IT_COLD = (
    "On it! Generating your fantasy story and illustration. The pod has to start first, so this may take "
    "a few minutes"
)
IS_IT_A_FANTASY = "I did not understand the caption. Shall I tell a fantasy story of this photo?"
NO_SESSION = "No pod is running, so nothing is being paid for right now."


# --- numbers --------------------------------------------------------------------------------------


def duration(seconds: float) -> str:
    """Format seconds as "40 seconds", "23 minutes", "2 hours and 5 minutes", "3 days"."""
    whole = max(0, round(seconds))
    if whole < 90:
        return count(whole, "second") if whole < 60 else "1 minute"
    minutes = round(whole / 60)
    if minutes < 60:
        return count(minutes, "minute")
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return _both(count(hours, "hour"), count(minutes, "minute") if minutes else "")
    days, hours = divmod(round(hours + minutes / 60), 24)
    return _both(count(days, "day"), count(hours, "hour") if hours else "")


def hours(number: Decimal) -> str:
    """Format hours as "18 hours" or "18.3 hours", less than one as minutes."""
    if number < 1:
        return duration(float(number) * 3600)
    rounded = number.quantize(TENTH, ROUND_HALF_UP)
    if rounded == rounded.to_integral_value():
        return count(int(rounded), "hour")
    return f"{rounded} hours"


def _both(first: str, second: str) -> str:
    return f"{first} and {second}" if second else first


def shorten(error: str) -> str:
    """Cut a provider's error text to a length that fits a message."""
    return error if len(error) <= MAX_ERROR_CHARS else f"{error[: MAX_ERROR_CHARS - 1].rstrip()}…"


def capital(text: str) -> str:
    """Make the first letter a capital one."""
    return text[:1].upper() + text[1:]


def sentences(*parts: str) -> str:
    """Join the parts that are not empty, each with its full stop."""
    return " ".join(part if part[-1] in ".!?…" else f"{part}." for part in parts if part)


# --- the pod --------------------------------------------------------------------------------------


def status(now: PodStatus, currency: str) -> str:
    """Describe the pod's status; unknown values are left out."""
    match now.status:
        case Status.READY:
            up = now.uptime_seconds
            run = "Pod is running" if up is None else f"Pod has been running for {duration(up)}"
            return sentences(f"{run}{_so_far(now, currency)}", *_use(now))
        case Status.STARTING | Status.WARMING:
            soon = _in_about(now)
            word = "starting" if now.status is Status.STARTING else "warming up"
            return sentences(f"Pod is {word}{soon}{_so_far(now, currency)}", *_use(now), _trouble(now))
        case Status.STOPPING:
            return sentences(f"Pod is being stopped{_so_far(now, currency)}", *_use(now), _trouble(now))
        case Status.STOPPED:
            return sentences("Pod is stopped", *_use(now), _trouble(now))


def _so_far(now: PodStatus, currency: str) -> str:
    if now.estimated_cost is None:
        return ""
    return f", estimated cost so far is {money(now.estimated_cost, currency)}"


def _use(now: PodStatus) -> Iterable[str]:
    if now.in_flight:
        yield f"{count(now.in_flight, 'request is', 'requests are')} being answered"
    if now.waiting:
        yield f"{count(now.waiting, 'request waits', 'requests wait')}"
    if now.stops_in_seconds is not None and now.status is Status.READY:
        yield f"If nobody uses it, it stops in {duration(now.stops_in_seconds)}"


def _trouble(now: PodStatus) -> str:
    return f"The last trouble was: {shorten(now.last_error)}" if now.last_error else ""


def starting(after: PodStatus | None) -> str:
    """Acknowledge a start; `after` is the status after the order, None if unknown."""
    if after is None:
        return STARTS_WHEN_KNOWN
    if after.status is Status.STOPPING:
        return "The pod is just being stopped. I start it again as soon as that is done."
    takes = _ready_in(after) or "a minute"
    return f"Starting the pod, will take about {takes}"


def _in_about(now: PodStatus) -> str:
    return f", ready in about {_ready_in(now)}" if now.ready_in_seconds else ""


def _ready_in(now: PodStatus) -> str:
    """Return "40 seconds", or "40 seconds, at most 2 minutes"; empty if it is not known."""
    if not now.ready_in_seconds:
        return ""
    about, most = duration(now.ready_in_seconds), duration(now.ready_in_p90_seconds or 0.0)
    return about if about == most or not now.ready_in_p90_seconds else f"{about}, at most {most}"


def already_on_its_way(now: PodStatus) -> str:
    """Answer a start while another one is under way."""
    soon = _in_about(now)
    return f"The pod is starting already{soon}."


def ready(took_s: float, now: PodStatus | None, currency: str) -> str:
    """The second message of a start that succeeded."""
    rate = now.hourly_rate if now is not None else None
    costs = f"It costs {money(rate, currency)} per hour" if rate else ""
    return sentences(f"Pod is ready, it took {duration(took_s)}", costs)


def already_running(now: PodStatus, currency: str) -> str:
    """Answer a start while the pod is READY."""
    return f"It runs already. {status(now, currency)}"


def start_failed(cause: str, why: str | None) -> str:
    """The second message of a start that failed; `cause` is the event that ended it."""
    if cause == "ManualStopRequested":
        return "The start was called off: somebody stopped the pod."
    if cause in (Cause.SHUTDOWN_REQUESTED, Cause.FORCED_SHUTDOWN_REQUESTED):
        return "The gateway is shutting down, so the start was given up."
    return sentences("The pod could not be started" + (f": {shorten(why)}" if why else ""))


def confirm_expensive_start(rate: Decimal | None, currency: str) -> str:
    """The question before a start above `bot.ask_above_rate`."""
    if rate is None:
        return "I do not know what the pod will cost per hour. Shall I start it?"
    return f"The pod will cost {money(rate, currency)} per hour. Shall I start it?"


def busy(now: PodStatus | None) -> str:
    """The question before a stop that aborts requests."""
    using = " and ".join(_counted(now)) if now is not None else ""
    return (
        f"The pod is in use ({using or 'right now'}). Shall I stop it anyway? Answers under way will be cut."
    )


def _counted(now: PodStatus) -> Iterable[str]:
    if now.in_flight:
        yield f"{count(now.in_flight, 'request')} being answered"
    if now.waiting:
        yield f"{now.waiting} waiting"


def stopped(lasted_s: float | None, cost: Decimal | None, currency: str) -> str:
    """The second message of a stop, once it is confirmed."""
    ran = f"it ran for {duration(lasted_s)}" if lasted_s is not None else ""
    paid = f"cost {money(cost, currency)}" if cost is not None else ""
    said = " and ".join(part for part in (ran, paid if ran else paid and f"it {paid}") if part)
    return sentences("Pod is stopped" + (f", {said}" if said else ""))


def stop_not_proved(waited_s: float, why: str | None) -> str:
    """A stop that is not confirmed in time: the pod may still be billed."""
    return sentences(
        f"After {duration(waited_s)} the pod is still not seen stopped, so it may still be billing",
        f"The last trouble was: {shorten(why)}" if why else "",
        "I keep trying",
    )


# --- money ----------------------------------------------------------------------------------------


def session_cost(cost: SessionCost | None) -> str:
    """The cost of the open session."""
    if cost is None:
        return NO_SESSION
    lasted = f"The current session has lasted {duration(cost.duration_s)}"
    if cost.estimated_cost is None:
        return sentences(lasted, "What it costs is not known: nobody tells the pod's price")
    rate = f", at {money(cost.hourly_rate, cost.currency)} per hour" if cost.hourly_rate is not None else ""
    where = f" at {cost.provider}" if cost.provider else ""
    return sentences(
        f"{lasted}{where}, estimated cost so far is {money(cost.estimated_cost, cost.currency)}{rate}"
    )


def month_cost(cost: CostSummary) -> str:
    """The cost of the month, and what its sum leaves out."""
    left_out = [capital(warning) for warning in cost.warnings]
    if not cost.session_count:
        return sentences("This month you have not run the pod yet", *left_out)
    sessions = count(cost.session_count, "session")
    return sentences(
        f"This month you have run {sessions} totalling {hours(cost.total_hours)}, "
        f"estimated cost is {money(cost.estimated_total, cost.currency)}",
        *left_out,
    )


def today_cost(cost: Decimal, currency: str, now: SessionCost | None = None) -> str:
    """The cost since midnight; `now` is the open session, whose price may be unknown."""
    unknown = "What the running session costs is not known: nobody tells the pod's price"
    unknown = unknown if now is not None and now.estimated_cost is None else ""
    if not cost:
        return unknown + "." if unknown else "Today nothing has been spent yet."
    about = "" if cost < CENT / 2 else "about "
    return sentences(f"Today you have spent {about}{money(cost, currency)}", unknown)


# --- the rest -------------------------------------------------------------------------------------


def health(version: str, pods: Mapping[str, PodStatus | None], trouble: str) -> str:
    """The answer to /health; `trouble` is why the local model is not used."""
    names = {pod: f"the pod {pod}" if len(pods) > 1 else "the pod" for pod in pods}
    states = [
        f"{names[pod]} is {now.status.value.lower() if now is not None else 'not known yet'}"
        for pod, now in pods.items()
    ]
    return sentences(
        f"The gateway is up (gpugate {version}), {', '.join(states)}",
        *(_trouble(now) for now in pods.values() if now is not None),
        f"I go by keywords: {trouble}" if trouble else "",
    )


def refused(error: GateError) -> str:
    """Say why a request was refused, and when to try again."""
    again = f"Try again in {duration(error.retry_after_s)}" if error.retry_after_s else ""
    return sentences(shorten(capital(error.message)), again)


def warned(error: GateError) -> str:
    """A fantasy without its illustration."""
    return sentences(f"There is no illustration this time: {error.message}")


def unusable(why: str) -> str:
    """A picture that cannot be used."""
    return sentences(f"I cannot use this picture: it {why}")


def with_note(text: str, trouble: str) -> str:
    """Add to an answer that its question was parsed by keywords, and why."""
    return f"{text}\n\n{WENT_BY_KEYWORDS.format(trouble=trouble)}"
