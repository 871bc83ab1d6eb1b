"""Telegram, as far as a bot sees it: its HTTP side, its people, and its bad days."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Self

import aiohttp
from aiogram.types import Update, User
from aiohttp import web
from attrs import define, field

from gpugate_testing.telegram.methods import Methods, in_topic, plain
from gpugate_testing.telegram.update_queue import UpdateQueue
from gpugate_testing.telegram.values import Key, Refusal, Sent, sides

TOKEN = "123456:simulated-telegram-token-of-a-bot"
SOON_S = 5.0
LOOK_S = 0.02
LARGEST_UPLOAD = 64 * 1024 * 1024
_WELL_FORMED = re.compile(r"\d+:[\w-]+")


@define
class SimulatedTelegram:
    """A Bot API server on 127.0.0.1; `async with` starts and stops it.

    Attributes:
        token: of its one bot.
        port: where it listens; 0: the system chooses.
        faults: by method ("sendMessage", "file" for downloads), what goes wrong the next times. Text is
            sent as a 502's page, None closes the connection.
        calls: the methods that were called, in order.
    """

    token: str = TOKEN
    username: str = "gpu_bot"
    port: int = 0
    faults: dict[str, deque[Refusal | str | None]] = field(factory=dict)
    calls: list[str] = field(factory=list)
    post: UpdateQueue = field(factory=UpdateQueue)
    methods: Methods = field(init=False)
    _updates: int = 1000
    _runner: web.ServerRunner | None = None
    _happened: asyncio.Event = field(factory=asyncio.Event)

    def __attrs_post_init__(self) -> None:
        me = User(id=int(self.token.partition(":")[0]), is_bot=True, first_name="GPU", username=self.username)
        self.methods = Methods(me=me, post=self.post)

    async def __aenter__(self) -> Self:
        self._runner = web.ServerRunner(web.Server(self._handle, access_log=None), shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = int(self._runner.addresses[0][1])
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.post.aclose()
        if self._runner is not None:
            await self._runner.cleanup()

    @property
    def url(self) -> str:
        """The `api_base` for a bot."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def sent(self) -> list[Sent]:
        """The bot's messages, oldest first."""
        return self.methods.sent

    def texts(self, chat: int) -> list[str]:
        """What the bot said in a chat: texts and captions."""
        return [sent.text for sent in self.sent if sent.chat == chat]

    def fail(self, method: str, *faults: Refusal | str | None) -> None:
        """Let the next calls of this method go wrong."""
        self.faults.setdefault(method, deque()).extend(faults)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until this holds; it is looked at after each call, and now and then.

        Raises:
            TimeoutError: it did not come true in time.
        """
        async with asyncio.timeout(SOON_S):
            while not condition():
                self._happened.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._happened.wait(), LOOK_S)

    async def said(self, count: int = 1) -> Sent:
        """Wait for so many messages of the bot; return the last of them."""
        await self.until(lambda: len(self.sent) >= count)
        return self.sent[count - 1]

    # --- people -------------------------------------------------------------------------------

    def write(self, chat: int, text: str, *, topic: int | None = None, thread: int | None = None) -> int:
        """Somebody writes; return the update's number.

        Args:
            topic: of a chat that has topics; not given for the general one.
            thread: of replies, in a chat without topics.
        """
        entities = []
        if command := re.match(r"/[\w@]+", text):
            entities = [{"type": "bot_command", "offset": 0, "length": command.end()}]
        content: dict[str, Any] = {"text": text, **({"entities": entities} if entities else {})}
        if thread is not None:
            content["message_thread_id"] = thread
        return self._message(chat, {**content, **self._place(chat, topic)})

    def photo(
        self,
        chat: int,
        content: bytes,
        caption: str = "",
        *,
        claimed: int | None = None,
        album: str = "",
        topic: int | None = None,
    ) -> int:
        """Somebody sends a picture, in two sizes; `claimed` is how large it is said to be."""
        width, height = sides(content) or (640, 480)
        name = f"file{len(self.methods.files)}"
        small, large = f"{name}-small", f"{name}-large"
        self.methods.files |= {small: content[:1], large: content}
        if claimed is not None:
            self.methods.sizes[large] = claimed
        shown = [
            {"file_id": small, "file_unique_id": f"u{small}", "width": 1, "height": 1, "file_size": 1},
            {
                "file_id": large,
                "file_unique_id": f"u{large}",
                "width": width,
                "height": height,
                "file_size": len(content) if claimed is None else claimed,
            },
        ]
        more = self._place(chat, topic) | ({"caption": caption} if caption else {})
        return self._message(chat, {"photo": shown, **more, **({"media_group_id": album} if album else {})})

    def press(self, sent: Sent, key: Key) -> int:
        """Somebody presses a key, perhaps one that the bot has taken off since."""
        press = f"press{self._updates}"
        self.methods.presses.add(press)
        return self._update(
            {
                "callback_query": {
                    "id": press,
                    "from": _person(sent.chat),
                    "chat_instance": "1",
                    "data": key.data,
                    "message": self.methods.message(sent),
                }
            }
        )

    def move(self, old: int, new: int, *, silent: bool = False) -> None:
        """A group becomes a supergroup; `silent`: the two messages about it are lost."""
        self.meet(new)
        self.methods.moved[old] = new
        if not silent:
            self._message(old, {"migrate_to_chat_id": new})
            self._message(new, {"migrate_from_chat_id": old})

    def update(self, **kind: Any) -> int:
        """Anything else happens; return the update's number."""
        return self._update(kind)

    def meet(self, chat: int) -> dict[str, Any]:
        """A chat that the bot may write to."""
        group = {"id": chat, "type": "supergroup", "title": "A group"}
        alone = {"id": chat, "type": "private", "first_name": "Ada"}
        return self.methods.chats.setdefault(chat, group if chat < 0 else alone)

    async def redeliver(self, update_id: int, text: str, chat: int) -> int:
        """Call the webhook with an update a second time; return its status."""
        update = {"update_id": update_id, "message": {**self._head(chat), "text": text}}
        async with aiohttp.ClientSession() as session:
            await self.post.call(session, update)
        return self.post.attempts[-1]

    def _place(self, chat: int, topic: int | None) -> dict[str, Any]:
        if topic is None:
            return {}
        self.meet(chat)["is_forum"] = True
        self.methods.topics.setdefault(chat, set()).add(topic)
        return in_topic(topic)

    def _message(self, chat: int, content: Mapping[str, Any]) -> int:
        return self._update({"message": {**self._head(chat), **content}})

    def _head(self, chat: int) -> dict[str, Any]:
        shown = self.meet(chat)
        self.methods.message_ids += 1
        number = self.methods.message_ids
        return {"message_id": number, "date": int(time.time()), "chat": shown, "from": _person(chat)}

    def _update(self, content: Mapping[str, Any]) -> int:
        self._updates += 1
        self.post.put(plain(Update.model_validate({"update_id": self._updates, **content})))
        return self._updates

    # --- HTTP ---------------------------------------------------------------------------------

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            return await self._answer(request)
        except Refusal as no:
            return web.json_response(no.envelope, status=no.status)
        finally:
            self._happened.set()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        found = re.fullmatch(r"(/file)?/bot([^/]+)/(.+)", request.path)
        if found is None or not _WELL_FORMED.fullmatch(found[2]):
            raise Refusal(404, "Not Found")
        if found[2] != self.token:
            raise Refusal(401, "Unauthorized")
        params, parts = await _params(request)
        name = "file" if found[1] else found[3]
        self.calls.append(name)
        if faults := self.faults.get(name):
            return _bad_day(request, faults.popleft())
        if found[1]:
            return self._file(found[3])
        method = self.methods.find(name)
        if method is None:
            raise Refusal(404, "Not Found: method not found")
        return web.json_response({"ok": True, "result": await method(params, parts)})

    def _file(self, path: str) -> web.Response:
        name = path.removeprefix("photos/").removesuffix(".jpg")
        if name not in self.methods.files:
            raise Refusal(404, "Not Found")
        return web.Response(body=self.methods.files[name], content_type="application/octet-stream")


