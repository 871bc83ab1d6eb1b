"""The messenger port: what the assistant needs of a messenger. A second messenger implements `Chat`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from attrs import field, frozen


@frozen(kw_only=True)
class Button:
    """A button under a message; `callback_id` (at most 64 bytes) comes back as `IncomingMessage.pressed`."""

    text: str
    callback_id: str


@frozen(kw_only=True)
class IncomingMessage:
    """One message of an allowed chat.

    Attributes:
        user: for the ledger, such as "telegram:42".
        chat: the messenger's id of the chat, as text.
        text: what was written, or the photo's caption; a slash command keeps its slash (`/status`).
        pressed: `callback_id` of the button that was pressed; empty for a message.
        photo: downloads the picture that came with it, if one did. Raises PhotoError.
    """

    user: str
    chat: str
    text: str = ""
    pressed: str = ""
    photo: Callable[[], Awaitable[bytes]] | None = field(default=None, repr=False)


class PhotoError(Exception):
    """A picture cannot be downloaded; the text is for the chat and holds no secret."""


class Chat(Protocol):
    """Where the answers to one message go. Texts are plain (no markup) and of any length."""

    async def send_text(self, text: str, buttons: Sequence[Button] = ()) -> None:
        """Send a message, with one row of buttons."""

    async def send_image(self, png: bytes, caption: str) -> None:
        """Send a picture; a long caption follows as messages."""

    async def show_typing(self) -> None:
        """Show for a few seconds that an answer is being made."""
