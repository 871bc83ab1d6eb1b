"""`make intents`: how well a real local model sorts the labelled sentences, where an Ollama has one."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time

import aiohttp

from gpugate.bot.intents.keywords import KeywordIntentParser
from gpugate.bot.intents.model import ParsedBy, ParsedIntent
from gpugate.bot.intents.ollama_parser import OllamaIntentParser
from tests.bot.intents.labelled import Sentence, english, report, sentences

PATIENCE_S = 180.0
"""For one answer: the first one loads the model."""


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


async def measure(url: str, model: str) -> int:
    """Print the keywords' figures and the model's; return 1 if no model answered."""
    keywords = KeywordIntentParser()
    _say("Keywords, English sentences: " + report((one, keywords.parse(one.text)) for one in english()))
    began = time.monotonic()
    answers: list[tuple[Sentence, ParsedIntent]] = []
    async with aiohttp.ClientSession() as session:
        intents = OllamaIntentParser(session, url, model, PATIENCE_S, keywords)
        try:
            for one in sentences():
                understood = await intents.parse(one.text)
                if understood.by is ParsedBy.MODEL:
                    answers.append((one, understood))
                elif not answers:
                    _say(f"Nothing measured with {model} at {url}: {intents.trouble}.")
                    return 1
        finally:
            await intents.aclose()
    seconds = (time.monotonic() - began) / len(answers)
    _say(f"{model}, {seconds:.2f} s each, {len(sentences()) - len(answers)} without a readable answer:")
    _say(report(answers))
    return 0


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:11435", help="of the local Ollama")
    parser.add_argument("--model", default="phi3:mini")
    given = parser.parse_args()
    return asyncio.run(measure(given.url.rstrip("/"), given.model))


if __name__ == "__main__":
    sys.exit(main())
