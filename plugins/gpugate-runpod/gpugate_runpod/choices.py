"""What `gpugate setup` may choose at RunPod: the account's pods, and GPUs to make one with."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal

from gpugate import AuthFailed, PodChoice, ProviderError
from gpugate_runpod.api import Api
from gpugate_runpod.pods import Reader, Shown, Stock
from gpugate_runpod.settings import RunPodConfig

MOST_OFFERS = 12
IMAGE = "ollama/ollama:latest"
NAME_MODELS = "name its models in pod.pull: their size chooses the GPU"
_MADE_BY_GPUGATE = re.compile(r"gpugate-[a-z0-9-]+-[0-9a-f]{8}")


async def pod_choices(config: RunPodConfig, api: Api) -> list[PodChoice]:
    """Pods that exist first, then the GPUs that are free, cheapest first."""
    pods = [shown for shown in await api.list_pods() if shown.status != "TERMINATED"]
    try:
        stock = await api.gpus(1, config.cloud.upper())
    except AuthFailed:
        raise
    except ProviderError:  # the pods can be chosen all the same
        stock = []
    prices = {line.id: line.price for line in stock}
    own = [
        _pod(shown, prices, Reader(config)) for shown in pods if not _MADE_BY_GPUGATE.fullmatch(shown.name)
    ]
    free = sorted(
        (line for line in stock if line.available and line.price), key=lambda line: line.price or Decimal(0)
    )
    offers = free[:MOST_OFFERS]
    return own + [_offer(line) for line in offers] + [_auto(line) for line in offers[-1:]]


def _pod(shown: Shown, prices: Mapping[str, Decimal | None], reader: Reader) -> PodChoice:
    return PodChoice(
        id=shown.id,
        title=", ".join([f"{shown.name} ({shown.id})", shown.gpu or "no GPU", shown.status.lower()]),
        settings={"pod_id": shown.id},
        per_hour=shown.cost or prices.get(shown.gpu or ""),
        problems=tuple(_problems(shown, reader)),
    )


def _problems(shown: Shown, reader: Reader) -> list[str]:
    missing_port = reader.unreachable_port(shown)
    problems = [missing_port] if missing_port else []
    if shown.disk_gb == 0:
        problems.append("it has no volume: its models are lost at each stop, and loaded anew")
    if shown.locked:
        problems.append("it is locked at RunPod: its stop will be refused")
    return problems


def _offer(line: Stock) -> PodChoice:
    return PodChoice(
        id=line.id,
        title=f"{line.id}: a pod made for each session, and deleted",
        settings={"mode": "ephemeral", "image": IMAGE, "gpus": [line.id]},
        per_hour=line.price,
        problems=("without a network volume (volume_id) its models are loaded anew in each session",),
    )


def _auto(dearest: Stock) -> PodChoice:
    """The GPU that fits, for at most the price of the dearest that is shown."""
    return PodChoice(
        id="auto",
        title="auto: the cheapest GPU that holds the models of pod.pull, for at most this price",
        settings={
            "mode": "ephemeral",
            "image": IMAGE,
            "gpus": "auto",
            "max_price": float(dearest.price or 0),
        },
        per_hour=dearest.price,
        problems=(NAME_MODELS,),
    )
