"""`GET /api/v1/why`: why a request waited, why a session began and ended (docs/api.md#why)."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, tzinfo

from aiohttp import web

from gpugate.api.routing import ApiRoute, ApiRoutes
from gpugate.billing.ledger import Ledger
from gpugate.billing.model import Session
from gpugate.errors import Forbidden, InvalidRequest, LedgerError, PathNotFound, ProviderUnavailable
from gpugate.lifecycle.lifecycle import Lifecycle
from gpugate.observability.history import History
from gpugate.proxy.auth import User
from gpugate.proxy.error_format import success
from gpugate.proxy.request_context import RequestContext
from gpugate.why.explain import Viewer, request_line, session_lines, waiting_line

MAX_WAITS = 10
"""How many waits of requests with the same id are told."""
SOMEONE = "another user"
LEDGER_RETRY_S = 30.0


class WhyApi:
    """Explains, out of the history, the open requests and the ledger.

    Args:
        flush: brings the ledger up to date.
        zone: of the times of day.
    """

    def __init__(
        self,
        history: History,
        lifecycle: Lifecycle,
        ledger: Ledger,
        flush: Callable[[], Awaitable[None]],
        zone: tzinfo,
    ) -> None:
        self._history = history
        self._lifecycle = lifecycle
        self._ledger = ledger
        self._flush = flush
        self._zone = zone

    def routes(self) -> ApiRoutes:
        """Return the endpoint."""
        return {"/api/v1/why": dict.fromkeys(("GET", "HEAD"), ApiRoute(self.why))}

    async def why(self, call: RequestContext) -> web.StreamResponse:
        """Answer for a request, a session, or the last session."""
        query = call.request.query
        if unknown := sorted(set(query) - {"request", "session"}):
            raise InvalidRequest(f"{unknown[0]}: unknown; this takes request or session")
        if len(query) > 1:
            raise InvalidRequest("request, session: one of the two")
        user = call.user
        assert user is not None
        try:
            await self._flush()
            if "request" in query:
                lines = await self._request_lines(query["request"], user)
            else:
                lines = await self._session_lines(await self._session(query.get("session")), user)
        except LedgerError as error:
            raise ProviderUnavailable(str(error), retry_after_s=LEDGER_RETRY_S) from error
        body = success({"lines": lines}, call.request_id, time.time())
        return web.Response(body=body, content_type="application/json")

    # --- requests -----------------------------------------------------------------------------

    # A client chooses its ids, and another one may choose the same: each user sees the own ones.
    async def _request_lines(self, request_id: str, user: User) -> list[str]:
        opened = [one for one in self._lifecycle.open_requests() if one.request_id == request_id]
        waits = self._history.waits(request_id)
        started = await self._ledger.starts(MAX_WAITS, request_id=request_id) if request_id else []
        if not (opened or waits or started):
            raise PathNotFound("request: none is known by this id that has waited or started the pod")
        lines = [
            waiting_line(one, self._history.parts(one.seconds), self._lifecycle.status_now())
            for one in opened
            if one.waiting and _may_see(user, one.user)
        ]
        seen = [wait for wait in waits if _may_see(user, wait.request.user)]
        lines += [request_line(wait) for wait in seen[:MAX_WAITS]]
        for row in started:
            if _may_see(user, row.started_by):
                lines += ["it started the pod:", *await self._session_lines(row, user)]
        lines = lines or [
            f"request {request_id} has not waited" for one in opened if _may_see(user, one.user)
        ]
        if not lines:
            raise Forbidden("the token's scope does not cover requests of others (needed: cost)")
        return lines

    # --- sessions -----------------------------------------------------------------------------

    async def _session(self, session_id: str | None) -> Session:
        if session_id is not None:
            row = await self._ledger.session(session_id)
        else:
            row = next(iter(await self._ledger.starts(1)), None)
        if row is None:
            message = (
                "there was no session yet" if session_id is None else "session: there is none by this id"
            )
            raise PathNotFound(message)
        return row

    async def _session_lines(self, row: Session, user: User) -> list[str]:
        notes = self._history.notes(row.id)
        last_use = notes.last_use
        if last_use is None and row.ended_at is not None:
            uses = await self._ledger.usage(row.id)
            last = max(uses, key=lambda use: use.ended_at, default=None)
            last_use = None if last is None else (last.user, "")
        is_coming = row.ended_at is None and row.ready_at is None
        viewer = Viewer(lambda name: name if _may_see(user, name) else SOMEONE, self._zone, datetime.now(UTC))
        return list(
            session_lines(
                row,
                viewer,
                purpose=self._purpose(row),
                parts=self._history.starting_parts() if is_coming else notes.parts,
                last_use=last_use,
                status=self._lifecycle.status_now(),
            )
        )

    def _purpose(self, row: Session) -> str:
        """Return what the request was that started it; empty if that is not known any more."""
        mine = row.request_id, row.started_by
        for one in self._lifecycle.open_requests():
            if (one.request_id, one.user) == mine:
                return one.purpose
        for wait in self._history.waits(row.request_id):
            if wait.request.user == row.started_by:
                return wait.request.purpose
        return ""


def _may_see(user: User, other: str) -> bool:
    return other == user.subject or user.has_scope("cost")
