"""Finds the intent of an English sentence by keywords, while the local model does not answer.

A wrong guess starts or stops a pod, so an order counts only if a clause begins with it and names the pod or
nothing else. What is negated, delayed, under a condition or contradictory is UNRECOGNISED. Spelling mistakes
and other languages are left to the model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from gpugate.bot.intents.model import Intent, ParsedIntent, Period

MAX_CHARS = 1000

_TABLE = """
POD_STOP: stop, halt, kill, terminate, shutdown, sleep, shut ... down, shut ... off, turn ... off,
    switch ... off, power ... off, power ... down, spin ... down, bring ... down, put ... to sleep,
    pull the plug, end the session
POD_START: start, start up, boot, launch, resume, wake, turn ... on, switch ... on, power ... on,
    power ... up, fire ... up, spin ... up, bring ... up, bring ... online, run the, make ... run,
    get me a gpu, get ... ready, get ... going, get ... running, warm ... up
needed: i need ... pod, i need ... gpu, we need ... pod, we need ... gpu, i want ... pod, i want ... gpu
not needed: dont need ... pod, dont need ... gpu, dont need it, no longer need*, done with ... pod,
    done with ... gpu, done with it, dont let ... run, dont leave ... running
both ways: restart, reboot, reset, off and on
delayed: if, when, once, unless, until, after, before, while, tomorrow, later, tonight, soon, every,
    in ... minute*, in ... hour*, at 1*, at 2*, at 3*, at 4*, at 5*, at 6*, at 7*, at 8*, at 9*
negation: dont, do not, never, not, wont, shouldnt, mustnt
question: is, isnt, are, was, were, has, have, did, does, do i, do you, do we, what*, how, hows, when, why,
    which, who*, where, if, should, am, any
polite: can you, can we, could you, could we, would you, you can, please, hey, hi, ok, okay, so, now, and,
    then, yes, well, id, i, want, like, need, to, you, lets, let, me, go, ahead, the, pod, gpu, tell me, check
no object: now, please, thanks, immediately, again, for me, would you
pod: pod*, gpu*, machine, server, instance, ollama, card, it, that, this, thing, everything, session, plug
on or off: on, off, up, down, stop, start, doing, there
COST_SUMMARY: cost*, spend*, spent, money, bill*, charge*, pay, paid, owe, budget, burn*, price, pricey,
    hourly, how much is, how much was, how much per, expensive, expenses, rate, dollar*
FANTASY_GENERATE: fantas*, story, stories, tale*, fairytale*, illustrat*, imagine, draw, paint*, dream up,
    make ... picture, create ... picture, generate ... picture, generate ... image, create ... image
UNRECOGNISED: how do i, how do you, how can i, how to
HEALTH_CHECK: health*, ping, version, self test, problem*, error*, broken, system check,
    system* ... operational, are you ... there, are you ... ok, are you ... working, are you ... awake,
    are you ... alive, you there, everything ... ok, everything ... alright, everything ... work*,
    everything ... fine, all ... good, all ... ok, gateway ... up, gateway ... ok, bot ... working
POD_STATUS: status, state, running, uptime, online, ready, idle, busy, queue, waiting, started, stopped,
    booted, warming, awake, asleep, how long
