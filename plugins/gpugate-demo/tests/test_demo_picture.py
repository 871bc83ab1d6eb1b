"""The drawn PNGs, taken apart by hand."""

import struct
import zlib

import pytest
from gpugate_demo.picture import SIGNATURE, draw, with_text


def chunks(png):
    at = len(SIGNATURE)
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        kind, data = png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        assert zlib.crc32(kind + data) == struct.unpack(">I", png[at + 8 + length : at + 12 + length])[0]
        yield kind, data
        at += 12 + length


@pytest.mark.parametrize("size", [(64, 64), (65, 64), (512, 64), (64, 300), (1, 1), (7, 3)])
def test_any_size(size):
    """A whole RGB picture of just that size, every checksum right."""
    parts = dict(chunks(draw("a castle", 42, *size)))

    assert struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0) == parts[b"IHDR"]
    assert (3 * size[0] + 1) * size[1] == len(zlib.decompress(parts[b"IDAT"]))


def test_what_it_depends_on():
    """On text, number and size, and on nothing else."""
    assert draw("a", 1, 64, 64) == draw("a", 1, 64, 64)
    assert 3 == len({draw("a", 1, 64, 64), draw("b", 1, 64, 64), draw("a", 2, 64, 64)})


def test_it_says_what_it_is():
    """The word at the bottom is white on dark."""
    pixels = zlib.decompress(dict(chunks(draw("a", 1, 256, 128)))[b"IDAT"])
    lower = pixels[(3 * 256 + 1) * 100 :]

    assert b"\xff" * 6 in lower


def test_texts():
    """They come between header and picture, and take nothing away."""
    plain = draw("a", 1, 64, 64)
    marked = with_text(plain, {"prompt": '{"3": {}}', "odd": "snow \N{SNOWMAN}"})
    kinds = [kind for kind, _ in chunks(marked)]

    assert [b"IHDR", b"tEXt", b"tEXt", b"IDAT", b"IEND"] == kinds
    assert b'prompt\0{"3": {}}' in marked
    assert dict(chunks(plain))[b"IDAT"] == dict(chunks(marked))[b"IDAT"]
