"""A story of your picture, and a picture of the story: python fantasy.py IN.png OUT.png."""
# ruff: noqa: T201  (a program that prints)

import base64
import sys

from gate import arguments, events

picture, out = arguments(2, __doc__)
with open(picture, "rb") as file:
    asked = {"image_base64": base64.b64encode(file.read()).decode(), "stream": True}
for name, data in events("/api/v1/fantasy/generate", asked):
    if name == "story":
        print(data["delta"], end="", flush=True)
    elif name == "progress" and data["stage"] == "image":
        print(f"step {data['value']} of {data['max']}", file=sys.stderr)
    elif name == "result":
        print()
        for warning in data["warnings"]:
            print(warning["message"], file=sys.stderr)
        if data["image_base64"]:
            with open(out, "wb") as file:
                file.write(base64.b64decode(data["image_base64"]))
