"""Translates OpenAI and Anthropic requests into native chat and generate requests."""

from __future__ import annotations

from typing import Any

from gpugate_demo.go_decoder import Body, Refused, Types, decode

CHAT_TYPES: Types = {"model": "string", "messages": "[]openai.Message", "stream": "bool", "max_tokens": "int"}
COMPLETION_TYPES: Types = {"model": "string", "prompt": "string", "stream": "bool", "max_tokens": "int"}
RESPONSES_TYPES: Types = {"model": "string", "instructions": "string", "stream": "bool"}
MESSAGES_TYPES: Types = {
    "model": "string",
    "messages": "[]anthropic.MessageParam",
    "stream": "bool",
    "max_tokens": "int",
}
_URL_PREFIXES = ("data:;base64,", *(f"data:image/{kind};base64," for kind in ("jpeg", "jpg", "png", "webp")))


def _options(limit: object) -> dict[str, Any]:
    return {"num_predict": limit} if isinstance(limit, int) else {}


def _format(wanted: object) -> Any:
    if not isinstance(wanted, dict):
        return None
    if wanted.get("type") == "json_object":
        return "json"
    schema = wanted.get("json_schema") or wanted
    return schema.get("schema") if wanted.get("type") == "json_schema" and isinstance(schema, dict) else None


def chat(body: bytes) -> tuple[Body, Body]:
    """A /v1/chat/completions body: itself decoded, and the native chat. Raises Refused."""
    asked = decode(body, "ChatCompletionRequest", CHAT_TYPES, empty="EOF")
    if not asked.get("messages"):
        raise Refused(400, "[] is too short - 'messages'")
    messages = [native for message in asked["messages"] for native in _messages(message)]
    native = {"model": asked.get("model", ""), "messages": messages, "tools": asked.get("tools")}
    native["options"] = _options(asked.get("max_tokens"))
    native["format"] = _format(asked.get("response_format"))
    return asked, native


def _messages(message: Body) -> list[Body]:
    content = message.get("content")
    role = message.get("role", "user")
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    if isinstance(content, list):
        return [{"role": role, **_part(part)} for part in content]
    if message.get("tool_calls"):
        return [{"role": role, "content": ""}]
    raise Refused(400, "invalid message content type: <nil>")


def _part(part: object) -> Body:
    if isinstance(part, dict):
        if part.get("type") == "text" and isinstance(part.get("text"), str):
            return {"content": part["text"]}
        if part.get("type") == "image_url":
            url = part.get("image_url")
            url = url.get("url") if isinstance(url, dict) else url
            return {"content": "", "images": [_image(url)]}
    raise Refused(400, "invalid message format")


def _image(url: object) -> str:
    if not isinstance(url, str):
        raise Refused(400, "invalid message format")
    for prefix in _URL_PREFIXES:
        if url.startswith(prefix):
            return url[len(prefix) :]
    raise Refused(400, "invalid image input")


def completion(body: bytes) -> tuple[Body, Body]:
    """A /v1/completions body: itself decoded, and the native generate. Raises Refused."""
    asked = decode(body, "CompletionRequest", COMPLETION_TYPES, empty="EOF")
    native = {"model": asked.get("model", ""), "prompt": asked.get("prompt", "")}
    native["suffix"] = asked.get("suffix", "")
    native["options"] = _options(asked.get("max_tokens"))
    return asked, native


def response(body: bytes) -> tuple[Body, Body]:
    """A /v1/responses body: itself decoded, and the native chat. Raises Refused."""
    asked = decode(body, "ResponsesRequest", RESPONSES_TYPES, empty="EOF")
    messages: list[Body] = []
    if asked.get("instructions"):
        messages.append({"role": "system", "content": asked["instructions"]})
    given = asked.get("input", "")
    if isinstance(given, str):
        messages.append({"role": "user", "content": given})
    elif isinstance(given, list):
        messages.extend(_item(item) for item in given if isinstance(item, dict))
    else:
        raise Refused(400, "input must be a string or array")
    text = asked.get("text")
    native = {"model": asked.get("model", ""), "messages": messages}
    native["options"] = _options(asked.get("max_output_tokens"))
    native["format"] = _format(text.get("format")) if isinstance(text, dict) else None
    return asked, native


def _item(item: Body) -> Body:
    content = item.get("content", "")
    texts, images = [content] if isinstance(content, str) else [], []
    for part in content if isinstance(content, list) else []:
        if isinstance(part, dict) and part.get("type") == "input_image":
            images.append(_image(part.get("image_url")))
        elif isinstance(part, dict):
            texts.append(str(part.get("text", "")))
    return {"role": item.get("role", "user"), "content": " ".join(texts), "images": images}


def messages(body: bytes) -> tuple[Body, Body]:
    """A /v1/messages body: itself decoded, and the native chat. Raises Refused."""
    asked = decode(body, "MessagesRequest", MESSAGES_TYPES, empty="EOF")
    if not asked.get("model"):
        raise Refused(400, "model is required")
    if asked.get("max_tokens", 0) <= 0:
        raise Refused(400, "max_tokens is required and must be positive")
    if not asked.get("messages"):
        raise Refused(400, "messages is required")
    native_messages: list[Body] = []
    if asked.get("system"):
        native_messages.append({"role": "system", "content": _anthropic_text(asked["system"])})
    native_messages.extend(_anthropic_message(message) for message in asked["messages"])
    options = _options(asked["max_tokens"])
    return asked, {"model": asked["model"], "messages": native_messages, "options": options}


def _anthropic_text(content: object) -> str:
    if isinstance(content, str):
        return content
    blocks = content if isinstance(content, list) else []
    return " ".join(str(block.get("text", "")) for block in blocks if isinstance(block, dict))


def _anthropic_message(message: Body) -> Body:
    content = message.get("content")
    images = [
        block["source"]["data"]
        for block in (content if isinstance(content, list) else [])
        if isinstance(block, dict) and isinstance(block.get("source"), dict) and "data" in block["source"]
    ]
    return {"role": message.get("role", "user"), "content": _anthropic_text(content), "images": images}
