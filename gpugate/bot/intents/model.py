"""What a message can ask of the bot, and the interface of the parsers of sentences."""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol

from attrs import frozen


class Intent(StrEnum):
    """All that a sentence can cause. UNRECOGNISED causes nothing."""

    POD_STATUS = "POD_STATUS"
    POD_START = "POD_START"
    POD_STOP = "POD_STOP"
    COST_SUMMARY = "COST_SUMMARY"
    FANTASY_GENERATE = "FANTASY_GENERATE"
    HEALTH_CHECK = "HEALTH_CHECK"
    UNRECOGNISED = "UNRECOGNISED"


class Period(StrEnum):
    """The period of a COST_SUMMARY."""

    TODAY = "today"
    MONTH = "month"
    SESSION = "session"


class ParsedBy(StrEnum):
    """Which parser made the result."""

    MODEL = "model"
    KEYWORDS = "keywords"
    COMMAND = "command"


@frozen(kw_only=True)
class ParsedIntent:
    """What a message asks for.

    Attributes:
        period: of COST_SUMMARY.
        prompt: of FANTASY_GENERATE: the sentence itself.
        by: COMMAND with UNRECOGNISED asks for the help text.
    """

    intent: Intent
    period: Period = Period.MONTH
    prompt: str = ""
    by: ParsedBy = ParsedBy.KEYWORDS


class IntentParser(Protocol):
    """Parses sentences; implemented by the local model's parser, which falls back to keywords."""

    @property
    def trouble(self) -> str:
        """Why the model was not used for the last sentence, as a text for the chat; empty if it was."""

    async def parse(self, text: str) -> ParsedIntent:
        """Parse a sentence; never raises, and never takes much longer than its timeout."""
