"""Pictures as bytes: kinds, limits, damage, and metadata that must not leave."""

from __future__ import annotations

import base64
import struct
import tracemalloc
import zlib

import pytest
from gpugate_demo.picture import draw, with_text
from hypothesis import given, settings
from hypothesis import strategies as st

from gpugate.errors import InvalidRequest
from gpugate.generation.image_format import (
    MAX_BYTES,
    MAX_GIF_PIECES,
    MAX_SECTIONS,
    DecodedImage,
    InvalidImage,
    decode_image,
    read_checked_image,
    read_image,
    strip_metadata,
)

PNG = draw("a picture", 1, 40, 30)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, *more: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", header), *more, chunk(b"IDAT", b"x"), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body


def jpeg(width: int = 40, height: int = 30, *more: bytes) -> bytes:
    frame = segment(0xC0, struct.pack(">BHHB", 8, height, width, 1) + b"\x01\x11\x00")
    jfif = segment(0xE0, b"JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00")
    scan = segment(0xDA, b"\x01\x01\x00\x00\x3f\x00") + b"\x12\x34\xff\x00\x56"
    return b"\xff\xd8" + jfif + b"".join(more) + frame + scan + b"\xff\xd9"


def webp(*chunks: tuple[bytes, bytes]) -> bytes:
    inside = b"WEBP" + b"".join(
        kind + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2) for kind, body in chunks
    )
    return b"RIFF" + struct.pack("<I", len(inside)) + inside


LOSSY = b"\x30\x01\x00\x9d\x01\x2a" + struct.pack("<HH", 40, 30) + b"data"
LOSSLESS = b"\x2f" + struct.pack("<I", 39 | 29 << 14) + b"data"
EXTENDED = b"\x0c\0\0\0" + (39).to_bytes(3, "little") + (29).to_bytes(3, "little")


def gif(*blocks: bytes) -> bytes:
    head = b"GIF89a" + struct.pack("<HHBBB", 40, 30, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    picture = b"\x2c" + struct.pack("<HHHHB", 0, 0, 40, 30, 0) + b"\x02\x02\x4c\x01\x00"
    return head + b"".join(blocks) + picture + b"\x3b"


WHOLE = {
    "PNG": PNG,
    "JPEG": jpeg(),
    "WebP": webp((b"VP8 ", LOSSY)),
    "WebP lossless": webp((b"VP8L", LOSSLESS)),
    "WebP extended": webp((b"VP8X", EXTENDED), (b"VP8 ", LOSSY), (b"EXIF", b"secret")),
    "GIF": gif(),
}


@pytest.mark.parametrize("name", WHOLE)
def test_whole_picture(name):
    """Kind and size are read from its head."""
    image = read_checked_image(WHOLE[name])
    assert (name.split()[0], 40, 30) == (image.kind, image.width, image.height)


@pytest.mark.parametrize("name", WHOLE)
def test_truncated_anywhere(name):
    """No beginning of a picture passes for one."""
    data = WHOLE[name]
    for length in range(len(data)):
        with pytest.raises(InvalidImage):
            read_image(data[:length])


@pytest.mark.parametrize("data", [b"", b"no image", b"%PDF-1.4", b"<svg/>", b"BM" + bytes(60), b"\0" * 100])
def test_something_else(data):
    """Said so."""
    with pytest.raises(InvalidImage, match="is not a PNG, JPEG, WebP or GIF"):
        read_image(data)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(WHOLE)), st.integers(0, 10**6), st.binary(max_size=8))
def test_damage_never_crashes(name, at, junk):
    """Whatever is broken: a picture or InvalidImage, nothing else."""
    data = WHOLE[name]
    at %= len(data)
    spoiled = data[:at] + junk + data[at + len(junk) :]
    for work, gives in ((read_image, DecodedImage), (strip_metadata, bytes)):
        try:
            made = work(spoiled)
        except InvalidImage as error:
            made = error
        assert isinstance(made, gives | InvalidImage)


