"""The intents port: what a person wants, out of a plain sentence; knows neither models nor messengers."""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol

from attrs import frozen


class Intent(StrEnum):
    """All that a sentence can set off (docs/api.md#intents)."""

    POD_STATUS = "POD_STATUS"
    POD_START = "POD_START"
    POD_STOP = "POD_STOP"
    COST_SUMMARY = "COST_SUMMARY"
    FANTASY_GENERATE = "FANTASY_GENERATE"
    HEALTH_CHECK = "HEALTH_CHECK"
    UNRECOGNISED = "UNRECOGNISED"


class Period(StrEnum):
    """What costs are asked for."""

    TODAY = "today"
    MONTH = "month"
    SESSION = "session"


class ParsedBy(StrEnum):
    """Who understood."""

    MODEL = "model"
    KEYWORDS = "keywords"
    COMMAND = "command"


@frozen(kw_only=True)
class ParsedIntent:
    """What a person wants.

    Attributes:
        period: of COST_SUMMARY.
        prompt: of FANTASY_GENERATE: the person's own words.
        by: who understood it; `COMMAND` with UNRECOGNISED is a call for help.
    """

    intent: Intent
    period: Period = Period.MONTH
    prompt: str = ""
    by: ParsedBy = ParsedBy.KEYWORDS


class IntentParser(Protocol):
    """Understands sentences."""

    @property
    def trouble(self) -> str:
        """Why the model was not asked or not believed the last time, for people; empty when all was well."""

    async def parse(self, text: str) -> ParsedIntent:
        """What this sentence asks for; never raises, and never takes much longer than its timeout."""
