"""Ask the coding model about a file: python assist.py FILE "QUESTION"."""
# ruff: noqa: T201  (a program that prints)

import json
import sys

from gate import arguments, post

path, question = arguments(2, __doc__)
with open(path, encoding="utf-8") as file:
    asked = {"code": file.read(), "question": question, "language": path.rpartition(".")[2]}
for line in post("/api/v1/code/assist", asked):
    said = json.loads(line)
    if "error" in said:
        sys.exit(said["error"])
    print(said["message"]["content"], end="", flush=True)
print()
