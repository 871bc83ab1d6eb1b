"""What `gpugate setup` may choose at Vast.ai: the account's instances, and GPUs to rent for each session."""

from __future__ import annotations

import re
from decimal import ROUND_UP, Decimal

from attrs import evolve

from gpugate import AuthFailed, Phase, PodChoice, ProviderError
from gpugate_vastai.answers import Object
from gpugate_vastai.api import VastApi
from gpugate_vastai.offers import fitting, search_body
from gpugate_vastai.reading import Reader, Run, gpu_of
from gpugate_vastai.settings import VastConfig

MOST_OFFERS = 12
DEAREST = 1000.0
"""USD per hour: while one chooses, every price is shown."""
HEADROOM = Decimal("1.2")
"""Offers differ from hour to hour: `max_price` is a little more than the cheapest one's price."""
_MADE_BY_GPUGATE = re.compile(r"gpugate-[a-z0-9-]+-[0-9a-f]{8}")


async def instance_choices(config: VastConfig, api: VastApi, reader: Reader) -> list[PodChoice]:
    """Instances that exist first, then the cheapest offer of each GPU."""
    rows = [
        row for row in await api.list_all() if not _MADE_BY_GPUGATE.fullmatch(str(row.get("label") or ""))
    ]
    wanted = evolve(config, mode="ephemeral", instance_id=0, max_price=DEAREST)
    try:
        offers = fitting(await api.search(search_body(wanted)), wanted, ())
    except AuthFailed:
        raise
    except ProviderError:  # the instances can be chosen all the same
        offers = []
    cheapest: dict[str, Object] = {}
    for offer in offers:  # cheapest first
        cheapest.setdefault(gpu_of(offer) or "", offer)
    instances = [_instance(row, config, reader) for row in rows if isinstance(row.get("id"), int)]
    shown = [(gpu, offer) for gpu, offer in list(cheapest.items())[:MOST_OFFERS] if gpu]
    offers_shown = [_offer(gpu, offer) for gpu, offer in shown]
    return [*instances, *offers_shown, *(_auto(offer) for _, offer in shown[-1:])]


def _instance(row: Object, config: VastConfig, reader: Reader) -> PodChoice:
    report = reader.report(row, Run(), 0.0)
    name = f"{row.get('label')} ({row['id']})" if row.get("label") else str(row["id"])
    problems = []
    if report.phase is Phase.RUNNING and "ollama" not in report.endpoints:
        port = config.ollama_port
        problems.append(f"its port {port} is not mapped: add -p {port}:{port} to its template")
    return PodChoice(
        id=str(row["id"]),
        title=", ".join([name, report.gpu or "GPU unknown", report.phase.value]),
        settings={"instance_id": row["id"]},
        per_hour=report.price.running_per_hour if report.price else None,
        problems=tuple(problems),
    )


def _offer(gpu: str, offer: Object) -> PodChoice:
    price, limit = _prices(offer)
    return PodChoice(
        id=gpu,
        title=f"{gpu}: rented for each session, and destroyed",
        settings={"mode": "ephemeral", "gpus": [gpu], "max_price": float(limit)},
        per_hour=price,
        problems=("its models are loaded anew in each session",),
    )


def _auto(dearest: Object) -> PodChoice:
    """The GPU that fits, for at most the price of the dearest that is shown."""
    price, limit = _prices(dearest)
    return PodChoice(
        id="auto",
        title="auto: the cheapest GPU that holds the models of pod.pull, for at most this price",
        settings={"mode": "ephemeral", "gpu_ram": "auto", "max_price": float(limit)},
        per_hour=price,
        problems=("name its models in pod.pull: their size chooses the GPU",),
    )


def _prices(offer: Object) -> tuple[Decimal, Decimal]:
    """Return the price of an offer, and the `max_price` for it."""
    price = Decimal(str(offer["dph_total"]))
    return price, (price * HEADROOM).quantize(Decimal("0.01"), ROUND_UP)
