"""Have a picture drawn: python image.py "PROMPT" OUT.png."""
# ruff: noqa: T201  (a program that prints)

import base64
import sys

from gate import arguments, events

prompt, out = arguments(2, __doc__)
for name, data in events("/api/v1/image/generate", {"prompt": prompt, "stream": True}):
    if name == "progress":
        print(f"step {data['value']} of {data['max']}", file=sys.stderr)
    elif name == "result":
        with open(out, "wb") as file:
            file.write(base64.b64decode(data["image_base64"]))
        print(f"{out}, seed {data['seed']}")
