"""Image files: detects format and size, checks that they are complete, strips metadata. Pure.

Only the structure of PNG, JPEG, WebP and GIF is read; pixels are never decompressed, so an image that would
decompress to gigabytes costs nothing here; the number of sections is limited, because each costs work. Limits
are those of docs/api.md#images-in.
"""

from __future__ import annotations

import base64
import binascii
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from typing import TypeVar

from attrs import field, frozen

from gpugate.errors import InvalidRequest

MAX_BYTES = 20 * 1024 * 1024
MAX_PIXELS = 40_000_000
MAX_SECTIONS = 32_768
"""Chunks, segments or blocks. Encoders write 8 KiB and more into one: 64 MiB have 8,192."""
MAX_GIF_PIECES = 524_288
"""Sub-blocks of a GIF, at most 255 bytes each: 64 MiB have 263,172."""

T = TypeVar("T")
_DATA_URL = re.compile(rb"data:[^,]{0,500};base64,", re.IGNORECASE)
_BLANKS = b" \t\r\n\v\f"
_JPEG_FILLER = re.compile(rb"\xff+")
_PNG = b"\x89PNG\r\n\x1a\n"
# The chunks that determine how a PNG looks; all others (tEXt, iTXt, zTXt, eXIf, tIME ...) are metadata.
_PNG_KEPT = frozenset(
    b"IHDR PLTE IDAT IEND tRNS gAMA cHRM sRGB iCCP sBIT bKGD pHYs cICP acTL fcTL fdAT".split()
)
_WEBP_KEPT = frozenset((b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF", b"ICCP"))
_WEBP_SAYS_METADATA = 0x0C  # the flags for EXIF and XMP in VP8X
_JPEG_BARE = frozenset((0x01, *range(0xD0, 0xD8)))  # markers without a length
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_KEPT_APPS = frozenset((0xE0, 0xE2, 0xEE))  # JFIF, ICC profile, Adobe's colours


class InvalidImage(ValueError):
    """Not a complete image in a known format; the message says what is wrong."""


@frozen
class DecodedImage:
    """A complete image; width and height in pixels."""

    kind: str
    width: int
    height: int
    data: bytes = field(repr=False)

    @property
    def base64(self) -> str:
        """Its Base64 text in one line, as Ollama wants it."""
        return base64.b64encode(self.data).decode()


def decode_image(text: str, name: str) -> DecodedImage:
    """Return the image in a request's field: Base64 with or without `data:` prefix and line breaks.

    Raises:
        InvalidRequest: not an image, truncated, or over the limits; the message names the field.
    """
    try:
        given = text.encode("ascii").lstrip(_BLANKS)
        start = _DATA_URL.match(given)
        # In one call of C code: it may be 60 MiB, and may run on the event loop.
        packed = given[start.end() if start else 0 :].translate(None, _BLANKS)
        if len(packed) * 3 // 4 > MAX_BYTES + 2:
            raise InvalidRequest(f"{name}: is larger than {MAX_BYTES >> 20} MiB")
        data = base64.b64decode(packed, validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise InvalidRequest(f"{name}: is not Base64") from error
    try:
        return read_checked_image(data)
    except InvalidImage as error:
        raise InvalidRequest(f"{name}: {error}") from error


def read_checked_image(data: bytes) -> DecodedImage:
    """Return the image in these bytes, if it is complete and within the limits.

    Raises:
        InvalidImage: it is not.
    """
    if len(data) > MAX_BYTES:
        raise InvalidImage(f"is larger than {MAX_BYTES >> 20} MiB")
    image = read_image(data)
    if not image.width or not image.height:
        raise InvalidImage("has no pixels")
    if image.width * image.height > MAX_PIXELS:
        raise InvalidImage(f"has more than {MAX_PIXELS // 1_000_000} megapixels")
    return image


def read_image(data: bytes) -> DecodedImage:
    """Return a complete image; the limits are not checked.

    Raises:
        InvalidImage: of no known kind, or truncated.
    """
    kind, size_of, _ = _kind_of(data)
    try:
        width, height = size_of(data)
    except IndexError as error:
        raise InvalidImage("is truncated") from error
    return DecodedImage(kind, width, height, data)


def strip_metadata(data: bytes) -> bytes:
    """Return the image file without metadata: ComfyUI writes the workflow with the prompt into it.

    Raises:
        InvalidImage: of no known kind, or truncated.
    """
    _, _, strip = _kind_of(data)
    try:
        return strip(data)
    except IndexError as error:
        raise InvalidImage("is truncated") from error


def _kind_of(data: bytes) -> tuple[str, Callable[[bytes], tuple[int, int]], Callable[[bytes], bytes]]:
    if data.startswith(_PNG):
        return "PNG", _png_size, _png_stripped
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG", _jpeg_size, _jpeg_stripped
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WebP", _webp_size, _webp_stripped
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF", _gif_size, _gif_stripped
    raise InvalidImage("is not a PNG, JPEG, WebP or GIF")


def _part(data: bytes, start: int, length: int) -> bytes:
    """Return these bytes. Raises InvalidImage: the data ends before."""
    if start + length > len(data):
        raise InvalidImage("is truncated")
    return data[start : start + length]


def _limited(sections_of: Callable[[bytes], Iterator[T]]) -> Callable[[bytes], Iterator[T]]:
    """Make a generator of sections raise InvalidImage if there are too many."""

    @wraps(sections_of)
    def limited(data: bytes) -> Iterator[T]:
        for number, section in enumerate(sections_of(data)):
            if number == MAX_SECTIONS:
                raise InvalidImage("has too many sections")
            yield section

    return limited


# --- PNG ------------------------------------------------------------------------------------------


@_limited
def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield (type, start, end) of each chunk, up to IEND."""
    at = len(_PNG)
    while True:
        frame = _part(data, at, 8)
        length, kind = int.from_bytes(frame[:4], "big"), frame[4:]
        end = at + 12 + length
        told = int.from_bytes(_part(data, end - 4, 4), "big")
        if zlib.crc32(memoryview(data)[at + 4 : end - 4]) != told:
            raise InvalidImage("is damaged")
        yield kind, at, end
        if kind == b"IEND":
            return
        at = end


def _png_size(data: bytes) -> tuple[int, int]:
    kinds = [kind for kind, _, _ in _png_chunks(data)]
    if kinds[0] != b"IHDR" or data[8:12] != b"\0\0\0\x0d" or b"IDAT" not in kinds:
        raise InvalidImage("is no whole PNG")
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def _png_stripped(data: bytes) -> bytes:
    kept = [data[start:end] for kind, start, end in _png_chunks(data) if kind in _PNG_KEPT]
    return _PNG + b"".join(kept)


# --- JPEG -----------------------------------------------------------------------------------------


@_limited
def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (marker, start, end) of each segment up to the first scan, which extends to the end."""
    at = 2
    while True:
        filler = _JPEG_FILLER.match(data, at)
        if filler is None:
            raise InvalidImage("is damaged" if at < len(data) else "is truncated")
        at = filler.end() - 1
        marker = data[at + 1]
        if marker == 0xDA:
            if data.rfind(b"\xff\xd9", at) < 0:
                raise InvalidImage("is truncated")
            yield marker, at, len(data)
            return
        length = 0 if marker in _JPEG_BARE else int.from_bytes(_part(data, at + 2, 2), "big")
        _part(data, at, 2 + length)
        yield marker, at, at + 2 + length
        at += 2 + length


def _jpeg_size(data: bytes) -> tuple[int, int]:
    sizes = []
    for marker, start, _ in _jpeg_segments(data):
        if marker in _JPEG_FRAMES:
            frame = _part(data, start, 9)
            sizes.append((int.from_bytes(frame[7:9], "big"), int.from_bytes(frame[5:7], "big")))
    if not sizes:
        raise InvalidImage("is damaged")
    return max(sizes, key=lambda size: size[0] * size[1])


def _jpeg_stripped(data: bytes) -> bytes:
    kept = []
    for marker, start, end in _jpeg_segments(data):
        if marker == 0xFE or (0xE0 <= marker <= 0xEF and marker not in _JPEG_KEPT_APPS):
            continue
        if marker == 0xDA:  # what follows the end marker is not part of the image
            end = data.rfind(b"\xff\xd9", start) + 2
        kept.append(data[start:end])
    return b"\xff\xd8" + b"".join(kept)


# --- WebP -----------------------------------------------------------------------------------------


@_limited
def _webp_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield (type, start of the body, end of the body) of each chunk."""
    size = int.from_bytes(_part(data, 4, 4), "little")
    _part(data, 8, size)
    at = 12
    while at + 8 <= 8 + size:
        kind, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        _part(data, at + 8, length)
        yield kind, at + 8, at + 8 + length
        at += 8 + length + length % 2


def _webp_size(data: bytes) -> tuple[int, int]:
    found: dict[bytes, bytes] = {}
    for kind, start, end in _webp_chunks(data):
        found.setdefault(kind, data[start : min(end, start + 12)])
    frames = [kind for kind in (b"VP8L", b"VP8 ", b"ANMF") if kind in found]
    sizes = [_WEBP_SIZES[kind](found[kind]) for kind in (b"VP8X", *frames) if kind in found]
    if not frames or (b"ANMF" in frames and b"VP8X" not in found):
        raise InvalidImage("is truncated")
    return max(width for width, _ in sizes), max(height for _, height in sizes)


def _little(data: bytes, start: int, length: int) -> int:
    return int.from_bytes(_part(data, start, length), "little")


# By chunk; a frame may claim another size than the header, and the largest counts.
_WEBP_SIZES: Mapping[bytes, Callable[[bytes], tuple[int, int]]] = {
    b"VP8X": lambda body: (1 + _little(body, 4, 3), 1 + _little(body, 7, 3)),
    b"VP8L": lambda body: (1 + (_little(body, 1, 4) & 0x3FFF), 1 + (_little(body, 1, 4) >> 14 & 0x3FFF)),
    b"VP8 ": lambda body: (_little(body, 6, 2) & 0x3FFF, _little(body, 8, 2) & 0x3FFF),
    b"ANMF": lambda body: (1 + _little(body, 6, 3), 1 + _little(body, 9, 3)),
}


def _webp_stripped(data: bytes) -> bytes:
    kept = []
    for kind, start, end in _webp_chunks(data):
        if kind not in _WEBP_KEPT:
            continue
        body = data[start:end]
        if kind == b"VP8X" and body:
            body = bytes([body[0] & ~_WEBP_SAYS_METADATA]) + body[1:]
        kept.append(kind + len(body).to_bytes(4, "little") + body + b"\0" * (len(body) % 2))
    inside = b"WEBP" + b"".join(kept)
    return b"RIFF" + len(inside).to_bytes(4, "little") + inside


# --- GIF ------------------------------------------------------------------------------------------


@_limited
def _gif_blocks(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (label, start, end) of each block: 0x2C image, 0xFE comment, 0xFF application data."""
    at = 13 + _colours(_part(data, 0, 13)[10])
    pieces = 0
    while (first := data[at]) != 0x3B:
        start = at
        if first == 0x2C:
            label = 0x2C
            at += 11 + _colours(_part(data, at, 10)[9])
        elif first == 0x21:
            label = data[at + 1]
            at += 2
        else:
            raise InvalidImage("is damaged")
        while length := data[at]:
            at += 1 + length
            pieces += 1
            if pieces > MAX_GIF_PIECES:
                raise InvalidImage("has too many sections")
        at += 1
        yield label, start, at


def _colours(packed: int) -> int:
    """Return the length of a colour table in bytes."""
    return 3 << ((packed & 7) + 1) if packed & 0x80 else 0


def _gif_size(data: bytes) -> tuple[int, int]:
    if 0x2C not in [label for label, _, _ in _gif_blocks(data)]:  # all of them: to the end
        raise InvalidImage("has no pixels")
    return int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:10], "little")


def _gif_stripped(data: bytes) -> bytes:
    head = data[: 13 + _colours(_part(data, 0, 13)[10])]
    loops = (b"NETSCAPE2.0", b"ANIMEXTS1.0")
    kept = [
        data[start:end]
        for label, start, end in _gif_blocks(data)
        if label in (0x2C, 0xF9) or (label == 0xFF and data[start + 3 : start + 14] in loops)
    ]
    return head + b"".join(kept) + b"\x3b"