def _bad_day(request: web.BaseRequest, fault: Refusal | str | None) -> web.Response:
    if isinstance(fault, Refusal):
        raise fault
    if fault is None and request.transport is not None:
        request.transport.abort()
    return web.Response(status=502, text=fault or "", content_type="text/html")


async def _params(request: web.BaseRequest) -> tuple[dict[str, Any], dict[str, bytes]]:
    """A call's parameters, wherever they stand, and its uploaded files."""
    params: dict[str, Any] = dict(request.query)
    parts: dict[str, bytes] = {}
    if request.content_type == "application/json":
        params |= json.loads(await request.read() or b"{}")
    elif request.content_type == "multipart/form-data":
        async for part in await request.multipart():
            if not isinstance(part, aiohttp.BodyPartReader):
                raise Refusal(400, "Bad Request: nested parts")
            content = await _whole(part)
            if part.filename:
                parts[str(part.name)] = content
            else:
                params[str(part.name)] = content.decode()
    else:
        params |= dict(await request.post())
    return params, parts


async def _whole(part: aiohttp.BodyPartReader) -> bytes:
    content = bytearray()
    while piece := await part.read_chunk():
        content += piece
        if len(content) > LARGEST_UPLOAD:
            raise Refusal(413, "Request Entity Too Large")
    return bytes(content)


def _person(chat: int) -> dict[str, Any]:
    return {"id": abs(chat), "is_bot": False, "first_name": "Ada"}
