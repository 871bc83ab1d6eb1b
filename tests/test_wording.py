"""Numbers and names as people say them, as tables."""

from __future__ import annotations

from decimal import Decimal

import pytest

from gpugate import wording


@pytest.mark.parametrize(
    ("amount", "currency", "said"),
    [
        ("0.13", "USD", "$0.13"),
        ("0.13", "EUR", "0.13 EUR"),
        ("0.125", "USD", "$0.13"),
        ("4.9", "USD", "$4.90"),
        ("0", "USD", "$0.00"),
        ("0.004", "USD", "less than $0.01"),
        ("0.004", "EUR", "less than 0.01 EUR"),
        ("0.005", "USD", "$0.01"),
        ("1234.5", "USD", "$1,234.50"),
    ],
)
def test_money(amount: str, currency: str, said: str) -> None:
    """Dollars in front, others behind; never nothing for something."""
    assert said == wording.money(Decimal(amount), currency)


@pytest.mark.parametrize(
    ("seconds", "exact", "coarse"),
    [
        (-3, "0 s", "0 s"),
        (0.4, "0 s", "0 s"),
        (59.6, "1 min", "1 min"),
        (45, "45 s", "45 s"),
        (860, "14 min 20 s", "14 min"),
        (900, "15 min", "15 min"),
        (3605, "1 h", "1 h"),
        (3599, "59 min 59 s", "1 h"),
        (9000, "2 h 30 min", "2 h 30 min"),
        (183_600, "2 d 3 h", "2 d 3 h"),
    ],
)
def test_duration(seconds: float, exact: str, coarse: str) -> None:
    """The two largest units; for what has lasted no seconds behind minutes."""
    assert (exact, coarse) == (wording.duration(seconds), wording.duration(seconds, coarse=True))


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (-1, "0 s"),
        (0.04, "0 s"),
        (0.44, "0.4 s"),
        (9.96, "10 s"),
        (97.3, "97 s"),
        (119.6, "2 min"),
        (250, "4 min 10 s"),
        (300, "5 min"),
        (910, "15 min"),
        (9000, "2 h 30 min"),
        (7200, "2 h"),
    ],
)
def test_fine_duration(seconds: float, said: str) -> None:
    """Parts of a wait: tenths of few seconds, and seconds where minutes would hide them."""
    assert said == wording.duration(seconds, fine=True)


def test_ordinal() -> None:
    """As they are spoken."""
    said = [wording.ordinal(number) for number in (1, 2, 3, 4, 11, 12, 13, 21, 102, 111)]
    assert ["1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "102nd", "111th"] == said


def test_names() -> None:
    """A provider that is not known stands under its own name; a GPU without its maker."""
    places = [wording.at_provider(name) for name in ("runpod", "vastai", "local", "mine")]
    gpus = [wording.short_gpu(name) for name in ("NVIDIA GeForce RTX 4090", "2 x NVIDIA A100-SXM4-80GB")]
    assert ["at RunPod", "at Vast.ai", "on this machine", "at mine"] == places
    assert ["RTX 4090", "2 x A100-SXM4-80GB"] == gpus
