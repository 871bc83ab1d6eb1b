"""Values that other packages need, made from the settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs

from gpugate.config.schema import PodSettings, Settings
from gpugate.core.policy import PodPolicy, Policy, ProviderLimits, QueuePolicy
from gpugate.lifecycle.provider_worker import BEFORE_STOP_LIMIT_S
from gpugate.provider_api import MAIN_POD, Price, Provider

_POD_KEYS = (("pod_id", "instance_id"), ("template_id", "image", "volume_id"))
"""Fields of a provider's Config that say which pod it is, or what an ephemeral one is made of."""

CLEANUP_LIMIT_S = 5.0
"""How long an orderly exit takes after the pod is stopped: last ledger rows, notifications, connections."""


def second_slot_name(name: str) -> str:
    """Return what the second slot of a provider is called, in events and in the ledger."""
    return f"{name}-2"


def policy_of(settings: Settings, pod: PodSettings, providers: list[Provider]) -> Policy:
    """Return a pod's policy: the settings its state machine uses, and the polling limits of its providers.

    Args:
        providers: those of `pod.provider`, then the second slots of those that can run two pods.
    """
    names = list(pod.pod.provider)
    first_of = {  # by the index of a second slot
        second: next(first for first in range(len(names)) if providers[first].config is provider.config)
        for second, provider in enumerate(providers)
        if provider.slot
    }
    twins = first_of | {first: second for second, first in first_of.items()}
    names += [second_slot_name(names[first]) for first in first_of.values()]
    limits = tuple(
        ProviderLimits(
            name=name,
            min_poll_s=provider.capabilities.min_poll_s,
            min_probe_s=provider.capabilities.min_probe_s,
            time_limit_s=provider.time_limit_s,
            twin=twins.get(index),
            is_second=index in first_of,
        )
        for index, (name, provider) in enumerate(zip(names, providers, strict=True))
    )
    values = {**_values(PodPolicy, pod.pod), **({} if pod.pod.speaks_ollama else {"preload": "none"})}
    return Policy(
        providers=limits,
        shutdown_grace=settings.server.shutdown_grace,
        fallback_hourly_rate=settings.cost.hourly_rate or None,
        **values,
        **_values(QueuePolicy, settings.queue),
    )


def _values(policy_class: type[attrs.AttrsInstance], section: attrs.AttrsInstance) -> Mapping[str, Any]:
    return {a.name: getattr(section, a.name) for a in attrs.fields(policy_class)}


def longest_end_s(settings: Settings) -> float:
    """Return how many seconds an orderly exit may take, unless a provider or the disk hangs."""
    server = settings.server
    stop_s = server.stop_wait + BEFORE_STOP_LIMIT_S if server.on_exit == "stop" else 0.0
    return server.shutdown_grace + stop_s + CLEANUP_LIMIT_S


def state_folder(state: Path, pod: PodSettings) -> Path:
    """Return the folder of what is kept for a pod; the pod without a name keeps it in `state.dir` itself."""
    return state if pod.name == MAIN_POD else state / "pods" / pod.name


def fallback_price_of(settings: Settings) -> Price:
    """Return the price that is used where the provider reports none."""
    return Price(settings.cost.hourly_rate or None, None, settings.cost.currency)


def pods_of(pod: PodSettings, configs: Mapping[str, Any]) -> dict[str, str]:
    """Return of each of a pod's providers, in order, what its configuration names there: "runpod:k3x9".

    Args:
        configs: an instance of its Config by provider's name.
    """
    return {name: ":".join([name, *_id_of(configs[name])]) for name in pod.pod.provider}


def _id_of(config: Any) -> list[str]:
    given = ([str(value) for key in keys if (value := getattr(config, key, None))] for keys in _POD_KEYS)
    return next(filter(None, given), [])


def named_models(
    settings: Settings, pod: PodSettings, providers: Iterable[Provider | type[Provider]]
) -> list[str]:
    """Return the models that a pod has, as far as the configuration and its providers tell.

    The models of the services count as the first pod's: a pod whose patterns match them gets them anyway.
    Another engine than Ollama has neither those nor a preloaded one.
    """
    models, preload = settings.models, pod.pod.preload
    known = [model for provider in providers for model in provider.models]
    if not pod.pod.speaks_ollama:
        return known
    preloaded = [] if preload in ("requested", "none") else [preload]
    services = [models.vision, *filter(None, [models.story]), models.code]
    first = pod.name == settings.pods[0].name
    return [*pod.pod.pull, *known, *preloaded, *(services if first else [])]
