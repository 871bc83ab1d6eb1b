"""A server that behaves like ComfyUI 0.3.64 and draws landscapes.

Routes and shapes are the recorded ones (docs/telegram-comfyui.md#comfyui). Not like the real one:
`preview=` answers a plain PNG whatever format is asked for, as the standard library writes no JPEG
or WebP, and pictures beyond 2048 pixels a side are drawn smaller.
"""

from __future__ import annotations

import asyncio
import json
import mimetypes
import random
import struct
import uuid
from collections.abc import Awaitable, Callable, Iterable
from email.utils import formatdate
from typing import Any
from urllib.parse import urlsplit

import orjson
from aiohttp import WSMsgType, web
from aiohttp.multipart import BodyPartReader

from gpugate.tasks import spawn
from gpugate_demo.base_server import BaseServer, RecordedRequest
from gpugate_demo.faults import Fault
from gpugate_demo.file_store import KINDS, FileStore
from gpugate_demo.graph import NotAGraph, complaint, judge
from gpugate_demo.jobs import ComfyJob, EmptyJob, FailJob, HangJob, JobFault, JobQueue, LoseJob, VanishJob
from gpugate_demo.node_runner import NodeRunner
from gpugate_demo.nodes import DEFAULT_CHECKPOINT, known_nodes

VERSION = "0.3.64"
JSON = "application/json; charset=utf-8"
FELL_OVER = b"500 Internal Server Error\n\nServer got itself in trouble"
FLAGS = {"supports_preview_metadata": True, "max_upload_size": 104857600}
MAX_SOCKET_BACKLOG = 10_000
_LOOPBACK = ("127.0.0.1", "localhost", "::1")

__all__ = ["EmptyJob", "FailJob", "HangJob", "LoseJob", "SimulatedComfyUI", "VanishJob"]


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(value), headers={"Content-Type": JSON})


class _Socket:
    """One /ws connection; events are queued, so that a slow reader does not block the worker."""

    def __init__(self, sid: str) -> None:
        self.sid = sid
        self.events: asyncio.Queue[str | bytes] = asyncio.Queue(MAX_SOCKET_BACKLOG)
        self.metadata = False

    def put(self, event: str, data: dict[str, Any]) -> None:
        """Queue one event; a reader that is too far behind misses it."""
        message = self._preview(data) if event == "preview" else json.dumps({"type": event, "data": data})
        if not self.events.full():
            self.events.put_nowait(message)

    def _preview(self, data: dict[str, Any]) -> bytes:
        png: bytes = data["png"]
        if not self.metadata:
            return struct.pack(">II", 1, 2) + png
        node = data["node"]
        about = {"node_id": node, "prompt_id": data["prompt_id"], "display_node_id": node}
        about |= {"parent_node_id": None, "real_node_id": node, "image_type": "image/png"}
        text = json.dumps(about).encode()
        return struct.pack(">II", 4, len(text)) + text + png


