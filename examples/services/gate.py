"""How the examples talk to the gateway: one POST, and Server-Sent Events line by line."""

import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

URL = os.environ.get("GPUGATE_URL", "http://127.0.0.1:11434").rstrip("/")
TOKEN = os.environ.get("GPUGATE_TOKEN", "")


def arguments(count: int, usage: str | None) -> list[str]:
    """What stands behind the program's name; the wrong number of them ends it with its usage."""
    if len(sys.argv) != count + 1:
        sys.exit(usage)
    return sys.argv[1:]


def post(path: str, body: dict[str, Any]) -> Any:
    """The open answer; an error ends the program with the gateway's own line."""
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    request = urllib.request.Request(URL + path, json.dumps(body).encode(), headers)
    try:
        return urllib.request.urlopen(request)
    except urllib.error.HTTPError as refused:
        sys.exit(json.load(refused)["error"]["message"])
    except urllib.error.URLError as error:
        sys.exit(f"{URL}: {error.reason}")


def events(path: str, body: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Each event's name and data; an `error` event ends the program."""
    name = ""
    for line in post(path, body):
        field, _, value = line.decode().rstrip("\n").partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            data = json.loads(value)
            if name == "error":
                sys.exit(data["message"])
            yield name, data