today: today*, since midnight, this morning
month: month*
session: session, this run, current*, right now, at the moment, hourly, per hour
"""
"""Phrases by their meaning: `*` stands for any ending of a word, `...` for up to four words."""


def _pattern(phrases: str) -> re.Pattern[str]:
    """Compile phrases between commas to a pattern of whole words, longer phrases first."""
    listed = (re.escape(" ".join(phrase.split())) for phrase in phrases.split(","))
    either = "|".join(sorted(listed, key=len, reverse=True))
    either = either.replace(r"\ \.\.\.\ ", r"\ (?:\w+\ ){0,4}?").replace(r"\*", r"\w*")
    return re.compile(rf"\b(?:{either})\b")


_LINES = (line.partition(": ") for line in _TABLE.strip().replace(",\n", ",").splitlines())
_PATTERNS = {meaning: _pattern(phrases) for meaning, _, phrases in _LINES}
_ORDERS = (Intent.POD_STOP, Intent.POD_START)
_TOPICS = tuple(Intent(name) for name in _PATTERNS if name.isupper() and Intent(name) not in _ORDERS)
"""What a sentence without an order may be about; the first one that is found counts."""
_CLAUSE_END = re.compile(r"[,;.!?:\n]+|\bbut\b|\bjust\b|\binstead\b| - ")


class KeywordIntentParser:
    """Parses sentences without a model."""

    def parse(self, text: str) -> ParsedIntent:
        """Parse the first 1,000 characters of a sentence."""
        return ParsedIntent(intent=_intent(_normalise(text)), period=period_of(text), prompt=text)


def pod_named(text: str, names: Iterable[str]) -> tuple[str | None, str]:
    """Return which of the pods a sentence names, and the sentence with "pod" in its place; None: none.

    "the code pod" names `code`, "the picture pod" names `pictures`, "the big gpu" names `big-gpu`.
    """
    for name in sorted(names, key=len, reverse=True):
        words = re.escape(name.removesuffix("s")).replace(r"\-", "[- ]")
        if found := re.search(rf"(?<![\w/-]){words}s?(?: +pod)?(?![\w-])", text, re.IGNORECASE):
            return name, f"{text[: found.start()]}pod{text[found.end() :]}"
    return None, text


def period_of(text: str) -> Period:
    """The period that a question about costs names; the month if it names none."""
    periods = (Period.TODAY, Period.MONTH, Period.SESSION)
    return next((period for period in periods if _finds(period, _normalise(text))), Period.MONTH)


def _normalise(text: str) -> str:
    return " ".join(re.sub("['’`]", "", text[:MAX_CHARS].casefold()).split())


def _finds(name: str, text: str) -> bool:
    return _PATTERNS[name].search(text) is not None


def _intent(text: str) -> Intent:
    if _finds("both ways", text):
        return Intent.UNRECOGNISED
    if _finds("not needed", text):
        return Intent.POD_STOP
    clauses = [clause.strip() for clause in _CLAUSE_END.split(text)]
    clauses = [clause for clause in clauses if clause and not _is_negated(clause)]
    ordering = {clause: order for clause in clauses if (order := _order(clause)) is not None}
    if ordering:
        delayed = any(_PATTERNS["delayed"].match(clause) for clause in clauses)
        delayed = delayed or any(_finds("delayed", clause) for clause in ordering)
        orders = set(ordering.values())
        return Intent.UNRECOGNISED if delayed or len(orders) > 1 else orders.pop()
    rest = " ".join(clauses)
    for topic in _TOPICS:
        if _finds(topic, rest):
            return topic
    if ("?" in text or any(map(_is_question, clauses))) and _finds("pod", rest) and _finds("on or off", rest):
        return Intent.POD_STATUS
    return Intent.UNRECOGNISED


def _without_politeness(clause: str) -> str:
    while polite := _PATTERNS["polite"].match(clause):
        clause = clause[polite.end() :].lstrip()
    return clause


def _is_question(clause: str) -> bool:
    return _PATTERNS["question"].match(_without_politeness(clause)) is not None


def _is_negated(clause: str) -> bool:
    """Whether the clause forbids a start or a stop."""
    negation = _PATTERNS["negation"].search(clause)
    if negation is None or _is_question(clause):
        return False
    return any(_PATTERNS[order].search(clause, negation.end()) for order in _ORDERS)


def _order(clause: str) -> Intent | None:
    """The order that a clause begins with, behind polite words."""
    if _is_question(clause):
        return None
    bare = _without_politeness(clause)
    for intent in _ORDERS:
        order = _PATTERNS[intent].match(bare)
        if order and _is_about_pod(order[0], bare[order.end() :].strip()):
            return intent
    return Intent.POD_START if _finds("needed", clause) else None


def _is_about_pod(order: str, rest: str) -> bool:
    """True for "stop the pod" and "stop now", not for "stop warning me about it" or "turn the music off"."""
    if _finds("pod", " ".join((order, *rest.split()[:3]))):
        return True
    return len(order.split()) <= 2 and not _PATTERNS["no object"].sub("", rest).strip()