class SimulatedComfyUI(BaseServer):
    """A ComfyUI on loopback: `async with SimulatedComfyUI() as comfyui: ... comfyui.url`.

    Args:
        checkpoints: what CheckpointLoaderSimple knows.
        step_s: time of one sampling step; node_s: of every other node.
        previews: send a picture with every sampling step.
        history_lag_s: from `execution_success` to the entry in the history.
        old: as 0.3.56 and earlier: an interrupt stops what runs, whatever id it names.
        seed: the same seed, the same row of prompt ids and the same order among output nodes.
        host, port, max_seen: see `BaseServer`. Its `faults` are those of HTTP; `plan` is for jobs.
    """

    def __init__(
        self,
        *,
        checkpoints: Iterable[str] = (DEFAULT_CHECKPOINT,),
        step_s: float = 0.0,
        node_s: float = 0.0,
        previews: bool = False,
        history_lag_s: float = 0.002,
        old: bool = False,
        seed: int = 0,
        host: str = "127.0.0.1",
        port: int = 0,
        max_seen: int = 1000,
        keep_bodies: int = 1 << 20,
    ) -> None:
        super().__init__(host=host, port=port, max_seen=max_seen, keep_bodies=keep_bodies)
        self.shelf = FileStore()
        self.checkpoints = tuple(checkpoints)
        self.jobs = JobQueue(
            self.shelf, NodeRunner(self.shelf, step_s, node_s, previews), self._tell, history_lag_s
        )
        self.old = old
        self._nodes = known_nodes(self.checkpoints)
        self._sockets: dict[str, _Socket] = {}
        self._draw = random.Random(seed)
        self._output_order = random.Random(seed)

    async def __aenter__(self) -> SimulatedComfyUI:
        await self.start()
        return self

    async def stop(self) -> None:
        """Close the port, cut what is open, end the running job."""
        await self.jobs.aclose()
        await super().stop()

    def plan(self, *faults: JobFault) -> None:
        """Plan the results of the next jobs, one fault each."""
        self.jobs.faults.extend(faults)

    async def handle(
        self, request: web.BaseRequest, seen: RecordedRequest, fault: Fault | None
    ) -> web.StreamResponse:
        """Answer as ComfyUI would."""
        if _foreign(request):
            return web.Response(status=403)
        path = request.path
        if path.startswith("/api/"):
            path = path[4:]
        first, _, rest = path[1:].partition("/")
        if request.method == "OPTIONS":
            return web.Response()
        methods = [method for method, name in _ROUTES if name == first]
        if not methods or (rest and first not in ("history", "object_info", "models", "upload")):
            return await _not_found(request)
        method = "GET" if request.method == "HEAD" else request.method
        if method not in methods:
            return web.Response(
                status=405, text="405: Method Not Allowed", headers={"Allow": ",".join(methods)}
            )
        try:
            return await _ROUTES[method, first](self, request, seen, rest)
        except (AttributeError, TypeError, ValueError, NotAGraph):  # those that a body's content causes
            return _fell_over()

    # -- jobs ------------------------------------------------------------------------------------

    async def _submit(self, request: web.BaseRequest, seen: RecordedRequest, rest: str) -> web.StreamResponse:
        asked = orjson.loads(await self.read_body(request, seen))
        number = float(asked["number"]) if "number" in asked else None
        if "prompt" not in asked:
            error = complaint("no_prompt", "No prompt provided", "No prompt provided")
            return _json({"error": error, "node_errors": {}}, 400)
        verdict = judge(asked["prompt"], self._nodes, lambda path: self.shelf.input(path) is not None)
        if verdict.error is not None:
            return _json({"error": verdict.error, "node_errors": verdict.node_errors}, 400)
        extra = dict(asked.get("extra_data") or {})
        if "client_id" in asked:
            extra["client_id"] = asked["client_id"]
        job_id = str(asked.get("prompt_id") or uuid.UUID(int=self._draw.getrandbits(128), version=4))
        outputs = list(verdict.outputs)
        self._output_order.shuffle(outputs)  # the real one takes them out of a set
        number = self.jobs.submit(job_id, asked["prompt"], extra, tuple(outputs), asked.get("front"), number)
        return _json({"prompt_id": job_id, "number": number, "node_errors": verdict.node_errors})

    async def _exec_info(
        self, request: web.BaseRequest, seen: RecordedRequest, rest: str
    ) -> web.StreamResponse:
        return _json({"exec_info": {"queue_remaining": self.jobs.remaining}})

    async def _queue(self, request: web.BaseRequest, seen: RecordedRequest, rest: str) -> web.StreamResponse:
        running = [self.jobs.running.row()] if self.jobs.running else []
        pending = [job.row() for job in self.jobs.pending()]
        return _json({"queue_running": running, "queue_pending": pending})

    async def _change_queue(
        self, request: web.BaseRequest, seen: RecordedRequest, rest: str
    ) -> web.StreamResponse:
        asked = orjson.loads(await self.read_body(request, seen))
        wanted = set(map(str, asked["delete"])) if "delete" in asked else set()
        everything = bool(asked["clear"]) if "clear" in asked else False

        def chosen(job: ComfyJob) -> bool:
            return everything or job.id in wanted

        self.jobs.cancel_pending(chosen)
        return web.Response()

    async def _interrupt(
        self, request: web.BaseRequest, seen: RecordedRequest, rest: str
    ) -> web.StreamResponse:
        body = await self.read_body(request, seen)
        try:
            asked = orjson.loads(body)
        except orjson.JSONDecodeError:  # taken for an interrupt of whatever runs
            asked = {}
        job_id = asked.get("prompt_id")
        self.jobs.interrupt(str(job_id) if job_id and not self.old else None)
        return web.Response()

    async def _free(self, request: web.BaseRequest, seen: RecordedRequest, rest: str) -> web.StreamResponse:
        asked = orjson.loads(await self.read_body(request, seen))
        if asked.get("free_memory", True):
            self.jobs.clear_cache()
        return web.Response()

    async def _history(
        self, request: web.BaseRequest, seen: RecordedRequest, rest: str
    ) -> web.StreamResponse:
        if rest:
            entry = self.jobs.history.get(rest)
            return _json({rest: entry} if entry else {})
        entries = list(self.jobs.history.items())
        most = int(request.query.get("max_items", len(entries)))
        return _json(dict(entries[-most:] if most > 0 else []))

    async def _change_history(
        self, request: web.BaseRequest, seen: RecordedRequest, rest: str
    ) -> web.StreamResponse:
        asked = orjson.loads(await self.read_body(request, seen))
        for job_id in list(self.jobs.history) if asked.get("clear") else asked.get("delete") or ():
            self.jobs.history.pop(job_id, None)
        return web.Response()

    # -- files -----------------------------------------------------------------------------------

    async def _view(self, request: web.BaseRequest, seen: RecordedRequest, rest: str) -> web.StreamResponse:
        asked = request.query
        name, subfolder, kind = (
            asked.get("filename", ""),
            asked.get("subfolder", ""),
            asked.get("type", "output"),
        )
        if not name:
            return web.Response(status=404)
        if name.startswith("/") or ".." in name or kind not in KINDS:
            return web.Response(status=400)
        if ".." in subfolder.split("/") or subfolder.startswith("/"):
            return web.Response(status=403)
        stored = self.shelf.get(kind, subfolder.strip("/"), name)
        if stored is None:
            return web.Response(status=404)
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
        headers = {"Content-Disposition": f'filename="{name}"', "Content-Type": kind}
        if "preview" in asked or asked.get("channel") in ("rgb", "rgba", "a"):
            return web.Response(body=stored.plain, headers=headers)
        headers |= {"Etag": stored.etag, "Last-Modified": formatdate(stored.written_at, usegmt=True)}
        return web.Response(body=stored.data, headers=headers | {"Accept-Ranges": "bytes"})

    async def _upload(self, request: web.BaseRequest, seen: RecordedRequest, rest: str) -> web.StreamResponse:
        if rest != "image":
            return await _not_found(request)
        if not request.content_type.startswith("multipart/"):
            return web.Response(status=400)
        fields: dict[str, str] = {}
        image: tuple[str, bytes] | None = None
        async for part in await request.multipart():
            if not isinstance(part, BodyPartReader):
                continue
            data = await part.read()
            if part.name == "image" and part.filename:
                image = part.filename, bytes(data)
            elif part.name:
                fields[part.name] = data.decode("utf-8", "replace")
        kind = fields.get("type", "input")
        subfolder = fields.get("subfolder", "").strip("/")
        if image is None or kind not in KINDS or ".." in subfolder.split("/"):
            return web.Response(status=400)
        overwrite = fields.get("overwrite", "") in ("true", "1")
        key = self.shelf.upload(image[0], subfolder, kind, image[1], overwrite=overwrite)
        return _json({"name": key[2], "subfolder": key[1], "type": key[0]})

    # -- about -----------------------------------------------------------------------------------

    async def _object_info(
        self, request: web.BaseRequest, seen: RecordedRequest, rest: str
    ) -> web.StreamResponse:
        wanted = {rest: self._nodes[rest]} if rest in self._nodes else {} if rest else self._nodes
        return _json({name: node.info(name) for name, node in wanted.items()})

    async def _models(self, request: web.BaseRequest, seen: RecordedRequest, rest: str) -> web.StreamResponse:
        if not rest:
            return _json(["checkpoints"])
        return _json(list(self.checkpoints)) if rest == "checkpoints" else await _not_found(request)

    async def _features(
        self, request: web.BaseRequest, seen: RecordedRequest, rest: str
    ) -> web.StreamResponse:
        return _json(FLAGS)

    async def _nothing(
        self, request: web.BaseRequest, seen: RecordedRequest, rest: str
    ) -> web.StreamResponse:
        return _json([])

    async def _system_stats(
        self, request: web.BaseRequest, seen: RecordedRequest, rest: str
    ) -> web.StreamResponse:
        memory = {"ram_total": 25276514304, "ram_free": 22757421056}
        system = {
            "os": "posix",
            **memory,
            "comfyui_version": VERSION,
            "embedded_python": False,
            "argv": ["main.py"],
        }
        sizes = {"vram_total": 25276514304, "vram_free": 22757421056}
        torch = {f"torch_{name}": size for name, size in sizes.items()}
        device = {"name": "simulated", "type": "cuda", "index": 0, **sizes, **torch}
        return _json({"system": system, "devices": [device]})

    # -- sockets ---------------------------------------------------------------------------------

    async def _ws(self, request: web.BaseRequest, seen: RecordedRequest, rest: str) -> web.StreamResponse:
        if request.headers.get("Upgrade", "").lower() != "websocket":
            return web.Response(status=400)
        response = web.WebSocketResponse()
        await response.prepare(request)
        socket = _Socket(request.query.get("clientId") or f"{self._draw.getrandbits(128):032x}")
        self._sockets[socket.sid] = socket
        socket.put(
            "status", {"status": {"exec_info": {"queue_remaining": self.jobs.remaining}}, "sid": socket.sid}
        )
        if self.jobs.running is not None and self.jobs.running.client == socket.sid:
            socket.put("executing", {"node": None})
        sender = spawn(_send_all(response, socket), "events of a simulated ComfyUI")
        try:
            first = True
            async for message in response:
                if message.type is WSMsgType.TEXT and first:
                    _take_flags(socket, message.data)
                first = False
        finally:
            sender.cancel()
            if self._sockets.get(socket.sid) is socket:
                del self._sockets[socket.sid]
        return response

    def _tell(self, event: str, data: dict[str, Any], client: str | None) -> None:
        for socket in list(self._sockets.values()):
            if client is None or socket.sid == client:
                socket.put(event, data)


