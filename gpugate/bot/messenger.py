"""The messenger port: a chat with a person, whatever carries it; knows neither Telegram nor the pod."""

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
        chat: the messenger's own id of the chat, as text.
        text: what was written, or the photo's caption; a slash command keeps its slash (`/status`).
        pressed: the callback_id of the button that was pressed; empty for a message.
        photo: fetches the picture that came with it, if one did; raises `PhotoError` with a text for
            the person.
    """

    user: str
    chat: str
    text: str = ""
    pressed: str = ""
    photo: Callable[[], Awaitable[bytes]] | None = field(default=None, repr=False)


class PhotoError(Exception):
    """The picture cannot be had; its text is for the person, without a secret."""


class Chat(Protocol):
    """Where the answers go. Texts are plain (no markup) and of any length: splitting is the adapter's."""

    async def send_text(self, text: str, buttons: Sequence[Button] = ()) -> None:
        """Send a message, with one row of buttons."""

    async def send_image(self, png: bytes, caption: str) -> None:
        """Send a picture; a long caption follows as messages of its own."""

    async def show_typing(self) -> None:
        """Show that something is being worked on (typing), for a few seconds."""
