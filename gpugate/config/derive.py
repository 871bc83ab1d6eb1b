"""The settings in the words of other rooms: the machine's numbers, the log's secrets; connects nothing."""

from __future__ import annotations

from decimal import Decimal

import attrs

from gpugate.config import Settings
from gpugate.core.policy import Policy, ProviderLimits
from gpugate.lifecycle.provider_worker import STOP_NOTE_LIMIT_S
from gpugate.provider_api import Price, Provider

LETTING_GO_S = 5.0
"""What an orderly end takes after the pod's: the last rows of the ledger, news, connections."""


def policy_of(settings: Settings, providers: list[Provider]) -> Policy:
    """The machine's numbers out of the settings and what the providers can."""
    pod, queue = settings.pod, settings.queue
    paces = tuple(
        ProviderLimits(
            name=name,
            min_poll_s=provider.capabilities.min_poll_s,
            min_probe_s=provider.capabilities.min_probe_s,
        )
        for name, provider in zip(pod.provider, providers, strict=True)
    )
    return Policy(
        providers=paces,
        idle_timeout=pod.idle_timeout,
        start_attempts=pod.start_attempts,
        start_backoff=pod.start_backoff,
        start_timeout=pod.start_timeout,
        capacity_wait=pod.capacity_wait,
        warmup_timeout=pod.warmup_timeout,
        health_interval=pod.health_interval,
        reconcile_interval=pod.reconcile_interval,
        stop_retry=pod.stop_retry,
        preload=pod.preload,
        max_session=pod.max_session,
        retry_after=pod.retry_after,
        max_waiting=queue.max_waiting,
        max_wait=queue.max_wait,
        drain_concurrency=queue.drain_concurrency,
        shutdown_grace=settings.server.shutdown_grace,
    )


def longest_end_s(settings: Settings) -> float:
    """How long an orderly end may take, in seconds; only a provider or a disk that hangs makes it longer."""
    server = settings.server
    stop_s = server.stop_wait + STOP_NOTE_LIMIT_S if server.on_exit == "stop" else 0.0
    return server.shutdown_grace + stop_s + LETTING_GO_S


def secrets_of(*configs: attrs.AttrsInstance) -> list[str]:
    """Every secret of these attrs objects (fields that have no repr), for the log to leave out."""
    return [
        value
        for config in configs
        for attribute in attrs.fields(type(config))
        if not attribute.repr and isinstance(value := getattr(config, attribute.name), str) and value
    ]


def fallback_price_of(settings: Settings) -> Price:
    """The price where the provider tells none."""
    rate = Decimal(str(settings.cost.hourly_rate))
    return Price(rate or None, None, settings.cost.currency)