async def _send_all(response: web.WebSocketResponse, socket: _Socket) -> None:
    try:
        while True:
            event = await socket.events.get()
            await (response.send_str(event) if isinstance(event, str) else response.send_bytes(event))
    except ConnectionError:
        return  # the reader went away; its handler is ending too


def _take_flags(socket: _Socket, text: str) -> None:
    """Take the client's feature flags; only the first message can set them (recorded)."""
    try:
        message = json.loads(text)
        if message.get("type") == "feature_flags":
            socket.metadata = bool(message["data"].get("supports_preview_metadata"))
            socket.put("feature_flags", FLAGS)
    except (ValueError, AttributeError, KeyError):
        return


def _foreign(request: web.BaseRequest) -> bool:
    """Whether ComfyUI's check for loopback hosts refuses this Origin."""
    origin, host = request.headers.get("Origin", ""), request.headers.get("Host", "")
    if request.headers.get("Sec-Fetch-Site") == "cross-site":
        return True
    if not origin or urlsplit(f"//{host}").hostname not in _LOOPBACK:
        return False
    return urlsplit(origin).netloc.lower() != host.lower()


def _fell_over() -> web.Response:
    return web.Response(status=500, body=FELL_OVER, headers={"Content-Type": "text/plain; charset=utf-8"})


