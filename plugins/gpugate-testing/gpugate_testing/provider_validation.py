"""What is wrong with a provider's report, class or configuration, in words; asks no provider anything.

Shared by the contract's tests and by `gpugate provider-check`, so it must not need pytest.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from math import isfinite
from urllib.parse import urlsplit

import attrs

from gpugate.provider_api import Capabilities, Endpoint, Phase, PodReport, Price, Provider

ON = frozenset({Phase.QUEUED, Phase.PROVISIONING, Phase.STARTING, Phase.RUNNING})
OFF = frozenset({Phase.STOPPED, Phase.GONE})
"""The only phases that prove a stop."""
_SERVICES = ("ollama", "comfyui")
_TLS = re.compile(r"system|insecure|sha256:[0-9A-Fa-f:]+|.*[/.].*")
_SOUNDS_SECRET = re.compile(r"(^|_)(key|token|secret|password|headers)$")


def report_complaints(report: object) -> list[str]:
    """What is wrong with what a provider returned; nothing if it is a sound `PodReport`."""
    if not isinstance(report, PodReport):
        return [f"a {type(report).__name__} is no PodReport"]
    return [*_about_the_pod(report), *_about_endpoints(report), *_about_the_price(report.price)]


def class_complaints(kind: object) -> list[str]:
    """What is wrong with a provider's class."""
    if not (isinstance(kind, type) and issubclass(kind, Provider)):
        return ["it is no subclass of gpugate.Provider"]
    complaints = [f"{name} is missing" for name in sorted(kind.__abstractmethods__)]
    for name in ("start", "stop", "inspect", "bill", "aclose"):
        if not inspect.iscoroutinefunction(getattr(kind, name)):
            complaints.append(f"{name} is not async")
    if not attrs.has(kind.Config):
        return [*complaints, "Config is no attrs class"]
    for attribute in attrs.fields(kind.Config):
        if attribute.repr and _SOUNDS_SECRET.search(attribute.name):
            complaints.append(f"Config.{attribute.name} sounds like a secret: field(repr=False) keeps it out")
    complaints += capability_complaints(kind.capabilities)
    if getattr(kind.capabilities, "billing_api", False) and kind.bill is Provider.bill:
        complaints.append("capabilities.billing_api promises a bill, and there is no method bill")
    return complaints


def capability_complaints(capabilities: object) -> list[str]:
    """What is wrong with what a provider says that it can."""
    if not isinstance(capabilities, Capabilities):
        return ["capabilities are no gpugate.Capabilities"]
    numbers = {
        "min_poll_s": capabilities.min_poll_s,
        "min_change_s": capabilities.min_change_s,
        "min_probe_s": capabilities.min_probe_s,
        "first_byte_limit_s": capabilities.first_byte_limit_s or 1.0,
    }
    wrong = (name for name, number in numbers.items() if not (isfinite(number) and number >= 0))
    return [f"capabilities.{name} must be 0 or more" for name in wrong]


def leaked_secrets(secrets: tuple[str, ...], *words: object) -> list[str]:
    """Which secrets stand in these words, by their place in `secrets`; never the secrets themselves."""
    text = " ".join(f"{word} {word!r}" for word in words)
    return [f"secret number {place}" for place, secret in enumerate(secrets, 1) if secret in text]


def _about_the_pod(report: PodReport) -> Iterator[str]:
    if not report.pod_id and (report.pod_id is not None or report.phase is Phase.RUNNING):
        yield "a pod that runs has a pod_id" if report.pod_id is None else "pod_id must not be empty"
    for name in ("detail", "alarm"):
        if "\n" in getattr(report, name):
            yield f"{name} must be one line"


def _about_endpoints(report: PodReport) -> Iterator[str]:
    endpoints: Mapping[str, object] = report.endpoints
    for name, endpoint in endpoints.items():
        if name not in _SERVICES:
            yield f"endpoints: {name!r} is neither ollama nor comfyui"
        if not isinstance(endpoint, Endpoint):
            yield f"endpoints: {name} is no Endpoint"
            continue
        url = urlsplit(endpoint.url)
        if url.scheme not in ("http", "https") or not url.hostname or url.query or url.username:
            yield f"endpoints: {name} needs a plain http or https URL (secrets go into headers)"
        if not _TLS.fullmatch(endpoint.tls):
            yield f"endpoints: {name} has an unknown TLS policy"


def _about_the_price(price: Price | None) -> Iterator[str]:
    if price is None:
        return
    for name in ("running_per_hour", "stopped_per_hour"):
        amount = getattr(price, name)
        if amount is not None and not (amount.is_finite() and amount >= 0):
            yield f"price.{name} must be 0 or more, or None"
    if not re.fullmatch(r"[A-Z]{3}", price.currency):
        yield f"price.currency must be three capital letters, is {price.currency!r}"
