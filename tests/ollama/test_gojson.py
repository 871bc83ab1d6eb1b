"""gpugate/ollama/gojson.py: JSON and durations as Go reads them."""

from __future__ import annotations

import json
from contextlib import suppress

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpugate.ollama import gojson
from gpugate.ollama.gojson import Malformed, Unjudged

SECOND = 10**9


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b"", "EOF"),
        (b" \n\t", "EOF"),
        (b"{", "unexpected EOF"),
        (b'{"a"', "unexpected EOF"),
        (b'{"a":"b', "unexpected EOF"),
        (b'{"a":tru', "unexpected EOF"),
        (b"hello", "invalid character 'h' looking for beginning of value"),
        (b"'", r"invalid character '\'' looking for beginning of value"),
        (b'{"a":NaN}', "invalid character 'N' looking for beginning of value"),
        (b'{"a" 1}', "invalid character '1' after object key"),
        (b'{"a":1 "b":2}', "invalid character '\"' after object key:value pair"),
        (b'{"a":1,}', "invalid character '}' looking for beginning of object key string"),
        (b"{1:2}", "invalid character '1' looking for beginning of object key string"),
        (b'{"a":"\n"}', r"invalid character '\n' in string literal"),
        (b"\xef\xbb\xbf{}", "invalid character 'ï' looking for beginning of value"),
        (b"[" * 20_000, "exceeded max depth"),
    ],
)
def test_what_go_refuses(body: bytes, complaint: str) -> None:
    """The complaint is worded as Ollama's."""
    with pytest.raises(Malformed) as refused:
        gojson.read(body)
    assert complaint == str(refused.value)


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b'{"a":1} and more', {"a": 1}),
        (b'{"a":1}{"a":2}', {"a": 1}),
        (b'{"a":"\xff"}', {"a": "\ufffd"}),
        (b'{"a":"\\ud800"}', {"a": "\ud800"}),
        (b'{"a":' + b"1" * 6000 + b"} x", {"a": float("inf")}),
        (b"null", None),
    ],
)
def test_what_go_takes_and_orjson_does_not(body: bytes, value: object) -> None:
    """A request that Ollama would have answered is never refused for our parser's sake."""
    assert value == gojson.read(body)


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":' + b"[" * 2000,
        b"[" + b"[]," * 400_000 + b"[]]",
        b'{"a":"' + b"x" * (17 << 20) + b'"}',
        b'{"a":"' + b"x" * (2 << 20),
    ],
    ids=["deep", "many", "large", "large and broken"],
)
def test_what_is_not_judged(body: bytes) -> None:
    """A body that would cost too much to read is left to Ollama."""
    with pytest.raises(Unjudged):
        gojson.read(body)


def test_a_large_picture() -> None:
    """A picture of a few MiB is long, not many values, and is read."""
    body = b'{"a":"' + b"x" * (3 << 20) + b'"}'
    expected = {"a": "x" * (3 << 20)}
    assert expected == gojson.read(body)


@pytest.mark.parametrize(
    ("body", "model"),
    [
        (b'{"model" : " llava ","images":["' + b"x" * 9000, "llava"),
        (b'{"images":["' + b"x" * 9000 + b'"],"model":"llava:7b"}', "llava:7b"),
        (b'{"text":"a \\"model\\": \\"b\\""}', None),
        (b'{"model":"  "}', None),
        (b"", None),
    ],
)
def test_a_guess(body: bytes, model: str | None) -> None:
    """The model of an unread body is guessed from its ends, and never from within a text."""
    assert model == gojson.guess_model(body)


def test_a_field_in_another_case() -> None:
    """Go finds a field whatever its case."""
    document: dict[str, object] = {"MODEL": "x", "Name": "y"}
    expected = ["x", "y", None]
    assert expected == [gojson.field(document, name) for name in ("model", "name", "z")]


@pytest.mark.parametrize(("value", "text"), [("a", "a"), ("\ud800b", "\ufffdb"), (1, ""), (None, "")])
def test_a_text(value: object, text: str) -> None:
    """Text can always be written back."""
    assert text == gojson.as_text(value)


def test_written_text() -> None:
    """Go escapes what HTML would read."""
    expected = rb'{"a":"\u003cb\u003e \u0026 \u2028 \""}'
    assert expected == gojson.write({"a": '<b> & \u2028 "'})


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("0", 0),
        ("-0", 0),
        ("+0", 0),
        ("0s", 0),
        ("0h0m0.0s", 0),
        (".5s", SECOND // 2),
        ("1.5h", 5400 * SECOND),
        ("1h2m3s4ms5us6µs7ns", 3723 * SECOND + 4_011_007),
        ("-1s", -SECOND),
        ("0.3ns", 0),
        ("5m", 300 * SECOND),
    ],
)
def test_a_duration(text: str, ns: int) -> None:
    """Durations are read as Go's time.ParseDuration reads them."""
    assert ns == gojson.duration_ns(text)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("-1", 'time: missing unit in duration "-1"'),
        ("5", 'time: missing unit in duration "5"'),
        ("5x", 'time: unknown unit "x" in duration "5x"'),
        ("5 m", 'time: unknown unit " m" in duration "5 m"'),
        ("", 'time: invalid duration ""'),
        ("-", 'time: invalid duration "-"'),
        (".", 'time: invalid duration "."'),
        ("--5s", 'time: invalid duration "--5s"'),
        ("forever", 'time: invalid duration "forever"'),
        ("99999999999999999999h", 'time: invalid duration "99999999999999999999h"'),
        ("9" * 5000 + "s", f'time: invalid duration "{"9" * 5000}s"'),
    ],
)
def test_no_duration(text: str, complaint: str) -> None:
    """A bare number is a duration without its unit."""
    with pytest.raises(Malformed) as refused:
        gojson.duration_ns(text)
    assert complaint == str(refused.value)


@settings(deadline=None)
@given(
    st.binary(max_size=200)
    | st.text(alphabet='{}[]",:\\ \n0eE.-+truefalsn\x00é', max_size=60).map(str.encode)
)
def test_any_body(body: bytes) -> None:
    """Reading yields a value or one of two complaints, and what orjson reads is read the same."""
    try:
        value = gojson.read(body)
    except (Malformed, Unjudged):
        with pytest.raises(orjson.JSONDecodeError):
            orjson.loads(body)
        return
    json.dumps(value)


@settings(deadline=None)
@given(st.text(alphabet="0123456789.+-hmsnuµ ", max_size=12) | st.text())
def test_any_duration(text: str) -> None:
    """A duration is a number of nanoseconds or a complaint."""
    with suppress(Malformed):
        assert isinstance(gojson.duration_ns(text), int)
