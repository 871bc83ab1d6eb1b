"""What simulated models say."""

import json
import struct

import pytest
from gpugate_demo.picture import draw
from gpugate_demo.text_generator import (
    NOTICE,
    GenerationRequest,
    ImageFacts,
    decoded,
    default_reply,
    fixed,
    image_facts,
    tokens_of,
)

SECRET = "the treasure lies under the oak"


def said(asked, seed=0):
    return "".join(default_reply(seed)(asked))


class TestHonest:
    @pytest.mark.parametrize("api", ["chat", "generate", "transcribe"])
    def test_it_says_that_it_is_a_simulation(self, api):
        """And it never repeats what it was told."""
        text = said(GenerationRequest(api, "llama3.2:3b", SECRET))

        assert NOTICE in text
        assert "6 words came to llama3.2:3b" in text
        assert "treasure" not in text

    def test_the_same_again(self):
        """The same request gets the same answer under the same seed."""
        asked = GenerationRequest("chat", "llama3.2:3b", SECRET)

        assert said(asked) == said(asked)
        assert 1 < len({said(asked, seed) for seed in range(9)})

    def test_a_picture(self):
        """A vision model tells the picture's format and size."""
        facts = image_facts(draw("x", 1, 64, 48))

        assert "a PNG of 64 by 48 pixels" in said(GenerationRequest("chat", "llava", "look", images=(facts,)))

    def test_code(self):
        """A coding model gives a small block of code that runs."""
        text = said(GenerationRequest("chat", "deepseek-coder", "why?"))
        code = text.split("```")[1].removeprefix("python\n")

        compile(code, "reply", "exec")
        assert 2 == text.count("```")

    def test_a_schema(self):
        """A reply to a format is JSON of that shape."""
        schema = {
            "type": "object",
            "properties": {
                "intent": {"enum": ["STATUS", "STOP"]},
                "sure": {"type": "number"},
                "tags": {"type": "array"},
                "who": {"anyOf": [{"type": "null"}, {"type": "string"}]},
                "kind": {"const": 7},
                "name": {"type": ["string", "null"]},
            },
        }
        expected = {"intent": "STATUS", "sure": 0, "tags": [], "who": None, "kind": 7, "name": "simulated"}

        assert expected == json.loads(said(GenerationRequest("chat", "m", SECRET, format=schema)))
        assert {"simulated": True} == json.loads(said(GenerationRequest("chat", "m", SECRET, format="json")))

    def test_fixed(self):
        assert ("a", "b") == tuple(fixed("a", "b")(GenerationRequest("chat", "m", "")))

    @pytest.mark.parametrize("text", ["", " ", "one", " a  b\n\nc ", "\n", "x\n"])
    def test_tokens(self, text):
        """Pieces that join to the text again."""
        assert text == "".join(tokens_of(text))


class TestImages:
    @pytest.mark.parametrize(
        ("head", "expected"),
        [
            (b"GIF89a" + struct.pack("<HH", 3, 4), ImageFacts("GIF", 3, 4, 10)),
            (
                b"\xff\xd8\xff\xe0\x00\x04ab\xff\xc0\x00\x11\x08" + struct.pack(">HH", 40, 30) + b"...",
                ImageFacts("JPEG", 30, 40, 20),
            ),
            (
                b"RIFF....WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\x1f\0\0" + b"\x0f\0\0",
                ImageFacts("WebP", 32, 16, 30),
            ),
            (
                b"RIFF....WEBPVP8L\x0a\0\0\0\x2f" + (31 | 15 << 14).to_bytes(4, "little") + b"12345",
                ImageFacts("WebP", 32, 16, 30),
            ),
            (
                b"RIFF....WEBPVP8 \x0a\0\0\0" + b"123456" + struct.pack("<HH", 32, 16),
                ImageFacts("WebP", 32, 16, 30),
            ),
            (b"nothing", ImageFacts("unknown", 0, 0, 7)),
            (b"", ImageFacts("unknown", 0, 0, 0)),
            (b"\xff\xd8\xff", ImageFacts("JPEG", 0, 0, 3)),
        ],
    )
    def test_headers(self, head, expected):
        assert expected == image_facts(head)

    def test_not_base64(self):
        """Go's words for it."""
        with pytest.raises(ValueError, match="illegal base64 data at input byte 3"):
            decoded("abc!")
