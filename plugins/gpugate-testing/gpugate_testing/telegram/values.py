"""Values of the Bot API: error replies, sent messages, and the sizes of pictures."""

from __future__ import annotations

from typing import Any

from attrs import define, field, frozen

_PNG = b"\x89PNG\r\n\x1a\n"
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})


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


@frozen
class Key:
    """One key of an inline keyboard."""

    text: str
    data: str


@define(kw_only=True)
class Sent:
    """One message of the bot.

    Attributes:
        method: "sendMessage", "sendPhoto" or "sendDocument".
        text: the text, or the caption.
        content: the bytes of a photo or a document.
        keys: of the inline keyboard; empty once it was taken off.
        topic: of a chat that has topics; None for the general one.
    """

    method: str
    chat: int
    message_id: int
    text: str = ""
    content: bytes = field(default=b"", repr=False)
    keys: list[Key] = field(factory=list)
    topic: int | None = None


def sides(content: bytes) -> tuple[int, int] | None:
    """Width and height in pixels; None for what is no picture."""
    if content.startswith(_PNG) and len(content) >= 24:
        return int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")
    if content.startswith(b"\xff\xd8"):
        return _jpeg(content)
    return None


def _jpeg(content: bytes) -> tuple[int, int] | None:
    at = 2
    while at + 9 <= len(content) and content[at] == 0xFF:
        if content[at + 1] in _FRAMES:
            height, width = content[at + 5 : at + 7], content[at + 7 : at + 9]
            return int.from_bytes(width, "big"), int.from_bytes(height, "big")
        at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    return None
