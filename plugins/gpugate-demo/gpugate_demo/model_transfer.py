"""Pull, push, create, copy, delete and blobs of the simulated Ollama; no data is moved or kept."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from attrs import evolve

from gpugate_demo.go_decoder import Body, Refused, Types
from gpugate_demo.store import Model, Store, guessed, valid_name

PULL_TYPES: Types = {"model": "string", "name": "string", "insecure": "bool", "stream": "bool"}
CREATE_TYPES: Types = {"model": "string", "name": "string", "from": "string", "stream": "bool"}
COPY_TYPES: Types = {"source": "string", "destination": "string"}
DELETE_TYPES: Types = {"model": "string", "name": "string"}
STEPS = 4
LICENCE_BYTES = 12_403
"""Of the small layer behind the weights."""
_DIGEST = re.compile(r"sha256[:-][0-9a-fA-F]{64}")

Progress = dict[str, Any]


class TransferFailed(Exception):
    """A transfer broke off under way; its text is the error."""


def name_of(request: Body) -> str:
    """`model`, or the older `name`, which clients still send."""
    return str(request.get("model") or request.get("name") or "")


def check_pull(request: Body) -> str:
    """The name to pull. Raises Refused."""
    name = name_of(request)
    if not valid_name(name):
        raise Refused(400, "invalid model name")
    return name


def check_push(request: Body) -> str:
    """The name to push. Raises Refused."""
    name = name_of(request)
    if not name:
        raise Refused(400, "model is required")
    return name


def check_create(store: Store, request: Body) -> str:
    """The name to create. Raises Refused."""
    name = name_of(request)
    if not valid_name(name):
        raise Refused(400, "invalid model name")
    files = request.get("files") or {}
    if not request.get("from") and not files:
        raise Refused(400, "neither 'from' or 'files' was specified")
    for digest in files.values() if isinstance(files, dict) else ():
        if blob_key(str(digest)) not in store.blobs:
            raise Refused(400, f'blob "{digest}" not found')
    return name


async def pull(store: Store, name: str, unpullable: frozenset[str]) -> AsyncIterator[Progress]:
    """The progress of a pull, layer by layer; one that broke off goes on where it was.

    Raises TransferFailed for a name in `unpullable`.
    """
    yield {"status": "pulling manifest"}
    if name in unpullable:
        raise TransferFailed("pull model manifest: file does not exist")
    model = store.find(name) or guessed(name)
    small = min(LICENCE_BYTES, model.size // 2)
    for digest, size in ((model.digest, model.size - small), (model.licence_digest, small)):
        progress: Progress = {"status": f"pulling {digest[:12]}", "digest": f"sha256:{digest}", "total": size}
        steps = range(STEPS + 1) if digest == model.digest else (STEPS,)
        for step in steps:
            if (done := size * step // STEPS) >= store.pulled.get(digest, 0):
                store.pulled[digest] = done
                yield progress | ({"completed": done} if done else {})
    store.put(evolve(model, modified_at=datetime.now(UTC)))
    for status in ("verifying sha256 digest", "writing manifest", "success"):
        yield {"status": status}


async def push(store: Store, name: str) -> AsyncIterator[Progress]:
    """The progress of a push. Raises TransferFailed for a model that is not here."""
    yield {"status": "retrieving manifest"}
    model = store.find(name)
    if model is None:
        raise TransferFailed("couldn't find model '" + name + "'")
    digest = f"sha256:{model.digest}"
    for step in range(1, STEPS + 1):
        yield {
            "status": f"pushing {model.digest[:12]}",
            "digest": digest,
            "total": model.size,
            "completed": model.size * step // STEPS,
        }
    for status in ("pushing manifest", "success"):
        yield {"status": status}


async def create(store: Store, name: str, request: Body) -> AsyncIterator[Progress]:
    """The progress of a creation. Raises TransferFailed if what it starts from is not here."""
    yield {"status": "reading model metadata"}
    base = request.get("from")
    source: Model | None = store.find(str(base)) if base else guessed(name)
    if source is None:
        raise TransferFailed("pull model manifest: file does not exist")
    yield {"status": f"creating new layer sha256:{source.digest}"}
    store.copy(source, name)
    for status in ("writing manifest", "success"):
        yield {"status": status}


def copy(store: Store, request: Body) -> None:
    """Copy a model. Raises Refused."""
    for side in ("source", "destination"):
        if not valid_name(str(request.get(side, ""))):
            raise Refused(400, f'{side} "{request.get(side, "")}" is invalid')
    source = store.find(request["source"])
    if source is None:
        raise Refused(404, f'model "{request["source"]}" not found')
    store.copy(source, request["destination"])


def delete(store: Store, request: Body) -> None:
    """Delete a model. Raises Refused."""
    name = name_of(request)
    if not valid_name(name):
        raise Refused(400, f'name "{name}" is invalid')
    if not store.remove(name):
        raise Refused(404, f"model '{name}' not found")


def blob_key(digest: str) -> str:
    """A digest in its one spelling."""
    return digest.lower().replace("sha256-", "sha256:")


def check_digest(digest: str) -> str:
    """The digest in its one spelling. Raises Refused for what is none."""
    if not _DIGEST.fullmatch(digest):
        raise Refused(400, "invalid digest format")
    return blob_key(digest)


class Upload:
    """A blob upload: hashed and counted, not kept."""

    def __init__(self, digest: str) -> None:
        self._digest = digest
        self._hash = sha256()
        self.size = 0

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes."""
        self._hash.update(chunk)
        self.size += len(chunk)

    def finish(self, store: Store) -> None:
        """Enter the blob. Raises Refused if it is not what it was called."""
        got = f"sha256:{self._hash.hexdigest()}"
        if got != self._digest:
            raise Refused(400, f'digest mismatch, expected "{self._digest}", got "{got}"')
        store.blobs[self._digest] = self.size
