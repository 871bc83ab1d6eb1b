"""`gpugate top`: a live view of a running gateway in a terminal, by rich."""

from __future__ import annotations

import sys
import threading
import time
from argparse import Namespace
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from attrs import define, field

from gpugate.cli.describe import describe_event, describe_status, plain, price
from gpugate.cli.errors import CliError
from gpugate.cli.http_client import GatewayClient, connect
from gpugate.cli.pod_commands import latest_sessions, parse_events, pods_of, session_of, time_of
from gpugate.install_hints import install_command
from gpugate.wording import count, duration

if TYPE_CHECKING:
    from rich.console import RenderableType

_LOOK_S = 1.0
_COSTS_S = 30.0
_KEPT = 200  # events, of which as many are shown as there is room for
_LEAST_SHOWN = 3
_STYLES = {
    "READY": "bold green",
    "STARTING": "bold yellow",
    "WARMING": "bold yellow",
    "STOPPING": "bold yellow",
}


def top(args: Namespace) -> NoReturn:
    """Show the pods, their requests, costs and events until Ctrl-C.

    Raises:
        CliError: there is no terminal, rich is not installed, or no gateway answers at the beginning.
    """
    if not (sys.stdout.isatty() and sys.stdin.isatty()):
        raise CliError("top needs a terminal: gpugate status says the same once, gpugate events follows it")
    try:
        from rich.live import Live
    except ImportError:
        raise CliError(f"top needs rich: {install_command('gpugate', 'gpugate[top]')}") from None
    screen = Screen(connect(args))
    screen.look()
    threading.Thread(target=screen.follow_events, name="events", daemon=True).start()
    with Live(screen, screen=True, refresh_per_second=4) as live:
        costs_at = time.monotonic() + _COSTS_S
        while True:
            time.sleep(_LOOK_S)
            try:
                screen.look()
                if time.monotonic() >= costs_at:
                    screen.look_at_costs()
                    costs_at = time.monotonic() + _COSTS_S
                screen.trouble = ""
            except CliError as error:  # it may be restarting
                screen.trouble = f"{error.message}; trying again"
            live.refresh()


@define
class Screen:
    """What is shown, as far as it is known.

    Attributes:
        looked_at: by this machine's clock that is never set, when `status` was true.
    """

    gateway: GatewayClient
    status: Mapping[str, Any] = field(factory=dict)
    at: datetime | None = None
    looked_at: float = 0.0
    sessions: Sequence[Mapping[str, Any]] = ()
    requests: Mapping[str, Any] = field(factory=dict)
    costs: Mapping[str, Any] = field(factory=dict)
    events: deque[str] = field(factory=lambda: deque(maxlen=_KEPT))
    trouble: str = ""

    def look(self) -> None:
        """Ask for the status and the requests. Raises: CliError."""
        answer = self.gateway.ask("GET", "/api/v1/gpu/status")
        before, self.status = self.status, answer.data
        if _states(before) != _states(self.status):
            self.look_at_costs()
        self.at, self.looked_at = answer.at, time.monotonic()
        self.requests = self.gateway.get("/api/v1/gpu/requests")

    def look_at_costs(self) -> None:
        """Ask for the month's costs and the newest sessions, unless the token may not see them."""
        self.sessions = latest_sessions(self.gateway, len(pods_of(self.status)))
        try:
            self.costs = self.gateway.get("/api/v1/cost/summary")
        except CliError:
            self.costs = {}

    def follow_events(self) -> None:
        """Take up events for as long as the process runs; a stream that ends is opened again."""
        past = f"?replay={_LEAST_SHOWN * 5}"
        while True:
            try:
                for event in parse_events(self.gateway.lines(f"/api/v1/gpu/events{past}")):
                    self.events.append(
                        f"{time_of(event)} {describe_event(event, self.costs.get('currency'))}"
                    )
            except CliError:
                pass  # `look` tells of it
            past = ""
            time.sleep(_LOOK_S)

    def __rich_console__(self, console: Any, options: Any) -> Any:
        """Draw it, for rich; as many events as the terminal has room for."""
        from rich.panel import Panel
        from rich.text import Text

        rows = self.requests.get("requests") or []
        taken = 11 + len(pods_of(self.status)) + min(len(rows), 8)
        room = max(_LEAST_SHOWN, (options.max_height or 24) - taken)
        yield Panel(self._pods(), title=f"gpugate at {self.gateway.url}", subtitle="Ctrl-C ends")
        yield Panel(self._requests(rows), title=self._heading())
        yield Panel(Text("\n".join([*self.events][-room:])), title="events")

    def _pods(self) -> RenderableType:
        from rich.text import Text

        pods, lines, problems = pods_of(self.status), list[Text](), list[str]()
        gone_s = time.monotonic() - self.looked_at
        for pod in pods:
            session = {**session_of(pod, self.sessions), "currency": self.costs.get("currency")}
            sentence, problem = describe_status(
                _counted_down(pod, gone_s), session, self.at and self.at + timedelta(seconds=gone_s)
            )
            name = f"{plain(pod['pod'])}: " if len(pods) > 1 else ""
            word, blank, rest = sentence.partition(" ")
            lines.append(Text.assemble(name, (word, _STYLES.get(word, "bold")), blank + rest))
            problems += [f"{name}last problem: {problem}"] if problem else []
        lines += [Text(self._month())] if self.costs else []
        lines += [Text(told, "red") for told in filter(None, (*problems, self.trouble))]
        return Text("\n").join(lines)

    def _month(self) -> str:
        costs, currency = self.costs, self.costs.get("currency")
        spent = f"this month {price(costs.get('estimatedTotal'), currency)}"
        if costs.get("monthlyBudget"):
            spent += f" of {price(costs['monthlyBudget'], currency)}"
        return f"{spent}, {count(costs.get('sessionCount') or 0, 'session')}"

    def _heading(self) -> str:
        return count(self.requests.get("count") or 0, "request")

    def _requests(self, rows: Any) -> RenderableType:
        from rich.table import Table

        table = Table(box=None, expand=True, show_header=bool(rows))
        several = len(pods_of(self.status)) > 1
        for title in (*(["pod"] if several else []), "user", "state", "for", "id"):
            table.add_column(title, no_wrap=True)
        for row in rows[:8]:
            state = "waiting" if row.get("state") == "waiting" else "being answered"
            lasted = duration(float(row.get("seconds") or 0))
            pod = [plain(row.get("pod", ""))] if several else []
            table.add_row(*pod, plain(row.get("user")), state, lasted, plain(row.get("request_id")))
        return table


def _states(status: Mapping[str, Any]) -> list[object]:
    return [pod.get("status") for pod in pods_of(status)]


def _counted_down(status: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Return a status as it will be some seconds later, if nothing happens."""
    later = dict(status)
    for name in ("stops_in_seconds", "ready_in_seconds"):
        if later.get(name) is not None:
            later[name] = max(0.0, later[name] - seconds)
    return later
