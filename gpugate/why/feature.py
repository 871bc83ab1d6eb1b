"""`GET /api/v1/why`: why a request waited, why a session began and ended (docs/api.md#why)."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, tzinfo

from aiohttp import web
from attrs import frozen

from gpugate.api.routing import ApiRoute, ApiRoutes
from gpugate.billing.ledger import Ledger
from gpugate.billing.model import Session
from gpugate.errors import Forbidden, InvalidRequest, LedgerError, PathNotFound, ProviderUnavailable
from gpugate.lifecycle.lifecycle import Lifecycle
from gpugate.observability.history import History, SessionNotes
from gpugate.proxy.auth import User
from gpugate.proxy.error_format import success
from gpugate.proxy.request_context import RequestContext
from gpugate.why.explain import Viewer, request_line, session_lines, waiting_line

MAX_WAITS = 10
"""How many waits of requests with the same id are told."""
SOMEONE = "another user"
LEDGER_RETRY_S = 30.0


@frozen
class ExplainedPod:
    """What is known of a pod beside the ledger."""

    history: History
    lifecycle: Lifecycle


class WhyApi:
    """Explains, out of the pods' histories, the open requests and the ledger.

    Args:
        pods: by name; the lines name a pod if there are several.
        flush: brings the ledger up to date.
        zone: of the times of day.
    """

    def __init__(
        self,
        pods: Mapping[str, ExplainedPod],
        ledger: Ledger,
        flush: Callable[[], Awaitable[None]],
        zone: tzinfo,
    ) -> None:
        self._pods = pods
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
        opened = [
            (pod, one)
            for pod in self._pods
            for one in self._pods[pod].lifecycle.open_requests()
            if one.request_id == request_id
        ]
        waits = [(pod, wait) for pod in self._pods for wait in self._pods[pod].history.waits(request_id)]
        started = await self._ledger.starts(MAX_WAITS, request_id=request_id) if request_id else []
        if not (opened or waits or started):
            raise PathNotFound("request: none is known by this id that has waited or started the pod")
        lines = [
            waiting_line(
                one,
                self._pods[pod].history.parts(one.seconds),
                self._pods[pod].lifecycle.status_now(),
                self._name(pod),
            )
            for pod, one in opened
            if one.waiting and _may_see(user, one.user)
        ]
        seen = [(pod, wait) for pod, wait in waits if _may_see(user, wait.request.user)]
        lines += [request_line(wait, self._name(pod)) for pod, wait in seen[:MAX_WAITS]]
        for row in started:
            if _may_see(user, row.started_by):
                lines += ["it started the pod:", *await self._session_lines(row, user)]
        lines = lines or [
            f"request {request_id} has not waited" for _, one in opened if _may_see(user, one.user)
        ]
        if not lines:
            raise Forbidden("the token's scope does not cover requests of others (needed: cost)")
        return lines

    def _name(self, pod: str) -> str:
        """Return the pod's name if it is to be said: not that of the only one."""
        return "" if list(self._pods) == [pod] else pod

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
        pod = self._pods.get(row.pod)
        notes = pod.history.notes(row.id) if pod is not None else SessionNotes()
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
                parts=pod.history.starting_parts() if is_coming and pod is not None else notes.parts,
                last_use=last_use,
                status=pod.lifecycle.status_now() if pod is not None else None,
                pod=self._name(row.pod),
            )
        )

    def _purpose(self, row: Session) -> str:
        """Return what the request was that started it; empty if that is not known any more."""
        mine, pod = (row.request_id, row.started_by), self._pods.get(row.pod)
        if pod is None:
            return ""
        for one in pod.lifecycle.open_requests():
            if (one.request_id, one.user) == mine:
                return one.purpose
        for wait in pod.history.waits(row.request_id):
            if wait.request.user == row.started_by:
                return wait.request.purpose
        return ""


def _may_see(user: User, other: str) -> bool:
    return other == user.subject or user.has_scope("cost")
