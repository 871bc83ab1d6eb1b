"""News as sentences, for people who did not ask for them. Pure; knows no messenger."""

from __future__ import annotations

from decimal import Decimal

from gpugate.billing.model import BY_HAND
from gpugate.bot.messages import Summary, count, duration, money, sentences, shorten
from gpugate.lifecycle.event_bus import BudgetCrossed, ProviderTrouble, SessionBegan, SessionEnded

ENDS = {
    "idle": "nobody used it",
    "hand": "somebody stopped it by hand",
    "forced": "somebody stopped it by hand",
    "shutdown": "the gateway shut down",
    "max_session": "the session was as long as it may be",
    "lost": "it was stopped from outside, or lost",
    "start_failed": "the start failed",
    "stray": "it ran beside the one that is used",
    "restart": "it was still to be stopped when the gateway went down",
}
"""Why a session ended, by the lifecycle's words."""


def began(news: SessionBegan, user: str, currency: str) -> str:
    """The pod was started, and why; `user` is who wanted it, as far as that is known."""
    price = news.report.price
    rate = price.running_per_hour if price is not None else None
    costs = f"It costs {money(rate, currency)} per hour" if rate else ""
    return sentences(f"Pod {_why(news, '' if user == BY_HAND else user)}", costs)


def _why(news: SessionBegan, user: str) -> str:
    match news.cause:
        case "request":
            return f"started at {news.provider}: {f'a request of {user}' if user else 'a request'} woke it"
        case "hand":
            return f"started at {news.provider}: {user or 'somebody'} started it by hand"
        case "prewarm":
            return f"started at {news.provider}: it is usually needed about now"
        case _:
            return f"found running at {news.provider}; from now on it is looked after"


def ended(news: SessionEnded, currency: str) -> str:
    """The pod was stopped, and what it cost."""
    why = ENDS.get(news.cause, news.cause)
    cost = f" and cost {money(news.cost, currency)}" if news.cost is not None else ""
    lasted = duration((news.at - news.began_at).total_seconds())
    return sentences(f"Pod stopped at {news.provider}: {why}", f"It ran for {lasted}{cost}")


def start_failed(why: str) -> str:
    """A start came to nothing."""
    return sentences("The pod could not be started" + (f": {shorten(why)}" if why else ""))


def alarm(news: ProviderTrouble) -> str:
    """A pod may be billing against our will."""
    return sentences(
        f"ALARM from {news.provider}: {shorten(news.message)}",
        "The pod may still be billing; please look into the provider's console",
    )


def all_clear(provider: str) -> str:
    """The end of an alarm, this gateway's or an earlier one's."""
    return f"The pod at {provider} is seen stopped now."


def budget(news: BudgetCrossed, currency: str) -> str:
    """A threshold of the month's budget was crossed."""
    spent = f"{money(news.spent, currency)} of {money(news.budget, currency)}"
    if news.percent < 100:
        return f"{news.percent} % of the budget for {news.month} is spent: {spent}."
    return f"The budget for {news.month} is spent: {spent}. No new pod starts until the month is over."


def daily(sessions: int, spent: Decimal, month: Summary, currency: str) -> str:
    """The last day and the month so far."""
    were = f"there {'was' if sessions == 1 else 'were'} {count(sessions, 'session')}"
    day = were if sessions else "the pod went on"
    return sentences(
        f"In the last 24 hours {day}, estimated cost is {money(spent, currency)}",
        f"This month so far: {count(month.session_count, 'session')}, "
        f"{money(month.estimated_total, month.currency)}",
    )
