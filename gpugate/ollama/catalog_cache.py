"""Caches the pod's answers about its models, for the time when no pod serves.

With an empty model list Open WebUI refuses to chat, and no request from it would ever start the pod. So the
last good answers are kept as raw bytes, also across restarts (docs/ollama.md#open-webui-empty-list).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Literal
from urllib.parse import unquote

import orjson

from gpugate.json_file import CorruptFile, JsonFile
from gpugate.ollama import catalog_responses as bodies
from gpugate.ollama.validation import JSON, PLAIN_JSON, LocalResponse, OllamaBody

CatalogMode = Literal["remembered", "empty", "static"]

MAX_BODY: Final = 4 << 20
"""Bytes of one list, version or status: a list of ten thousand models."""
MAX_SHOW: Final = 1 << 20
"""Bytes of one cached `show`; a verbose one with all its tokens is larger and is not kept."""
MAX_SHOWS: Final = 256
MAX_SHOWS_BYTES: Final = 16 << 20

_KINDS: Mapping[str, str] = {
    "/api/tags": "tags",
    "/v1/models": "v1/models",
    "/api/version": "version",
    "/api/status": "status",
    "/api/experimental/model-recommendations": "recommendations",
}
_DEFAULTS: Mapping[str, bytes] = {
    "version": bodies.DEFAULT_VERSION,
    "status": bodies.DEFAULT_STATUS,
    "recommendations": bodies.DEFAULT_RECOMMENDATIONS,
}
_MODEL = "/v1/models/"


def cache_key(method: str, upstream_path: str, body: OllamaBody) -> tuple[str, str] | None:
    """Return the (kind, key) under which a live 200 of this request is stored; None: it is not stored.

    Args:
        method: HEAD has no body to store.
        upstream_path: as asked of the pod, without a query.
        body: the request's; read for `show` only.
    """
    if method == "GET" and (kind := _KINDS.get(upstream_path)):
        return kind, ""
    if method == "POST" and upstream_path == "/api/show":
        fields = body.fields
        if fields.show_key is not None and fields.is_plain_show:
            return "show", fields.show_key
    return None


class CatalogCache:
    """The last good responses about models, in memory and in one file."""

    def __init__(
        self,
        mode: CatalogMode,
        models: tuple[str, ...],
        store: Path,
        *,
        warn: Callable[[str], None] | None = None,
        refresh: Callable[[], None] | None = None,
    ) -> None:
        """Read the file, if there is one: blocks shortly, so call it before serving.

        Args:
            mode: `catalog.when_stopped`.
            models: `catalog.models`.
            store: the file.
            warn: called with a warning: a damaged file, a full disk (once until a write succeeds again).
            refresh: called when the models on the pod changed, to fetch the lists again.
        """
        self._mode = mode
        self._models = models
        self._store = CatalogStore(store)
        self._warn = warn if warn is not None else lambda _: None
        self._refresh = refresh if refresh is not None else lambda: None
        self._answers: dict[str, bytes] = {}
        self._shows: dict[str, bytes] = {}
        self._version = self._flushed = 0
        self._may_be_empty = False
        self._has_warned = False
        self._load()

    def _load(self) -> None:
        try:
            sections = self._store.read()
        except (CorruptFile, OSError) as error:
            self._warn(f"the remembered catalogue is ignored: {_why(error)}")
            return
        for kind, body in sections.get("answers", {}).items():
            self._may_be_empty = True  # an empty list in the file was accepted when it was written
            self._accept(kind, "", body)
        for key, body in sections.get("shows", {}).items():
            self._accept("show", key, body)
        self._may_be_empty = False
        kept = len(self._answers) + len(self._shows)
        if kept < sum(len(section) for section in sections.values()):
            self._warn("parts of the remembered catalogue are damaged and were left out")

    def store(self, kind: str, key: str, body: bytes) -> bool:
        """Keep the body of a 200 of the pod's; return whether anything changed, so that a `flush` is due.

        Cheap when the body has not changed. A body that is not valid for its kind is ignored.

        Args:
            kind: and key, from `cache_key`.
            key: "" but for `show`.
            body: as it came, not content-encoded.
        """
        known = self._shows.get(key) if kind == "show" else self._answers.get(kind)
        if known == body:
            if self._may_be_empty and kind in ("tags", "v1/models"):
                self._may_be_empty = not bodies.entries_of(kind, self._document(kind))
            return False
        taken = self._accept(kind, key, body)
        self._version += taken
        return taken

    def _accept(self, kind: str, key: str, body: bytes) -> bool:
        if kind not in bodies.KINDS or len(body) > (MAX_SHOW if kind == "show" else MAX_BODY):
            return False
        document = bodies.parse(body)
        if document is None or not bodies.is_good(kind, document):
            return False
        if kind == "show":
            self._accept_show(key, body)
            return True
        if kind in ("tags", "v1/models") and not self._accept_list(kind, document):
            return False
        self._answers.pop(kind, None)  # the newest stands last
        self._answers[kind] = body
        return True

    def _accept_list(self, kind: str, document: bodies.Document) -> bool:
        names = {bodies.canonical(bodies.name_of(kind, e)) for e in bodies.entries_of(kind, document)}
        if not names:
            # Right after a start it often means that the pod's volume is not mounted. With an empty list no
            # request from Open WebUI would ever start the pod.
            return self._may_be_empty or not self._knows_models()
        self._may_be_empty = False
        for key in [key for key in self._shows if key.removesuffix(" verbose") not in names]:
            del self._shows[key]
        return True

    def _knows_models(self) -> bool:
        kinds = [kind for kind in ("tags", "v1/models") if kind in self._answers]
        return bool(self._models) or any(bodies.entries_of(kind, self._document(kind)) for kind in kinds)

    def _accept_show(self, key: str, body: bytes) -> None:
        self._shows.pop(key, None)
        self._shows[key] = body
        size = sum(map(len, self._shows.values()))
        while len(self._shows) > MAX_SHOWS or size > MAX_SHOWS_BYTES:
            size -= len(self._shows.pop(next(iter(self._shows))))

    def invalidate(self, model: str | None = None) -> None:
        """Drop what is known of `model`; called when models were changed through the gateway.

        From now on an empty list is accepted. The lists are fetched again.
        """
        self._may_be_empty = True
        if model is not None:
            name = bodies.canonical(model)
            dropped = [self._shows.pop(key, None) for key in (name, f"{name} verbose")]
            self._version += any(dropped)
        self._refresh()

    async def flush(self) -> None:
        """Write changes to the file; a failure is warned of once, and the cache in memory goes on."""
        if (version := self._version) == self._flushed:
            return
        sections = {"answers": dict(self._answers), "shows": dict(self._shows)}
        try:
            await asyncio.to_thread(self._store.write, version, sections)
        except OSError as error:
            if not self._has_warned:
                self._has_warned = True
                self._warn(f"the catalogue cannot be kept on disk: {_why(error)}")
            return
        self._flushed = max(self._flushed, version)
        self._has_warned = False

    def answer(self, method: str, upstream_path: str, show_key: str | None = None) -> LocalResponse | None:
        """Answer a metadata request while no pod serves; None: only the pod knows (503, never 404).

        Args:
            method: GET, HEAD, or POST for `show`.
            upstream_path: of a route of kind `METADATA`, without a query.
            show_key: `BodyFields.show_key` of a `show`.
        """
        if upstream_path == "/api/ps":
            return LocalResponse(200, JSON, bodies.NO_MODELS)
        if upstream_path == "/api/show":
            return self._show(show_key) if method == "POST" else None
        if upstream_path.startswith(_MODEL):
            return self._v1_model(unquote(upstream_path[len(_MODEL) :]))
        kind = _KINDS.get(upstream_path)
        if kind == "tags":
            return LocalResponse(200, JSON, self._tags())
        if kind == "v1/models":
            return LocalResponse(200, PLAIN_JSON, self._v1_models())
        return LocalResponse(200, JSON, self._answers.get(kind, _DEFAULTS[kind])) if kind else None

    def _tags(self) -> bytes:
        if self._mode == "empty":
            return bodies.NO_MODELS
        if self._mode == "remembered":
            if "tags" in self._answers:
                return self._answers["tags"]
            if "v1/models" in self._answers:
                entries = bodies.entries_of("v1/models", self._document("v1/models"))
                return bodies.tags(bodies.name_of("v1/models", entry) for entry in entries)
        return bodies.tags(self._models)

    def _v1_models(self) -> bytes:
        """Return the list itself if it is the newest known, else made from the newer `/api/tags`."""
        lists = [kind for kind in self._answers if kind in ("tags", "v1/models")]
        if self._mode == "remembered" and lists and lists[-1] == "v1/models":
            return self._answers["v1/models"]
        document = bodies.parse(self._tags()) or {}
        return bodies.v1_models(bodies.entries_of("tags", document))

    def _v1_model(self, name: str) -> LocalResponse | None:
        document = bodies.parse(self._v1_models()) or {}
        for entry in bodies.entries_of("v1/models", document):
            if bodies.canonical(bodies.name_of("v1/models", entry)) == bodies.canonical(name):
                created = entry.get("created")
                found = bodies.v1_model(name, created if isinstance(created, int) else 0)
                return LocalResponse(200, PLAIN_JSON, orjson.dumps(found) + b"\n")
        return None

    def _show(self, key: str | None) -> LocalResponse | None:
        known = self._shows.get(key) if key is not None and self._mode != "empty" else None
        return LocalResponse(200, JSON, known) if known is not None else None

    def _document(self, kind: str) -> bodies.Document:
        return bodies.parse(self._answers[kind]) or {}


def _why(error: Exception) -> str:
    """Say what failed without the path, which log lines should not show."""
    return (error.strerror or type(error).__name__) if isinstance(error, OSError) else str(error)


_FORMAT: Final = 1
_MAX_FILE: Final = 64 << 20
"""Bytes; the catalog's own limits keep it well below."""

