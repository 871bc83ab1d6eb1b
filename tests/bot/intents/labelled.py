"""Plain sentences and what they mean: for the keyword fallback's tests and for measuring a real model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from attrs import frozen

from gpugate.bot.intents.model import Intent, ParsedIntent, Period


@frozen
class Sentence:
    """One line of `intents.tsv`: intent, period (of costs alone), words, "de" if they are German."""

    intent: Intent
    period: Period | None
    text: str
    language: str = "en"


def sentences() -> list[Sentence]:
    """All of them."""
    lines = (Path(__file__).parent / "intents.tsv").read_text().splitlines()
    cells = [line.split("\t") for line in lines]
    return [
        Sentence(Intent(intent), Period(period) if period else None, *text) for intent, period, *text in cells
    ]


def english() -> list[Sentence]:
    """Those that the keywords are made for."""
    return [one for one in sentences() if one.language == "en"]


def report(answers: Iterable[tuple[Sentence, ParsedIntent]]) -> str:
    """Accuracy, what was taken for what, and each sentence that was not understood."""
    pairs = list(answers)
    right = sum(one.intent is said.intent for one, said in pairs)
    money = [(one, said) for one, said in pairs if one.period and said.intent is one.intent]
    periods = sum(one.period is said.period for one, said in money)
    lines = [f"{right} of {len(pairs)} intents ({right / len(pairs):.1%}), {periods} of {len(money)} periods"]
    mixed = Counter((one.intent, said.intent) for one, said in pairs if one.intent is not said.intent)
    lines += [f"  {times:3} x {meant} taken for {taken}" for (meant, taken), times in mixed.most_common()]
    lines += [f"  {one.text!r}: {said.intent}" for one, said in pairs if one.intent is not said.intent]
    lines += [f"  {one.text!r}: {said.period}" for one, said in money if one.period is not said.period]
    return "\n".join(lines)
