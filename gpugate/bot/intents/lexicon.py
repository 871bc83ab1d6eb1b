"""The words that people use for what can be asked of a bot, as patterns; decides nothing.

Phrases are written as people say them, in small letters, without apostrophes and umlauts: `turn ... off`
leaves room for up to four words, `illustrat*` for any ending.
"""

from __future__ import annotations

import re


def phrases(*lines: str) -> re.Pattern[str]:
    """A pattern that finds any of these phrases, which commas part, as whole words."""
    found = [phrase.strip() for line in lines for phrase in line.split(",") if phrase.strip()]
    found.sort(key=len, reverse=True)  # "start up" before "start"
    return re.compile(rf"\b(?:{'|'.join(_pattern(phrase) for phrase in found)})\b")


def _pattern(phrase: str) -> str:
    escaped = re.escape(phrase).replace(r"\ \.\.\.\ ", r"\ (?:\w+\ ){0,4}?")
    return escaped.replace(r"\*", r"\w*")


POD = phrases(
    "pod, pods, gpu, gpus, machine, server, instance, box, ollama, card, it, that, this, thing, everything",
    "session, plug",
    "maschine, rechner, karte, grafikkarte, instanz, alles, ihn, sie, es, das, den",
)
"""What can be started and stopped, pronouns included."""

POD_ITSELF = phrases("pod, pods, gpu, gpus, machine, server, instance, maschine, grafikkarte, instanz")

STOP = phrases(
    "stop, stopp, stoppe, stoppen, halt, kill, terminate, shutdown, hibernate, suspend, deactivate",
    "shut ... down, shut ... off, turn ... off, switch ... off, power ... off, cut ... off, sleep",
    "power ... down, spin ... down, wind ... down, bring ... down, take ... down, tear ... down",
    "put ... to sleep, send ... to sleep, pull the plug, end the session, herunterfahren, runterfahren",
    "anhalten, ausschalten, ausmachen, abschalten, abstellen",
    "beende, beenden, schalt ... aus, schalte ... aus, schalt ... ab, schalte ... ab, mach ... aus",
    "mache ... aus, stell ... ab, stelle ... ab, fahr ... runter, fahre ... runter, fahr ... herunter",
)
START = phrases(
    "start, starte, starten, boot, launch, activate, resume, wake, turn ... on, switch ... on",
    "power ... on, power ... up, fire ... up, spin ... up, bring ... up, boot ... up, warm ... up",
    "get ... up, get ... going, get ... ready, get ... running, get ... started, bring ... online",
    "bring ... to life, einschalten, anschalten, anmachen, hochfahren, anwerfen, aufwecken, weck, wecke",
    "schalt ... ein, schalte ... ein, schalt ... an, schalte ... an, mach ... an, mache ... an",
    "wirf ... an, fahr ... hoch, fahre ... hoch, start up, run the, make ... run",
)
AGAIN = phrases("restart, reboot, reset, off and on, neustart, neustarten, neu starten, starte ... neu")
"""Both ways at once: not offered."""

NEEDED = phrases(
    "i need ... pod, i need ... gpu, i need ... machine, i need ... server, we need ... pod, we need ... gpu",
    "we need ... machine, we need ... server, i want ... pod, i want ... gpu, brauche ... pod",
    "brauche ... gpu, brauche ... maschine, brauchen ... pod, brauchen ... gpu",
)
NOT_NEEDED = phrases(
    "dont need ... pod, dont need ... gpu, dont need ... machine, dont need ... server, dont need it",
    "dont need ... anymore, dont need ... any more, not need ... pod, not need ... gpu, not need it",
    "not using ... pod, not using ... gpu, not using it, no longer need*, no need for ... pod",
    "no need for ... gpu, done with ... pod, done with ... gpu, done with ... machine, done with it",
    "finished with ... pod, finished with ... gpu, finished with it, brauche ... nicht mehr",
    "brauchen ... nicht mehr, dont let ... run, dont keep ... running, dont leave ... running",
    "dont leave ... on, dont keep ... on, not let ... run, not keep ... running, not leave ... running",
)
COST = phrases(
    "cost, costs, costing, spend, spent, spending, spendings, expense, expenses, money, bill, bills, billed",
    "expensive, pricey, charge, charged, charges, pay, paid, paying, owe, dollar, dollars, bucks, euro",
    "euros, eur, usd, budget, invoice, burned, burnt, burning, price, rate, hourly, expenditure",
    "kosten, kostet, gekostet, ausgegeben, ausgaben, geld, rechnung, bezahlt, zahlen, teuer, wie viel",
)
FANTASY = phrases(
    "fantasy, fantasies, story, stories, tale, tales, fairytale, illustrat*, imagine, draw, drawing, paint",
    "painting, dream up, geschichte, fantasie, maerchen, zeichne, erzaehl*, illustriere",
    "make ... picture, make ... image, create ... picture, create ... image, generate ... picture",
    "generate ... image, create ... art, mach ... bild, erzeuge ... bild, generate an image",
)
HOW_MUCH = re.compile(r"\bhow much\b(?! (?:longer|more|time|memory))|[$€]")
"""Money as well, unless it is time."""