Sections = Mapping[str, Mapping[str, bytes]]
"""Section -> key -> body, in order: the newest last."""


class CatalogStore:
    """One file; an older snapshot never overwrites a newer one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = JsonFile(path, _MAX_FILE)
        self._written = 0
        self._lock = threading.Lock()

    def read(self) -> dict[str, dict[str, bytes]]:
        """Return what was written last; empty if there is no file.

        Raises:
            CorruptFile: it is not a catalog of this version.
            OSError: it cannot be read.
        """
        try:
            document = self._file.read()
        except FileNotFoundError:
            return {}
        if not isinstance(document, dict) or document.get("format") != _FORMAT:
            raise CorruptFile("it is not a catalog of this version")
        return {name: _bodies(document.get(name)) for name in document if name != "format"}

    def write(self, version: int, sections: Sections) -> None:
        """Replace the file, unless a later `version` is in it already; blocks, so call it in a thread.

        Raises:
            OSError: the disk is full, or the folder is not writable; the old file is untouched.
        """
        with self._lock:
            if version <= self._written:
                return
            document: dict[str, object] = {"format": _FORMAT}
            for name, bodies in sections.items():
                document[name] = {key: body.decode() for key, body in bodies.items()}
            self._file.write(document)
            self._written = version


def _bodies(section: object) -> dict[str, bytes]:
    if not isinstance(section, dict):
        raise CorruptFile("a section is not an object")
    return {key: text.encode() for key, text in section.items() if isinstance(text, str)}
