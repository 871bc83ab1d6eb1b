"""Embeddings of the simulated Ollama: meaningless numbers that depend only on the text."""

from __future__ import annotations

import base64
import math
import random
import struct
from typing import Any

from gpugate_demo.go_decoder import Body, Refused, Types
from gpugate_demo.store import Model, Store, keep_alive_s, load_options, valid_name

EMBED_TYPES: Types = {"model": "string", "truncate": "bool", "dimensions": "int"}
EMBEDDINGS_TYPES: Types = {"model": "string", "prompt": "string"}
OPENAI_TYPES: Types = {"model": "string", "dimensions": "int", "encoding_format": "string"}


def vector(model: Model, text: str, seed: int) -> list[float]:
    """A vector of the model's length, the same for the same text; not normalised."""
    draw = random.Random(f"{seed}|{model.name}|{text}")
    return [draw.uniform(-1.0, 1.0) for _ in range(model.embedding_length)]


def normalised(values: list[float]) -> list[float]:
    """The vector of length one in the same direction."""
    length = math.sqrt(sum(value * value for value in values)) or 1.0
    return [value / length for value in values]


def model_of(store: Store, request: Body, *, older: bool = False) -> Model:
    """Load and return the model; `older` selects the error text of /api/embeddings. Raises: Refused."""
    name = str(request.get("model") or "")
    if not name.strip():
        raise Refused(400, "model is required") if older else Refused(404, f"model '{name}' not found")
    if not valid_name(name):
        raise Refused(400, "invalid model name")
    try:
        keep_s = keep_alive_s(request.get("keep_alive"))
    except ValueError as error:
        raise Refused(400, str(error)) from None
    model = store.find(name)
    if model is None:
        raise Refused(404, f'model "{name}" not found, try pulling it first')
    store.load(model, keep_s, load_options(request))
    return model


def inputs_of(request: Body) -> list[str]:
    """The texts of `input`. Raises Refused."""
    given = request.get("input", [])
    if isinstance(given, str):
        return [given] if given else []
    if isinstance(given, list) and all(isinstance(text, str) for text in given):
        return given
    raise Refused(400, "invalid input type")


def many(model: Model, request: Body, seed: int) -> tuple[list[list[float]], int]:
    """Normalised vectors of all inputs, and how many tokens they were."""
    texts = inputs_of(request)
    size = int(request.get("dimensions") or 0) or model.embedding_length
    vectors = [normalised(vector(model, text, seed)[:size]) for text in texts]
    return vectors, sum(len(text.split()) for text in texts)


def openai_list(name: str, vectors: list[list[float]], tokens: int, encoding: str) -> dict[str, Any]:
    """OpenAI's list; `encoding` "base64" packs little-endian floats of 32 bits."""

    def packed(values: list[float]) -> Any:
        if encoding.lower() != "base64":
            return values
        return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()

    data = [
        {"object": "embedding", "embedding": packed(one), "index": index} for index, one in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": name, "usage": usage}
