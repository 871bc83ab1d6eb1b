"""A simulated RunPod: REST v2 with its limits and lies, and the edge proxy (docs/providers.md#runpod).

It knows nothing of the plugin that is tested against it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import orjson
from aiohttp import web

from gpugate.provider_api import Phase
from gpugate_testing.clouds.clocks import Clock
from gpugate_testing.clouds.cloud import API_KEY, Cloud, Operation
from gpugate_testing.clouds.faults import BalanceZero, Capacity, Fault, Locked, RateLimit, Stale
from gpugate_testing.clouds.pods import Delays, SimPod
from gpugate_testing.clouds.runpod_payloads import (
    ACTIONS,
    BILLED_IN,
    BUCKETS_S,
    CREATE_FIELDS,
    DEFAULT_GPUS,
    HOST_FULL,
    NONE_LEFT,
    PAGE,
    STATUS,
    WINDOW_S,
    problem,
    rate,
    show_bill,
    show_gpu,
    show_pod,
)
from gpugate_testing.clouds.runpod_proxy import RunPodProxy


class RunPodSim(Cloud):
    """RunPod's REST v2 at `api_base` and its edge at `proxy_url`.

    Operations, for `fail` and `count`: get, list, start, stop, restart, terminate, delete, create, gpus,
    billing; "edge" for the proxy.

    Attributes:
        edge: the proxy; set `edge.upstreams[11434]` to a service's URL.
        gpus: the catalogue by GPU id; replace a line to change stock or price.
        volumes: network volumes, id to data centre.
        templates: templates' fields by id.
        balance_zero: no start and no new pod until it is False again.
        error_bills: pods made from now on are billed in ERROR too (not known of the real one).
        per_minute: requests that the limit lets pass; a strict cloud notes each one beyond it.
    """

    def __init__(
        self,
        *,
        clock: Clock | None = None,
        delays: Delays | None = None,
        strict: bool = True,
        api_key: str = API_KEY,
        seed: int = 0,
    ) -> None:
        super().__init__(clock=clock, delays=delays, strict=strict, api_key=api_key)
        self.edge = RunPodProxy(self.clock, self.pods, self.faults)
        self.gpus = {gpu.id: gpu for gpu in DEFAULT_GPUS}
        self.volumes: dict[str, str] = {}
        self.templates: dict[str, dict[str, Any]] = {}
        self.balance_zero = False
        self.error_bills = False
        self.per_minute = 60
        self._draw = random.Random(seed)
        self._window = 0.0
        self._used = 0

    @property
    def api_base(self) -> str:
        """What `providers.runpod.api_base` has to be."""
        return f"{self.url}/v2"

    @property
    def proxy_url(self) -> str:
        """What `providers.runpod.proxy_url` has to be."""
        return f"{self.url}/edge/{{pod_id}}/{{port}}"

    def add_pod(
        self, pod_id: str = "k3x9v2m7q1", name: str = "gpugate-main", *, gpu: str = "", **spec: Any
    ) -> SimPod:
        """Have a stopped pod with a persistent disk, as somebody made it in the console."""
        given = {
            "image": "ollama/ollama:latest",
            "disk": 30,
            "ports": ["11434/http", "8188/http", "11434/tcp"],
            "env": {"OLLAMA_HOST": "0.0.0.0"},
            "mounts": {"persistent": {"size": 100, "path": "/workspace"}},
            "gpu": {"id": gpu or DEFAULT_GPUS[0].id, "count": 1},
            "cloud": "SECURE",
            **spec,
        }
        return self.add(self._pod(pod_id, name, given))

    def _pod(self, pod_id: str, name: str, spec: dict[str, Any]) -> SimPod:
        billed_in = BILLED_IN | {Phase.FAILED} if self.error_bills else BILLED_IN
        return SimPod(
            id=pod_id, name=name, clock=self.clock, delays=self.delays, billed_in=billed_in, spec=spec
        )

    # --- the API ------------------------------------------------------------------------------

    def operations(self) -> Sequence[Operation]:
        """See docs/providers.md#runpod-operations."""
        return (
            Operation("GET", "/v2/pods/{id}", "get", self._get),
            Operation("GET", "/v2/pods", "list", self._list),
            Operation("POST", "/v2/pods", "create", self._create),
            Operation("DELETE", "/v2/pods/{id}", "delete", self._delete),
            Operation("GET", "/v2/catalog/gpus", "gpus", self._catalog),
            Operation("GET", "/v2/billing/pods", "billing", self._billing),
            Operation("POST", "/graphql", "graphql", self._graphql),
        )

    def extend(self, app: web.Application) -> None:
        """The edge, and the one path of all actions, whose operation is in its body."""
        app.router.add_route("POST", "/v2/pods/{id}/action", self._action)
        self.edge.extend(app)

    def hourly_rate(self, pod: SimPod) -> Decimal:
        """By the catalogue."""
        return Decimal(str(rate(pod, self.gpus)))

    def refusal(self, status: int, words: str) -> web.Response:
        """RFC 9457."""
        return self._problem(status, words)

    def refuse_rate(self, operation: str, fault: Fault | None) -> web.Response | None:
        """One window of a minute over all calls."""
        if isinstance(fault, RateLimit):
            headers = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
            return self._problem(429, "rate limit exceeded for the minute window", headers)
        now = self.clock.now()
        if now >= self._window + WINDOW_S:
            self._window, self._used = now, 0
        self._used += 1
        if not self.strict or self._used <= self.per_minute:
            return None
        self.violations.append(f"more than {self.per_minute} requests in a minute ({operation})")
        left = str(max(1, round(self._window + WINDOW_S - now)))
        return self._problem(429, "rate limit exceeded for the minute window", {"Retry-After": left})

    async def _get(self, request: web.Request, fault: Fault | None) -> web.Response:
        pod = self.find(request, stale=isinstance(fault, Stale))
        if pod is None:
            return self._problem(404, "pod not found")
        return self._json(self._seen(pod, fault))

    async def _list(self, request: web.Request, fault: Fault | None) -> web.Response:
        pods = [pod for pod in self.pods.values() if self.is_listed(pod, stale=isinstance(fault, Stale))]
        begin = int(request.query.get("cursor") or 0)
        page = [self._seen(pod, fault) for pod in pods[begin : begin + PAGE]]
        more = begin + PAGE < len(pods)
        pagination = {"hasNextPage": more, "nextCursor": str(begin + PAGE) if more else None}
        return self._json({"pods": page, "pagination": pagination})

    async def _action(self, request: web.Request) -> web.StreamResponse:
        """`{"action": ...}`: strict about its fields, then one operation each."""
        if (refused := self._at_the_door(request)) is not None:
            return refused
        given, unknown = await self.fields(request, ("action",))
        handlers = {
            "start": self._start,
            "stop": self._stop,
            "restart": self._restart,
            "terminate": self._delete,
        }
        name = given.get("action")
        handler = handlers.get(name) if isinstance(name, str) else None
        if unknown or handler is None:
            return self._problem(
                422, "Request validation failed.", errors=unknown or ["$.action: not allowed"]
            )
        return await self._serve(Operation("POST", "", str(name), handler))(request)

    async def _start(self, request: web.Request, fault: Fault | None) -> web.Response:
        pod = self.find(request)
        if pod is None:
            return self._problem(404, "pod not found")
        if (refused := self._refused_start(pod, fault, HOST_FULL)) is not None:
            return refused
        pod.start()
        return self._json(self._seen(pod, fault))

    def _refused_start(self, pod: SimPod, fault: Fault | None, full: str) -> web.Response | None:
        if self.balance_zero or isinstance(fault, BalanceZero):
            return self._problem(402, "Insufficient balance.")
        if isinstance(fault, Capacity):
            return self._problem(400, full)
        if "start" not in ACTIONS[STATUS[pod.look()]]:
            return self._not_valid("start", pod)
        return None

    async def _stop(self, request: web.Request, fault: Fault | None) -> web.Response:
        pod = self.find(request)
        if pod is None:
            return self._problem(404, "pod not found")
        if pod.locked or isinstance(fault, Locked):
            return self._problem(409, "pod is locked")
        if "stop" not in ACTIONS[STATUS[pod.look()]]:
            return self._not_valid("stop", pod)
        pod.stop()
        return self._json(self._seen(pod, fault))

    async def _restart(self, request: web.Request, fault: Fault | None) -> web.Response:
        pod = self.find(request)
        if pod is None:
            return self._problem(404, "pod not found")
        if pod.look() is not Phase.RUNNING:
            return self._not_valid("restart", pod)
        pod.restart()
        return self._json(self._seen(pod, fault))

    async def _delete(self, request: web.Request, fault: Fault | None) -> web.Response:
        pod = self.find(request)
        if pod is None or pod.look() is Phase.GONE:
            return self._problem(404, "pod not found")
        if pod.locked or isinstance(fault, Locked):
            return self._problem(409, "pod is locked")
        pod.delete()
        return web.Response(status=204)

    async def _create(self, request: web.Request, fault: Fault | None) -> web.Response:
        given, unknown = await self.fields(request, CREATE_FIELDS)
        if unknown or "name" not in given or not ({"image", "templateId"} & set(given)):
            errors = unknown or ["$: missing properties 'name', 'image'"]
            return self._problem(422, "Request validation failed.", errors=errors)
        if self.balance_zero or isinstance(fault, BalanceZero):
            return self._problem(402, "Insufficient balance.")
        if isinstance(fault, Capacity):
            return self._problem(400, NONE_LEFT)
        template = self.templates.get(given.get("templateId", ""), {})
        if "templateId" in given and not template:
            return self._problem(404, "template not found")
        if (wrong := self._impossible(given)) is not None:
            return self._problem(400, wrong)
        env = {**template.get("env", {}), **given.get("env", {})}
        spec = {"ports": [], "disk": 10, "mounts": {}, "cloud": "SECURE", **template, **given, "env": env}
        pod = self.add(self._pod(self._new_id(), given["name"], spec))
        pod.made = True
        pod.start()
        pod.was = None  # there was no pod before it
        return self._json(self._seen(pod, None), status=201)

    def _impossible(self, given: Mapping[str, Any]) -> str | None:
        gpu = self.gpus.get(given.get("gpu", {}).get("id", ""))
        if gpu is None:
            return "gpu type not found"
        wanted = given.get("dataCenterIds") or list(gpu.data_centers)
        if gpu.availability == "NONE" or not set(wanted) & set(gpu.data_centers):
            return NONE_LEFT
        for mount in given.get("mounts", {}).get("network", ()):
            if given.get("cloud", "SECURE") != "SECURE":
                return "network volumes need the secure cloud"
            if self.volumes.get(mount.get("volumeId")) not in wanted:
                return "the network volume is in another data center"
        return None

    async def _catalog(self, request: web.Request, fault: Fault | None) -> web.Response:
        return self._json({"gpus": [show_gpu(gpu) for gpu in self.gpus.values()]})

    async def _graphql(self, request: web.Request, fault: Fault | None) -> web.Response:
        """The two calls about spot pods; errors come with a 200."""
        given = orjson.loads(await request.read())
        wanted = given["variables"]["input"]
        if "podRentInterruptable" not in given["query"]:
            lines = [
                {"id": gpu.id, "lowestPrice": {"minimumBidPrice": gpu.min_bid or None}}
                for gpu in self.gpus.values()
            ]
            return self._json({"data": {"gpuTypes": lines}})
        gpu = self.gpus[wanted["gpuTypeId"]]
        if isinstance(fault, Capacity):
            return self._json({"errors": [{"message": NONE_LEFT}], "data": {"podRentInterruptable": None}})
        if not 0 < gpu.min_bid <= wanted["bidPerGpu"]:
            return self._json({"errors": [{"message": "The bid is below the spot price."}]})
        spec = {
            "image": wanted.get("imageName", ""),
            "disk": wanted["containerDiskInGb"],
            "ports": wanted["ports"].split(","),
            "env": {pair["key"]: pair["value"] for pair in wanted["env"]},
            "mounts": {},
            "gpu": {"id": gpu.id, "count": wanted["gpuCount"]},
            "cloud": wanted["cloudType"],
            "bidPerGpu": wanted["bidPerGpu"],
        }
        pod = self.add(self._pod(self._new_id(), wanted["name"], spec))
        pod.made = True
        pod.start()
        pod.was = None
        return self._json({"data": {"podRentInterruptable": {"id": pod.id}}})

    def outbid(self, pod: SimPod) -> None:
        """Stop a spot pod, as RunPod does when another bid is higher."""
        pod.become(Phase.STOPPED)

    async def _billing(self, request: web.Request, fault: Fault | None) -> web.Response:
        if request.query.get("bucketSize", "day") not in BUCKETS_S:
            return self._problem(422, "Request validation failed.", errors=["$.bucketSize: not allowed"])
        wanted = request.query.get("podId")
        pods = [pod for pod in self.pods.values() if wanted in (None, pod.id)]
        return self._json(show_bill(pods, self.clock, self.gpus, dict(request.query)))

    # --- its words ----------------------------------------------------------------------------

    def _seen(self, pod: SimPod, fault: Fault | None) -> dict[str, Any]:
        stale = pod.was if isinstance(fault, Stale) else None
        return show_pod(stale or pod, self.clock, self.gpus)

    def _not_valid(self, action: str, pod: SimPod) -> web.Response:
        status = STATUS[pod.look()]
        return self._problem(409, f'action "{action}" is not valid for a pod in status {status}')

    def _problem(
        self,
        status: int,
        detail: str,
        headers: Mapping[str, str] | None = None,
        *,
        errors: list[str] | None = None,
    ) -> web.Response:
        return web.Response(
            status=status,
            body=orjson.dumps(problem(status, detail, errors or [])),
            headers={**self._limits(), **(headers or {})},
            content_type="application/problem+json",
        )

    def _json(self, value: object, status: int = 200) -> web.Response:
        body = orjson.dumps(value)
        return web.Response(status=status, body=body, headers=self._limits(), content_type="application/json")

    def _limits(self) -> dict[str, str]:
        left = max(0, self.per_minute - self._used)
        until = max(0, round(self._window + WINDOW_S - self.clock.now()))
        return {
            "RateLimit-Policy": f'"minute";q={self.per_minute};w={WINDOW_S:g}',
            "RateLimit": f'"minute";r={left};t={until}',
        }

    def _new_id(self) -> str:
        return "".join(self._draw.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=14))
