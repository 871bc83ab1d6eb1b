"""Generates the replies of the simulated model; a reply never contains the prompt."""

from __future__ import annotations

import base64
import binascii
import json
import random
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from attrs import frozen

NOTICE = "This is a simulation: no model is running and nobody has read your text."
_WORDS = re.compile(r"\s*\S+\s*$|\s*\S+")


@frozen
class ImageFacts:
    """What an image's header says; width and height in pixels, 0 where it does not say."""

    kind: str
    width: int
    height: int
    size: int


@frozen
class GenerationRequest:
    """The properties of a request that a reply can depend on.

    Attributes:
        api: "chat", "generate" or "transcribe".
        prompt: the last text of the user.
        images: of the whole conversation.
        format: as in Ollama: None, "json" or a JSON schema.
        turns: how many messages there are.
    """

    api: str
    model: str
    prompt: str
    system: str = ""
    images: tuple[ImageFacts, ...] = ()
    format: Any = None
    turns: int = 1


Reply = Callable[[GenerationRequest], Iterable[str]]


def tokens_of(text: str) -> list[str]:
    """Cut a text into pieces like tokens; joined they are the text."""
    return _WORDS.findall(text) or ([text] if text else [])


def default_reply(seed: int = 0) -> Reply:
    """The default reply: says that it is simulated and describes the request; deterministic."""

    def reply(asked: GenerationRequest) -> list[str]:
        if asked.format not in (None, ""):
            return tokens_of(json.dumps(_sample(asked.format)))
        draw = random.Random(f"{seed}|{asked.model}|{asked.prompt}")
        return tokens_of(_text(asked, draw))

    return reply


def fixed(*pieces: str) -> Reply:
    """Always these pieces, one chunk each."""
    return lambda asked: pieces


def _text(asked: GenerationRequest, draw: random.Random) -> str:
    words = len(asked.prompt.split())
    came = f"{words} word{'' if words == 1 else 's'} came to {asked.model}"
    if asked.images:
        return f"{NOTICE} {came}, with {_pictures(asked.images)}. {_story(draw)}"
    if "code" in asked.model.lower():
        return f"{NOTICE} {came}; a coding model would answer with code such as this:\n\n{_code(draw)}"
    kind = {"chat": "as a chat", "generate": "as a prompt", "transcribe": "as sound"}[asked.api]
    return f"{NOTICE} {came} {kind}. {_closing(draw)}"


def _pictures(images: tuple[ImageFacts, ...]) -> str:
    one = [
        f"a {image.kind} of {image.width} by {image.height} pixels ({image.size} bytes)" for image in images
    ]
    return " and ".join(one)


def _story(draw: random.Random) -> str:
    place = draw.choice(["an empty station", "a quiet harbour", "a hill above the town", "a shut theatre"])
    guest = draw.choice(["a lamp that was never lit", "a small robot", "an echo", "a borrowed voice"])
    return (
        f"In place of a story about your picture: once there was {guest} in {place}. It could not see the "
        "picture, but it knew its size by heart, and it told everybody who came that a real model "
        "would have seen more."
    )


def _closing(draw: random.Random) -> str:
    return draw.choice(
        [
            "The pieces of this text arrive at the pace that was asked for, like those of a real model.",
            "With a real pod behind the gateway an answer would stand here.",
            "Everything else on the way to you, the start and the wait and the stream, was real.",
        ]
    )


def _code(draw: random.Random) -> str:
    name = draw.choice(["greet", "answer", "describe"])
    return (
        f'```python\ndef {name}() -> str:\n    """Written by a simulation."""\n    return "simulated"\n```\n'
    )


def _sample(schema: Any) -> Any:
    """The plainest value that a JSON schema allows; for "json" an object that tells what this is."""
    if not isinstance(schema, Mapping):
        return {"simulated": True}
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    for several in ("anyOf", "oneOf"):
        if schema.get(several):
            return _sample(schema[several][0])
    kind = schema.get("type")
    kind = kind[0] if isinstance(kind, list) and kind else kind
    if kind == "object" or "properties" in schema:
        return {name: _sample(inner) for name, inner in dict(schema.get("properties") or {}).items()}
    plain: dict[str, Any] = {"array": [], "integer": 0, "number": 0, "boolean": False, "null": None}
    return plain.get(str(kind), "simulated")


def decoded(image: object) -> bytes:
    """The bytes of a Base64 image. Raises ValueError with Go's words."""
    if not isinstance(image, str):
        raise ValueError("json: cannot unmarshal number into Go struct field .images of type string")
    try:
        return base64.b64decode(image.replace("\n", "").replace("\r", ""), validate=True)
    except (binascii.Error, ValueError):
        bad = re.search(r"[^A-Za-z0-9+/]", image)
        position = bad.start() if bad else len(image)
        raise ValueError(f"illegal base64 data at input byte {position}") from None


def image_facts(data: bytes) -> ImageFacts:
    """Format and size from the first bytes; "unknown" for what is no image."""
    width = height = 0
    kind = "unknown"
    if data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) >= 24:
        kind, (width, height) = "PNG", struct.unpack(">II", data[16:24])
    elif data[:6] in (b"GIF87a", b"GIF89a") and len(data) >= 10:
        kind, (width, height) = "GIF", struct.unpack("<HH", data[6:10])
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        kind, (width, height) = "WebP", _webp_size(data)
    elif data[:2] == b"\xff\xd8":
        kind, (width, height) = "JPEG", _jpeg_size(data)
    return ImageFacts(kind, width, height, len(data))


def _webp_size(data: bytes) -> tuple[int, int]:
    chunk, body = data[12:16], data[20:30]
    if len(body) < 10:
        return 0, 0
    if chunk == b"VP8X":
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if chunk == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack("<HH", body[6:10])
    return width & 0x3FFF, height & 0x3FFF


def _jpeg_size(data: bytes) -> tuple[int, int]:
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            return width, height
        at += 2 + length
    return 0, 0