async def _not_found(request: web.BaseRequest) -> web.StreamResponse:
    response = web.StreamResponse(status=404)
    response.enable_chunked_encoding()  # the real one's 404 has neither a length nor a text
    await response.prepare(request)
    return response


_Route = Callable[[SimulatedComfyUI, web.BaseRequest, RecordedRequest, str], Awaitable[web.StreamResponse]]
_ROUTES: dict[tuple[str, str], _Route] = {
    ("POST", "prompt"): SimulatedComfyUI._submit,
    ("GET", "prompt"): SimulatedComfyUI._exec_info,
    ("GET", "queue"): SimulatedComfyUI._queue,
    ("POST", "queue"): SimulatedComfyUI._change_queue,
    ("POST", "interrupt"): SimulatedComfyUI._interrupt,
    ("POST", "free"): SimulatedComfyUI._free,
    ("GET", "history"): SimulatedComfyUI._history,
    ("POST", "history"): SimulatedComfyUI._change_history,
    ("GET", "view"): SimulatedComfyUI._view,
    ("POST", "upload"): SimulatedComfyUI._upload,
    ("GET", "object_info"): SimulatedComfyUI._object_info,
    ("GET", "models"): SimulatedComfyUI._models,
    ("GET", "features"): SimulatedComfyUI._features,
    ("GET", "embeddings"): SimulatedComfyUI._nothing,
    ("GET", "extensions"): SimulatedComfyUI._nothing,
    ("GET", "system_stats"): SimulatedComfyUI._system_stats,
    ("GET", "ws"): SimulatedComfyUI._ws,
}
