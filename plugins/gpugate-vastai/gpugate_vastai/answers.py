"""What Vast.ai's answers mean as errors: a pure translation, without network and without state.

A 2xx is no success here, a 404 may be a wrong key, and a 429 is plain text (docs/providers.md#vastai-errors).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from attrs import frozen

from gpugate import (
    AuthFailed,
    Blocked,
    Conflict,
    Misconfigured,
    NoCapacity,
    NoFunds,
    NotFound,
    ProviderError,
    RateLimited,
    Transient,
)

Object = Mapping[str, Any]
LONGEST_QUOTE = 160

KEY_ADVICE = "check providers.vastai.api_key (cloud.vast.ai, Keys)"
RIGHTS = "it needs instance_read and instance_write, misc in ephemeral mode, billing_read for the bill"
FUNDS_ADVICE = "add credit at cloud.vast.ai, Billing"

_BY_CODE: dict[str, tuple[type[ProviderError], str]] = {
    "auth_error": (AuthFailed, f"Vast.ai does not accept the API key: {KEY_ADVICE}"),
    "invalid_args": (Misconfigured, "Vast.ai refuses the request"),
    "insufficient_credit": (NoFunds, f"the Vast.ai account has no credit left: {FUNDS_ADVICE}"),
    "missing_billing": (
        NoFunds,
        "the Vast.ai account has no means of payment: add one at cloud.vast.ai, Billing",
    ),
    "spend_rate_limit": (NoFunds, "the Vast.ai account has reached its spending limit"),
    "search_quota_exceeded": (Blocked, "Vast.ai's daily quota of searches is used up until midnight UTC"),
    "no_such_instance": (
        NotFound,
        "there is no such instance at Vast.ai: check providers.vastai.instance_id",
    ),
}
_BY_STATUS: dict[int, tuple[type[ProviderError], str]] = {
    400: (Misconfigured, "Vast.ai refuses the request"),
    401: (AuthFailed, f"Vast.ai does not accept the API key: {KEY_ADVICE}"),
    402: (NoFunds, f"the Vast.ai account cannot pay: {FUNDS_ADVICE}"),
    403: (AuthFailed, f"the Vast.ai key may not do this: {RIGHTS}"),
    404: (NotFound, "there is no such thing at Vast.ai"),
    409: (Conflict, "Vast.ai does not do this in the instance's present state"),
    422: (Misconfigured, "Vast.ai refuses the request"),
}


@frozen
class Answer:
    """One answer of the API; `fields` is None where the body is no JSON object."""

    status: int
    text: str
    retry_after: str
    fields: Object | None

    @classmethod
    def read(cls, status: int, body: bytes, retry_after: str) -> Answer:
        """Numbers are read exactly: they are money."""
        text = body.decode(errors="replace")
        try:
            fields = json.loads(text, parse_float=Decimal)
        except (ValueError, RecursionError):
            fields = None
        return cls(status, text, retry_after, fields if isinstance(fields, dict) else None)

    @property
    def code(self) -> str:
        """The API's own word for what went wrong."""
        return _word(self.fields, "error")

    @property
    def says(self) -> str:
        """The API's own sentence, on one line; empty where it wrote a page."""
        fields = self.fields
        if fields is None:
            return "" if "<" in self.text else _short(self.text)
        return next(
            (_short(said) for key in ("msg", "message", "detail") if (said := _word(fields, key))), ""
        )


def error_of(answer: Answer, interval_s: float) -> ProviderError | None:
    """The error an answer stands for, or None if it is a success.

    `interval_s`: the endpoint's documented minimum, told as `retry_after` where a 429 tells nothing.
    """
    status, fields = answer.status, answer.fields
    if 200 <= status < 300:
        if fields is None:
            return Transient("Vast.ai answered something that is no JSON")
        if fields.get("success") is not False and not answer.code:
            return None
        return _named(answer) or Conflict(_with("Vast.ai refuses", answer))
    if 300 <= status < 400:
        return Misconfigured("Vast.ai redirects to another address: is providers.vastai.api_base right?")
    if status == 429 and answer.code != "search_quota_exceeded":
        return RateLimited("Vast.ai is asked too often", _patience(answer, interval_s))
    if status >= 500:
        return Transient(_with(f"Vast.ai is in trouble (HTTP {status})", answer))
    return _named(answer) or _by_status(answer)


def _named(answer: Answer) -> ProviderError | None:
    """By the API's own words, whatever the status."""
    said = f"{answer.code} {answer.says}".lower()
    if answer.code == "resources_unavailable":
        return NoCapacity(_with("no GPU is free on the instance's host", answer), queued="queued" in said)
    if "user key" in said or "api key" in said:  # also with a 404 (docs/providers.md#vastai-errors)
        return AuthFailed(_BY_CODE["auth_error"][1])
    if answer.code in _BY_CODE:
        kind, words = _BY_CODE[answer.code]
        return kind(_with(words, answer))
    return None


def _by_status(answer: Answer) -> ProviderError:
    if answer.fields is None and answer.status == 403:
        return Blocked("something in front of Vast.ai's API refuses gpugate (HTTP 403, no API answer)")
    if answer.fields is None and answer.status == 404:  # a wrong address must never read as "destroyed"
        return Misconfigured(
            "nothing of Vast.ai's API is there (HTTP 404): is providers.vastai.api_base right?"
        )
    kind, words = _BY_STATUS.get(answer.status, (Misconfigured, f"Vast.ai answers HTTP {answer.status}"))
    return kind(_with(words, answer))


def _patience(answer: Answer, interval_s: float) -> float:
    """Seconds to wait: said in the header, in the text ("threshold=2.0"), or documented."""
    for said in (answer.retry_after, *re.findall(r"threshold=([0-9.]+)", answer.text)):
        if re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", said):
            return float(said)
    return interval_s


def _with(words: str, answer: Answer) -> str:
    return f"{words}: {answer.says}" if answer.says else words


def _word(fields: Object | None, key: str) -> str:
    said = fields.get(key) if fields is not None else None
    return said if isinstance(said, str) else ""


def _short(said: str) -> str:
    line = " ".join(said.split())
    return line if len(line) <= LONGEST_QUOTE else line[: LONGEST_QUOTE - 1] + "…"
