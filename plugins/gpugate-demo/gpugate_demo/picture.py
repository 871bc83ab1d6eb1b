"""Draws a landscape as PNG from a text and a seed, with the standard library alone.

Rows are built from whole-row operations (translate, slices, big integers), never pixel by pixel, so
that a picture of 1024 by 1024 takes tens of milliseconds.
"""

from __future__ import annotations

import colorsys
import math
import random
import struct
import zlib
from collections.abc import Mapping

SIGNATURE = b"\x89PNG\r\n\x1a\n"
WORD = "simulated"
_SKY = 160  # palette indices 0..159: the sky, from top to bottom
_SUN = 160
_HILLS = (170, 190, 210)  # each followed by shades of its hill
_SHADES = 16
_INK = 240
_GLYPHS = {  # 5 columns by 7 rows, one string of bits per row
    "s": ("00000", "00000", "01111", "10000", "01110", "00001", "11110"),
    "i": ("00100", "00000", "01100", "00100", "00100", "00100", "01110"),
    "m": ("00000", "00000", "11010", "10101", "10101", "10101", "10101"),
    "u": ("00000", "00000", "10001", "10001", "10001", "10011", "01101"),
    "l": ("01100", "00100", "00100", "00100", "00100", "00100", "01110"),
    "a": ("00000", "00000", "01110", "00001", "01111", "10001", "01111"),
    "t": ("01000", "01000", "11100", "01000", "01000", "01001", "00110"),
    "e": ("00000", "00000", "01110", "10001", "11111", "10000", "01110"),
    "d": ("00001", "00001", "01101", "10011", "10001", "10001", "01111"),
}
Palette = tuple[bytes, bytes, bytes]


def draw(text: str, seed: int, width: int, height: int) -> bytes:
    """An RGB PNG without metadata; the same for the same arguments.

    Args:
        width, height: in pixels, at least 1.
    """
    chance = random.Random(f"{seed}|{text}")
    palette = _palette(chance)
    hills = [_hill(chance, width, height, layer) for layer in range(len(_HILLS))]
    sun = (chance.uniform(0.2, 0.8) * width, chance.uniform(0.2, 0.45) * height, min(width, height) * 0.11)
    word = _word_rows(width, height)
    pixels = zlib.compressobj(3)
    packed = []
    for y in range(height):
        row = _row(y, width, height, sun, hills)
        if y in word:
            row = _over(row, word[y])
        rgb = bytearray(1 + 3 * width)  # the first byte of a row says "no filter"
        for channel in range(3):
            rgb[1 + channel :: 3] = row.translate(palette[channel])
        packed.append(pixels.compress(bytes(rgb)))
    packed.append(pixels.flush())
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", b"".join(packed)) + _chunk(b"IEND", b"")


def with_text(png: bytes, texts: Mapping[str, str]) -> bytes:
    """The same picture with `tEXt` chunks, one per keyword; texts outside Latin-1 lose characters."""
    end = len(SIGNATURE) + 25  # IHDR is always 13 bytes in 12 of frame
    chunks = b"".join(
        _chunk(b"tEXt", key.encode("latin-1", "replace") + b"\0" + value.encode("latin-1", "replace"))
        for key, value in texts.items()
    )
    return png[:end] + chunks + png[end:]


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _palette(chance: random.Random) -> Palette:
    hue = chance.random()
    colours = [(0.0, 0.0, 0.0)] * 256
    for index in range(_SKY):
        down = index / (_SKY - 1)
        colours[index] = colorsys.hsv_to_rgb((hue + 0.12 * down) % 1, 0.75 - 0.5 * down, 0.45 + 0.5 * down)
    warm = chance.uniform(0.08, 0.16)
    for ring in range(4):
        colours[_SUN + ring] = colorsys.hsv_to_rgb(warm, 0.15 + 0.12 * ring, 1.0 - 0.03 * ring)
    ground = (hue + chance.uniform(0.3, 0.6)) % 1
    for layer, first in enumerate(_HILLS):
        for shade in range(_SHADES):
            light = (0.62 - 0.17 * layer) * (1.0 - 0.45 * shade / _SHADES)
            colours[first + shade] = colorsys.hsv_to_rgb(ground, 0.35 + 0.15 * layer, light)
    colours[_INK] = (1.0, 1.0, 1.0)
    red, green, blue = (bytes(round(255 * colour[channel]) for colour in colours) for channel in range(3))
    return red, green, blue


def _hill(chance: random.Random, width: int, height: int, layer: int) -> bytes:
    """The top of one hill for every column, in 1/255 of the height."""
    top = 0.52 + 0.13 * layer
    waves = [
        (chance.uniform(0.5, 1.6) * (2 + n), chance.uniform(0, math.tau), 0.05 / (1 + n)) for n in range(3)
    ]
    line = bytearray(width)
    for x in range(width):
        at = top + sum(size * math.sin(speed * x / width * math.pi + phase) for speed, phase, size in waves)
        line[x] = max(0, min(255, round(255 * at)))
    return bytes(line)


def _row(y: int, width: int, height: int, sun: tuple[float, float, float], hills: list[bytes]) -> bytes:
    """Palette indices of one row: sky, sun, then the hills from far to near."""
    row = bytearray([min(_SKY - 1, y * _SKY // max(1, round(height * 0.75)))]) * width
    centre_x, centre_y, radius = sun
    for ring in (3, 2, 1, 0):
        reach = radius * (1 + 0.22 * ring)
        half = math.sqrt(max(0.0, reach**2 - (y - centre_y) ** 2))
        left, right = max(0, round(centre_x - half)), min(width, round(centre_x + half))
        if half > 0 and right > left:
            row[left:right] = bytes([_SUN + ring]) * (right - left)
    level = y * 255 // max(1, height - 1)
    done = bytes(row)
    for first, hill in zip(_HILLS, hills, strict=True):
        table = bytes(
            first + min(_SHADES - 1, (level - top) // 6) if top <= level else 0 for top in range(256)
        )
        done = _over(done, hill.translate(table))
    return done


def _over(below: bytes, above: bytes) -> bytes:
    """Where `above` is not 0 it covers `below`."""
    mask = int.from_bytes(above.translate(_SOLID), "little")
    mixed = int.from_bytes(below, "little") & ~mask | int.from_bytes(above, "little")
    return mixed.to_bytes(len(below), "little")


_SOLID = bytes([0]) + bytes([255]) * 255


def _word_rows(width: int, height: int) -> dict[int, bytes]:
    """For each row that the word touches: the ink, 0 where there is none."""
    scale = max(1, min(width // 110, height // 24))
    across = (6 * len(WORD) - 1) * scale
    left, top = max(0, (width - across) // 2), height - 10 * scale
    rows: dict[int, bytes] = {}
    if across > width or top < 0:
        return rows
    for line in range(7):
        bits = "0".join(_GLYPHS[letter][line] for letter in WORD)
        ink = b"".join(bytes([_INK * int(bit)]) * scale for bit in bits)
        whole = bytes(left) + ink + bytes(width - left - len(ink))
        rows.update({top + line * scale + step: whole for step in range(scale)})
    return rows
