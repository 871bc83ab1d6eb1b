"""Slash commands: they need no model and are never misunderstood."""

from __future__ import annotations

import re

from attrs import frozen

from gpugate.bot.intents.keywords import period_of
from gpugate.bot.intents.model import Intent, ParsedBy, ParsedIntent


@frozen
class SlashCommand:
    """A command; without a description it is not in the menu of commands."""

    intent: Intent
    description: str = ""


COMMANDS = {
    "status": SlashCommand(Intent.POD_STATUS, "is the pod running, and what has it cost"),
    "start_pod": SlashCommand(Intent.POD_START, "start the pod"),
    "stop_pod": SlashCommand(Intent.POD_STOP, "stop the pod"),
    "cost": SlashCommand(Intent.COST_SUMMARY, "what was spent: today, month or session"),
    "health": SlashCommand(Intent.HEALTH_CHECK, "is everything well"),
    "help": SlashCommand(Intent.UNRECOGNISED, "what I understand"),
    "start": SlashCommand(Intent.UNRECOGNISED),  # what messengers send first: shows the help, starts nothing
}
_COMMAND = re.compile(r"/(\w+)(?:@\w+)?(?:\s+(.*))?", re.DOTALL)


def parse_command(text: str) -> ParsedIntent | None:
    """Parse a slash command; None for anything else. An unknown command is UNRECOGNISED."""
    found = _COMMAND.fullmatch(text.strip())
    if found is None:
        return None
    command = COMMANDS.get(found[1].casefold())
    if command is None:
        return ParsedIntent(intent=Intent.UNRECOGNISED)
    return ParsedIntent(intent=command.intent, period=period_of(found[2] or ""), by=ParsedBy.COMMAND)
