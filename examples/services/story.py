"""Have a story told: python story.py "PROMPT"."""
# ruff: noqa: T201  (a program that prints)

import sys

from gate import events

for name, data in events("/api/v1/story/generate", {"prompt": sys.argv[1]}):
    if name == "story":
        print(data["delta"], end="", flush=True)
print()
