"""How the Bot API says no; knows no method."""

from __future__ import annotations

from typing import Any


class Refusal(Exception):
    """An answer that is an error, in Telegram's envelope.

    Args:
        status: of HTTP, and `error_code`.
        description: Telegram's words.
        retry_after: seconds, for a 429.
        moved_to: the supergroup that a group has become.
    """

    def __init__(
        self,
        status: int,
        description: str,
        retry_after: int | None = None,
        *,
        moved_to: int | None = None,
    ) -> None:
        super().__init__(description)
        self.status = status
        self.description = description
        self.parameters = {"retry_after": retry_after, "migrate_to_chat_id": moved_to}

    @property
    def envelope(self) -> dict[str, Any]:
        """The answer's body."""
        said: dict[str, Any] = {
            "ok": False,
            "error_code": self.status,
            "description": self.description,
        }
        if known := {name: value for name, value in self.parameters.items() if value is not None}:
            said["parameters"] = known
        return said


def bad(description: str) -> Refusal:
    """A 400, in Telegram's words."""
    return Refusal(400, f"Bad Request: {description}")
