"""The results: goals with their bars, tables beside them, and notes; knows nothing of measuring."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from attrs import define, field, frozen


def median(values: Iterable[float]) -> float | None:
    """The median, or None of nothing."""
    kept = list(values)
    return statistics.median(kept) if kept else None


def number(value: float | None, digits: int = 2) -> str:
    """A figure for people; a dash where there is none."""
    if value is None:
        return "-"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.{digits}f}"


@frozen
class Goal:
    """One promise: what is measured, the bar, and what came out on either event loop.

    Attributes:
        at_most: the bar is an upper bound; otherwise a lower one.
        uvloop: the figure that is judged.
        plain: the same on plain asyncio; judged only where uvloop was not measured.
    """

    text: str
    unit: str
    bar: float
    at_most: bool
    uvloop: float | None
    plain: float | None

    @property
    def judged(self) -> float | None:
        return self.plain if self.uvloop is None else self.uvloop

    @property
    def verdict(self) -> str:
        if self.judged is None:
            return "not measured"
        reached = self.judged <= self.bar if self.at_most else self.judged >= self.bar
        return "pass" if reached else "MISS"

    def row(self) -> list[str]:
        sign = "≤" if self.at_most else "≥"
        bar = f"{sign} {self.bar:,g} {self.unit}".strip()
        return [self.text, number(self.uvloop), number(self.plain), bar, self.verdict]


@frozen
class Table:
    """Figures that explain the goals."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@define
class Board:
    """Everything that was found, in order."""

    goals: list[Goal] = field(factory=list)
    tables: list[Table] = field(factory=list)
    notes: list[str] = field(factory=list)

    def at_most(self, text: str, unit: str, bar: float, uvloop: float | None, plain: float | None) -> None:
        """Add a goal with an upper bound."""
        self.goals.append(Goal(text, unit, bar, True, uvloop, plain))

    def at_least(self, text: str, unit: str, bar: float, uvloop: float | None, plain: float | None) -> None:
        """Add a goal with a lower bound."""
        self.goals.append(Goal(text, unit, bar, False, uvloop, plain))

    def note(self, text: str) -> None:
        """Add a line that a reader must know; once."""
        if text not in self.notes:
            self.notes.append(text)

    def text(self) -> str:
        """All of it in Markdown."""
        heading = ["goal", "uvloop", "asyncio", "bar", ""]
        parts = [_grid(heading, [goal.row() for goal in self.goals])] if self.goals else []
        parts += [f"{table.title}\n\n{_grid(table.columns, table.rows)}" for table in self.tables]
        parts += ["\n".join(f"- {note}" for note in self.notes)] if self.notes else []
        return "\n\n".join(parts)

    @property
    def missed(self) -> int:
        """How many goals were measured and not reached."""
        return sum(goal.verdict == "MISS" for goal in self.goals)


def _grid(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [list(columns), *map(list, rows)]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(columns))]
    text = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in lines
    ]
    return "\n".join([text[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *text[1:]])
