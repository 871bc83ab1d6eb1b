"""The Bot API's methods that bots of ours use, with their limits; knows nothing of HTTP.

Limits: Telegram's (docs/telegram-comfyui.md#telegram-limits, core.telegram.org/bots/api). Not like the real
one: parse modes are refused, and a photo is not made smaller.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiogram.types import File, InlineKeyboardMarkup, Message, TelegramObject, User, WebhookInfo
from attrs import define, field

from gpugate_testing.telegram.update_queue import UpdateQueue
from gpugate_testing.telegram.values import Key, Refusal, Sent, bad, sides

TEXT_UNITS = 4096
CAPTION_UNITS = 1024
PHOTO_BYTES = 10 * 1024 * 1024
PHOTO_SIDES = 10_000
PHOTO_RATIO = 20
DOCUMENT_BYTES = 50 * 1024 * 1024
DOWNLOAD_BYTES = 20 * 1024 * 1024
CALLBACK_BYTES = 64
ACTIONS = frozenset({"typing", "upload_photo", "upload_document"})

Params = Mapping[str, Any]
Parts = Mapping[str, bytes]


@define
class Methods:
    """What the bot may call, and what it left behind.

    Attributes:
        me: the bot.
        chats: who wrote to it; it may write to nobody else.
        topics: by chat, beside the general one.
        moved: groups that have become supergroups, and these.
        blocked: chats that want nothing of it any more.
        sent: its messages, oldest first.
        actions: chats that saw it type, in order; their topics in `action_topics`.
        answered: ids of presses that were answered.
        commands: its menu.
        files: bytes by `file_id`; sizes may be claimed larger in `sizes`.
    """

    me: User
    post: UpdateQueue
    chats: dict[int, dict[str, Any]] = field(factory=dict)
    topics: dict[int, set[int]] = field(factory=dict)
    moved: dict[int, int] = field(factory=dict)
    blocked: set[int] = field(factory=set)
    sent: list[Sent] = field(factory=list)
    actions: list[int] = field(factory=list)
    action_topics: list[int | None] = field(factory=list)
    presses: set[str] = field(factory=set)
    answered: list[str] = field(factory=list)
    commands: dict[str, str] = field(factory=dict)
    files: dict[str, bytes] = field(factory=dict)
    sizes: dict[str, int] = field(factory=dict)
    message_ids: int = 0

    def find(self, name: str) -> Callable[[Params, Parts], Awaitable[Any]] | None:
        """The method of this name; Telegram does not mind capitals."""
        table = {
            "getme": self.get_me,
            "getupdates": self.get_updates,
            "setwebhook": self.set_webhook,
            "deletewebhook": self.delete_webhook,
            "getwebhookinfo": self.get_webhook_info,
            "sendmessage": self.send_message,
            "sendphoto": self.send_photo,
            "senddocument": self.send_document,
            "sendchataction": self.send_chat_action,
            "answercallbackquery": self.answer_callback_query,
            "editmessagereplymarkup": self.edit_message_reply_markup,
            "setmycommands": self.set_my_commands,
            "getfile": self.get_file,
        }
        return table.get(name.lower())

    # --- the bot itself -----------------------------------------------------------------------

    async def get_me(self, params: Params, parts: Parts) -> Any:
        """Who the bot is."""
        return plain(self.me)

    async def set_my_commands(self, params: Params, parts: Parts) -> Any:
        """The menu."""
        commands = as_json(params, "commands", list)
        if len(commands) > 100:
            raise bad("BOT_COMMANDS_TOO_MUCH")
        for one in commands:
            if not re.fullmatch("[a-z0-9_]{1,32}", one["command"]):
                raise bad("BOT_COMMAND_INVALID")
            if not 1 <= len(one["description"]) <= 256:
                raise bad("BOT_COMMAND_DESCRIPTION_INVALID")
        self.commands = {one["command"]: one["description"] for one in commands}
        return True

    # --- updates ------------------------------------------------------------------------------

    async def get_updates(self, params: Params, parts: Parts) -> Any:
        """Long polling."""
        if "allowed_updates" in params:
            self.post.allowed = as_json(params, "allowed_updates", list)
        limit = int(params.get("limit", 100))
        return await self.post.poll(int(params.get("offset", 0)), limit, float(params.get("timeout", 0)))

    async def set_webhook(self, params: Params, parts: Parts) -> Any:
        """Where updates shall go."""
        url, secret = str(params.get("url", "")), str(params.get("secret_token", ""))
        if url and not url.startswith("https://"):
            raise bad("bad webhook: An HTTPS URL must be provided for webhook")
        if not re.fullmatch("[A-Za-z0-9_-]{0,256}", secret):
            raise bad("secret token contains unallowed characters")
        allowed = as_json(params, "allowed_updates", list) if "allowed_updates" in params else []
        self._drop(params)
        await self.post.hook(url, secret, allowed)
        return True

    async def delete_webhook(self, params: Params, parts: Parts) -> Any:
        """Back to polling."""
        self._drop(params)
        await self.post.hook("", "", self.post.allowed)
        return True

    async def get_webhook_info(self, params: Params, parts: Parts) -> Any:
        """How deliveries go."""
        post = self.post
        return plain(
            WebhookInfo(
                url=post.url,
                has_custom_certificate=False,
                pending_update_count=len(post.waiting),
                last_error_message=post.trouble or None,
            )
        )

    def _drop(self, params: Params) -> None:
        if str(params.get("drop_pending_updates", "false")).lower() in ("true", "1"):
            self.post.waiting.clear()

    # --- sending ------------------------------------------------------------------------------

    async def send_message(self, params: Params, parts: Parts) -> Any:
        """A text."""
        chat, text = self._chat(params), str(params.get("text", "")).strip()
        if not text:
            raise bad("message text is empty")
        if units(text) > TEXT_UNITS:
            raise bad("message is too long")
        return self._keep("sendMessage", chat, text, b"", params)

    async def send_photo(self, params: Params, parts: Parts) -> Any:
        """A picture with a caption."""
        chat, caption = self._chat(params), self._caption(params)
        content = attached(params, parts, "photo")
        if len(content) > PHOTO_BYTES:
            raise bad(f"file of size {len(content)} bytes is too big for a photo")
        if (found := sides(content)) is None:
            raise bad("IMAGE_PROCESS_FAILED")
        if min(found) < 1 or sum(found) > PHOTO_SIDES or max(found) > PHOTO_RATIO * min(found):
            raise bad("PHOTO_INVALID_DIMENSIONS")
        return self._keep("sendPhoto", chat, caption, content, params)

    async def send_document(self, params: Params, parts: Parts) -> Any:
        """A file with a caption."""
        chat, caption = self._chat(params), self._caption(params)
        content = attached(params, parts, "document")
        if len(content) > DOCUMENT_BYTES:
            raise Refusal(413, "Request Entity Too Large")
        return self._keep("sendDocument", chat, caption, content, params)

    async def send_chat_action(self, params: Params, parts: Parts) -> Any:
        """Typing."""
        chat = self._chat(params)
        if params.get("action") not in ACTIONS:
            raise bad("wrong parameter action in request")
        self.action_topics.append(self._topic(params, chat))
        self.actions.append(chat)
        return True

    def _chat(self, params: Params) -> int:
        if "parse_mode" in params:
            raise bad("unsupported parse_mode")
        try:
            chat = int(params.get("chat_id", ""))
        except ValueError:
            raise bad("chat_id is empty") from None
        if chat in self.moved:
            moved_to = self.moved[chat]
            raise Refusal(400, "Bad Request: group chat was upgraded to a supergroup chat", moved_to=moved_to)
        if chat not in self.chats:
            raise bad("chat not found")
        if chat in self.blocked:
            raise Refusal(403, "Forbidden: bot was blocked by the user")
        return chat

    def _topic(self, params: Params, chat: int) -> int | None:
        """The topic that a message is for; the general one must not be named."""
        topic = int(params["message_thread_id"]) if "message_thread_id" in params else None
        if topic is not None and topic not in self.topics.get(chat, ()):
            raise bad("message thread not found")
        return topic

    def _caption(self, params: Params) -> str:
        caption = str(params.get("caption", "")).strip()
        if units(caption) > CAPTION_UNITS:
            raise bad("message caption is too long")
        return caption

    def _keep(self, method: str, chat: int, text: str, content: bytes, params: Params) -> Any:
        keys, topic = keyboard(params), self._topic(params, chat)
        self.message_ids += 1
        self.sent.append(
            Sent(
                method=method,
                chat=chat,
                message_id=self.message_ids,
                text=text,
                content=content,
                keys=keys,
                topic=topic,
            )
        )
        return self.message(self.sent[-1])

    def message(self, sent: Sent) -> Any:
        """A message of the bot, as Telegram shows it."""
        shown: dict[str, Any] = {
            "message_id": sent.message_id,
            "date": int(time.time()),
            "chat": self.chats[sent.chat],
            "from": plain(self.me),
        }
        if sent.topic is not None:
            shown |= in_topic(sent.topic)
        if sent.text:
            shown["text" if sent.method == "sendMessage" else "caption"] = sent.text
        if sent.keys:
            rows = [[{"text": key.text, "callback_data": key.data} for key in sent.keys]]
            shown["reply_markup"] = {"inline_keyboard": rows}
        return plain(Message.model_validate(shown))

    # --- buttons and files --------------------------------------------------------------------

    async def answer_callback_query(self, params: Params, parts: Parts) -> Any:
        """The press is over: the button stops turning."""
        press = str(params.get("callback_query_id", ""))
        if press not in self.presses:
            raise bad("query is too old and response timeout expired or query ID is invalid")
        self.presses.remove(press)
        self.answered.append(press)
        return True

    async def edit_message_reply_markup(self, params: Params, parts: Parts) -> Any:
        """Another keyboard, or none."""
        chat, keys = self._chat(params), keyboard(params)
        number = int(params.get("message_id", 0))
        for sent in self.sent:
            if (sent.chat, sent.message_id) == (chat, number):
                if sent.keys == keys:
                    raise bad("message is not modified")
                sent.keys = keys
                return self.message(sent)
        raise bad("message to edit not found")

    async def get_file(self, params: Params, parts: Parts) -> Any:
        """Where a file can be fetched."""
        name = str(params.get("file_id", ""))
        if name not in self.files:
            raise bad("invalid file_id")
        size = self.sizes.get(name, len(self.files[name]))
        if size > DOWNLOAD_BYTES:
            raise bad("file is too big")
        return plain(
            File(file_id=name, file_unique_id=f"u{name}", file_size=size, file_path=f"photos/{name}.jpg")
        )


def in_topic(topic: int) -> dict[str, Any]:
    """What stands in a message of a topic."""
    return {"message_thread_id": topic, "is_topic_message": True}


def units(text: str) -> int:
    """A text's length as Telegram counts: UTF-16 code units."""
    return len(text.encode("utf-16-le")) // 2


