"""A simulated Vast.ai: its API with the lies that it tells (docs/providers.md#vastai).

It knows nothing of the plugin that is tested against it.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from math import inf
from typing import Any

import orjson
from aiohttp import web

from gpugate.provider_api import Phase
from gpugate_testing.clouds.clocks import Clock
from gpugate_testing.clouds.cloud import API_KEY, Cloud, Operation
from gpugate_testing.clouds.faults import BalanceZero, Capacity, Fault, RateLimit, Stale
from gpugate_testing.clouds.pods import Delays, SimPod
from gpugate_testing.clouds.vast_offers import DISK, default_offers, found, unknown_filters
from gpugate_testing.clouds.vast_payloads import (
    BILLED_IN,
    CREATE_FIELDS,
    CREATE_PENALTY_S,
    ERRORS,
    INTERVAL_S,
    PAGE,
    STATE_FIELDS,
    error,
    show_charges,
    show_instance,
)
from gpugate_testing.clouds.vast_ports import Ports

UNAVAILABLE = "Required resources are currently unavailable"
NO_CREDIT = "Your account lacks credit; see the billing page."


class VastSim(Cloud):
    """Vast.ai's v0 API (and the v1 list) at `api_base`.

    Operations, for `fail` and `count`: get, list, start, stop, label, delete, search, create, reboot,
    charges, user. A caller that is quicker than an endpoint's minimum interval gets the plain-text 429, and a
    strict cloud notes it.

    Attributes:
        ports: the map of ports; set `ports.upstreams[11434]` to a service's URL.
        offers: the market; change it as you like.
        ports_after_polls: so many looks at a running instance show no ports yet.
        balance_zero: nothing starts and nothing is rented until it is False again.
        wrong_key_is_404: as the search documents it for a key that it does not know.
        half_creates: so many creates fail and leave an instance all the same.
        refuses_quietly: so many starts are accepted, and dropped.
        searches_left: of the daily quota.
    """

    def __init__(
        self,
        *,
        clock: Clock | None = None,
        delays: Delays | None = None,
        strict: bool = True,
        api_key: str = API_KEY,
    ) -> None:
        super().__init__(clock=clock, delays=delays, strict=strict, api_key=api_key)
        self.ports = Ports()
        self.offers = default_offers()
        self.ports_after_polls = 0
        self.balance_zero = False
        self.wrong_key_is_404 = False
        self.half_creates = 0
        self.refuses_quietly = 0
        self.searches_left = 1000
        self._last_at: dict[str, float] = {}
        self._next_id = 20_481_234
        self._polls: dict[tuple[str, float], int] = {}

    @property
    def api_base(self) -> str:
        """What `providers.vastai.api_base` has to be."""
        return f"{self.url}/api/v0"

    def add_instance(self, number: int = 20_481_234, label: str = "ollama", **spec: Any) -> SimPod:
        """Have a stopped instance, as somebody rented it in the console."""
        return self._add(number, label, {"machine_id": 45_678, **spec})

    def freeze(self, pod: SimPod) -> None:
        """Pause the container; its GPU is billed on."""
        pod.spec["says"] = {"actual_status": "frozen"}

    def outbid(self, pod: SimPod, back_after_s: float = inf) -> None:
        """Take the GPU away; the instance starts again by itself when it comes back."""
        pod.become(Phase.STOPPED)
        pod.start(queued_s=back_after_s)

    async def stop(self) -> None:
        """Close the port, the mapped ports and every connection."""
        await super().stop()
        await self.ports.aclose()

    # --- the API ------------------------------------------------------------------------------

    def operations(self) -> Sequence[Operation]:
        """See docs/providers.md#vastai-api."""
        return (
            Operation("GET", "/api/v0/instances/{id}/", "get", self._get),
            Operation("GET", "/api/v1/instances/", "list", self._list),
            Operation("DELETE", "/api/v0/instances/{id}/", "delete", self._delete),
            Operation("POST", "/api/v0/bundles/", "search", self._search),
            Operation("PUT", "/api/v0/asks/{id}/", "create", self._create),
            Operation("PUT", "/api/v0/instances/reboot/{id}/", "reboot", self._reboot),
            Operation("GET", "/api/v0/charges/", "charges", self._charges),
            Operation("GET", "/api/v0/users/current/", "user", self._user),
        )

    def extend(self, app: web.Application) -> None:
        """The one path of all changes, whose operation is in its body, and the paths without their slash."""
        app.router.add_route("PUT", "/api/v0/instances/{id}/", self._change)
        paths = {operation.path for operation in self.operations()}
        for path in paths:
            app.router.add_route("*", path.rstrip("/"), self._redirect)

    async def _redirect(self, request: web.Request) -> web.Response:
        self.violations.append(f"no slash at the end of {request.path}")
        return web.Response(status=301, headers={"Location": f"{request.path}/"})

    def hourly_rate(self, pod: SimPod) -> Decimal:
        """As its offer said."""
        return Decimal(str(pod.spec["dph_total"]))

    def refusal(self, status: int, words: str) -> web.Response:
        """An error of the usual shape."""
        code, message = ERRORS.get(status, ("error", words))
        if status == 401 and self.wrong_key_is_404:
            status = 404
        return self._json(error(code, message), status)

    def refuse_rate(self, operation: str, fault: Fault | None) -> web.Response | None:
        """Minimum intervals; the 429 is plain text and usually without Retry-After."""
        endpoint = "state" if operation in ("start", "stop", "label") else operation
        interval = INTERVAL_S[endpoint]
        if isinstance(fault, RateLimit):
            return _too_frequent(interval, fault.retry_after)
        now, allowed_at = self.clock.now(), self._last_at.get(endpoint, -inf)
        if now >= allowed_at or not self.strict:
            self._last_at[endpoint] = now + interval
            return None
        self.violations.append(f"{operation}: {allowed_at - now:.3f} s too early")
        if endpoint == "create":
            self._last_at[endpoint] = now + CREATE_PENALTY_S
        return _too_frequent(interval, None)

    async def _get(self, request: web.Request, fault: Fault | None) -> web.Response:
        pod = self.find(request, stale=isinstance(fault, Stale))
        if pod is None or self.is_hidden(pod):
            return self._json({"instances": None})  # 200, not 404
        return self._json({"instances": await self._seen(pod, fault)})

    async def _list(self, request: web.Request, fault: Fault | None) -> web.Response:
        stale = isinstance(fault, Stale)
        begin, limit = int(request.query.get("after_token") or 0), int(request.query.get("limit") or PAGE)
        pods = [pod for pod in self.pods.values() if self.is_listed(pod, stale=stale)]
        page = [await self._seen(pod, fault) for pod in pods[begin : begin + min(limit, PAGE)]]
        after = begin + len(page)
        token = str(after) if after < len(pods) else None
        if token is not None:
            self._last_at.pop("list", None)  # the pages of one list are not counted against its interval
        body = {"success": True, "instances": page, "instances_found": len(page)}
        return self._json({**body, "total_instances": len(pods), "next_token": token})

    async def _change(self, request: web.Request) -> web.StreamResponse:
        """`{"state": ...}` or `{"label": ...}`: strict about its fields, then one operation each."""
        if (refused := self._at_the_door(request)) is not None:
            return refused
        given, unknown = await self.fields(request, STATE_FIELDS)
        handlers = {"running": ("start", self._start), "stopped": ("stop", self._stop)}
        name, handler = handlers.get(given.get("state", ""), ("label", self._label))
        if unknown or (name == "label" and not isinstance(given.get("label"), str)):
            return self.refusal(400, "")
        return await self._serve(Operation("PUT", "", name, handler))(request)

    async def _start(self, request: web.Request, fault: Fault | None) -> web.Response:
        pod = self.find(request)
        if pod is None:
            return self.refusal(404, "")
        if self.balance_zero or isinstance(fault, BalanceZero):
            return self._json(error("insufficient_credit", NO_CREDIT), 400)
        if isinstance(fault, Capacity):
            if fault.queued_s is None:
                return self._json(error("resources_unavailable", f"{UNAVAILABLE}."))
            pod.start(queued_s=fault.queued_s)
            return self._json(error("resources_unavailable", f"{UNAVAILABLE}, state change queued."))
        if self.refuses_quietly:
            self.refuses_quietly -= 1
        else:
            pod.start()
        return self._json({"success": True})

    async def _stop(self, request: web.Request, fault: Fault | None) -> web.Response:
        pod = self.find(request)
        if pod is None:
            return self.refusal(404, "")
        pod.stop()
        if not pod.ignore_stops:
            pod.spec.pop("says", None)
        return self._json({"success": True})

    async def _label(self, request: web.Request, fault: Fault | None) -> web.Response:
        pod = self.find(request)
        if pod is None:
            return self.refusal(404, "")
        pod.name = str(orjson.loads(await request.read())["label"])
        return self._json({"success": True})

    async def _reboot(self, request: web.Request, fault: Fault | None) -> web.Response:
        pod = self.find(request)
        if pod is None or pod.look() is not Phase.RUNNING:
            return self.refusal(404, "")
        pod.become(Phase.STARTING)
        pod.start()
        return self._json({"success": True})

    async def _delete(self, request: web.Request, fault: Fault | None) -> web.Response:
        pod = self.find(request)
        if pod is None:
            return self.refusal(404, "")
        pod.delete()
        return self._json({"success": True})

    async def _search(self, request: web.Request, fault: Fault | None) -> web.Response:
        wanted = orjson.loads(await request.read())
        if self.searches_left <= 0:
            return self._json({"error": "search_quota_exceeded"}, 429)
        self.searches_left -= 1
        if wrong := unknown_filters(wanted):
            self.violations += [f"no filter: {key}" for key in wrong]
            return self.refusal(400, "")
        return self._json({"offers": [] if isinstance(fault, Capacity) else found(self._free(), wanted)})

    async def _create(self, request: web.Request, fault: Fault | None) -> web.Response:
        given, unknown = await self.fields(request, CREATE_FIELDS)
        if unknown or not ({"image", "template_hash_id"} & set(given)):
            return self.refusal(400, "")
        if self.balance_zero or isinstance(fault, BalanceZero):
            return self._json(error("insufficient_credit", NO_CREDIT), 400)
        number = int(request.match_info["id"])
        offer = next((offer for offer in self._free() if offer.id == number), None)
        if offer is None or isinstance(fault, Capacity):
            said = f"error 410/3907: no_such_ask Instance type {number} is no longer available."
            return self._json({**error("no_such_ask", said), "ask_id": number}, 410)
        bid = given.get("price")
        if bid is not None and not 0 < offer.min_bid <= bid:
            return self.refusal(400, "")
        spec = {"fresh": True, "machine_id": offer.machine_id, "env": given.get("env", {})}
        made = {"gpu_name": offer.gpu_name, "num_gpus": offer.num_gpus, "dph_total": offer.dph_total}
        if bid is not None:
            made |= {"bid": bid, "dph_total": round(bid + DISK, 6)}
        pod = self._add(self._next_id, given.get("label", ""), {**spec, **made})
        self._next_id += 1
        pod.made = True
        pod.start()
        pod.was = None  # there was nothing before it
        if self.half_creates:
            self.half_creates -= 1
            return self._json({**error("create_failed", "host did not answer"), "new_contract": int(pod.id)})
        return self._json({"success": True, "new_contract": int(pod.id)})

    async def _charges(self, request: web.Request, fault: Fault | None) -> web.Response:
        filters = orjson.loads(request.query.get("select_filters", "{}"))
        if set(filters) - {"day"}:
            return self.refusal(400, "")
        results = show_charges(self.pods.values(), self.clock, filters.get("day", {}))
        begin = int(request.query.get("after_token") or 0)
        after = begin + PAGE
        token = str(after) if after < len(results) else None
        if token is not None:
            self._last_at.pop("charges", None)  # as for the list
        body = {"success": True, "results": results[begin:after], "count": len(results[begin:after])}
        return self._json({**body, "total": len(results), "next_token": token})

    async def _user(self, request: web.Request, fault: Fault | None) -> web.Response:
        credit = 0.0 if self.balance_zero else 25.0
        return self._json({"id": 1, "balance": 0.0, "credit": credit})

    # --- its words ----------------------------------------------------------------------------

    def _add(self, number: int, label: str, spec: dict[str, Any]) -> SimPod:
        self._next_id = max(self._next_id, number + 1)
        options = {"-p 11434:11434": "1", "-p 8188:8188": "1"}
        given = {"gpu_name": "RTX 4090", "num_gpus": 1, "dph_total": 0.4125, "env": options, **spec}
        return self.add(
            SimPod(
                id=str(number),
                name=label,
                clock=self.clock,
                delays=self.delays,
                billed_in=BILLED_IN,
                spec=given,
            )
        )

    def _free(self) -> list[Any]:
        taken = {pod.spec["machine_id"] for pod in self.pods.values() if pod.look() is not Phase.GONE}
        return [offer for offer in self.offers if offer.machine_id not in taken]

    async def _seen(self, pod: SimPod, fault: Fault | None) -> dict[str, Any]:
        if isinstance(fault, Stale) and pod.was is not None:
            return show_instance(pod.was, self.clock, None)
        inner = {option.split(":")[1]: 1 for option in pod.spec["env"] if option.startswith("-p ")}
        ports = await self.ports.of(pod, inner)
        row = show_instance(pod, self.clock, ports if self._shows_ports(pod) else None)
        if ports is not None and row["ports"] is None and self._polls[pod.id, pod.running_since or 0.0] % 2:
            del row["ports"]  # absent or null: both are seen
        return row

    def _shows_ports(self, pod: SimPod) -> bool:
        if pod.uptime_s is None:
            return False
        run = (pod.id, pod.running_since or 0.0)
        self._polls[run] = self._polls.get(run, 0) + 1
        return self._polls[run] > self.ports_after_polls

    @staticmethod
    def _json(value: object, status: int = 200) -> web.Response:
        return web.Response(status=status, body=orjson.dumps(value), content_type="application/json")


def _too_frequent(interval: float, retry_after: int | None) -> web.Response:
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    return web.Response(
        status=429, text=f"API requests too frequent: endpoint threshold={interval}", headers=headers
    )
