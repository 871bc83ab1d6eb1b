"""The way to the cluster: kubeconfig or service account, credentials that change, the client's objects.

It must not know what is asked of the cluster.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import yaml
from kubernetes_asyncio import client, config
from kubernetes_asyncio.stream import WsApiClient

from gpugate import AuthFailed, Misconfigured, Transient
from gpugate_kubernetes.settings import KubernetesConfig

EARLY = timedelta(seconds=60)
"""So long before they end, the credentials of an exec plugin are asked for again."""


class Connection:
    """The client, made at the first call and again when its credentials have changed.

    Attributes:
        on_client: called with each new client, before its first call.
    """

    def __init__(self, settings: KubernetesConfig, agent: str) -> None:
        self._settings = settings
        self._agent = agent
        self._configuration: Any = None
        self._loader: Any = None
        self._client: Any = None
        self._streams: Any = None
        self._loading = asyncio.Lock()
        self.on_client: Callable[[Any], None] = lambda _: None

    async def client(self) -> Any:
        """Return the client, with credentials that are valid as far as is known.

        Raises:
            Misconfigured: there is no such file, or it is wrong; not in a cluster, and no file named.
            AuthFailed: the exec plugin of the kubeconfig failed.
            Transient: that plugin did not end.
        """
        async with self._loading:
            if self._client is None:
                configuration = await self._loaded()
                self._use(client.ApiClient(configuration), configuration)
            elif self._expires_soon():
                await self._take_over(await self._loaded())
            return self._client

    async def renew(self) -> bool:
        """Load the credentials again, after they were refused; return whether they have changed."""
        async with self._loading:
            if self._client is None:
                return True
            return await self._take_over(await self._loaded())

    async def streams(self) -> Any:
        """Return the client for what is no request and answer: port-forwards."""
        await self.client()
        if self._streams is None:
            self._streams = WsApiClient(self._configuration)
            self._streams.user_agent = self._agent
        return self._streams

    @property
    def secret(self) -> str:
        """The token in use, so that no message shows it."""
        api_key = self._configuration.api_key if self._configuration is not None else {}
        return str(api_key.get("BearerToken", "")).removeprefix("Bearer ")

    async def aclose(self) -> None:
        """Close all connections; another call opens new ones."""
        clients = [self._client, self._streams]
        self._client = self._streams = self._configuration = self._loader = None
        for one in clients:
            if one is not None:
                await one.close()

    # --- credentials --------------------------------------------------------------------------

    def _use(self, made: Any, configuration: Any) -> None:
        made.user_agent = self._agent
        self.on_client(made)
        self._client, self._configuration = made, configuration

    async def _take_over(self, configuration: Any) -> bool:
        """Use this configuration; a new token goes into the old connections, a new certificate does not."""
        was = self._configuration
        same_token = was.api_key == configuration.api_key
        if (was.cert_file, was.key_file) == (configuration.cert_file, configuration.key_file):
            was.api_key.update(configuration.api_key)
            was.refresh_api_key_hook = configuration.refresh_api_key_hook  # the old one knows the old token
            return not same_token
        loader = self._loader
        await self.aclose()
        self._loader = loader
        self._use(client.ApiClient(configuration), configuration)
        return True

    def _expires_soon(self) -> bool:
        ends = getattr(self._loader, "exec_plugin_expiry", None)
        return isinstance(ends, datetime) and datetime.now(UTC) >= ends - EARLY

    async def _loaded(self) -> Any:
        configuration = client.Configuration()
        try:
            if not self._settings.kubeconfig:
                config.load_incluster_config(client_configuration=configuration)
                return configuration
            self._look_for_the_file()
            async with asyncio.timeout(self._settings.timeout):
                self._loader = await config.load_kube_config(
                    config_file=self._settings.kubeconfig,
                    context=self._settings.context or None,
                    client_configuration=configuration,
                    persist_config=False,
                )
        except config.ConfigException as error:
            raise self._refusal(str(error)) from error
        except TimeoutError as error:
            raise Transient("the kubeconfig's exec plugin did not end") from error
        except (
            OSError,
            ValueError,
            TypeError,
            KeyError,
            AttributeError,
            AssertionError,
            yaml.YAMLError,
        ) as error:
            said = " ".join(str(error).split())[:160]
            raise Misconfigured(f"providers.kubernetes.kubeconfig cannot be used: {said}") from error
        return configuration

    def _look_for_the_file(self) -> None:
        paths = self._settings.kubeconfig.split(os.pathsep)
        if not any(os.path.exists(os.path.expanduser(path)) for path in paths if path):
            raise Misconfigured(f"providers.kubernetes.kubeconfig: there is no {self._settings.kubeconfig}")

    def _refusal(self, said: str) -> AuthFailed | Misconfigured:
        said = " ".join(said.split())[:200]
        if not self._settings.kubeconfig:
            return Misconfigured(
                f"gpugate does not run in a cluster ({said}): set providers.kubernetes.kubeconfig, or"
                " automountServiceAccountToken"
            )
        if said.startswith("exec:"):
            return AuthFailed(f"the kubeconfig's exec plugin gave no credentials: {said[5:].strip()}")
        return Misconfigured(f"providers.kubernetes.kubeconfig cannot be used: {said}")
