"""Have a story told: python story.py "PROMPT"."""
# ruff: noqa: T201  (a program that prints)

from gate import arguments, events

(prompt,) = arguments(1, __doc__)
for name, data in events("/api/v1/story/generate", {"prompt": prompt}):
    if name == "story":
        print(data["delta"], end="", flush=True)
print()
