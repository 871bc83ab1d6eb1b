"""When each provider is inspected next, and which inspection is out."""

from __future__ import annotations

from math import inf

from attrs import define, field


@define
class _Slot:
    due: float = inf
    op: int | None = None


def _slots(count: int) -> list[_Slot]:
    return [_Slot() for _ in range(count)]


@define
class InspectSchedule:
    """One inspection at a time per provider. A start or stop cancels the one that is out: it is older."""

    slots: list[_Slot] = field(converter=_slots)

    @property
    def next_due(self) -> float:
        """When the next inspection has to be sent; `inf` if each is out or none is planned."""
        return min(inf if slot.op is not None else slot.due for slot in self.slots)

    def schedule(self, provider: int, at: float) -> None:
        """Inspect this provider at `at`, or when the inspection that is out has its result."""
        self.slots[provider].due = at

    def schedule_no_later_than(self, provider: int, at: float) -> None:
        """Inspect at `at`, or earlier if that was scheduled while the last inspection was out."""
        slot = self.slots[provider]
        slot.due = min(slot.due, at)

    def cancel(self, provider: int) -> None:
        """Ignore the result of the inspection that is out, and plan none."""
        self.slots[provider] = _Slot()

    def take_due(self, now: float) -> list[int]:
        """Return the providers to inspect now."""
        return [i for i, slot in enumerate(self.slots) if slot.due <= now and slot.op is None]

    def sent(self, provider: int, op: int) -> None:
        """Note that an inspection with this number is out."""
        self.slots[provider] = _Slot(op=op)

    def is_out(self, provider: int) -> bool:
        """Return whether an inspection of this provider is out."""
        return self.slots[provider].op is not None

    def take_result(self, provider: int, op: int) -> bool:
        """Return True, once, if the result with this number is the one that is waited for."""
        slot = self.slots[provider]
        if slot.op != op:
            return False
        slot.op = None
        return True
