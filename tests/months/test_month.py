"""Short months of the simulation: nothing leaks, the books agree with the bill, the seed decides all."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from gpugate.core.idle_policy import FixedIdlePolicy, IdlePolicy, LearnedIdlePolicy
from simulation.__main__ import HEAD, WAYS, main
from simulation.cloud import FAIR, Weather
from simulation.hindsight import hindsight
from simulation.month import Report, simulate, simulate_pods
from simulation.spans import union
from simulation.traffic import HOUR_S, KINDS, Request, bot, home

POLICIES = pytest.mark.parametrize("make_idle", [FixedIdlePolicy, LearnedIdlePolicy])
ROUGH = Weather(lives_h=3.0, crashes=6, ignored_stop=0.2, lost_answer=0.1)
NAMES = [*(way.name for way in WAYS), "hindsight"]
MakeIdle = Callable[[float], IdlePolicy]


def days(kind: str, make_idle: MakeIdle, count: int, weather: Weather | None = None) -> Report:
    """Some days of this traffic under the default timeout."""
    return simulate(KINDS[kind](5, count), 900.0, make_idle, seed=5, days=count, weather=weather)


@POLICIES
def test_a_day_without_faults(make_idle: MakeIdle) -> None:
    """All are answered, nothing leaks, and the gateway's word of the cost is the cloud's."""
    report = days("home", make_idle, 1, FAIR)
    assert len(home(5, 1)) == report.answered
    assert (0, 0.0, False) == (report.failed.total(), report.leaked_s, report.billing_at_end)
    assert report.told == pytest.approx(report.cost, rel=0.02)
    assert report.useful_s <= report.paid_s


@POLICIES
def test_rough_days(make_idle: MakeIdle) -> None:
    """Pods that die, lost answers, ignored stops, and a gateway that is killed six times: nothing leaks."""
    report = days("bot", make_idle, 3, ROUGH)
    assert 6 == report.crashes
    assert (0.0, False) == (report.leaked_s, report.billing_at_end)
    assert report.answered + report.failed.total() == len(bot(5, 3))
    assert report.answered > 0.9 * len(bot(5, 3))


@POLICIES
def test_the_books_after_usual_days(make_idle: MakeIdle) -> None:
    """Faults and crashes included, the gateway's word and its ledger are within 2 % of the cloud's bill."""
    report = days("bot", make_idle, 4)
    assert 10 == report.crashes
    assert report.told == pytest.approx(report.cost, rel=0.02)
    assert report.on_record == pytest.approx(report.cost, rel=0.02)
    assert 0 == report.open_rows


@POLICIES
def test_three_pods(make_idle: MakeIdle) -> None:
    """Over one ledger, killed together, each with faults of its own: nothing leaks, each bill is right."""
    kinds = {"main": "home", "code": "bot", "draw": "scattered"}
    traffics = {pod: KINDS[kind](5, 2) for pod, kind in kinds.items()}
    reports = simulate_pods(traffics, 900.0, make_idle, seed=5, days=2, weather=Weather(crashes=5))
    assert kinds.keys() == reports.keys()
    for pod, report in reports.items():
        assert (5, 0.0, False, 0) == (
            report.crashes,
            report.leaked_s,
            report.billing_at_end,
            report.open_rows,
        ), pod
        assert report.on_record == pytest.approx(report.cost, rel=0.02), pod
        assert report.answered + report.failed.total() == len(traffics[pod])
        assert report.answered > 0.9 * len(traffics[pod]), pod


@POLICIES
def test_the_seed_decides_all(make_idle: MakeIdle) -> None:
    """The same month twice is the same month, to the second."""
    assert days("home", make_idle, 2, ROUGH) == days("home", make_idle, 2, ROUGH)


def test_a_program_that_comes_every_hour_is_learnt() -> None:
    """After some days the pod is warm before it comes, and less is paid."""
    fixed, learned = days("bot", FixedIdlePolicy, 5, FAIR), days("bot", LearnedIdlePolicy, 5, FAIR)
    assert 0 == fixed.prewarmed
    assert learned.prewarmed > 30
    assert learned.cold < fixed.cold - 30
    assert learned.paid_s < 0.8 * fixed.paid_s


def test_what_a_policy_that_forgets_its_pod_costs() -> None:
    """The watchman is awake: a pod that is kept for longer than the timeout is a leak."""
    report = simulate(
        home(5, 1), 900.0, lambda timeout_s: FixedIdlePolicy(10 * timeout_s), days=1, weather=FAIR
    )
    assert report.leaked_s > HOUR_S


def test_hindsight() -> None:
    """It bridges a pause that is shorter than a cold start is worth, and no other."""
    best = hindsight((Request(0.0, 9.0), Request(500.0, 9.0), Request(9000.0, 9.0)))
    assert 2 == best.cold
    assert 30.0 == best.useful_s
    assert best.price_s == pytest.approx(490.0 + 2 * 900.0)


@pytest.mark.parametrize("kind", KINDS)
def test_hindsight_without_faults_is_the_cheapest(kind: str) -> None:
    """The fixed timeout costs at most twice as much in its own currency: idle time and cold starts."""
    best = hindsight(KINDS[kind](5, 10))
    work = union((r.at, r.at + 1 + r.takes_s) for r in KINDS[kind](5, 10))
    pauses = [after[0] - before[1] for before, after in pairwise(work)]
    fixed = 900.0 + sum(pause if pause <= 900.0 else 1800.0 for pause in pauses)
    assert best.price_s <= fixed <= 2 * best.price_s


def test_the_page_shows_the_table() -> None:
    """`docs/simulation.md` has every row that `make simulate` prints, and no leak."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "simulation.md").read_text()
    assert f"| {' | '.join(HEAD)} |" in page
    rows = [
        line.split(" | ") for line in page.splitlines() if line.startswith(tuple(f"| {k} |" for k in KINDS))
    ]
    lived = [row for row in rows if len(row) == len(HEAD)]
    assert [(f"| {kind}", name) for kind in KINDS for name in NAMES] == [(row[0], row[1]) for row in lived]
    assert {"0", ""} == {row[12].strip() for row in lived}


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    """A row for each policy and one for hindsight; status 0 without a leak; the same twice."""
    words = ["--days", "1", "--seeds", "1", "--only", "home"]
    assert 0 == main(words)
    first = capsys.readouterr().out.splitlines()
    assert 0 == main(words)
    assert first[:-1] == capsys.readouterr().out.splitlines()[:-1]
    rows = [line.split(" | ") for line in first if line.startswith("| home")]
    assert NAMES == [row[1] for row in rows]
    assert {14} == {len(row) for row in rows}
