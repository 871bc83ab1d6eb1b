"""The pods by name, and which of them serves a request."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from gpugate.lifecycle.lifecycle import Lifecycle

MAIN = "main"


class Fleet:
    """All pods of a gateway. Today there is one; a second one would be chosen here, by the request's model.

    Attributes:
        pods: their lifecycles by name, read-only.
    """

    def __init__(self, pods: Mapping[str, Lifecycle]) -> None:
        self.pods = MappingProxyType(dict(pods))

    @property
    def main(self) -> Lifecycle:
        """The pod that `pod.*` configures."""
        return self.pods[MAIN]

    def pod_for(self, model: str | None) -> Lifecycle:
        """Return the pod that serves requests for this model; None: a request that names none."""
        return self.main