STATUS = phrases(
    "status, state, running, runs, uptime, online, offline, ready, idle, busy, queue, waiting, started",
    "stopped, stopping, starting, booted, booting, warming, awake, asleep, sleeping, how long, laeuft",
    "gelaufen, zustand, bereit, wie lange, warteschlange, wach, eingeschaltet, ausgeschaltet",
)
STATUS_ASKED = phrases("on, off, up, down, stop, start, doing, happening, active, there, an, aus, los")
"""What means the status where somebody asks about the pod."""

HEALTH = phrases(
    "health, healthy, ping, heartbeat, version, diagnostic*, self test, selftest, sanity check, alive",
    "in order, problem, problems, error, errors, system check, systems check, system status, broken",
    "gesund, gesundheit, in ordnung",
    "funktioniert, funktionierst, kaputt, are you ... there, are you ... up, are you ... ok",
    "are you ... okay, are you ... fine, are you ... working, are you ... online, are you ... awake",
    "are you ... running, are you ... well, bist du ... da, alles ... gut, alles ... klar, alles ok",
    "everything ... ok, everything ... okay, everything ... fine, everything ... alright",
    "everything ... works, everything ... working, everything ... well, everything ... good, all ... good",
    "all ... ok, all ... okay, all ... fine, all ... well, gateway ... up, gateway ... ok",
    "gateway ... working, gateway ... running, gateway ... fine, bot ... working, systems ... operational",
)
QUESTION = re.compile(
    r"(?:(?:hey|hi|hello|so|and|ok|okay|well|hallo|und|sag mal|tell me|bot|please|check) )*"
    r"(?:is|isnt|are|was|were|has|have|did|does|do(?! not\b)|what|whats|how|hows|when|why|which|who|whos"
    r"|where|if|whether|should|am|any|ist|laeuft|was|wie|wann|warum|wer|wo|hat|ob|soll|sind|lohnt)\b"
)
HOW_TO = re.compile(r"\bhow (?:do|can|would|should) (?:i|we|you|one)\b|\bhow to\b|\bwie kann ich\b")
NEGATION = phrases("dont, do not, never, not, wont, shouldnt, mustnt, nicht, kein, keine, niemals, without")
CLAUSE_END = re.compile(r"[,;.!?:\n]+|\bbut\b|\bjust\b|\binstead\b|\bsondern\b|\baber\b| - ")

TODAY = phrases("today, todays, heute, heutigen, since midnight, this morning, tonight")
SESSION = phrases(
    "session, sitzung, this run, current, currently, right now, at the moment, this time, hourly, an hour",
    "per hour, gerade, aktuell, aktuelle, momentan, since it started, since the pod started",
)
MONTH = phrases("month, months, monthly, monat, monats")

POLITE = re.compile(
    r"(?:(?:can|could|will|would) (?:you|u|we)|(?:you|u) (?:can|could|may|should)|please|pls|plz|bitte|hey|hi"
    r"|hello|hallo|ok|okay|so|now|and|then"
    r"|yes|yeah|well|alright|thanks|quickly|immediately|dear|i|id|want|wanna|like|need|to|have|you|u|us|lets"
    r"|let|me|go|ahead|the|pod|gpu|bot|gateway|kannst|koenntest|wuerdest|du|mal|jetzt|und|dann|doch|ich|moechte)\b"
)
"""What may stand before an order."""

NO_MORE = re.compile(
    r"(?:(?:now|please|pls|plz|bitte|thanks|thank you|immediately|at once|quickly|then|again|for me"
    r"|(?:will|would|can) you|jetzt|sofort|mal)\b\s*)*"
)
"""What may stand behind an order that names nothing."""

LATER = phrases(
    "if, when, once, unless, until, after, before, while, tomorrow, later, tonight, soon, in ... minutes",
    "in ... minute, in ... hours, in ... hour, in ... min, every, falls, wenn, sobald, bis, nachdem, bevor",
    "morgen, spaeter, nachher, in ... minuten, in ... stunden, in ... stunde",
)
"""Conditions and times to come: an order is carried out at once, or not at all."""

AT_TIME = re.compile(
    r"\b(?:at|um|by|around|gegen) (?:\d|half|noon|midnight|six|seven|eight|nine|ten|mitternacht)"
)

LAST = phrases(
    "anhalten, ausschalten, ausmachen, abschalten, abstellen, herunterfahren, runterfahren, stoppen, beenden",
    "starten, einschalten, anschalten, anmachen, hochfahren, anwerfen, aufwecken",
)
"""Orders that German puts at the end; in English what ends with "start" or "stop" is told, not ordered."""

WORTH_MENDING = tuple(
    re.findall(
        r"\w+",
        """status start stop shutdown running health healthy fantasy story costs spent month today session
        generate picture launch terminate online ready switch budget money kosten laeuft""",
    )
)
"""Words that are understood in spite of a slip of the finger."""

LEFT_ALONE = frozenset(
    re.findall(
        r"\w+",
        """state store stars stare smart stops starts stark stork star storm top step cost coasts post most
        tell tells moth months mouth starting started reads read really spend spends rush runs monkey""",
    )
)
"""Words of their own that look like slips."""
