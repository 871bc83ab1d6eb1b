"""Wake rules: what a rule matches, which one decides, and how its refusal reads."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from gpugate.config.schema import WakeRule
from gpugate.lifecycle.lease import WakeRequest
from gpugate.operation.wake_rules import in_words, wake_policy

CHAT = WakeRequest(user="alice", model="llama3.2:3b", path="/api/chat", agent="OpenWebUI/0.9")


def refusal(*rules: WakeRule, now: str = "2026-12-01T12:00+00:00", zone: str = "UTC", **facts: Any) -> str:
    """What these rules say to alice's chat, or to one with other facts, at this time."""
    policy = wake_policy(rules, zone, lambda: datetime.fromisoformat(now).astimezone(UTC))
    given = {name: getattr(CHAT, name) for name in ("user", "model", "path", "agent")}
    return "" if policy is None else policy(WakeRequest(**{**given, **facts}))


def test_no_rule_and_no_rule_that_matches() -> None:
    """Allowed."""
    assert "" == refusal()
    assert "" == refusal(WakeRule(users=("bob",)))


def test_the_first_that_matches_decides() -> None:
    """Later ones are not asked."""
    allow, deny = WakeRule(allow=True, users=("al*",)), WakeRule(name="nobody")

    assert "" == refusal(allow, deny)
    assert "" != refusal(deny, allow)
    assert "" != refusal(allow, deny, user="bob")


def test_the_refusal_names_the_rule() -> None:
    """By its name, else by its number, counted from 1."""
    assert 'the wake rule "nobody" does' in refusal(WakeRule(users=("bob",)), WakeRule(name="nobody"))
    assert "the wake rule number 2 does" in refusal(WakeRule(users=("bob",)), WakeRule())


@pytest.mark.parametrize(
    ("rule", "facts", "matches"),
    [
        (WakeRule(users=("alice",)), {}, True),
        (WakeRule(users=("lice", "ALICE")), {}, False),
        (WakeRule(users=("a?ice",)), {}, True),
        (WakeRule(models=("llama3.2",)), {}, False),
        (WakeRule(models=("llama3.2:*",)), {}, True),
        (WakeRule(models=("llava",)), {"model": "llava:latest"}, True),
        (WakeRule(models=("llava:latest",)), {"model": "llava"}, True),
        (WakeRule(models=("llava",)), {"model": "llava:13b"}, False),
        (WakeRule(models=("*",)), {"model": ""}, True),
        (WakeRule(models=("?*",)), {"model": ""}, False),
        (WakeRule(paths=("/v1/*",)), {}, False),
        (WakeRule(paths=("/api/*",)), {"path": "/api/v1/gpu/start"}, True),
        (WakeRule(agents=("OpenWebUI*",)), {}, True),
        (WakeRule(agents=("OpenWebUI",)), {}, False),
        (WakeRule(users=("alice",), paths=("/v1/*",)), {}, False),
        (WakeRule(users=("alice",), paths=("/api/chat",)), {}, True),
    ],
)
def test_what_a_rule_matches(rule: WakeRule, facts: dict[str, str], matches: bool) -> None:
    """All its keys must match; a list matches by any of its patterns, over the whole text."""
    assert matches == bool(refusal(rule, **facts))


def test_hours_are_local() -> None:
    """In the rule's own zone, else in the default one; summer time counts."""
    nights = WakeRule(hours="22:00-06:00")
    berlin = WakeRule(hours="22:00-06:00", timezone="Europe/Berlin")

    assert "" == refusal(nights, now="2026-12-01T21:30+00:00")
    assert "" != refusal(nights, now="2026-12-01T21:30+00:00", zone="Europe/Berlin")
    assert "" != refusal(berlin, now="2026-12-01T21:30+00:00")
    assert "" != refusal(berlin, now="2026-07-01T20:00+00:00")
    assert "" == refusal(berlin, now="2026-07-01T19:59+00:00")


def test_a_rule_in_words() -> None:
    """As `gpugate check` prints it."""
    nights = WakeRule(name="nights", hours="22:00-06:00")
    team = WakeRule(allow=True, users=("a*", "bob"), models=("llava",), paths=("/api/chat",), agents=("x",))

    assert 'wake rule 1 "nights": nobody may start the pod at 22:00-06:00 (UTC)' == in_words(1, nights, "UTC")
    assert "wake rule 2: bob may not start the pod" == in_words(2, WakeRule(users=("bob",)), "UTC")
    assert "wake rule 3: a* or bob may start the pod for the model llava by /api/chat from x" == in_words(
        3, team, "UTC"
    )