class TestLimits:
    def test_pixels(self):
        """40 megapixels pass, a row more does not; nothing is unpacked."""
        assert 8000 == read_checked_image(png(8000, 5000)).width
        with pytest.raises(InvalidImage, match="more than 40 megapixels"):
            read_checked_image(png(8000, 5001))
        with pytest.raises(InvalidImage, match="more than 40 megapixels"):
            read_checked_image(png(2**31 - 1, 2**31 - 1))

    def test_size_told_twice(self):
        """A WebP's frame may be larger than what its head says: the larger one counts."""
        tiny = b"\x0c\0\0\0" + bytes(6)
        huge = b"\x2f" + struct.pack("<I", 16383 | 16383 << 14) + b"data"
        with pytest.raises(InvalidImage, match="more than 40 megapixels"):
            read_checked_image(webp((b"VP8X", tiny), (b"VP8L", huge)))

    def test_head_too_short(self):
        """A PNG whose head has no room for a size has none."""
        parts = (chunk(b"IHDR", b"\0\0\0\x01"), chunk(b"IDAT", b"x"), chunk(b"IEND", b""))
        with pytest.raises(InvalidImage):
            read_checked_image(b"\x89PNG\r\n\x1a\n" + b"".join(parts))

    def test_no_pixels(self):
        """Are no picture."""
        with pytest.raises(InvalidImage, match="has no pixels"):
            read_checked_image(png(0, 5))

    def test_bytes(self):
        """20 MiB pass, a byte more does not, told before it is decoded."""
        fits = base64.b64encode(PNG + bytes(MAX_BYTES - len(PNG))).decode()
        assert "PNG" == decode_image(fits, "image_base64").kind
        large = base64.b64encode(PNG + bytes(MAX_BYTES - len(PNG) + 4)).decode()
        with pytest.raises(InvalidRequest, match="image_base64: is larger than 20 MiB"):
            decode_image(large, "image_base64")

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "JPEG without lengths", "WebP", "GIF", "GIF pieces"])
    @pytest.mark.parametrize("over", [0, 1])
    def test_sections(self, kind, over):
        """Each costs work, however small it is."""
        many, pieces = MAX_SECTIONS - 3 + over, MAX_GIF_PIECES - 1 + over
        image = {
            "PNG": lambda: png(4, 3, *[chunk(b"tEXt", b"")] * many),
            "JPEG": lambda: jpeg(4, 3, *[segment(0xFE, b"")] * many),
            "JPEG without lengths": lambda: jpeg(4, 3, *[b"\xff\xd0"] * many),
            "WebP": lambda: webp(*[(b"XXXX", b"")] * (many + 2), (b"VP8 ", LOSSY)),
            "GIF": lambda: gif(b"\x21\xfe\0" * (many + 2)),
            "GIF pieces": lambda: gif(b"\x21\xfe" + b"\x01x" * pieces + b"\0"),
        }[kind]()
        if over:
            with pytest.raises(InvalidImage, match="has too many sections"):
                read_image(image)
        else:
            assert read_image(image)

    def test_filler(self):
        """Any number of fill bytes before a marker is one step."""
        assert (4, 3) == ((image := read_image(jpeg(4, 3, b"\xff" * 10**6))).width, image.height)


class TestBase64:
    @pytest.mark.parametrize("before", ["", "data:image/png;base64,", "data:;base64,", "DATA:x;a=b;BASE64,"])
    def test_spellings(self, before):
        """With or without a `data:` prefix, in lines or in one."""
        text = base64.encodebytes(PNG).decode()
        assert PNG == decode_image(before + text, "image_base64").data
        assert base64.b64encode(PNG).decode() == decode_image(before + text, "image_base64").base64

    @pytest.mark.parametrize("around", [" \n", "\r\n\t", "\v\f"])
    def test_blanks_around(self, around):
        """Are no part of it, in front of a `data:` prefix neither."""
        text = f"{around}data:image/png;base64,{around}{base64.b64encode(PNG).decode()}{around}"
        assert PNG == decode_image(text, "image_base64").data

    @pytest.mark.parametrize("junk", ["data:" + ";" * 10**7, "data:;base64" * 10**6, "QU " * 10**7])
    def test_junk_that_would_cost_much(self, junk):
        """Refused without memory or time worth mentioning: no pattern runs over it, nothing is split."""
        tracemalloc.start()
        try:
            with pytest.raises(InvalidRequest, match=r"^field: "):
                decode_image(junk, "field")
            assert tracemalloc.get_traced_memory()[1] < 5 * len(junk)
        finally:
            tracemalloc.stop()

    @pytest.mark.parametrize("text", ["!!!", "data:image/png,raw", "YQ", "äöü", "data:image/png;base64,"])
    def test_none(self, text):
        """Named by its field."""
        with pytest.raises(InvalidRequest, match=r"^field: "):
            decode_image(text, "field")


class TestStripped:
    def test_png(self):
        """No text, no EXIF, no time; the pixels' chunks untouched, and the picture still whole."""
        more = [chunk(kind, b"secret") for kind in (b"tEXt", b"iTXt", b"zTXt", b"eXIf", b"tIME", b"prVt")]
        bare = strip_metadata(png(8, 8, *more))
        assert png(8, 8) == bare
        assert PNG == strip_metadata(with_text(PNG, {"prompt": "secret", "workflow": "secret"}))

    def test_png_with_a_tail(self):
        """What stands behind its end is no part of it."""
        assert PNG == strip_metadata(PNG + b"secret")

    def test_jpeg(self):
        """EXIF, XMP and comments go; JFIF and colours stay."""
        exif, comment = segment(0xE1, b"Exif\0\0secret\xff\xd9"), segment(0xFE, b"secret")
        colours = segment(0xEE, b"Adobe\0d\0\0\0\0\0")
        assert jpeg(40, 30, colours) == strip_metadata(jpeg(40, 30, exif, comment, colours) + b"secret")

    def test_webp(self):
        """EXIF and XMP go, and the head no longer promises them."""
        bare = strip_metadata(
            webp((b"VP8X", EXTENDED), (b"VP8 ", LOSSY), (b"EXIF", b"secret!"), (b"XMP ", b"s"))
        )
        assert webp((b"VP8X", b"\0" + EXTENDED[1:]), (b"VP8 ", LOSSY)) == bare

    def test_gif(self):
        """Comments and unknown applications go; delays and loops stay."""
        delay = b"\x21\xf9\x04\x00\x05\x00\x00\x00"
        loop = b"\x21\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00"
        comment, xmp = b"\x21\xfe\x06secret\x00", b"\x21\xff\x0bXMP DataXMP\x06secret\x00"
        assert gif(loop, delay) == strip_metadata(gif(comment, loop, xmp, delay))

    @pytest.mark.parametrize("name", WHOLE)
    def test_stays_what_it_was(self, name):
        """Kind and size survive, and once is enough."""
        once = strip_metadata(WHOLE[name])
        assert (read_image(once).width, strip_metadata(once)) == (40, once)
