"""Numbers and names as people say them: durations, money, counts, providers. Pure functions."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal

CENT = Decimal("0.01")
_UNITS = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))
_PLACES = {"runpod": "at RunPod", "vastai": "at Vast.ai", "local": "on this machine", "demo": "in the demo"}


def duration(seconds: float, *, coarse: bool = False, fine: bool = False) -> str:
    """Return the two largest units, such as "45 s", "14 min 20 s" or "2 d 3 h".

    `coarse`, for how long something has lasted: from a minute on without seconds ("14 min"). `fine`, for
    what is compared: "0.4 s", seconds up to two minutes ("97 s"), none from ten minutes on.
    """
    whole = max(0, round(seconds))
    if fine and whole < 120:
        return f"{max(0.0, seconds):.1f} s".replace(".0 s", " s") if seconds < 9.95 else f"{whole} s"
    if (coarse and whole >= 60) or (fine and whole >= 600):
        whole = round(seconds / 60) * 60
    parts, rest = list[str](), whole
    for unit, size in _UNITS:
        number, rest = divmod(rest, size)
        if number or parts:
            parts.append(f"{number} {unit}" if number else "")
    return " ".join(filter(None, parts[:2])) or "0 s"


def money(amount: Decimal, currency: str) -> str:
    """`$0.13` for USD, else `0.13 EUR`; less than a cent is said in words."""
    if 0 < amount < CENT / 2:
        return f"less than {_written(CENT, currency)}"
    return _written(amount, currency)


def _written(amount: Decimal, currency: str) -> str:
    rounded = f"{amount.quantize(CENT, ROUND_HALF_UP):,}"
    return f"${rounded}" if currency == "USD" else f"{rounded} {currency}"


def count(number: int, one: str, many: str = "") -> str:
    """ "1 session", "2 sessions"."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def ordinal(number: int) -> str:
    """ "1st", "2nd", "11th"."""
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def at_provider(name: str) -> str:
    """Return where a pod is, such as "at RunPod" or "on this machine"."""
    return _PLACES.get(name, f"at {name}")


def short_gpu(name: str) -> str:
    """Return a GPU's name without its maker: "RTX 4090" for "NVIDIA GeForce RTX 4090"."""
    return name.replace("NVIDIA ", "").replace("GeForce ", "")