def plain(value: TelegramObject) -> Any:
    """One of aiogram's objects as JSON has it."""
    return json.loads(value.model_dump_json(by_alias=True, exclude_none=True))


def as_json(params: Params, name: str, kind: type[Any]) -> Any:
    """A parameter that is JSON, whether it came as text or not."""
    value = params.get(name)
    try:
        value = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        value = None
    if not isinstance(value, kind):
        raise bad(f"can't parse {name} JSON object")
    return value


def attached(params: Params, parts: Parts, name: str) -> bytes:
    """The bytes of an uploaded file: `attach://<part>`, or a part of the parameter's own name."""
    told = params.get(name)
    part = str(told).removeprefix("attach://") if told is not None else name
    if part not in parts:
        raise bad(f"there is no {name} in the request")
    return parts[part]


def keyboard(params: Params) -> list[Key]:
    """The keys of an inline keyboard, if one is given."""
    if "reply_markup" not in params:
        return []
    try:
        markup = InlineKeyboardMarkup.model_validate(as_json(params, "reply_markup", dict))
    except ValueError:  # pydantic's
        raise bad("object expected as reply markup") from None
    keys = [
        Key(key.text, key.callback_data or "") for row in markup.inline_keyboard for key in row if key.text
    ]
    if any(not 1 <= len(key.data.encode()) <= CALLBACK_BYTES for key in keys):
        raise bad("BUTTON_DATA_INVALID")
    return keys
