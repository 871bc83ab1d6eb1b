"""The endpoint for Telegram's webhook calls: checks the secret, then the body, then hands the update on.

It needs no token of ours: the secret in Telegram's header is the key. aiogram's `SimpleRequestHandler` is not
used because it does not keep to the error envelope: 401 as plain text, 500 for invalid JSON or a header that
is not ASCII, 200 for a JSON array. The update goes to `Dispatcher.feed_update` instead (bot/telegram.py).
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import orjson
from aiohttp import web
from attrs import field, frozen

from gpugate.api.routing import ApiRoute, ApiRoutes
from gpugate.errors import InvalidRequest, InvalidToken, PathNotFound, ShuttingDown
from gpugate.proxy.request_context import BodyLimits, RequestContext, read_body

PATH = "/api/v1/bot/telegram"
SECRET_HEADER = "X-Telegram-Bot-Api-Secret-Token"
LIMITS = BodyLimits(1024 * 1024, 10.0, key="")  # real updates have a few thousand bytes, and come at once

Submit = Callable[[Mapping[str, Any]], Awaitable[bool]]


@frozen
class TelegramWebhook:
    """The endpoint.

    Attributes:
        secret: what Telegram was told to send; None: the bot is off or polls, so nothing is here (404).
        submit: starts the work on an update and returns; False: not now, Telegram has to send it again.
    """

    secret: str | None = field(repr=False)
    submit: Submit

    def routes(self) -> ApiRoutes:
        """The endpoint, for the table of routes."""
        return {PATH: {"POST": ApiRoute(self.update, public=True)}}

    async def update(self, call: RequestContext) -> web.StreamResponse:
        """Take one update; its work is done after the answer."""
        if not self.secret:
            raise PathNotFound
        given = call.request.headers.get(SECRET_HEADER, "")
        if not hmac.compare_digest(_bytes(given), _bytes(self.secret)):
            raise InvalidToken("Telegram's secret token is missing or wrong")
        if not await self.submit(_parsed(await read_body(call.request, LIMITS))):
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
