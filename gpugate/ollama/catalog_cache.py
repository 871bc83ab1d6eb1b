"""Learns the pod's answers about its models, for the time when no pod serves.

With an empty model list Open WebUI refuses to chat, and no request from it would ever start the pod. So the
last good answers are kept as raw bytes, also across restarts (docs/ollama.md#open-webui-empty-list).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Final, Literal
from urllib.parse import unquote

import orjson

from gpugate.errors import ModelNotFound
from gpugate.json_file import CorruptFile, JsonFile
from gpugate.ollama import catalog_responses as bodies
from gpugate.ollama.validation import JSON, MAX_MODEL_NAME, PLAIN_JSON, BodyFields, LocalResponse, OllamaBody

CatalogMode = Literal["remembered", "empty", "static"]

MAX_BODY: Final = 4 << 20
"""Bytes of one list: ten thousand models."""
MAX_SHOW: Final = 1 << 20
"""Bytes of one `show`, or of a version; a verbose one with all its tokens is larger and is not kept."""
MAX_SHOWS: Final = 256
MAX_SHOWS_BYTES: Final = 16 << 20
MAX_COMING: Final = 1000
"""Names of models that are being pulled; more are not kept."""
LISTS: Final = ("tags", "v1/models")

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
    """What one pod last said about its models, in memory and in one file."""

    def __init__(
        self,
        mode: CatalogMode,
        models: tuple[str, ...],
        store: Path,
        *,
        named: Iterable[str] = (),
        pulled: Iterable[str] = (),
        pods: Sequence[str] = ("",),
        speaks_ollama: bool = True,
        warn: Callable[[str], None] | None = None,
        refresh: Callable[[], None] | None = None,
    ) -> None:
        """Read the file, if there is one: blocks shortly, so call it before serving.

        Args:
            mode: `catalog.when_stopped`.
            models: `catalog.models`.
            store: the file.
            named: further models that the configuration names for the pod.
            pulled: models that the pod pulls where they are missing (`pod.pull`): it never lacks them.
            pods: the configured pods, each by its provider and id; a start tries the first one first.
            speaks_ollama: the pod has /api; otherwise its `/v1/models` alone is kept.
            warn: called with a warning: a damaged file, a full disk (once until a write succeeds again).
            refresh: called when the models on the pod changed, to fetch the lists again.
        """
        self.configure(mode, models, named)
        self._pulled = frozenset(map(bodies.canonical, pulled))
        self._pods = tuple(pods)
        self._kinds = bodies.KINDS if speaks_ollama else frozenset({"v1/models"})
        self._store = CatalogStore(store)
        self._warn = warn if warn is not None else lambda _: None
        self._refresh = refresh if refresh is not None else lambda: None
        self._source = self._pods[0]
        self._pod: str | None = None  # whose lists these are; None: no one's, or not known
        self._answers: dict[str, bytes] = {}
        self._shows: dict[str, bytes] = {}
        self._names: dict[str, frozenset[str]] = {}  # canonical, of each list
        self._coming: set[str] = set()
        self._version = self._flushed = 0
        self._may_be_empty = False
        self._has_warned = False
        self._load()

    def configure(self, mode: CatalogMode, models: tuple[str, ...], named: Iterable[str]) -> None:
        """Answer by these settings from now on; see the class."""
        self._mode = mode
        self._configured = bodies.distinct([*models, *map(bodies.full_name, named)])
        self._static = models or self._configured

    def _load(self) -> None:
        try:
            sections = self._store.read()
        except (CorruptFile, OSError) as error:
            self._warn(f"the remembered catalogue is ignored: {_why(error)}")
            return
        origin = sections.pop("pod", {}).get("id")  # earlier versions did not write it
        pod = None if origin is None else origin.decode()
        if pod is not None and pod not in self._pods:
            return
        self._pod = pod
        for kind, body in sections.get("answers", {}).items():
            self._may_be_empty = True  # an empty list in the file was accepted when it was written
            self._accept(kind, "", body)
        for key, body in sections.get("shows", {}).items():
            self._accept("show", key, body)
        self._may_be_empty = False
        kept = len(self._answers) + len(self._shows)
        if kept < sum(len(section) for section in sections.values()):
            self._warn("parts of the remembered catalogue are damaged and were left out")

    @property
    def hint(self) -> str | None:
        """One line for people as long as nothing was learned; None afterwards."""
        if self._names:
            return None
        names = [str(entry["name"]) for entry in bodies.entries_of("tags", bodies.parse(self._tags()) or {})]
        listed = f"are {', '.join(names)}" if names else "are none, by catalog.when_stopped"
        return f"the pod's models are not known before it has run once; until then the listed ones {listed}"

    def sizes(self) -> dict[str, int]:
        """Return the bytes of each model that was learned, by its full name; those in a cloud have none."""
        entries = bodies.entries_of("tags", bodies.parse(self._answers.get("tags", b"")) or {})
        sizes = {bodies.name_of("tags", entry).lower(): entry.get("size") for entry in entries}
        return {
            name: size
            for name, size in sizes.items()
            if isinstance(size, int) and size > 0 and not bodies.is_cloud(name)
        }

    def learn_from(self, pod: str) -> None:
        """Take what is stored from now on as said by this one of `pods`; forget what another one said."""
        self._source = pod
        if self._pod not in (None, pod):
            self._pod = None
            for known in (self._answers, self._shows, self._names):
                known.clear()
            self._version += 1

    def store(self, kind: str, key: str, body: bytes) -> bool:
        """Keep the body of a 200 of the pod's; return whether anything changed, so that a `flush` is due.

        Cheap when the body has not changed. A body that is not valid for its kind is ignored.

        Args:
            kind: and key, from `cache_key`.
            key: "" but for `show`.
            body: as it came, not content-encoded.
        """
        known = self._shows.get(key) if kind == "show" else self._answers.get(kind)
        changed = known != body and self._accept(kind, key, body)
        if kind in LISTS and (changed or known == body):
            self._coming.clear()
            self._may_be_empty = self._may_be_empty and not self._names[kind]
            changed = changed or self._pod != self._source
            self._pod = self._source
        self._version += changed
        return changed

    def _accept(self, kind: str, key: str, body: bytes) -> bool:
        if kind not in self._kinds or len(body) > (MAX_BODY if kind in LISTS else MAX_SHOW):
            return False
        document = bodies.parse(body)
        if document is None or not bodies.is_good(kind, document):
            return False
        if kind == "show":
            self._accept_show(key, body)
            return True
        if kind in LISTS and not self._accept_list(kind, document):
            return False
        self._answers.pop(kind, None)  # the newest stands last
        self._answers[kind] = body
        return True

    def _accept_list(self, kind: str, document: bodies.Document) -> bool:
        names = frozenset(
            bodies.canonical(bodies.name_of(kind, e)) for e in bodies.entries_of(kind, document)
        )
        if not names and not self._may_be_empty and (self._configured or any(self._names.values())):
            # Right after a start it often means that the pod's volume is not mounted. With an empty list no
            # request from Open WebUI would ever start the pod.
            return False
        self._names[kind] = names
        for key in [key for key in self._shows if names and key.removesuffix(" verbose") not in names]:
            del self._shows[key]
        return True

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

    def expect(self, model: str | None) -> None:
        """Take a model as one of the pod's until the next list: it is being pulled, created or copied."""
        if model is not None and len(model) <= MAX_MODEL_NAME and len(self._coming) < MAX_COMING:
            self._coming.add(bodies.canonical(model))

    def has(self, names: Set[str]) -> bool:
        """Say whether the pod had one of these models, by their canonical names, when it was last asked, or
        will pull it."""
        return any(not known.isdisjoint(names) for known in (self._pulled, *self._names.values()))

    def lacks(self, model: str) -> bool:
        """Say whether the pod that a start tries first is known not to have this model."""
        if self._pod != self._pods[0] or bodies.is_cloud(model):
            return False
        return self._pulled.union(self._coming, *self._names.values()).isdisjoint(bodies.spellings(model))

    def refuses(self, model: str) -> bool:
        """Say whether the pod would answer that it has no such model, so that it need not be started for it.

        Other engines than Ollama answer by any name; only Ollama tells a version.
        """
        return "version" in self._answers and "tags" in self._answers and self.lacks(model)

    async def flush(self) -> None:
        """Write changes to the file; a failure is warned of once, and the cache in memory goes on."""
        if (version := self._version) == self._flushed:
            return
        sections = {"answers": dict(self._answers), "shows": dict(self._shows)}
        if self._pod is not None:
            sections["pod"] = {"id": self._pod.encode()}
        try:
            await asyncio.to_thread(self._store.write, version, sections)
        except OSError as error:
            if not self._has_warned:
                self._has_warned = True
                self._warn(f"the catalogue cannot be kept on disk: {_why(error)}")
            return
        self._flushed = max(self._flushed, version)
        self._has_warned = False

    def answer(
        self, method: str, upstream_path: str, fields: BodyFields | None = None
    ) -> LocalResponse | None:
        """Answer a metadata request while no pod serves; None: only the pod knows (503).

        Args:
            method: GET, HEAD, or POST for `show`.
            upstream_path: of a route of kind `METADATA`, without a query.
            fields: of the body of a `show`.

        Raises:
            ModelNotFound: `show` or one of OpenAI's models, and the pod is known not to have it.
        """
        if upstream_path == "/api/ps":
            return LocalResponse(200, JSON, bodies.NO_MODELS)
        if upstream_path == "/api/show":
            return self._show(fields) if method == "POST" and fields is not None else None
        if upstream_path.startswith(_MODEL):
            return self._v1_model(unquote(upstream_path[len(_MODEL) :]))
        kind = _KINDS.get(upstream_path)
        if kind == "tags":
            return LocalResponse(200, JSON, self._tags() if "tags" in self._kinds else bodies.NO_MODELS)
        if kind == "v1/models":
            return LocalResponse(200, PLAIN_JSON, self._v1_models())
        return LocalResponse(200, JSON, self._answers.get(kind, _DEFAULTS[kind])) if kind else None

    def _tags(self) -> bytes:
        if self._mode == "empty":
            return bodies.NO_MODELS
        return bodies.tags(self._static) if self._mode == "static" else self._learned_tags()

    def _learned_tags(self) -> bytes:
        if "tags" in self._answers:
            return self._answers["tags"]
        if "v1/models" in self._answers:
            entries = bodies.entries_of("v1/models", bodies.parse(self._answers["v1/models"]) or {})
            return bodies.tags(bodies.name_of("v1/models", entry) for entry in entries)
        return bodies.tags(self._configured)

    def _v1_models(self) -> bytes:
        """Return the list itself if it is the newest known, else made from the newer `/api/tags`."""
        lists = [kind for kind in self._answers if kind in LISTS]
        if self._mode == "remembered" and lists and lists[-1] == "v1/models":
            return self._answers["v1/models"]
        return bodies.v1_models(bodies.entries_of("tags", bodies.parse(self._tags()) or {}))

    def _v1_model(self, name: str) -> LocalResponse:
        entry = self._entry("v1/models", name, self._v1_models())
        created = entry.get("created") if entry is not None else 0
        found = bodies.v1_model(name, created if isinstance(created, int) else 0)
        return LocalResponse(200, PLAIN_JSON, orjson.dumps(found) + b"\n")

    def _show(self, fields: BodyFields) -> LocalResponse | None:
        """Return the `show` that was learned, else one made from the model's entry in a list."""
        key, name = fields.show_key, fields.model
        if key is None or name is None:
            return None
        known = self._shows.get(key) or self._shows.get(key.removesuffix(" verbose"))
        if known is None:
            known = bodies.show(self._entry("tags", name, self._learned_tags(), self._tags()) or {})
        return LocalResponse(200, JSON, known)

    def _entry(self, kind: str, name: str, *lists: bytes) -> bodies.Entry | None:
        """Return the entry of a model in the first list that has it; None: it may be on the pod all the same.

        Raises:
            ModelNotFound: it is not.
        """
        spellings = bodies.spellings(name)
        for body in lists:
            for entry in bodies.entries_of(kind, bodies.parse(body) or {}):
                if bodies.canonical(bodies.name_of(kind, entry)) in spellings:
                    return entry
        if self.lacks(name):
            raise ModelNotFound(name)
        return None


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
