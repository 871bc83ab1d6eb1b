"""The JSON body of a request to the generation endpoints. Each error names the field."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import orjson
from attrs import field, frozen

from gpugate.errors import InvalidRequest
from gpugate.generation.image_format import DecodedImage, decode_image
from gpugate.proxy.request_context import RequestContext, read_body

SMALL = 256 * 1024
"""Longest Base64 text that is decoded on the event loop; longer ones would block it for too long."""


@frozen
class JsonRequest:
    """The fields of a body. A null counts as absent; unknown fields are ignored."""

    fields: Mapping[str, Any] = field(repr=False)

    def text(self, name: str, *, needed: bool = False) -> str:
        """Return a text, "" if it is absent. Raises InvalidRequest, with `needed` also if it is absent or
        blank.
        """
        value = self.fields.get(name)
        if value is None and not needed:
            return ""
        if not isinstance(value, str):
            raise InvalidRequest(f"{name}: must be text" if value is not None else f"{name}: is needed")
        if needed and not value.strip():
            raise InvalidRequest(f"{name}: is empty")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """Return a boolean. Raises InvalidRequest."""
        value = self.fields.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise InvalidRequest(f"{name}: must be true or false")
        return value

    def number(self, name: str, least: int, most: int) -> int | None:
        """Return a whole number, None if it is absent. Raises InvalidRequest."""
        value = self.fields.get(name)
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise InvalidRequest(f"{name}: must be a whole number from {least} to {most}")
        return value

    async def image(self, *, needed: bool = False) -> DecodedImage | None:
        """Return the image in `image_base64` or `imageBase64`. Raises InvalidRequest."""
        name = "image_base64"
        text = self.text(name)
        if not text.strip() and self.fields.get("imageBase64"):
            name = "imageBase64"
            text = self.text(name)
        if not text.strip():
            if needed:
                raise InvalidRequest(f"{name}: is needed")
            return None
        if len(text) <= SMALL:
            return decode_image(text, name)
        return await asyncio.to_thread(decode_image, text, name)


async def read_json(call: RequestContext, max_body: int) -> JsonRequest:
    """The body's fields. Raises RequestError: too large, not JSON, no object."""
    try:
        fields = orjson.loads(await read_body(call.request, max_body))
    except orjson.JSONDecodeError as error:
        raise InvalidRequest("the body is not JSON") from error
    if not isinstance(fields, dict):
        raise InvalidRequest("the body must be a JSON object")
    return JsonRequest(fields)
