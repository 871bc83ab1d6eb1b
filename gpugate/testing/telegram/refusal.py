"""How the Bot API says no; knows no method."""

from __future__ import annotations

from typing import Any


class Refusal(Exception):
    """An answer that is an error, in Telegram's envelope.

    Args:
        status: of HTTP, and `error_code`.
        description: Telegram's words.
        retry_after: seconds, for a 429.
    """

    def __init__(self, status: int, description: str, retry_after: int | None = None) -> None:
        super().__init__(description)
        self.status = status
        self.description = description
        self.retry_after = retry_after

    @property
    def envelope(self) -> dict[str, Any]:
        """The answer's body."""
        said: dict[str, Any] = {
            "ok": False,
            "error_code": self.status,
            "description": self.description,
        }
        if self.retry_after is not None:
            said["parameters"] = {"retry_after": self.retry_after}
        return said


def bad(description: str) -> Refusal:
    """A 400, in Telegram's words."""
    return Refusal(400, f"Bad Request: {description}")
