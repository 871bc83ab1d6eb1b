"""The role of the active gateway, kept in a Lease of the cluster (docs/providers.md#kubernetes-leases).

Times of other gateways are not compared with our clock: a Lease is over when it has not changed for its
duration since we first saw it so, as Kubernetes' own controllers do it.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from attrs import evolve

from gpugate import ActiveRole, Conflict, NotFound, ProviderError
from gpugate_kubernetes.cluster import Cluster
from gpugate_kubernetes.settings import KubernetesConfig

WAITING = "gpugate.io/waiting"
"""An annotation that gateways renew which stand by: their name, and when."""
WAITING_IN_A_DURATION = 3
TRIES_IN_A_DURATION = 4
"""A call that hangs must leave time for others."""


class LeaseRole(ActiveRole):
    """The Lease of `providers.kubernetes.lease`; `me` is written into it as its holder."""

    def __init__(self, config: KubernetesConfig) -> None:
        self.duration_s = config.lease_duration
        self.holder = ""
        self.me = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self._name = config.lease
        self._namespace = config.namespace
        quick = min(config.timeout, config.lease_duration / TRIES_IN_A_DURATION)
        self._cluster = Cluster(evolve(config, timeout=quick))
        self._ours: Mapping[str, Any] | None = None
        self._sign = ""
        self._sign_at = 0.0
        self._waiting = ""
        self._waiting_at = -1e9
        self._told_at = -1e9

    @property
    def is_awaited(self) -> bool:  # type: ignore[override]
        """Another gateway has said lately that it stands by."""
        return self._now() - self._waiting_at < self.duration_s

    async def take(self) -> bool:
        """See `ActiveRole`; one write while it is ours and nobody else writes."""
        if self._ours is not None:
            try:
                return await self._write(self._ours)
            except (Conflict, NotFound):
                self._ours = None
        try:
            lease = await self._cluster.read_lease(self._name)
        except NotFound:
            return await self._create()
        return await self._take(lease)

    async def give_back(self) -> None:
        """See `ActiveRole`."""
        try:
            lease = await self._cluster.read_lease(self._name)
        except NotFound:
            return
        if _spec(lease).get("holderIdentity") == self.me:
            spec = {key: value for key, value in _spec(lease).items() if key != "holderIdentity"}
            await self._cluster.replace_lease(
                self._name, {**lease, "spec": {**spec, "renewTime": _written()}}
            )
        self._ours = None

    async def aclose(self) -> None:
        """See `ActiveRole`."""
        await self._cluster.aclose()

    # --- one try ------------------------------------------------------------------------------

    async def _create(self) -> bool:
        lease = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self._name, "namespace": self._namespace},
            "spec": self._spec_of_ours({}),
        }
        try:
            self._ours = await self._cluster.create_lease(lease)
        except Conflict:
            return False
        self.holder = self.me
        return True

    async def _take(self, lease: Mapping[str, Any]) -> bool:
        self._note(lease)
        if self.holder in ("", self.me) or self._is_over(lease):
            try:
                return await self._write(lease)
            except Conflict:
                return False
        await self._say_that_we_wait(lease)
        return False

    async def _write(self, lease: Mapping[str, Any]) -> bool:
        changed = {**lease, "spec": self._spec_of_ours(_spec(lease))}
        self._ours = await self._cluster.replace_lease(self._name, changed)
        self.holder = self.me
        return True

    def _spec_of_ours(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        now = _written()
        ours = {
            **spec,
            "holderIdentity": self.me,
            "renewTime": now,
            "leaseDurationSeconds": round(self.duration_s),
        }
        if spec.get("holderIdentity") != self.me:
            before = spec.get("leaseTransitions")
            ours |= {"acquireTime": now, "leaseTransitions": before + 1 if isinstance(before, int) else 0}
        return ours

    def _note(self, lease: Mapping[str, Any]) -> None:
        """Remember when the holder, and who waits, were first seen as they are."""
        spec, now = _spec(lease), self._now()
        self.holder = str(spec.get("holderIdentity") or "")
        sign = f"{self.holder} {spec.get('renewTime')}"
        if sign != self._sign:
            self._sign, self._sign_at = sign, now
        said = str(_annotations(lease).get(WAITING) or "")
        if said != self._waiting and not said.startswith(f"{self.me} "):
            self._waiting, self._waiting_at = said, now

    def _is_over(self, lease: Mapping[str, Any]) -> bool:
        given = _spec(lease).get("leaseDurationSeconds")
        duration = max(given, 1) if isinstance(given, int) else self.duration_s
        return self._now() - self._sign_at >= duration

    async def _say_that_we_wait(self, lease: Mapping[str, Any]) -> None:
        """Keep the annotation fresh; whoever else writes at the same moment says as much."""
        if self._now() - self._told_at < self.duration_s / WAITING_IN_A_DURATION:
            return
        metadata = lease.get("metadata") or {}
        annotations = {**_annotations(lease), WAITING: f"{self.me} {_written()}"}
        changed = {**lease, "metadata": {**metadata, "annotations": annotations}}
        try:
            await self._cluster.replace_lease(self._name, changed)
        except ProviderError:
            return
        self._told_at = self._now()

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def _spec(lease: Mapping[str, Any]) -> Mapping[str, Any]:
    spec = lease.get("spec")
    return spec if isinstance(spec, dict) else {}


def _annotations(lease: Mapping[str, Any]) -> Mapping[str, Any]:
    found = (lease.get("metadata") or {}).get("annotations")
    return found if isinstance(found, dict) else {}


def _written() -> str:
    """Now, as a MicroTime."""
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"
