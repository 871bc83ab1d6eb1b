"""gpugate/ollama/unload.py: requests that only unload a model."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpugate.ollama.unload import is_unload, may_be_unload, model_to_unload, unload_answer

ZEROS = [0, 0.0, -0.0, 1e-10, "0", "-0", "+0", "0s", "0m", "0h0m0s", "0.0s", "0.1ns"]
OTHERS = [1, -1, 0.5, "5m", "-1s", "1ms", "-1", "", "x", None, True, False, [], {}, float("inf")]


@pytest.mark.parametrize("keep_alive", ZEROS)
@pytest.mark.parametrize(
    ("api", "content"),
    [
        ("generate", {}),
        ("generate", {"prompt": ""}),
        ("generate", {"prompt": None, "stream": True}),
        ("chat", {}),
        ("chat", {"messages": []}),
        ("chat", {"messages": None}),
    ],
)
def test_nothing_to_say_and_nothing_to_keep(keep_alive: object, api: str, content: dict[str, object]) -> None:
    """A zero in any spelling, with an empty or missing prompt, is an unload."""
    document = {"model": "x", "keep_alive": keep_alive, **content}
    assert is_unload(api, document)
    assert model_to_unload(api, orjson.dumps(document)) == "x"


@pytest.mark.parametrize("keep_alive", OTHERS)
def test_another_keep_alive(keep_alive: object) -> None:
    """An empty request that keeps the model is a load, which computes."""
    assert not is_unload("generate", {"model": "x", "keep_alive": keep_alive})


@pytest.mark.parametrize(
    ("api", "document"),
    [
        ("generate", {"model": "x", "prompt": "hi", "keep_alive": 0}),
        ("generate", {"model": "x", "prompt": " ", "keep_alive": 0}),
        ("chat", {"model": "x", "messages": [{"role": "user"}], "keep_alive": 0}),
        ("chat", {"model": "x"}),
        ("embed", {"model": "x", "keep_alive": 0}),
        ("v1/chat/completions", {"model": "x", "keep_alive": 0}),
        (None, {"model": "x", "keep_alive": 0}),
    ],
)
def test_it_computes(api: str | None, document: dict[str, object]) -> None:
    """A prompt, or another endpoint, is no unload."""
    assert not is_unload(api, document)
    assert model_to_unload(api, orjson.dumps(document)) is None


def test_a_field_in_another_case() -> None:
    """Ollama reads fields in any case."""
    assert is_unload("generate", {"Model": "x", "Keep_Alive": 0})


@pytest.mark.parametrize(
    ("body", "may_be"),
    [
        (b'{"model":"x","keep_alive":0}', True),
        (b'{"model":"x"}', False),
        (b'{"keep_alive":0,"prompt":"' + b"x" * 70_000 + b'"}', False),
        (b"", False),
    ],
)
def test_the_cheap_look(body: bytes, may_be: bool) -> None:
    """Nearly every body is seen to be no unload without parsing it."""
    assert may_be == may_be_unload(body)


@pytest.mark.parametrize(
    "body", [b'{"keep_alive":0}', b'{"keep_alive":', b'["keep_alive"]', b'{"model":1,"keep_alive":0}']
)
def test_no_model_to_unload(body: bytes) -> None:
    """What Ollama would refuse is no unload."""
    assert model_to_unload("chat", body) is None


def test_the_answer_of_generate() -> None:
    """One JSON object with Ollama's fields in Ollama's order."""
    now = datetime(2026, 11, 21, 3, 4, 5, 120_000, tzinfo=UTC)
    expected = (
        b'{"model":"llava","created_at":"2026-11-21T03:04:05.12Z","response":"","done":true,'
        b'"done_reason":"unload"}'
    )
    assert expected == unload_answer("generate", "llava", now)


def test_the_answer_of_chat() -> None:
    """A chat has an empty message instead of a response; the time is in UTC."""
    now = datetime(2026, 11, 21, 3, 4, 5, tzinfo=timezone(timedelta(hours=1)))
    expected = (
        b'{"model":"llava","created_at":"2026-11-21T02:04:05Z",'
        b'"message":{"role":"assistant","content":""},"done":true,"done_reason":"unload"}'
    )
    assert expected == unload_answer("chat", "llava", now)


@settings(deadline=None)
@given(st.sampled_from(["chat", "generate", None]), st.binary(max_size=80).map(b'{"keep_alive":0,'.__add__))
def test_any_body(api: str | None, body: bytes) -> None:
    """Looking never raises."""
    model = model_to_unload(api, body)
    assert model is None or model.strip() == model
