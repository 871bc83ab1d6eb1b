"""What is asked of the cluster: one method per call, one try each, and its errors in gpugate's words.

URLs, credentials and websockets are the client's (kubernetes-asyncio). It must not know what a call is for.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import aiohttp
import orjson
from attrs import frozen
from kubernetes_asyncio import client

from gpugate import (
    Ambiguous,
    AuthFailed,
    Conflict,
    Misconfigured,
    NoCapacity,
    NotFound,
    ProviderError,
    RateLimited,
    Transient,
)
from gpugate_kubernetes.connection import Connection
from gpugate_kubernetes.settings import KubernetesConfig

LARGEST_ANSWER = 16 * 1024 * 1024
LONGEST_WORDS = 300
MERGE_PATCH = "application/merge-patch+json"
Manifest = Mapping[str, Any]
Call = Callable[[Any], Callable[..., Awaitable[Any]]]
"""A method of the client, once there is a client."""


@frozen
class Scale:
    """The `scale` subresource of a workload.

    Attributes:
        replicas: as asked for.
        selector: which Pods are its own.
        version: of the object; a write that names it fails if somebody else has written in between.
    """

    replicas: int
    selector: str
    version: str


class Cluster:
    """The calls. Every one raises `ProviderError`s only.

    `lost` is what a call raises whose outcome is not known, because its answer never came or is no answer.
    """

    def __init__(self, config: KubernetesConfig, agent: str = "gpugate") -> None:
        self._config = config
        self.connection = Connection(config, agent)

    async def aclose(self) -> None:
        """Close all connections."""
        await self.connection.aclose()

    # --- a workload ---------------------------------------------------------------------------

    async def read_scale(self) -> Scale:
        """The `scale` subresource. NotFound: there is no such workload."""
        return self._scale(await self._call(self._workload("read_namespaced_{}_scale"), *self._place))

    async def write_scale(self, replicas: int, version: str = "") -> Scale:
        """Ask for so many replicas; `version`: Conflict if somebody else has written since."""
        body: dict[str, Any] = {"spec": {"replicas": replicas}}
        if version:
            body["metadata"] = {"resourceVersion": version}
        call = self._workload("patch_namespaced_{}_scale")
        answer = await self._call(call, *self._place, body, lost=Ambiguous, _content_type=MERGE_PATCH)
        return self._scale(answer, Ambiguous)

    async def read_workload(self) -> Manifest:
        """The Deployment or StatefulSet itself."""
        return _of_kind(
            self._config.kind, await self._call(self._workload("read_namespaced_{}"), *self._place)
        )

    # --- Pods and Jobs ------------------------------------------------------------------------

    async def list_pods(self, selector: str) -> list[Manifest]:
        """All Pods of this selector, terminating ones included; what is not whole is an error."""
        return await self._list("PodList", _core("list_namespaced_pod"), selector)

    async def list_jobs(self, selector: str) -> list[Manifest]:
        """All Jobs of this selector."""
        return await self._list("JobList", _batch("list_namespaced_job"), selector)

    async def create(self, manifest: Manifest) -> None:
        """Make a Pod or Job. Conflict: there is one of that name. Ambiguous: it may have been made."""
        name = "create_namespaced_job" if manifest["kind"] == "Job" else "create_namespaced_pod"
        call = _batch(name) if manifest["kind"] == "Job" else _core(name)
        answer = await self._call(call, self._config.namespace, manifest, lost=Ambiguous, broken=Ambiguous)
        _of_kind(manifest["kind"], answer, Ambiguous)

    async def delete(self, kind: str, name: str) -> None:
        """Delete a Pod, or a Job with its Pods. NotFound: it is gone already."""
        call = _batch("delete_namespaced_job") if kind == "Job" else _core("delete_namespaced_pod")
        more: Any = {"propagation_policy": "Foreground"} if kind == "Job" else {}
        await self._call(call, name, self._config.namespace, **more)

    # --- what is around them ------------------------------------------------------------------

    async def read_node(self, name: str) -> Manifest:
        """A node, for its labels."""
        return _of_kind("Node", await self._call(_core("read_node"), name))

    async def read_service(self, name: str) -> Manifest:
        """A Service, for its ports."""
        return _of_kind(
            "Service", await self._call(_core("read_namespaced_service"), name, self._config.namespace)
        )

    async def open_port_forward(self, pod: str, port: int) -> aiohttp.ClientWebSocketResponse:
        """A websocket to a port of a Pod; its frames begin with a byte that says the channel.

        Raises aiohttp's errors, since it is called from a connection and not from a call of the port.
        """
        api: Any = client.CoreV1Api(await self.connection.streams())
        opening = await api.connect_get_namespaced_pod_portforward(
            pod, self._config.namespace, ports=port, _preload_content=False
        )
        socket: aiohttp.ClientWebSocketResponse = await opening
        return socket

    # --- a Lease ------------------------------------------------------------------------------

    async def read_lease(self, name: str) -> Manifest:
        """A Lease. NotFound: there is none yet."""
        call = _coordination("read_namespaced_lease")
        return _of_kind("Lease", await self._call(call, name, self._config.namespace))

    async def create_lease(self, lease: Manifest) -> Manifest:
        """Make a Lease. Conflict: somebody was quicker."""
        call = _coordination("create_namespaced_lease")
        return _of_kind("Lease", await self._call(call, self._config.namespace, lease))

    async def replace_lease(self, name: str, lease: Manifest) -> Manifest:
        """Write a Lease. Conflict: somebody else has written since it was read."""
        call = _coordination("replace_namespaced_lease")
        return _of_kind("Lease", await self._call(call, name, self._config.namespace, lease))

    # --- one call -----------------------------------------------------------------------------

    @property
    def _place(self) -> tuple[str, str]:
        return self._config.name, self._config.namespace

    def _workload(self, pattern: str) -> Call:
        kind = {"Deployment": "deployment", "StatefulSet": "stateful_set"}[self._config.kind]
        return lambda api: getattr(client.AppsV1Api(api), pattern.format(kind))

    async def _list(self, kind: str, call: Call, selector: str) -> list[Manifest]:
        answer = _of_kind(kind, await self._call(call, self._config.namespace, label_selector=selector))
        items = answer.get("items")
        if (answer.get("metadata") or {}).get("continue") or not (items is None or isinstance(items, list)):
            raise Transient(f"the cluster answered something that is no whole {kind}")
        return [item for item in items or () if isinstance(item, dict)]

    async def _call(
        self,
        call: Call,
        *given: Any,
        lost: type[ProviderError] = Transient,
        broken: type[ProviderError] = Transient,
        **more: Any,
    ) -> Any:
        """The decoded answer to one request; once more where credentials were refused that have changed."""
        api = await self.connection.client()
        status, headers, text = await self._ask(call(api), given, more, lost)
        if status == 401 and await self.connection.renew():
            api = await self.connection.client()
            status, headers, text = await self._ask(call(api), given, more, lost)
        if not 200 <= status < 300:
            raise self._error(status, headers, text, broken)
        try:
            return orjson.loads(text)
        except orjson.JSONDecodeError as error:
            raise lost("the cluster answered something that is no JSON") from error

    async def _ask(
        self, call: Callable[..., Awaitable[Any]], given: Any, more: Any, lost: type[ProviderError]
    ) -> tuple[int, Mapping[str, str], bytes]:
        limit = self._config.timeout
        try:
            answer = await call(*given, **more, _preload_content=False, _request_timeout=limit)
            async with answer:
                return answer.status, answer.headers, await _read(answer)
        except aiohttp.InvalidURL as error:
            raise Misconfigured("the kubeconfig's server is no URL") from error
        except (aiohttp.ClientSSLError, ssl.SSLError) as error:
            raise Misconfigured(
                f"the cluster's certificate is not trusted: {self._clean(str(error))}"
            ) from error
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise Transient(f"the cluster's API cannot be reached ({type(error).__name__})") from error
        except TimeoutError as error:
            raise lost(f"the cluster's API did not answer within {limit:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise lost(f"the connection to the cluster's API broke ({type(error).__name__})") from error

    def _scale(self, answer: Any, lost: type[ProviderError] = Transient) -> Scale:
        scale = _of_kind("Scale", answer, lost)
        spec, status = scale.get("spec"), scale.get("status")
        selector = status.get("selector") if isinstance(status, dict) else None
        replicas = spec.get("replicas", 0) if isinstance(spec, dict) else None  # 0 is left out
        if not isinstance(replicas, int) or not isinstance(selector, str) or not selector:
            raise lost("the cluster answered a Scale without replicas or selector")
        return Scale(replicas, selector, str((scale.get("metadata") or {}).get("resourceVersion") or ""))

    # --- errors (docs/providers.md#kubernetes-errors) ------------------------------------------

    def _error(
        self, status: int, headers: Mapping[str, str], text: bytes, broken: type[ProviderError]
    ) -> ProviderError:
        said = self._clean(_message(text))
        told = said or f"the cluster's API answered {status}"
        match status:
            case 401:
                return AuthFailed(f"the cluster does not accept gpugate's credentials: {told}")
            case 403 if "exceeded quota" in told:
                return NoCapacity(f"the namespace's quota is used up: {told}")
            case 403:
                return AuthFailed(f"the cluster does not allow this: {told}")
            case 404 if said:
                return NotFound(told)
            case 404 | 405:
                return Misconfigured(
                    f"what answers there is no Kubernetes API ({status}): see the kubeconfig"
                )
            case 409:
                return Conflict(told)
            case 429:
                return RateLimited(told, _retry_after(headers))
            case _ if status >= 500:
                return broken(f"the cluster's API answered {status}{': ' + said if said else ''}")
            case _ if 300 <= status < 400:
                return Misconfigured(
                    f"what answers there is no Kubernetes API ({status}): see the kubeconfig"
                )
            case _:
                return Misconfigured(f"the cluster refuses the request ({status}): {told}")

    def _clean(self, words: str) -> str:
        """One short line without the token."""
        secret = self.connection.secret
        words = " ".join((words.replace(secret, "***") if secret else words).split())
        return words if len(words) <= LONGEST_WORDS else words[:LONGEST_WORDS] + "..."


def _core(name: str) -> Call:
    return lambda api: getattr(client.CoreV1Api(api), name)


def _batch(name: str) -> Call:
    return lambda api: getattr(client.BatchV1Api(api), name)


def _coordination(name: str) -> Call:
    return lambda api: getattr(client.CoordinationV1Api(api), name)


async def _read(answer: aiohttp.ClientResponse) -> bytes:
    """The whole body; ClientPayloadError if it breaks off or has no end."""
    pieces = bytearray()
    async for piece in answer.content.iter_any():
        pieces += piece
        if len(pieces) > LARGEST_ANSWER:
            raise aiohttp.ClientPayloadError("too large")
    return bytes(pieces)


def _of_kind(kind: str, answer: Any, lost: type[ProviderError] = Transient) -> Manifest:
    if not isinstance(answer, dict) or answer.get("kind") != kind:
        raise lost(f"the cluster answered something that is no {kind}")
    return answer


def _message(text: bytes) -> str:
    """The words of a `Status`; empty where it is none, so that it was not the API that answered."""
    try:
        status = orjson.loads(text)
    except orjson.JSONDecodeError:
        return ""
    if not isinstance(status, dict) or status.get("kind") != "Status":
        return ""
    return str(status.get("message") or status.get("reason") or "")


def _retry_after(headers: Mapping[str, str]) -> float | None:
    given = headers.get("Retry-After", "").strip()
    return float(given[:9]) if given.isascii() and given.isdigit() else None
