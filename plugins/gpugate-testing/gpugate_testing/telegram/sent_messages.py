"""What a bot sent, as a test looks at it; knows nothing of how it came."""

from __future__ import annotations

from attrs import define, field, frozen


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
    """

    method: str
    chat: int
    message_id: int
    text: str = ""
    content: bytes = field(default=b"", repr=False)
    keys: list[Key] = field(factory=list)
