"""Wake rules: who may start a pod, when and for what (docs/rules.md#wake-rules).

The rules are asked where a start is needed, and only there: a pod that runs or is on its way serves everyone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from fnmatch import fnmatchcase
from zoneinfo import ZoneInfo

from attrs import frozen

from gpugate.config.hours import is_within, parse_hours
from gpugate.config.schema import WakeRule
from gpugate.core.request_queue import other_name
from gpugate.lifecycle.lease import WakePolicy, WakeRequest


@frozen
class _Compiled:
    """A rule with its hours parsed and its default time zone filled in."""

    rule: WakeRule
    title: str
    hours: tuple[tuple[int, int], ...]
    zone: ZoneInfo

    def matches(self, request: WakeRequest, now: datetime) -> bool:
        rule = self.rule
        return (
            _any_matches(rule.users, request.user)
            and (
                _any_matches(rule.models, request.model)
                or _any_matches(rule.models, other_name(request.model))
            )
            and _any_matches(rule.paths, request.path)
            and _any_matches(rule.agents, request.agent)
            and (not self.hours or is_within(self.hours, now.astimezone(self.zone)))
        )


def wake_policy(
    rules: Sequence[WakeRule], default_zone: str, wall: Callable[[], datetime]
) -> WakePolicy | None:
    """Return what decides by these rules; None without any.

    Args:
        default_zone: of rules that name none.
        wall: the wall clock, aware.
    """
    compiled = [
        _Compiled(
            rule,
            f'"{rule.name}"' if rule.name else f"number {number}",
            parse_hours(rule.hours) if rule.hours else (),
            ZoneInfo(rule.timezone or default_zone),
        )
        for number, rule in enumerate(rules, 1)
    ]

    def refusal(request: WakeRequest) -> str:
        now = wall()
        first = next((one for one in compiled if one.matches(request, now)), None)
        if first is None or first.rule.allow:
            return ""
        return f"the pod is off, and the wake rule {first.title} does not let this start it"

    return refusal if compiled else None


def in_words(number: int, rule: WakeRule, default_zone: str) -> str:
    """Return what a rule says, for `gpugate check`: 'rule 1 "nights": nobody may start the pod ...'."""
    who = _listed(rule.users) or ("anyone" if rule.allow else "nobody")
    verb = "may start" if rule.allow or not rule.users else "may not start"
    name = f' "{rule.name}"' if rule.name else ""
    more = [
        text
        for text in (
            rule.models and f"for the model {_listed(rule.models)}",
            rule.paths and f"by {_listed(rule.paths)}",
            rule.agents and f"from {_listed(rule.agents)}",
            rule.hours and f"at {rule.hours} ({rule.timezone or default_zone})",
        )
        if text
    ]
    return " ".join([f"wake rule {number}{name}: {who} {verb} the pod", *more])


def _any_matches(patterns: Sequence[str], text: str) -> bool:
    return not patterns or any(fnmatchcase(text, pattern) for pattern in patterns)


def _listed(patterns: Sequence[str]) -> str:
    return " or ".join(patterns)
