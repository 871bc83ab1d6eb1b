"""What sentences mean by their words alone: how often that is right, and what it must never get wrong."""

from __future__ import annotations

import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpugate.bot.intents.commands import parse_command
from gpugate.bot.intents.keywords import MAX_CHARS, KeywordIntentParser, pod_named
from gpugate.bot.intents.model import Intent, ParsedBy, Period
from tests.bot.intents.labelled import english, report, sentences

START, STOP = Intent.POD_START, Intent.POD_STOP
classify = KeywordIntentParser().parse


PODS = ("code", "pictures", "big-gpu", "main")


@pytest.mark.parametrize(
    ("text", "pod", "intent"),
    [
        ("start the code pod", "code", START),
        ("please stop Code now", "code", STOP),
        ("status of the picture pod", "pictures", Intent.POD_STATUS),
        ("start pictures", "pictures", START),
        ("turn the big gpu off", "big-gpu", STOP),
        ("is big-gpu running?", "big-gpu", Intent.POD_STATUS),
        ("start the pod", None, START),
        ("what do encoded things cost?", None, Intent.COST_SUMMARY),
    ],
)
def test_a_pod_by_its_name(text: str, pod: str | None, intent: Intent) -> None:
    """Whole words, a plural as its singular, in any case; the rest of the sentence means what it did."""
    named, rest = pod_named(text, PODS)
    assert (pod, intent) == (named, classify(rest).intent)


def test_a_pod_behind_a_command() -> None:
    """`/start_pod code`; the name of a command is none of a pod."""
    named, rest = pod_named("/start_pod code", ("start", "pod", "code"))
    command = parse_command(rest)
    assert command is not None
    assert ("code", START) == (named, command.intent)


class TestLabelled:
    def test_how_often_it_is_right(self, record_property):
        """More than nine of ten English sentences; those with a spelling mistake count as well."""
        answers = [(one, classify(one.text)) for one in english()]
        said = report(answers)
        record_property("accuracy", said.splitlines()[0])
        right = sum(one.intent is understood.intent for one, understood in answers)

        assert right / len(answers) >= 0.93, said

    def test_the_dangerous_ones(self):
        """No sentence that wants something else starts or stops a pod."""
        wrong = [
            (one.text, understood)
            for one in sentences()
            if (understood := classify(one.text).intent) in (START, STOP) and understood is not one.intent
        ]

        assert [] == wrong

    def test_enough_of_each(self):
        """At least two hundred, and at least thirty of each intent."""
        counts = Counter(one.intent for one in sentences())

        assert len(sentences()) >= 200
        assert all(counts[intent] >= 30 for intent in Intent)
        assert len({one.text for one in sentences()}) == len(sentences())

    def test_periods(self):
        """Right wherever costs are understood."""
        costs = [one for one in english() if one.period and classify(one.text).intent is one.intent]

        assert [one.period for one in costs] == [classify(one.text).period for one in costs]


@pytest.mark.parametrize(
    ("text", "intent"),
    [
        ("don't stop the pod", Intent.UNRECOGNISED),
        ("Do NOT turn off the gpu!", Intent.UNRECOGNISED),
        ("don't start it, just tell me the status", Intent.POD_STATUS),
        ("don't stop it but tell me the cost", Intent.COST_SUMMARY),
        ("don't leave it running", STOP),
        ("I don't need the pod any more", STOP),
        ("is the pod not stopped?", Intent.POD_STATUS),
        ("restart it", Intent.UNRECOGNISED),
        ("start the pod, no, stop it", Intent.UNRECOGNISED),
        ("stop it, it costs too much", STOP),
        ("what does it cost to stop the pod", Intent.COST_SUMMARY),
        ("did you stop the pod?", Intent.POD_STATUS),
        ("can you stop the pod?", STOP),
        ("how do I stop the pod?", Intent.UNRECOGNISED),
        ("start a story about the sea", Intent.FANTASY_GENERATE),
        ("", Intent.UNRECOGNISED),
    ],
)
def test_who_wants_what(text, intent):
    """Orders, confirmations, prohibitions and mentions are told apart."""
    assert intent is classify(text).intent


@pytest.mark.parametrize(
    "text",
    [
        "the pod will stop",
        "it failed to start",
        "she told it to stop",
        "I wonder if we should stop the pod",
        "could you stop telling me about the pod",
        "stop warning me about the gpu",
        "get me up to speed on the pod",
        "turn off the radio",
        "turn the music off now",
        "start over",
        "start the pod tomorrow",
        "start the pod at 6pm",
        "stop the pod in an hour",
        "when I leave, stop the pod",
        "if nobody uses it, stop the pod",
    ],
)
def test_no_order(text):
    """What is told, meant for another, for later or on a condition starts and stops nothing."""
    assert classify(text).intent not in (START, STOP)


def test_words_that_look_like_others():
    """A star is no start."""
    assert {Intent.UNRECOGNISED} == {
        classify(text).intent for text in ("a star", "the store", "smart", "top")
    }


@pytest.mark.parametrize(
    ("text", "intent", "period"),
    [
        ("/status", Intent.POD_STATUS, Period.MONTH),
        ("/start_pod", START, Period.MONTH),
        ("/stop_pod@gpugate_bot", STOP, Period.MONTH),
        ("/cost", Intent.COST_SUMMARY, Period.MONTH),
        ("/cost today", Intent.COST_SUMMARY, Period.TODAY),
        ("/COST@My_Bot  session ", Intent.COST_SUMMARY, Period.SESSION),
        ("/health", Intent.HEALTH_CHECK, Period.MONTH),
        ("/help", Intent.UNRECOGNISED, Period.MONTH),
        ("/start", Intent.UNRECOGNISED, Period.MONTH),
        ("/start deep-link", Intent.UNRECOGNISED, Period.MONTH),
    ],
)
def test_commands(text, intent, period):
    """Need no model, whatever bot they name."""
    understood = parse_command(text)

    assert understood is not None
    assert (intent, period, ParsedBy.COMMAND) == (understood.intent, understood.period, understood.by)


def test_no_command():
    """A sentence is none, and an unknown command is not taken for one."""
    assert parse_command("start /status") is None
    assert parse_command("/") is None
    unknown = parse_command("/restart")
    assert unknown is not None
    assert (Intent.UNRECOGNISED, ParsedBy.KEYWORDS) == (unknown.intent, unknown.by)


@given(st.text(max_size=200))
def test_any_text(text):
    """Something comes of it."""
    assert classify(text).intent in Intent
    assert text == classify(text).prompt
    parse_command(text)


@pytest.mark.parametrize("word", ["turn ", "hey ", "tell me ", "dont ", "i need ", "make ", "a", "start,"])
def test_long_ones(word):
    """A text made to be slow is not: the worst takes milliseconds, and much of it is not read at all."""
    began = time.process_time()
    classify(word * MAX_CHARS)

    assert time.process_time() - began < 1.0
