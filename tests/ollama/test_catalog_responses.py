"""gpugate/ollama/catalog_responses.py: which bodies are worth keeping, and how one is made."""

from __future__ import annotations

import re

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpugate.ollama import catalog_responses as bodies


@pytest.mark.parametrize(
    ("kind", "body", "good"),
    [
        ("tags", b'{"models":[]}', True),
        ("tags", b'{"models":[{"name":"x"}]}', True),
        ("tags", b'{"models":null}', False),
        ("tags", b'{"models":[{"model":"x"}]}', False),
        ("tags", b'{"models":["x"]}', False),
        ("tags", b'{"error":"no"}', False),
        ("v1/models", b'{"object":"list","data":null}', True),
        ("v1/models", b'{"object":"list","data":[{"id":"x"}]}', True),
        ("v1/models", b'{"object":"list","data":[{}]}', False),
        ("v1/models", b'{"object":"list","data":5}', False),
        ("version", b'{"version":"0.33.0-rc2"}', True),
        ("version", b'{"version":"0.6"}', True),
        ("version", b'{"version":"new"}', False),
        ("version", b'{"version":5}', False),
        ("status", b'{"cloud":{"disabled":true}}', True),
        ("status", b"{}", False),
        ("recommendations", b'{"recommendations":[]}', True),
        ("recommendations", b"{}", False),
        ("show", b'{"details":{}}', True),
        ("show", b'{"error":"no"}', False),
        ("show", b"{}", False),
    ],
)
def test_a_body(kind: str, body: bytes, good: bool) -> None:
    """A body that would break a client later is not worth keeping."""
    document = bodies.parse(body)
    assert document is not None
    assert good == bodies.is_good(kind, document)


@pytest.mark.parametrize("body", [b"", b"[]", b"<html>", b"null", b"\x1f\x8b", b"[" * 5000])
def test_no_object(body: bytes) -> None:
    """What is no JSON object is no body at all."""
    assert bodies.parse(body) is None


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("llava", "llava:latest"),
        ("LLaVA:7B", "llava:7b"),
        (" library/llava ", "llava:latest"),
        ("registry.ollama.ai/library/llava:latest", "llava:latest"),
        ("hf.co/user/model", "hf.co/user/model:latest"),
        ("host:8080/user/model", "host:8080/user/model:latest"),
    ],
)
def test_a_name(name: str, canonical: str) -> None:
    """All spellings of one model are one key."""
    assert canonical == bodies.canonical(name)


def test_made_tags() -> None:
    """An entry made from a name has all that clients read; the command line dies of a short digest."""
    (entry,) = orjson.loads(bodies.tags(["llava:7b"]))["models"]
    expected = ["name", "model", "modified_at", "size", "digest", "details"]
    assert expected == list(entry)
    assert entry["name"] == entry["model"] == "llava:7b"
    assert re.fullmatch("[0-9a-f]{64}", entry["digest"])


def test_made_v1_models() -> None:
    """/v1/models is made of /api/tags as Ollama makes it."""
    tags = [
        {"name": "llava:latest", "modified_at": "2026-01-02T03:04:05.123456789+01:00"},
        {"name": "hf.co/user/model:x", "modified_at": "nonsense"},
        {"name": "user/model"},
    ]
    made = orjson.loads(bodies.v1_models(tags))
    expected = [
        ("llava:latest", 1767319445, "library"),
        ("hf.co/user/model:x", 0, "user"),
        ("user/model", 0, "user"),
    ]
    assert expected == [(entry["id"], entry["created"], entry["owned_by"]) for entry in made["data"]]
    assert made["object"] == "list"


@settings(deadline=None)
@given(st.sampled_from(sorted(bodies.KINDS)), st.dictionaries(st.text(max_size=8), st.integers() | st.none()))
def test_any_object(kind: str, document: dict[str, object]) -> None:
    """Judging never raises."""
    assert bodies.is_good(kind, document) in (True, False)
