"""When each provider is looked at next, and which answer is waited for; what is seen is judged elsewhere."""

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
    """One look at a time per provider; a command to a provider makes the look that is out worthless."""

    slots: list[_Slot] = field(converter=_slots)

    @property
    def next_due(self) -> float:
        """The earliest look that is not out yet."""
        return min(inf if slot.op is not None else slot.due for slot in self.slots)

    def schedule(self, provider: int, at: float) -> None:
        """Look at this provider at `at`, or when the look that is out has come back."""
        self.slots[provider].due = at

    def schedule_no_later_than(self, provider: int, at: float) -> None:
        """Look again at `at`, or sooner if that was asked for while the last look was out."""
        slot = self.slots[provider]
        slot.due = min(slot.due, at)

    def cancel(self, provider: int) -> None:
        """Drop the look that is out and plan none: what it says would be older than our command."""
        self.slots[provider] = _Slot()

    def take_due(self, now: float) -> list[int]:
        """The providers to look at now."""
        return [i for i, slot in enumerate(self.slots) if slot.due <= now and slot.op is None]

    def sent(self, provider: int, op: int) -> None:
        """A look with this number is out."""
        self.slots[provider] = _Slot(op=op)

    def is_answered_by(self, provider: int, op: int) -> bool:
        """True, once, if this is the answer that is waited for."""
        slot = self.slots[provider]
        if slot.op != op:
            return False
        slot.op = None
        return True
