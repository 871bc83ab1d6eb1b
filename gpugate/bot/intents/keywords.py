"""Slash commands, and what a sentence means by its words alone; knows no model and does nothing.

A sentence is read clause by clause. What somebody orders ("stop it, it costs too much") counts before what
is mentioned; a clause that is negated ("don't stop it") orders nothing; whoever wants both ways at once
("restart it"), or something later, is not understood. A wrong guess wakes or kills a pod, so in doubt
nothing is understood.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from gpugate.bot.intents import lexicon
from gpugate.bot.intents.model import Intent, ParsedBy, ParsedIntent, Period

COMMANDS = {
    "status": Intent.POD_STATUS,
    "start_pod": Intent.POD_START,
    "stop_pod": Intent.POD_STOP,
    "cost": Intent.COST_SUMMARY,
    "health": Intent.HEALTH_CHECK,
    "help": Intent.UNRECOGNISED,
    "start": Intent.UNRECOGNISED,
}
"""`/start` is what messengers send first: it shows the help and starts nothing (docs/api.md#manners)."""

LONGEST = 1000
"""Characters that are read of a sentence; whoever writes more tells a story."""

_COMMAND = re.compile(r"/(\w+)(?:@\w+)?(?:\s+(.*))?", re.DOTALL)
_PLAINER = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "ß": "ss", "'": "", "’": "", "`": ""})


def command(text: str) -> ParsedIntent | None:
    """What a slash command wants; None for anything else. An unknown one is not understood."""
    found = _COMMAND.fullmatch(text.strip())
    if found is None:
        return None
    intent = COMMANDS.get(found[1].casefold())
    if intent is None:
        return ParsedIntent(intent=Intent.UNRECOGNISED)
    return ParsedIntent(intent=intent, period=period_of(found[2] or ""), by=ParsedBy.COMMAND)


def classify(text: str) -> ParsedIntent:
    """What a sentence wants, by its words."""
    return ParsedIntent(intent=_intent(_plain(text)), period=period_of(text), prompt=text)


def period_of(text: str) -> Period:
    """What costs are asked for; the month unless the words say otherwise."""
    said = _plain(text)
    if lexicon.TODAY.search(said):
        return Period.TODAY
    if lexicon.SESSION.search(said) and not lexicon.MONTH.search(said):
        return Period.SESSION
    return Period.MONTH


# --- words ----------------------------------------------------------------------------------------


def _plain(text: str) -> str:
    """Small letters without umlauts, apostrophes and slips of the finger, single blanks."""
    plain = " ".join(text[:LONGEST].casefold().translate(_PLAINER).split())
    return re.sub(r"[a-z]{4,}", lambda found: _meant(found[0]), plain)


def _meant(word: str) -> str:
    if word in lexicon.WORTH_MENDING or word in lexicon.LEFT_ALONE:
        return word
    return next((known for known in lexicon.WORTH_MENDING if _slipped(word, known)), word)


def _slipped(typed: str, meant: str) -> bool:
    """Whether one slip, not at the first letter, leads from one to the other."""
    if typed[0] != meant[0] or abs(len(typed) - len(meant)) > 1:
        return False
    if len(typed) == len(meant):
        wrong = [at for at in range(len(meant)) if typed[at] != meant[at]]
        if len(wrong) == 1:
            return len(meant) >= 6  # of shorter ones too many are words of their own
        first, last = wrong[0], wrong[-1]
        return last == first + 1 and typed[first] == meant[last] and typed[last] == meant[first]
    shorter, longer = sorted((typed, meant), key=len)
    return len(longer) >= 5 and any(longer[:at] + longer[at + 1 :] == shorter for at in range(len(longer)))


# --- one sentence ---------------------------------------------------------------------------------


def _intent(text: str) -> Intent:
    if lexicon.AGAIN.search(text):
        return Intent.UNRECOGNISED
    if lexicon.NOT_NEEDED.search(text):
        return Intent.POD_STOP
    clauses = [clause.strip() for clause in lexicon.CLAUSE_END.split(text)]
    kept = [clause for clause in clauses if clause and not _forbids(clause)]
    ordered = _ordered(kept)
    if ordered is not None:
        return ordered
    said = " ".join(kept)
    if lexicon.COST.search(said) or lexicon.HOW_MUCH.search(said):
        return Intent.COST_SUMMARY
    if lexicon.FANTASY.search(said):
        return Intent.FANTASY_GENERATE
    return _asked(kept, said, "?" in text)


def _forbids(clause: str) -> bool:
    """It says that something shall not be started or stopped."""
    negation = lexicon.NEGATION.search(clause)
    if negation is None or lexicon.QUESTION.match(clause):
        return False
    rest = clause[negation.end() :]
    return bool(lexicon.STOP.search(rest) or lexicon.START.search(rest))


def _ordered(clauses: Sequence[str]) -> Intent | None:
    """The one thing that is ordered, if one is; UNRECOGNISED: both at once, for later, on a condition."""
    ordering = [(clause, order) for clause in clauses if (order := _order(clause)) is not None]
    if not ordering:
        return None
    conditional = any(lexicon.LATER.match(clause) for clause in clauses)
    later = any(lexicon.LATER.search(clause) or lexicon.AT_TIME.search(clause) for clause, _ in ordering)
    orders = {order for _, order in ordering}
    return Intent.UNRECOGNISED if conditional or later or len(orders) > 1 else orders.pop()


def _order(clause: str) -> Intent | None:
    """Start or stop, when the clause begins with it (in German: ends), and says what, or nothing more."""
    bare = _without_politeness(clause)
    if lexicon.QUESTION.match(clause) or lexicon.QUESTION.match(bare):
        return None
    if not lexicon.FANTASY.search(clause) or lexicon.POD_ITSELF.search(clause):
        for intent, pattern in ((Intent.POD_STOP, lexicon.STOP), (Intent.POD_START, lexicon.START)):
            begins = pattern.match(bare)
            if begins and _means_the_pod(begins[0], bare[begins.end() :]):
                return intent
            last = pattern.search(clause, len(clause) - len(clause.split()[-1]))
            if last and lexicon.LAST.match(last[0]) and lexicon.POD.search(clause):
                return intent
    return Intent.POD_START if lexicon.NEEDED.search(clause) else None


def _means_the_pod(order: str, rest: str) -> bool:
    """ "stop the pod" and "stop now" do, "stop warning me about the pod" and "turn the music off" do not."""
    near = " ".join((order, *rest.split()[:3]))
    if lexicon.POD.search(near):
        return True
    return len(order.split()) <= 2 and lexicon.NO_MORE.fullmatch(rest.strip()) is not None


def _without_politeness(clause: str) -> str:
    while polite := lexicon.POLITE.match(clause):
        clause = clause[polite.end() :].lstrip()
    return clause


def _asked(clauses: Sequence[str], said: str, asks: bool) -> Intent:
    """A question about the pod or the gateway, or nothing that is known."""
    if lexicon.HOW_TO.search(said):
        return Intent.UNRECOGNISED
    about_pod = lexicon.POD_ITSELF.search(said) and lexicon.STATUS.search(said)
    if lexicon.HEALTH.search(said) and not about_pod:
        return Intent.HEALTH_CHECK
    if lexicon.STATUS.search(said):
        return Intent.POD_STATUS
    bare = (_without_politeness(clause) for clause in clauses)
    question = asks or any(lexicon.QUESTION.match(clause) for clause in (*clauses, *bare))
    if question and lexicon.POD.search(said) and lexicon.STATUS_ASKED.search(said):
        return Intent.POD_STATUS
    return Intent.UNRECOGNISED
