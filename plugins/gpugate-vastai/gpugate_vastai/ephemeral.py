"""Mode "ephemeral": rents an instance for each run and destroys it; what is ours is known by its label.

What must never happen: two instances because the answer to a create was lost, or one that nobody
remembers. So nothing is created while an earlier create may still show up, every instance with our label
is ours, also after a restart, and `stop` destroys them all.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Sequence
from contextlib import suppress
from decimal import Decimal
from math import inf

from attrs import define, evolve, field

from gpugate import Ambiguous, Misconfigured, NoCapacity, Phase, PodReport, ProviderError, RateLimited
from gpugate_vastai.answers import Object
from gpugate_vastai.api import LIST, SEARCH, Created, OfferTaken, VastApi
from gpugate_vastai.offers import bid_for, create_body, fitting, search_body
from gpugate_vastai.reading import Reader, Run, gpu_bytes_of, gpu_of, is_spot, price_of
from gpugate_vastai.settings import VastConfig

VISIBLE_S = 30.0
"""Reads lag behind creates (docs/providers.md#vastai-creation): so long an unlisted instance may exist."""
OFFERS_S = 60.0
"""How long found offers are good for another try: searches have a daily quota."""
EXCLUDED_S = 3600.0
"""How long a machine is left alone after an instance failed there."""
SLOW_S = 300.0
"""An instance that is destroyed after so long without having run has failed."""
ENDING_S = 20.0
"""What is still listed so long after it was destroyed was not destroyed."""

INTERRUPTED_S = 3600.0
"""How long on-demand instances are rented after a spot instance was taken away."""

_ON_ITS_WAY = (Phase.RUNNING, Phase.STARTING, Phase.PROVISIONING)
_RANK = (*_ON_ITS_WAY, Phase.UNREACHABLE, Phase.FAILED, Phase.STOPPING)


@define
class Instance:
    """One of ours as the list shows it."""

    number: int
    row: Object = field(repr=False)
    report: PodReport


@define
class Rented:
    """What a create has made: since when, what its offer told of it, whether the create failed even so."""

    at: float
    report: PodReport
    failed: bool


@define
class Doubt:
    """A create whose answer is not known: under this label an instance may appear until `until`."""

    label: str
    until: float = inf


class EphemeralInstance:
    """Rents, finds again and destroys the instances labelled `gpugate-<instance>-<random>`."""

    def __init__(self, config: VastConfig, api: VastApi, reader: Reader) -> None:
        self._config = config
        self._api = api
        self._reader = reader
        self._ours = re.compile(rf"gpugate-{re.escape(config.instance)}-[0-9a-f]{{8}}")
        self._runs: dict[int, Run] = {}
        self._rented: dict[int, Rented] = {}  # by number, until they are gone
        self._unseen: set[int] = set()  # rented and not listed yet
        self._destroyed: dict[int, float] = {}  # told to end, and when
        self._doubt: Doubt | None = None
        self._excluded: dict[object, float] = {}  # machines, until when
        self._on_demand_until = -inf
        self._offers: list[Object] = []
        self._offers_are_spot = False
        self._offers_at = -inf
        self._meant: int | None = None  # the one that was reported last
        self._known: set[int] = set()  # rented or seen, and not seen gone
        self._rows: Sequence[Object] = ()
        self._listed_at = -inf

    async def start(self, needed_gpu_bytes: int | None = None) -> PodReport:
        """Take what is on its way already; else clear what is left of earlier runs, and rent.

        `needed_gpu_bytes`: of all GPUs together, with gpu_ram = "auto".

        Raises:
            NoCapacity: no offer fits.
            Ambiguous: it is not known whether an instance was rented; the list will tell.
        """
        ours = await self._list()
        if (report := self._on_its_way(ours)) is not None:
            return report
        for left in ours:
            if left.number not in self._destroyed:
                await self._destroy(left.number, left)
        return await self._rent(needed_gpu_bytes)

    async def stop(self) -> PodReport:
        """Destroy one of ours, what bills most first; sent again until the list shows none.

        One per call, because Vast.ai takes one in 3 s (docs/providers.md#vastai-api).
        """
        ours = await self._list()
        if ours:
            await self._destroy(ours[0].number, ours[0])
        elif self._unseen:
            await self._destroy(next(iter(self._unseen)))
        elif self._doubt is None:
            return self._nothing()
        return PodReport(Phase.STOPPING, str(ours[0].number) if ours else None, detail="being destroyed")

    async def inspect(self) -> PodReport:
        """Read the list: the one that is most alive is our pod, another one is mentioned."""
        ours = await self._list()
        if (report := self._on_its_way(ours)) is None:
            return ours[0].report if ours else self._nothing()
        return report

    async def sweep(self) -> None:
        """Destroy one of ours beside the one that serves; one per call, as with `stop`."""
        serving = self._meant
        ours = await self._list()
        if not ours or ours[0].number != serving:  # the next look says which it is
            return
        left = [other for other in ours[1:] if other.number not in self._destroyed]
        if left:
            await self._destroy(left[0].number, left[0])

    # --- what there is ----------------------------------------------------------------------------

    async def _list(self) -> list[Instance]:
        """Ours, what bills most first; what was read less than the list's interval ago is good enough.

        What we did since is known without a look: what was rented is `_unseen`, what was destroyed noted.
        """
        if self._now() - self._listed_at >= LIST.interval_s:
            rows = list(await self._api.list_all())
            self._rows = rows + await self._missing_from(rows)
            self._listed_at = self._now()
        ours = [self._instance(row) for row in self._rows if self._is_ours(row)]
        self._note(ours)
        ours = [instance for instance in ours if instance.report.phase is not Phase.GONE]
        return sorted(ours, key=lambda one: (_RANK.index(one.report.phase), one.number != self._meant))

    async def _missing_from(self, rows: Sequence[Object]) -> list[Object]:
        """What we know of and the list does not show: asked for one by one before it is taken for gone."""
        found = []
        for number in self._known - {row.get("id") for row in rows}:
            if number in self._unseen and self._now() - self._rented[number].at < VISIBLE_S:
                continue
            row = await self._api.show(number)
            if row is None:
                self._known.discard(number)
            else:
                found.append(row)
        return found

    def _is_ours(self, row: Object) -> bool:
        label, number = row.get("label"), row.get("id")
        return isinstance(number, int) and isinstance(label, str) and bool(self._ours.fullmatch(label))

    def _instance(self, row: Object) -> Instance:
        number: int = row["id"]
        run = self._runs.setdefault(number, Run(fresh=True))
        report = self._reader.report(row, run, self._now())
        if report.phase in (
            Phase.STOPPED,
            Phase.QUEUED,
        ):  # ours never rest: this one was to run, or to be gone
            left = f"left over: {report.detail}"
            report = PodReport(Phase.FAILED, report.pod_id, price=report.price, detail=left, billed=False)
        if report.phase is Phase.FAILED and is_spot(row) and number not in self._destroyed:
            self._on_demand_until = self._now() + INTERRUPTED_S
        if report.phase in _ON_ITS_WAY and (made := self._rented.get(number)) is not None and made.failed:
            report = made.report
        if self._now() - self._destroyed.get(number, -inf) >= ENDING_S:
            self._destroyed.pop(number, None)
        if number in self._destroyed and report.phase is not Phase.GONE:
            billed = report.billed
            report = PodReport(
                Phase.STOPPING, report.pod_id, price=report.price, detail="being destroyed", billed=billed
            )
        return Instance(number, row, report)

    def _note(self, ours: Sequence[Instance]) -> None:
        """Settle what the list settles: instances that were awaited, and those that had time to appear."""
        now = self._now()
        listed = {instance.number for instance in ours if instance.report.phase is not Phase.GONE}
        self._known |= listed
        labels = {instance.row["label"] for instance in ours}
        self._unseen = {n for n in self._unseen - listed if now - self._rented[n].at < VISIBLE_S}
        if self._doubt is not None and (self._doubt.label in labels or now >= self._doubt.until):
            self._doubt = None
        self._destroyed = {n: at for n, at in self._destroyed.items() if n in listed or n in self._unseen}
        self._runs = {n: run for n, run in self._runs.items() if n in listed or n in self._unseen}
        self._rented = {n: made for n, made in self._rented.items() if n in listed or n in self._unseen}

    def _on_its_way(self, ours: Sequence[Instance]) -> PodReport | None:
        """The pod that runs or will: listed, rented and not listed yet, or perhaps rented."""
        alive = [instance for instance in ours if instance.report.phase in _ON_ITS_WAY]
        self._meant = alive[0].number if alive else None
        if alive:
            return _mentioning(alive[0].report, alive[1:])
        for number in self._unseen - self._destroyed.keys():
            if not self._rented[number].failed:
                return evolve(self._rented[number].report, detail="rented, not listed yet")
        if self._doubt is not None:
            words = "a create's answer was lost; it may yet appear"
            return PodReport(Phase.PROVISIONING, detail=words, billed=False)
        return None

    @staticmethod
    def _nothing() -> PodReport:
        return PodReport(Phase.STOPPED, detail="no instance is rented")

    # --- renting ------------------------------------------------------------------------------------

    async def _rent(self, needed: int | None) -> PodReport:
        """Take the best offer. A create that failed and made an instance all the same is a failed pod: it is
        destroyed, and billed until then."""
        offer = await self._next_offer(self._wanted_bytes(needed))
        bid = bid_for(offer, self._config) if self._offers_are_spot else None
        made = await self._create(offer, bid)
        self._offers = []  # what was found for this run is of no use to the next
        number = made.instance_id
        assert number is not None
        report = PodReport(
            Phase.PROVISIONING if made.error is None else Phase.FAILED,
            str(number),
            price=price_of(offer, keeps_disk=False),
            gpu=gpu_of({**offer, "is_bid": self._offers_are_spot}, self._config),
            gpu_bytes=gpu_bytes_of(offer),
            detail="rented" if made.error is None else made.error.message,
        )
        self._rented[number] = Rented(self._now(), report, failed=made.error is not None)
        self._unseen.add(number)
        self._known.add(number)
        self._runs[number] = Run(asked_at=self._now(), accepted=True, fresh=True)
        if made.error is not None:
            self._exclude(offer)
            with suppress(ProviderError):  # else the next start or stop destroys it
                await self._destroy(number)
        return report

    def _wanted_bytes(self, needed: int | None) -> int:
        if not self._config.chooses_gpu:
            return 0
        if needed is None:
            raise Misconfigured('gpu_ram = "auto": the size of no model is known; name one in pod.pull')
        return needed

    async def _next_offer(self, needed: int) -> Object:
        """The cheapest, of a search that is not old; one that was taken by another is excluded by then."""
        now = self._now()
        self._excluded = {machine: until for machine, until in self._excluded.items() if now < until}
        spot = self._config.spot and now >= self._on_demand_until
        if now - self._offers_at >= OFFERS_S or not self._offers or spot is not self._offers_are_spot:
            self._offers = list(await self._api.search(search_body(self._config, needed, spot=spot)))
            self._offers_at, self._offers_are_spot = self._now(), spot
        self._offers = fitting(self._offers, self._config, self._excluded, needed, spot=spot)
        if not self._offers and spot:
            self._on_demand_until = self._now() + OFFERS_S
            raise RateLimited("no spot offer fits: on-demand ones are searched next", SEARCH.interval_s)
        if not self._offers and needed:
            size = f"{needed / (1 << 30):.1f} GiB"
            raise NoCapacity(
                f"Vast.ai offers no GPU with {size} that fits; relax max_price, gpus or the min_ keys"
            )
        if not self._offers:
            raise NoCapacity("Vast.ai offers nothing that fits; relax max_price, gpus or the min_ keys")
        return self._offers[0]

    async def _create(self, offer: Object, bid: Decimal | None) -> Created:
        """One create. Until its answer is understood, an instance may exist under its label."""
        label = f"gpugate-{self._config.instance}-{secrets.token_hex(4)}"
        self._doubt = Doubt(label)
        try:
            made = await self._api.create(offer["id"], create_body(self._config, label, bid))
        except OfferTaken:
            self._exclude(offer)
            self._doubt = None
            raise
        except (Ambiguous, asyncio.CancelledError):
            self._doubt.until = self._now() + VISIBLE_S
            raise
        except ProviderError:  # a plain no
            self._doubt = None
            raise
        self._doubt = None
        return made

    def _exclude(self, row: Object) -> None:
        if (machine := row.get("machine_id")) is not None:
            self._excluded[machine] = self._now() + EXCLUDED_S

    # --- destroying ---------------------------------------------------------------------------------

    async def _destroy(self, number: int, instance: Instance | None = None) -> None:
        """Ask for the end of one; a machine on which it failed is left alone for an hour."""
        if instance is not None and self._has_failed(instance):
            self._exclude(instance.row)
        await self._api.destroy(number)
        self._destroyed[number] = self._now()

    def _has_failed(self, instance: Instance) -> bool:
        if instance.report.phase in (Phase.FAILED, Phase.UNREACHABLE):
            return True
        run = self._runs.get(instance.number, Run())
        slow = run.asked_at is not None and not run.younger_than(SLOW_S, self._now())
        return slow and instance.report.phase in (Phase.STARTING, Phase.PROVISIONING)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def _mentioning(report: PodReport, others: Sequence[Instance]) -> PodReport:
    """Another instance of ours bills as well; `sweep` or the next stop destroys it."""
    if not others:
        return report
    numbers = ", ".join(str(other.number) for other in others)
    return evolve(report, alarm=f"also rented, and billed: {numbers}")
