"""Collects complaints about a configuration: what is wrong, where it was given, what was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from attrs import define, field

from gpugate.config.converter import Problem
from gpugate.config.schema import LISTS
from gpugate.config.sources import Raw, SourcedValue, complaint, display, variable_of
from gpugate.config.validators import NOT_SHOWN

NAMED = ("providers", "pods")
"""Sections of sections that have names."""


@define
class Complaints:
    """Collects what is wrong with one configuration.

    Attributes:
        source: the configuration's name in complaints about keys that were not given.
        raw: what was given.
        known: every dotted key, for "did you mean".
        lines: the complaints, one line each.
        faulty: dotted keys and sections that were complained about.
    """

    source: str
    raw: Raw
    known: Sequence[str] = ()
    lines: list[str] = field(factory=list)
    faulty: set[str] = field(factory=set)

    def add(
        self, key: str, problem: str, given: SourcedValue | None = None, *, at: str = "", hint: bool = True
    ) -> None:
        """Add a complaint about a dotted key; `at` is the part of its value that is meant, such as "[1]"."""
        given = given or self._find(key.split("."))[0] or SourcedValue(None, self.source)
        self.lines.append(complaint(given, key, problem, at=at, hint=hint))
        self.faulty.add(key)

    def is_faulty(self, key: str) -> bool:
        """Return whether there is a complaint about a key, or about its section as a whole."""
        return not self.faulty.isdisjoint({key, key.partition(".")[0]})

    def add_all(self, findings: Iterable[tuple[str, str]]) -> None:
        """Add complaints, except about keys that have their default because their own value was at fault."""
        for key, problem in findings:
            if not self.is_faulty(key):
                self.add(key, problem, hint="[" not in key)  # no variable sets a list of tables

    def add_problems(self, problems: Iterable[Problem], *prefix: str) -> None:
        """Add the problems of a class that was structured from the table at `prefix`."""
        for problem in problems:
            path = [*prefix, *problem.path]
            given, rest = self._find(path)
            key = ".".join(map(str, path[: len(path) - len(rest)]))
            is_list = key in LISTS
            at = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in rest)
            if problem.known is not None:
                self._add_unknown([*map(str, path)], problem.known, given, at if is_list else "")
            elif problem.text != "is missing" or key not in self.faulty:  # its file may be at fault
                bare = given is not None and given.is_text and not rest
                value = (
                    "" if problem.value is NOT_SHOWN else f", is {display(problem.value, quoted=not bare)}"
                )
                hint = len(path) > len(prefix) and not is_list  # no variable sets a list of tables
                self.add(key, problem.text + value, given, at=at, hint=hint)

    def reject_single_underscores(self, env: Mapping[str, str]) -> None:
        """Complain about variables with one underscore in place of two, which would be ignored silently."""
        meant_by = {variable_of(key).replace("__", "_"): variable_of(key) for key in self.known}
        for name in sorted(env):
            meant = meant_by.get(name)
            for section in NAMED:
                if name.startswith(variable_of(section) + "_") and "__" not in name:
                    meant = variable_of(f"{section}.<name>.<key>")
            # GPUGATE_STATE_DIR passes the state folder to providers; Docker and Kubernetes set <SERVICE>_PORT
            if meant is None or name == "GPUGATE_STATE_DIR" or env[name].startswith(("tcp://", "udp://")):
                continue
            self.lines.append(f"{name}: unknown variable; did you mean {meant} (two underscores)?")

    def reject_single_tables(self, env: Mapping[str, str]) -> None:
        """Complain about a list of tables that is given as one table, or by variables."""
        for name in LISTS:
            wrong = [variable for variable in sorted(env) if variable.startswith(variable_of(name) + "__")]
            if isinstance(self.raw.get(name), dict):
                del self.raw[name]
                wrong = wrong or [f"{self.source}: {name}"]
            problem = f"must be tables in the file, each with the head [[{name}]]"
            self.lines += [f"{place}: {problem}" for place in wrong]

    def _find(self, path: Sequence[str | int]) -> tuple[SourcedValue | None, Sequence[str | int]]:
        """Return what was given along a path, and the part of the path that is within its value."""
        found: Any = self.raw
        for depth, part in enumerate(path):
            if isinstance(found, SourcedValue):
                return found, path[depth:]
            found = found.get(part) if isinstance(found, dict) else None
        return found if isinstance(found, SourcedValue) else None, ()

    def _add_unknown(
        self, path: list[str], known: Sequence[str], given: SourcedValue | None, at: str
    ) -> None:
        """Name the key that was probably meant: the same one of another section, or a similar one of this."""
        *section, last = path
        if at:  # in a list of tables
            place, close = f"{path[0]}{at.rpartition('.')[0]}", difflib.get_close_matches(last, known, n=1)
            says = f"did you mean {place}.{close[0]}?" if close else f"{place} has {', '.join(known)}"
            self.add(path[0], f"unknown key; {says}", given, at=at, hint=False)
            return
        names = [*known, *NAMED] if not section else known
        meant = next((key for key in self.known if key.rpartition(".")[2] == last), None)
        if meant is None and (close := difflib.get_close_matches(last.lower(), names, n=1)):
            meant = ".".join([*section, close[0]])
        says = f"{'.'.join(section) or 'the configuration'} has {', '.join(names) or 'no keys'}"
        if meant is not None:
            also = f" ({variable_of(meant)})" if given is not None and given.is_text else ""
            says = f"did you mean {meant}{also}?"
        # of an unknown section: one complaint for the file, and one for each variable
        values = [given] if given else [*self.raw[last].values()]
        for value in {value.source: value for value in values}.values() or [None]:
            self.add(".".join(path), f"unknown {'key' if given else 'section'}; {says}", value, hint=False)
