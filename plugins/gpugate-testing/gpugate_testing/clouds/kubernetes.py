"""A simulated Kubernetes cluster: its API, one namespace with workloads, Pods, Jobs and Leases, and the bill.

It speaks to the client of a plugin and to `kubectl` alike. It knows nothing of the plugin that is tested
against it.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from math import inf
from typing import Any

import orjson
from aiohttp import web

from gpugate.provider_api import Phase
from gpugate_testing.clouds.clocks import Clock
from gpugate_testing.clouds.cloud import API_KEY, Cloud, Operation
from gpugate_testing.clouds.faults import Capacity, Fault, RateLimit
from gpugate_testing.clouds.kubernetes_objects import (
    NO_GPU,
    PAID_IN,
    Job,
    SimReplica,
    Waiting,
    Workload,
    discovered,
    show_job,
    show_list,
    show_pod,
    show_scale,
    show_workload,
    status_of,
)
from gpugate_testing.clouds.kubernetes_service import SimService
from gpugate_testing.clouds.pods import Delays, SimPod

MERGE_PATCHES = ("application/merge-patch+json", "application/strategic-merge-patch+json")
SCALE_FIELDS = {"kind", "apiVersion", "metadata", "spec", "status"}
RATE = Decimal("0.60")
PRICE_LABEL = "example.org/price-per-hour"
Check = Callable[[str, Mapping[str, Any]], Sequence[str]]


class KubernetesSim(Cloud):
    """A cluster at `url`, with one Deployment `ollama` at 0 replicas and a Service in front of it.

    Operations, for `fail` and `count`: get_scale, patch_scale, get_workload, list_pods, create_pod,
    delete_pod, list_jobs, create_job, delete_job, get_node, get_service, get_lease, create_lease,
    replace_lease, portforward.

    Attributes:
        workloads: by name. jobs: by name. leases: by name, as they were written.
        nodes: labels by the node's name.
        service: the Service of all Pods; set `service.upstream`.
        waiting: new Pods wait with this, and never run.
        queued_s: new Pods find no GPU for so long; `inf`: for ever.
        refused: the node refuses new Pods, since its GPU is missing.
        check: what is wrong with a manifest that is written, by its kind.
        tls: its certificate, for clients that give no credentials without TLS, such as kubectl.
    """

    def __init__(
        self,
        *,
        clock: Clock | None = None,
        delays: Delays | None = None,
        strict: bool = True,
        api_key: str = API_KEY,
        namespace: str = "default",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__(clock=clock, delays=delays, strict=strict, api_key=api_key)
        self.tls = tls
        self.namespace = namespace
        self.workloads: dict[str, Workload] = {}
        self.jobs: dict[str, Job] = {}
        self.leases: dict[str, dict[str, Any]] = {}
        self.nodes = {"gpu-node-1": {PRICE_LABEL: str(RATE), "nvidia.com/gpu.product": "NVIDIA-L4"}}
        self.waiting: Waiting | None = None
        self.queued_s = 0.0
        self.refused = False
        self.check: Check = lambda _, __: ()
        self.service = SimService(self._is_ready)
        self._made = 0
        self.add_workload("Deployment", "ollama")

    async def start(self) -> None:
        """Listen on free ports: the API's, and the NodePort."""
        await self.service.start()
        await super().start()

    async def stop(self) -> None:
        """Close both."""
        await self.service.stop()
        await super().stop()

    def add_workload(self, kind: str, name: str) -> Workload:
        """Have a workload without replicas."""
        self.workloads[name] = Workload(kind, name, {"app": name})
        return self.workloads[name]

    def hourly_rate(self, pod: SimPod) -> Decimal:
        """The same for all."""
        return RATE

    # --- what controllers do ------------------------------------------------------------------

    @property
    def replicas(self) -> list[SimReplica]:
        """Every Pod that the API shows."""
        pods = [pod for pod in self.pods.values() if isinstance(pod, SimReplica)]
        return [pod for pod in pods if pod.look() is not Phase.GONE]

    def reconcile(self) -> None:
        """Make the Pods that are missing, and delete those that are too many."""
        for workload in self.workloads.values():
            active = self._active(workload)
            for pod in active[workload.replicas :]:
                pod.stop()
            if not workload.failure:
                for _ in range(workload.replicas - len(active)):
                    self._make(workload.name, workload.labels)

    def scale_to(self, replicas: int, name: str = "ollama") -> None:
        """Set the replicas, as the gateway or others do."""
        workload = self.workloads[name]
        if workload.replicas != replicas:
            workload.replicas = replicas
            workload.version += 1
        self.reconcile()

    def evict(self, pod: SimReplica) -> None:
        """Let the kubelet end a Pod, which stays as a record; its controller makes another."""
        pod.ended = ("Evicted", "The node was low on resource: memory.")
        pod.become(Phase.FAILED)
        self.service.cut()
        self.reconcile()

    def lose(self, pod: SimReplica) -> None:
        """Let a Pod vanish, as after a deletion by force; its controller makes another."""
        pod.become(Phase.GONE)
        self.service.cut()
        self.reconcile()

    def _active(self, workload: Workload) -> list[SimReplica]:
        return [pod for pod in self.replicas if pod.owner == workload.name and pod.is_active]

    def _make(self, owner: str, labels: Mapping[str, str], name: str = "") -> SimReplica:
        self._made += 1
        pod = SimReplica(
            id=name or f"{owner}-5d9c7b-{self._made:05d}",
            name=name or f"{owner}-5d9c7b-{self._made:05d}",
            clock=self.clock,
            delays=self.delays,
            billed_in=PAID_IN,
            owner=owner,
            labels=dict(labels),
            waiting=self.waiting,
            made=True,
        )
        self.add(pod)
        if self.refused and not any(p.ended[0] == "UnexpectedAdmissionError" for p in self.replicas):
            pod.ended = ("UnexpectedAdmissionError", NO_GPU)
            pod.become(Phase.FAILED)
            return self._make(owner, labels)
        pod.never_runs = self.refused
        pod.start(queued_s=self.queued_s)
        return pod

    def _is_ready(self) -> bool:
        return any(pod.serves and not pod.never_ready for pod in self.replicas)

    # --- the API ------------------------------------------------------------------------------

    def operations(self) -> Sequence[Operation]:
        """The paths of one namespace."""
        space = f"/namespaces/{self.namespace}"
        workload = f"/apis/apps/v1{space}/{{kind:deployments|statefulsets}}/{{id}}"
        pods, jobs = f"/api/v1{space}/pods", f"/apis/batch/v1{space}/jobs"
        leases = f"/apis/coordination.k8s.io/v1{space}/leases"
        return (
            Operation("GET", f"{workload}/scale", "get_scale", self._get_scale),
            Operation("PATCH", f"{workload}/scale", "patch_scale", self._patch_scale),
            Operation("GET", workload, "get_workload", self._get_workload),
            Operation("GET", pods, "list_pods", self._list_pods),
            Operation("POST", pods, "create_pod", self._create_pod),
            Operation("GET", f"{pods}/{{id}}", "get_pod", self._get_pod),
            Operation("DELETE", f"{pods}/{{id}}", "delete_pod", self._delete_pod),
            Operation("GET", f"{pods}/{{id}}/portforward", "portforward", self._port_forward),
            Operation("GET", jobs, "list_jobs", self._list_jobs),
            Operation("POST", jobs, "create_job", self._create_job),
            Operation("DELETE", f"{jobs}/{{id}}", "delete_job", self._delete_job),
            Operation("GET", "/api/v1/nodes/{id}", "get_node", self._get_node),
            Operation("GET", f"/api/v1{space}/services/{{id}}", "get_service", self._get_service),
            Operation("GET", f"{leases}/{{id}}", "get_lease", self._get_lease),
            Operation("POST", leases, "create_lease", self._create_lease),
            Operation("PUT", f"{leases}/{{id}}", "replace_lease", self._replace_lease),
            Operation("GET", "/{id:version|apis?|api/v1|apis/[a-z0-9.]+/v1}", "discovery", self._discover),
            Operation("*", "/{rest:.*}", "other", self._nothing),
        )

    def refusal(self, status: int, words: str) -> web.Response:
        """A `Status`; who gives no credentials is told no more than that."""
        return self._status(status, "Unauthorized", "Unauthorized" if status == 401 else words)

    def refuse_rate(self, operation: str, fault: Fault | None) -> web.Response | None:
        """Priority and fairness: plain text."""
        if not isinstance(fault, RateLimit):
            return None
        headers = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
        return web.Response(status=429, text="Too many requests, please try again later.", headers=headers)

    async def _get_scale(self, request: web.Request, fault: Fault | None) -> web.Response:
        workload = self._workload(request)
        if workload is None:
            return self._missing(request)
        return _json(show_scale(workload, self.namespace, len(self._active(workload))))

    async def _get_workload(self, request: web.Request, fault: Fault | None) -> web.Response:
        workload = self._workload(request)
        if workload is None:
            return self._missing(request)
        return _json(show_workload(workload, self.namespace, len(self._active(workload))))

    async def _patch_scale(self, request: web.Request, fault: Fault | None) -> web.Response:
        workload = self._workload(request)
        if workload is None:
            return self._missing(request)
        if request.content_type not in MERGE_PATCHES:
            self.violations.append(f"PATCH with {request.content_type}")
            return self._status(
                415, "UnsupportedMediaType", "the body of the request was in an unknown format"
            )
        given, unknown = await self.fields(request, SCALE_FIELDS)
        spec, metadata = given.get("spec") or {}, given.get("metadata") or {}
        replicas = spec.get("replicas", workload.replicas)
        if unknown or set(spec) - {"replicas"} or not isinstance(replicas, int):
            return self._status(400, "BadRequest", f"strict decoding error: unknown field {unknown or spec}")
        if replicas < 0:
            return self._status(
                422, "Invalid", "spec.replicas: Invalid value: must be greater than or equal to 0"
            )
        if metadata.get("resourceVersion", str(workload.version)) != str(workload.version):
            return self._status(409, "Conflict", f'Operation cannot be fulfilled on "{workload.name}"')
        was = self.queued_s
        if isinstance(fault, Capacity):
            self.queued_s = inf if fault.queued_s is None else fault.queued_s
        self.scale_to(replicas, workload.name)
        self.queued_s = was
        return _json(show_scale(workload, self.namespace, len(self._active(workload))))

    async def _list_pods(self, request: web.Request, fault: Fault | None) -> web.Response:
        pods = [pod for pod in self.replicas if _matches(pod.labels, request)]
        return _json(show_list("Pod", "v1", [show_pod(pod, self.namespace) for pod in pods]))

    async def _get_pod(self, request: web.Request, fault: Fault | None) -> web.Response:
        pod = self._pod(request)
        return self._missing(request) if pod is None else _json(show_pod(pod, self.namespace))

    async def _create_pod(self, request: web.Request, fault: Fault | None) -> web.Response:
        manifest, refused = await self._manifest(request, "Pod")
        if refused is not None:
            return refused
        name = manifest["metadata"]["name"]
        if any(pod.name == name for pod in self.replicas):
            return self._exists("pods", name)
        queued = isinstance(fault, Capacity)
        was, self.queued_s = self.queued_s, inf if queued else self.queued_s
        pod = self._make("", manifest["metadata"].get("labels") or {}, name)
        self.queued_s = was
        return _json(show_pod(pod, self.namespace), 201)

    async def _delete_pod(self, request: web.Request, fault: Fault | None) -> web.Response:
        pod = self._pod(request)
        if pod is None:
            return self._missing(request)
        pod.stop()
        shown = show_pod(pod, self.namespace)
        self.reconcile()
        return _json(shown)

    async def _port_forward(self, request: web.Request, fault: Fault | None) -> web.StreamResponse:
        pod = self._pod(request)
        if pod is None:
            return self._missing(request)
        return await self.service.forward(request, int(request.query["ports"]))

    async def _list_jobs(self, request: web.Request, fault: Fault | None) -> web.Response:
        self._drop_jobs()
        jobs = [
            job
            for job in self.jobs.values()
            if _matches(job.manifest["metadata"].get("labels") or {}, request)
        ]
        return _json(show_list("Job", "batch/v1", [show_job(job, self.namespace) for job in jobs]))

    async def _create_job(self, request: web.Request, fault: Fault | None) -> web.Response:
        manifest, refused = await self._manifest(request, "Job")
        if refused is not None:
            return refused
        name = manifest["metadata"]["name"]
        if name in self.jobs:
            return self._exists("jobs.batch", name)
        self.jobs[name] = Job(manifest)
        labels = (manifest["spec"]["template"].get("metadata") or {}).get("labels") or {}
        was, self.queued_s = self.queued_s, inf if isinstance(fault, Capacity) else self.queued_s
        self._make(name, {**labels, "job-name": name})
        self.queued_s = was
        return _json(show_job(self.jobs[name], self.namespace), 201)

    async def _delete_job(self, request: web.Request, fault: Fault | None) -> web.Response:
        job = self.jobs.get(request.match_info["id"])
        if job is None:
            return self._missing(request)
        job.deleted = True
        for pod in self.replicas:
            if pod.owner == job.manifest["metadata"]["name"]:
                pod.stop()
        self._drop_jobs()
        return _json(show_job(job, self.namespace))

    def _drop_jobs(self) -> None:
        """A Job goes with the last of its Pods (foreground deletion)."""
        owners = {pod.owner for pod in self.replicas}
        self.jobs = {name: job for name, job in self.jobs.items() if not job.deleted or name in owners}

    async def _get_node(self, request: web.Request, fault: Fault | None) -> web.Response:
        name = request.match_info["id"]
        if name not in self.nodes:
            return self._missing(request)
        metadata = {"name": name, "labels": self.nodes[name]}
        return _json({"kind": "Node", "apiVersion": "v1", "metadata": metadata, "spec": {}, "status": {}})

    async def _get_service(self, request: web.Request, fault: Fault | None) -> web.Response:
        name = request.match_info["id"]
        if name not in self.workloads:
            return self._missing(request)
        port = {"port": 11434, "protocol": "TCP", "targetPort": 11434, "nodePort": self.service.node_port}
        return _json(
            {
                "kind": "Service",
                "apiVersion": "v1",
                "metadata": {"name": name, "namespace": self.namespace},
                "spec": {"type": "NodePort", "ports": [port], "selector": {"app": name}},
                "status": {"loadBalancer": {}},
            }
        )

    # --- Leases -------------------------------------------------------------------------------

    async def _get_lease(self, request: web.Request, fault: Fault | None) -> web.Response:
        lease = self.leases.get(request.match_info["id"])
        return self._missing(request) if lease is None else _json(lease)

    async def _create_lease(self, request: web.Request, fault: Fault | None) -> web.Response:
        manifest, refused = await self._manifest(request, "Lease")
        if refused is not None:
            return refused
        name = manifest["metadata"]["name"]
        if name in self.leases:
            return self._exists("leases.coordination.k8s.io", name)
        return _json(self._keep(name, manifest, 1), 201)

    async def _replace_lease(self, request: web.Request, fault: Fault | None) -> web.Response:
        manifest, refused = await self._manifest(request, "Lease")
        if refused is not None:
            return refused
        name = request.match_info["id"]
        if name not in self.leases:
            return self._missing(request)
        version = int(self.leases[name]["metadata"]["resourceVersion"])
        if manifest["metadata"].get("resourceVersion", str(version)) != str(version):
            words = f'Operation cannot be fulfilled on leases.coordination.k8s.io "{name}"'
            return self._status(409, "Conflict", f"{words}: the object has been modified")
        return _json(self._keep(name, manifest, version + 1))

    def _keep(self, name: str, manifest: dict[str, Any], version: int) -> dict[str, Any]:
        metadata = {**manifest["metadata"], "namespace": self.namespace, "resourceVersion": str(version)}
        self.leases[name] = {**manifest, "metadata": metadata}
        return self.leases[name]

    # --- what kubectl asks first --------------------------------------------------------------

    async def _discover(self, request: web.Request, fault: Fault | None) -> web.Response:
        shown = discovered(request.path)
        return self._missing(request) if shown is None else _json(shown)

    async def _nothing(self, request: web.Request, fault: Fault | None) -> web.Response:
        if not request.path.startswith("/openapi"):
            self.violations.append(f"{request.method} {request.path}")
        return self._status(404, "NotFound", "the server could not find the requested resource")

    # --- its words ----------------------------------------------------------------------------

    def _workload(self, request: web.Request) -> Workload | None:
        workload = self.workloads.get(request.match_info["id"])
        plural = request.match_info["kind"]
        return workload if workload and f"{workload.kind.lower()}s" == plural else None

    def _pod(self, request: web.Request) -> SimReplica | None:
        return next((pod for pod in self.replicas if pod.name == request.match_info["id"]), None)

    async def _manifest(self, request: web.Request, kind: str) -> tuple[dict[str, Any], web.Response | None]:
        try:
            given = orjson.loads(await request.read())
        except orjson.JSONDecodeError:
            given = None
        if not isinstance(given, dict) or given.get("kind") != kind:
            return {}, self._status(400, "BadRequest", f"the object provided is no {kind}")
        wrong = list(self.check(kind, given))
        self.violations += wrong
        if wrong:
            return {}, self._status(422, "Invalid", f"{kind} is invalid: {wrong[0]}")
        return given, None

    def _exists(self, resource: str, name: str) -> web.Response:
        return self._status(409, "AlreadyExists", f'{resource} "{name}" already exists')

    def _missing(self, request: web.Request) -> web.Response:
        parts = request.path.strip("/").split("/")
        group = parts[1] if parts[0] == "apis" else ""
        plural = request.match_info.get("kind") or parts[-2]
        resource = f"{plural}.{group}" if group else plural
        return self._status(404, "NotFound", f'{resource} "{request.match_info.get("id")}" not found')

    def _status(self, code: int, reason: str, message: str) -> web.Response:
        return _json(status_of(code, reason, message), code)


def _json(value: object, status: int = 200) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(value), content_type="application/json")


def _matches(labels: Mapping[str, str], request: web.Request) -> bool:
    wanted = [part.partition("=") for part in request.query.get("labelSelector", "").split(",") if part]
    return all(labels.get(key) == value.removeprefix("=") for key, _, value in wanted)
