"""The bodies of Ollama's model lists: which are valid, and how one is made from names alone."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Final

import orjson

_VERSION: Final = re.compile(r"v?[0-9]+(\.[0-9]+)*([-+].*)?")
NO_MODELS: Final = b'{"models":[]}'
DEFAULT_VERSION: Final = b'{"version":"0.32.15"}'
"""Until the pod's version is known: clients refuse one that is too old or no number, and the routes served
here are those of this version (docs/ollama.md#routes)."""
DEFAULT_STATUS: Final = b'{"cloud":{"disabled":true,"source":"none"}}'
DEFAULT_RECOMMENDATIONS: Final = b'{"recommendations":[]}'
_LONG_AGO: Final = "1970-01-01T00:00:00Z"
_NO_DETAILS: Final = {
    "parent_model": "",
    "format": "gguf",
    "family": "",
    "families": [],
    "parameter_size": "",
    "quantization_level": "",
}

Document = Mapping[str, object]
Entry = Mapping[str, object]


def parse(body: bytes) -> Document | None:
    """Return the JSON object in `body`, or None if it is something else."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return document if isinstance(document, dict) else None


def _is_list(document: Document, name: str, key: str) -> bool:
    entries = document.get(name)
    return isinstance(entries, list) and all(
        isinstance(entry, dict) and isinstance(entry.get(key), str) for entry in entries
    )


def _is_tags(document: Document) -> bool:
    # {"models":null} or a nameless entry is a 500 in Open WebUI (docs/ollama.md#open-webui-model-lists).
    return _is_list(document, "models", "name")


def _is_v1_models(document: Document) -> bool:
    return _is_list({"data": [], **document}, "data", "id") or document.get("data", 0) is None


def _is_version(document: Document) -> bool:
    version = document.get("version")
    return isinstance(version, str) and _VERSION.fullmatch(version) is not None


_CHECKS: Mapping[str, Callable[[Document], bool]] = {
    "tags": _is_tags,
    "v1/models": _is_v1_models,
    "version": _is_version,
    "status": lambda document: isinstance(document.get("cloud"), dict),
    "recommendations": lambda document: isinstance(document.get("recommendations"), list),
    "show": lambda document: bool(document) and "error" not in document,
}
KINDS: Final = frozenset(_CHECKS)


def is_good(kind: str, document: Document) -> bool:
    """Say whether a body of this kind is valid, so that clients may get it later."""
    return _CHECKS[kind](document)


def entries_of(kind: str, document: Document) -> list[Entry]:
    """Return the entries of a good "tags" or "v1/models" body."""
    entries = document.get("models" if kind == "tags" else "data")
    return entries if isinstance(entries, list) else []


def union(kind: str, bodies: Iterable[bytes]) -> bytes:
    """Return one body of "tags", "ps" or "v1/models" with the entries of all; what is no list is left out.

    Of models of one name the first is listed, except of those that run: two pods may have loaded one.
    """
    listed = "tags" if kind == "ps" else kind
    entries: dict[object, Entry] = {}
    for body in bodies:
        document = parse(body)
        for entry in entries_of(listed, document) if document and is_good(listed, document) else ():
            entries.setdefault(len(entries) if kind == "ps" else canonical(name_of(listed, entry)), entry)
    whole = {"object": "list", "data": [*entries.values()]}
    return orjson.dumps(whole if kind == "v1/models" else {"models": [*entries.values()]})


def name_of(kind: str, entry: Entry) -> str:
    """Return the model's name in an entry of "tags" or "v1/models"."""
    return str(entry["name" if kind == "tags" else "id"])


def full_name(name: str) -> str:
    """Return a model's name with its tag, as Ollama lists it."""
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def canonical(name: str) -> str:
    """Return the one spelling of a model's name: Ollama ignores case, and these parts when left out."""
    name = name.strip().lower().rpartition("://")[2]
    return full_name(name.removeprefix("registry.ollama.ai/").removeprefix("library/"))


def spellings(name: str) -> set[str]:
    """Return the canonical names of the models that may be meant; "llava:local" is llava on this Ollama."""
    return {canonical(name), canonical(name.strip().lower().removesuffix(":local"))}


def distinct(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names without those that mean a model that an earlier one means."""
    known: dict[str, str] = {}
    for name in names:
        known.setdefault(canonical(name), name)
    return tuple(known.values())


def is_cloud(name: str) -> bool:
    """Say whether Ollama passes requests for this model on to its cloud, without having it."""
    tag = canonical(name).rpartition(":")[2]
    return tag == "cloud" or tag.endswith("-cloud")


def tags(names: Iterable[str]) -> bytes:
    """Return a `/api/tags` body for models of which only the names are known."""
    return orjson.dumps({"models": [tag(name) for name in names]})


def tag(name: str) -> Entry:
    """Return the `/api/tags` entry of a model of which only the name is known."""
    # The command line slices digests and crashes on a shorter one (docs/ollama.md#client-defaults).
    digest = hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()
    return {
        "name": name,
        "model": name,
        "modified_at": _LONG_AGO,
        "size": 0,
        "digest": digest,
        "details": _NO_DETAILS,
    }


def show(entry: Entry) -> bytes:
    """Return a `/api/show` body made from the model's entry in a list, of either kind."""
    made = {
        "details": entry.get("details") or _NO_DETAILS,
        "model_info": {},
        "capabilities": ["completion"],
        "modified_at": entry.get("modified_at") or _LONG_AGO,
    }
    return orjson.dumps(made)


def v1_models(tag_entries: Iterable[Entry]) -> bytes:
    """Return the `/v1/models` body that Ollama would make of these `/api/tags` entries."""
    data = [v1_model(name_of("tags", entry), _unix(entry.get("modified_at"))) for entry in tag_entries]
    return orjson.dumps({"object": "list", "data": data}) + b"\n"


def v1_model(name: str, created: int) -> dict[str, object]:
    """Return one entry of `/v1/models`, which is also the answer of `/v1/models/{name}`."""
    parts = name.split("/")
    owner = parts[-2] if len(parts) > 1 else "library"
    return {"id": name, "object": "model", "created": created, "owned_by": owner}


def _unix(instant: object) -> int:
    try:
        return int(datetime.fromisoformat(str(instant)).timestamp())
    except (ValueError, OverflowError):
        return 0
