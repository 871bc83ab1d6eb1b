"""The door for Telegram's webhook calls: secret before body, then handed on; knows nothing of bots.

There is no token of ours on this path: the secret in Telegram's header is the key. Without a bot in
webhook mode there is nothing at this path.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from typing import Any

import orjson
from aiohttp import web
from attrs import field, frozen

from gpugate.api.gpu import OwnRoute, OwnRoutes
from gpugate.errors import InvalidRequest, InvalidToken, PathNotFound, ShuttingDown
from gpugate.proxy.request_body import read_body
from gpugate.proxy.request_context import Call

PATH = "/api/v1/bot/telegram"
SECRET_HEADER = "X-Telegram-Bot-Api-Secret-Token"
LARGEST_UPDATE = 1024 * 1024  # bytes; real ones have a few thousand

Take = Callable[[Mapping[str, Any]], bool]


@frozen
class TelegramWebhook:
    """The endpoint.

    Attributes:
        secret: what Telegram was told to send; None: no bot, or one that polls.
        take: takes an update at once; False: not now, it shall come again.
    """

    secret: str | None = field(repr=False)
    take: Take

    def routes(self) -> OwnRoutes:
        """The endpoint, for the gate's table."""
        return {PATH: {"POST": OwnRoute(self.update, public=True)}}

    async def update(self, call: Call) -> web.StreamResponse:
        """Take one update; its work comes later."""
        if not self.secret:
            raise PathNotFound
        shown = call.request.headers.get(SECRET_HEADER, "")
        if not hmac.compare_digest(_bytes(shown), _bytes(self.secret)):
            raise InvalidToken("Telegram's secret token is missing or wrong")
        if not self.take(_parsed(await read_body(call.request, LARGEST_UPDATE, key=""))):
            raise ShuttingDown
        return web.Response()


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")  # as aiohttp decoded it: any byte may be there


def _parsed(body: bytes) -> Mapping[str, Any]:
    try:
        update = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise InvalidRequest("the body is no JSON") from None
    if not isinstance(update, dict) or not isinstance(update.get("update_id"), int):
        raise InvalidRequest("the body is no update of Telegram's: update_id is missing")
    return update
