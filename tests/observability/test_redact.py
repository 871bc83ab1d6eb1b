"""What is taken out of a line before it is written."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal

import orjson
import pytest
from attrs import field, frozen
from hypothesis import given, settings
from hypothesis import strategies as st

from gpugate.observability.redact import REDACTED, many_lines, one_line, redact_value, redactor, secrets_of

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbm4ifQ.c2lnbmF0dXJlLW9mLXRoZS10b2tlbg"
BOT = "123456789:AAFqwertyuiopasdfghjklzxcvbnm12345"


class TestShapes:
    @pytest.mark.parametrize(
        ("secret", "text"),
        [
            (JWT, f"verifying {JWT} failed"),
            (JWT, f"/api/chat?x={JWT}"),
            (JWT, f"Bearer%20{JWT}"),
            ("abc.def", "Authorization: Bearer abc.def"),
            ("bWU6ZXlKaGJHY2lPaUpJVXo=", "Basic bWU6ZXlKaGJHY2lPaUpJVXo="),
            ("abc.def", "{'authorization': 'bearer abc.def'}"),
            ("dXNlcjpwYXNz", "Authorization: Basic dXNlcjpwYXNz"),
            ("opaque", "GET /k/opaque/api/tags"),
            ("opaque", "http://gate:11434/k/opaque"),
            (BOT, f"POST https://api.telegram.org/bot{BOT}/sendMessage"),
            (BOT, f"https://api.telegram.org/file/bot{BOT}/photo.jpg"),
            ("42:TEST", "POST http://127.0.0.1:9/bot42:TEST/getMe"),
            ("42%3ATEST", "POST http://127.0.0.1:9/bot42%3ATEST/getMe"),
            (BOT, f"bad token {BOT!r}"),
            ("user:pass", "http://user:pass@10.0.0.1/x"),
            ("hush", "https://api.example/v0/?owner=me&api_key=hush&x=1"),
            ("hush", "wss://x?key=hush"),
            ("hush", "config(api_key='hush', port=1)"),
            ("hush", '{"password": "hush", "port": 1}'),
            ("rpa_ABCDEFGHIJKLMNOPQRSTUVWX", "key rpa_ABCDEFGHIJKLMNOPQRSTUVWX refused"),
        ],
    )
    def test_secret(self, secret: str, text: str) -> None:
        """What has the shape of a secret is taken out, and only that."""
        redacted = redactor()(text)

        assert secret not in redacted
        assert REDACTED in redacted
        assert redacted.startswith(text.split(secret)[0][:4])

    @pytest.mark.parametrize(
        "text",
        [
            "token is missing or malformed",
            "/api/blobs/sha256:29fdb92e57cf0827ded04ae6461b5931d01fa595843f55d36f5b275a52087dd2",
            "2026-11-21T02:53:02.123Z",
            "127.0.0.1:11434 refused",
            "deepseek-coder:6.7b and sk-learn",
            "tokens_per_second=25 max_tokens=512",
            "auth.secret: must have at least 32 bytes",
            "bearer",
        ],
    )
    def test_no_secret(self, text: str) -> None:
        """Ordinary words stay."""
        assert text == redactor()(text)

    def test_known_secrets(self) -> None:
        """What the gateway was configured with is taken out wherever it stands; short words stay."""
        redacted = redactor(["hunter2-hunter2", "hunter2", "a", ""])

        assert f"x{REDACTED}y {REDACTED} a" == redacted("xhunter2-hunter2y hunter2 a")

    @pytest.mark.parametrize(
        "part", ["eyJ", "eyJaaaa.", "://", "/k/", "bearer ", "sk-", "/bot1:", "token=", "1:", "a"]
    )
    def test_hostile_text(self, part: str) -> None:
        """A stranger's text is looked at in linear time: squares would not end before the test does."""
        assert isinstance(redactor(["a-known-secret"])(part * (300_000 // len(part))), str)


class TestFields:
    @pytest.mark.parametrize(
        "name",
        [
            "token",
            "api_key",
            "apikey",
            "X-Api-Key",
            "Authorization",
            "secret_token",
            "cookie",
            "password",
            "jwt",
        ],
    )
    def test_name_of_a_secret(self, name: str) -> None:
        """A field that is named like a secret is one, whatever it holds but a number."""
        found = [
            redact_value(name, value, redactor()) for value in ("x", b"x", ["x"], {"a": "x"}, 5, True, None)
        ]

        assert [REDACTED] * 4 + [5, True, None] == found

    @pytest.mark.parametrize("name", ["prompt", "messages", "question", "body", "images"])
    def test_what_people_write(self, name: str) -> None:
        """What people write to their models is nobody's business."""
        assert REDACTED == redact_value(name, "dear diary", redactor())

    def test_nested(self) -> None:
        """Secrets are found at any depth."""
        value = {
            "headers": [{"Authorization": "x", "Accept": "y"}],
            "url": "http://a:b@c/",
            5: (1, "Bearer z"),
        }
        expected = {
            "headers": [{"Authorization": REDACTED, "Accept": "y"}],
            "url": f"http://{REDACTED}@c/",
            "5": [1, f"Bearer {REDACTED}"],
        }

        assert expected == redact_value("request", value, redactor())

    def test_endless(self) -> None:
        """What contains itself, or is huge, is cut."""
        endless: list[object] = []
        endless.append(endless)
        assert "[too deep]" in str(redact_value("x", endless, redactor()))
        assert len(str(redact_value("x", "y" * 10**6, redactor()))) < 20_000
        assert len(str(redact_value("x", list(range(10**5)), redactor()))) < 1000

    def test_other_values(self) -> None:
        """Other things are shown by their repr, which may fail."""

        class Sulky:
            def __repr__(self) -> str:
                raise RuntimeError

        assert "<Sulky>" == redact_value("x", Sulky(), redactor())
        assert "Decimal('0.1')" == redact_value("x", Decimal("0.1"), redactor())
        assert "ValueError('Bearer [redacted]')" == redact_value("x", ValueError("Bearer abc"), redactor())
        assert str(2**70) == redact_value("x", 2**70, redactor())

    @settings(deadline=None, max_examples=40)
    @given(
        st.recursive(
            st.none()
            | st.integers()
            | st.floats()
            | st.text(st.characters(exclude_categories=()))
            | st.binary(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
            max_leaves=10,
        )
    )
    def test_anything_becomes_json(self, value: object) -> None:
        """Whatever is logged can be encoded."""
        assert json.loads(orjson.dumps({"x": redact_value("x", value, redactor())})).keys() == {"x"}


class TestLines:
    def test_one_line(self) -> None:
        """Neither a new line nor a terminal's commands get through; letters of all languages do."""
        assert "a\\nb\\x1b[2J\\x9b\\u2028\\x7f\\t" == one_line("a\nb\x1b[2J\x9b\u2028\x7f\t")
        assert "grüße 猫" == one_line("grüße 猫")

    def test_many_lines(self) -> None:
        """A traceback keeps its lines, and nothing else that steers."""
        assert "a\n\tb\\x1b[2J\\x0d" == many_lines("a\n\tb\x1b[2J\r")

    def test_times(self) -> None:
        """Times stay what they are."""
        assert datetime(2026, 1, 1, tzinfo=UTC) == redact_value(
            "at", datetime(2026, 1, 1, tzinfo=UTC), redactor()
        )


@frozen
class _Inner:
    token: str = field(default="inner-token", repr=False)


@frozen
class _Config:
    shown: str = "shown"
    key: str = field(default="the-key", repr=False)
    empty: str = field(default="", repr=False)
    environment: dict[str, object] = field(
        factory=lambda: {"HF_TOKEN": "hf-value", "nested": ["first", {"k": "second"}], "n": 5}, repr=False
    )


def test_secrets_of_configurations() -> None:
    """The secrets of a configuration are all texts in its hidden fields, those in mappings included."""
    expected = ("the-key", "hf-value", "first", "second", "inner-token")

    assert expected == secrets_of(_Config(), _Inner(), object())


def test_values_of_a_hidden_mapping_are_redacted() -> None:
    """A value that a mapping of the configuration holds is replaced wherever it is logged."""
    redacted = redactor(secrets_of(_Config()))

    assert "x [redacted] y" == redacted("x hf-value y")
