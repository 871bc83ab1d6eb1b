"""gpugate/ollama/catalog_cache.py: what clients may know while the pod is off."""

from __future__ import annotations

import asyncio
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpugate.ollama import catalog_cache as catalog_module
from gpugate.ollama.catalog_cache import MAX_SHOWS, CatalogCache, CatalogMode, cache_key
from gpugate.ollama.routes import match_route
from gpugate.ollama.validation import LocalResponse, OllamaBody

NATIVE = "application/json; charset=utf-8"
TAGS = b'{"models":[{"name":"llava:latest","modified_at":"1970-01-01T00:01:00Z"} , {"name":"a:1b"}]}'
V1 = b'{"object":"list","data":[{"id":"llava:latest","object":"model","created":60,"owned_by":"library"}]}\n'
EMPTY = b'{"models":[]}'
SHOW = b'{"details":{"family":"llama"}}'


class Told(list[str]):
    """Hears warnings."""

    def __call__(self, text: str) -> None:
        self.append(text)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "catalog.json"


def new(
    store: Path, mode: CatalogMode = "remembered", *models: str, tell: Told | None = None
) -> CatalogCache:
    return CatalogCache(mode, models, store, warn=tell)


def names(catalog: CatalogCache) -> list[str]:
    answer = catalog.answer("GET", "/api/tags")
    assert answer is not None
    return [entry["name"] for entry in orjson.loads(answer.body)["models"]]


def v1_names(catalog: CatalogCache) -> list[str]:
    answer = catalog.answer("GET", "/v1/models")
    assert answer is not None
    return [entry["id"] for entry in orjson.loads(answer.body)["data"]]


def body_of(method: str, path: str, raw: bytes) -> OllamaBody:
    return OllamaBody(match_route(method, path), {}, raw)


def show(catalog: CatalogCache, raw: bytes) -> LocalResponse | None:
    fields = body_of("POST", "/api/show", raw).fields
    return catalog.answer("POST", "/api/show", fields.show_key)


@pytest.mark.parametrize("mode", ["remembered", "empty", "static"])
def test_nothing_is_known_yet(store: Path, mode: CatalogMode) -> None:
    """Every list is empty but valid, and what only the pod can know is not answered."""
    catalog = new(store, mode)
    assert LocalResponse(200, NATIVE, EMPTY) == catalog.answer("GET", "/api/tags")
    assert LocalResponse(200, NATIVE, EMPTY) == catalog.answer("GET", "/api/ps")
    expected = {"object": "list", "data": []}
    answer = catalog.answer("GET", "/v1/models")
    assert answer is not None
    assert ("application/json", expected) == (answer.content_type, orjson.loads(answer.body))
    assert catalog.answer("GET", "/v1/models/llava") is None
    assert show(catalog, b'{"model":"llava"}') is None
    assert catalog.answer("GET", "/api/unknown") is None


def test_the_defaults(store: Path) -> None:
    """Before the first real answer the version is a dotted number, and no cloud is offered."""
    catalog = new(store)
    bodies = [catalog.answer("GET", path) for path in ("/api/version", "/api/status")]
    version, status = (orjson.loads(answer.body) for answer in bodies if answer)
    assert all(part.isdigit() for part in version["version"].split("."))
    assert status["cloud"]["disabled"] is True
    recommendations = catalog.answer("GET", "/api/experimental/model-recommendations")
    assert LocalResponse(200, NATIVE, b'{"recommendations":[]}') == recommendations


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_remembered_list(store: Path, method: str) -> None:
    """The last good answer is repeated byte for byte."""
    catalog = new(store, "remembered", "configured")
    assert catalog.store("tags", "", TAGS)
    assert LocalResponse(200, NATIVE, TAGS) == catalog.answer(method, "/api/tags")


def test_the_same_answer_again(store: Path) -> None:
    """An answer that is known changes nothing, so nothing is written."""
    catalog = new(store)
    assert catalog.store("tags", "", TAGS)
    assert not catalog.store("tags", "", TAGS)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("tags", b"<html>"),
        ("tags", b'{"models":null}'),
        ("tags", b'{"error":"no"}'),
        ("tags", b'{"models":[{"name":"x' + b"x" * (5 << 20) + b'"}]}'),
        ("version", b'{"version":"?"}'),
        ("nonsense", b"{}"),
    ],
)
def test_a_bad_answer(store: Path, kind: str, body: bytes) -> None:
    """What is no good answer never replaces one."""
    catalog = new(store)
    catalog.store("tags", "", TAGS)
    assert not catalog.store(kind, "", body)
    assert names(catalog) == ["llava:latest", "a:1b"]


async def test_a_restart(store: Path) -> None:
    """What was flushed is known again, byte for byte."""
    before = new(store)
    before.store("tags", "", TAGS)
    before.store("v1/models", "", V1)
    before.store("version", "", b'{"version":"0.33.1"}')
    before.store("show", "llava:latest", SHOW)
    await before.flush()
    told = Told()
    after = new(store, tell=told)
    assert LocalResponse(200, NATIVE, TAGS) == after.answer("GET", "/api/tags")
    assert LocalResponse(200, "application/json", V1) == after.answer("GET", "/v1/models")
    assert LocalResponse(200, NATIVE, b'{"version":"0.33.1"}') == after.answer("GET", "/api/version")
    assert LocalResponse(200, NATIVE, SHOW) == show(after, b'{"model":"LLaVA"}')
    assert Told() == told


async def test_a_flush_without_a_change(store: Path) -> None:
    """Nothing is written where nothing changed."""
    catalog = new(store)
    await catalog.flush()
    assert not store.exists()


async def test_flushes_at_the_same_time(store: Path) -> None:
    """However many flushes overlap, the newest state is on disk."""
    catalog = new(store)
    flushes = []
    for number in range(20):
        catalog.store("tags", "", b'{"models":[{"name":"m%d"}]}' % number)
        flushes.append(asyncio.ensure_future(catalog.flush()))
        await asyncio.sleep(0)
    await asyncio.gather(*flushes)
    await catalog.flush()
    assert names(new(store)) == ["m19"]


async def test_a_full_disk(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told once, memory goes on, and when there is room again all is written."""
    told = Told()
    catalog = new(store, tell=told)

    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr("os.fsync", full)
        for body in (TAGS, b'{"models":[{"name":"b"}]}'):
            catalog.store("tags", "", body)
            await catalog.flush()
    assert Told(["the catalogue cannot be kept on disk: No space left on device"]) == told
    assert names(catalog) == ["b"]
    await catalog.flush()
    assert names(new(store)) == ["b"]


@pytest.mark.parametrize("content", [b"", b"garbage", b'{"format":1,"answers":5}', b'{"format":2}'])
def test_a_corrupt_file(store: Path, content: bytes) -> None:
    """It is ignored, with a warning that names no path."""
    store.write_bytes(content)
    told = Told()
    catalog = new(store, "remembered", "llava", tell=told)
    assert names(catalog) == ["llava"]
    assert len(told) == 1
    assert str(store.parent) not in told[0]


def test_a_file_that_is_a_directory(store: Path) -> None:
    """What cannot be read is ignored, with a warning."""
    store.mkdir()
    told = Told()
    assert names(new(store, tell=told)) == []
    assert Told(["the remembered catalogue is ignored: Is a directory"]) == told


def test_a_file_with_one_bad_part(store: Path) -> None:
    """The good parts are kept."""
    answers = {"tags": TAGS.decode(), "version": "nonsense", "unknown": "{}"}
    store.write_bytes(orjson.dumps({"format": 1, "answers": answers}))
    told = Told()
    assert names(new(store, tell=told)) == ["llava:latest", "a:1b"]
    assert len(told) == 1


def test_an_empty_list_over_a_good_one(store: Path) -> None:
    """Right after a start it may mean that the volume is missing: the good list stays."""
    catalog = new(store)
    catalog.store("tags", "", TAGS)
    assert not catalog.store("tags", "", EMPTY)
    assert not catalog.store("v1/models", "", b'{"object":"list","data":null}')
    assert names(catalog) == ["llava:latest", "a:1b"]


def test_an_empty_list_over_the_configured_one(store: Path) -> None:
    """The configured models stay until there is a list with models."""
    catalog = new(store, "remembered", "llava")
    assert not catalog.store("tags", "", EMPTY)
    assert names(catalog) == ["llava"]


async def test_an_empty_list_after_a_deletion(store: Path) -> None:
    """When models were deleted through the gateway, an empty list is believed, also after a restart."""
    catalog = new(store, "remembered", "llava")
    catalog.store("tags", "", TAGS)
    catalog.invalidate("llava")
    assert catalog.store("tags", "", EMPTY)
    await catalog.flush()
    told = Told()
    assert names(new(store, "remembered", "llava", tell=told)) == []
    assert Told() == told


def test_an_empty_list_long_after_a_change(store: Path) -> None:
    """Once a list with models was seen after the change, even the same one, an empty list is odd again."""
    catalog = new(store)
    catalog.store("tags", "", TAGS)
    catalog.invalidate("llava")
    catalog.store("tags", "", TAGS)
    assert not catalog.store("tags", "", EMPTY)


def test_a_change_asks_for_a_refresh(store: Path) -> None:
    """The lists are fetched again, and what was known of the changed model is gone."""
    asked = []
    catalog = CatalogCache("remembered", (), store, refresh=lambda: asked.append("refresh"))
    for key in ("llava:latest", "llava:latest verbose", "other:latest"):
        catalog.store("show", key, SHOW)
    catalog.invalidate("library/LLaVA")
    assert asked == ["refresh"]
    assert show(catalog, b'{"model":"llava"}') is None
    assert show(catalog, b'{"model":"llava","verbose":true}') is None
    assert show(catalog, b'{"model":"other"}') is not None


def test_a_model_that_went(store: Path) -> None:
    """What the newest list lacks is not shown either."""
    catalog = new(store)
    catalog.store("show", "llava:latest", SHOW)
    catalog.store("show", "gone:latest", SHOW)
    catalog.store("tags", "", TAGS)
    assert show(catalog, b'{"model":"llava"}') is not None
    assert show(catalog, b'{"model":"gone"}') is None


def test_only_tags_are_known(store: Path) -> None:
    """/v1/models is made of them."""
    catalog = new(store)
    catalog.store("tags", "", TAGS)
    assert v1_names(catalog) == ["llava:latest", "a:1b"]
    catalog.store("v1/models", "", V1)
    assert v1_names(catalog) == ["llava:latest"]


def test_only_v1_models_are_known(store: Path) -> None:
    """/api/tags is made of them, with whole digests."""
    catalog = new(store)
    catalog.store("v1/models", "", V1)
    assert names(catalog) == ["llava:latest"]


def test_newer_tags(store: Path) -> None:
    """A list of models that is older than the other one is not answered."""
    catalog = new(store)
    catalog.store("v1/models", "", V1)
    catalog.store("tags", "", b'{"models":[{"name":"new"}]}')
    assert v1_names(catalog) == ["new"]


@pytest.mark.parametrize("name", ["llava", "llava:latest", "LLaVA", "library/llava", "library%2Fllava"])
def test_one_v1_model(store: Path, name: str) -> None:
    """A model of the remembered list is answered in any spelling, and named as asked."""
    catalog = new(store)
    catalog.store("tags", "", TAGS)
    answer = catalog.answer("GET", f"/v1/models/{name}")
    assert answer is not None
    found = orjson.loads(answer.body)
    asked = name.replace("%2F", "/")
    assert (asked, "model", 60) == (found["id"], found["object"], found["created"])


def test_the_mode_empty(store: Path) -> None:
    """No model is known, whatever was remembered; the version still is."""
    catalog = new(store, "empty", "llava")
    for kind, key, body in (("tags", "", TAGS), ("v1/models", "", V1), ("show", "llava:latest", SHOW)):
        catalog.store(kind, key, body)
    catalog.store("version", "", b'{"version":"0.33.1"}')
    assert (names(catalog), v1_names(catalog)) == ([], [])
    assert show(catalog, b'{"model":"llava"}') is None
    assert catalog.answer("GET", "/v1/models/llava") is None
    assert LocalResponse(200, NATIVE, b'{"version":"0.33.1"}') == catalog.answer("GET", "/api/version")


def test_the_mode_static(store: Path) -> None:
    """The configured models are listed, whatever was remembered."""
    catalog = new(store, "static", "llava:7b", "other")
    catalog.store("tags", "", TAGS)
    catalog.store("v1/models", "", V1)
    assert names(catalog) == ["llava:7b", "other"]
    assert v1_names(catalog) == ["llava:7b", "other"]
    assert catalog.answer("GET", "/v1/models/other") is not None


def test_show_in_two_depths(store: Path) -> None:
    """A verbose answer is not a plain one."""
    catalog = new(store)
    plain, verbose = b'{"model":"llava"}', b'{"name":"llava:latest","verbose":true}'
    for body, answer in ((plain, SHOW), (verbose, b'{"details":{},"tensors":[]}')):
        slot = cache_key("POST", "/api/show", body_of("POST", "/api/show", body))
        assert slot is not None
        catalog.store(*slot, answer)
    assert LocalResponse(200, NATIVE, SHOW) == show(catalog, plain)
    assert LocalResponse(200, NATIVE, b'{"details":{},"tensors":[]}') == show(catalog, verbose)


def test_many_shows(store: Path) -> None:
    """Only so many are kept: the oldest goes."""
    catalog = new(store)
    for number in range(MAX_SHOWS + 5):
        catalog.store("show", f"m{number}:latest", SHOW)
    assert show(catalog, b'{"model":"m4"}') is None
    assert show(catalog, b'{"model":"m5"}') is not None


def test_large_shows(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only so many bytes are kept, and one answer that is too large is not kept at all."""
    monkeypatch.setattr(catalog_module, "MAX_SHOWS_BYTES", 250)
    monkeypatch.setattr(catalog_module, "MAX_SHOW", 120)
    catalog = new(store)
    large = b'{"details":"' + b"x" * 85 + b'"}'
    assert all(catalog.store("show", f"{name}:latest", large) for name in "abc")
    assert show(catalog, b'{"model":"a"}') is None
    assert show(catalog, b'{"model":"b"}') is not None
    assert not catalog.store("show", "d:latest", b'{"details":"' + b"x" * 200 + b'"}')


@pytest.mark.parametrize(
    ("method", "path", "body", "slot"),
    [
        ("GET", "/api/tags", b"", ("tags", "")),
        ("GET", "/v1/models", b"", ("v1/models", "")),
        ("GET", "/api/version", b"", ("version", "")),
        ("GET", "/api/status", b"", ("status", "")),
        ("HEAD", "/api/tags", b"", None),
        ("GET", "/api/ps", b"", None),
        ("GET", "/v1/models/x", b"", None),
        ("POST", "/api/show", b'{"model":"X"}', ("show", "x:latest")),
        ("POST", "/api/show", b'{"name":"x","verbose":false}', ("show", "x:latest")),
        ("POST", "/api/show", b'{"model":"x","verbose":true}', ("show", "x:latest verbose")),
        ("POST", "/api/show", b'{"model":"x","system":"be kind"}', None),
        ("POST", "/api/show", b'{"model":5}', None),
        ("POST", "/api/show", b"{}", None),
        ("POST", "/api/show", b"no", None),
        ("POST", "/api/show", b'{"model":"' + b"x" * 70_000 + b'"}', None),
    ],
)
def test_where_an_answer_is_kept(method: str, path: str, body: bytes, slot: tuple[str, str] | None) -> None:
    """Only answers that hold for every client are kept."""
    assert slot == cache_key(method, path, body_of(method, path, body))


ACTS = st.one_of(
    st.tuples(st.just("tags"), st.just(""), st.sampled_from([TAGS, EMPTY, b'{"models":[{"name":"b"}]}'])),
    st.tuples(st.just("v1/models"), st.just(""), st.sampled_from([V1, b'{"object":"list","data":null}'])),
    st.tuples(st.just("show"), st.sampled_from(["llava:latest", "b:latest"]), st.sampled_from([SHOW, b"no"])),
    st.tuples(st.just("version"), st.just(""), st.binary(max_size=10)),
    st.just(("changed", "llava", b"")),
)


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(["remembered", "empty", "static"]), st.lists(ACTS, max_size=12))
def test_any_life(
    tmp_path_factory: pytest.TempPathFactory, mode: CatalogMode, acts: list[tuple[str, str, bytes]]
) -> None:
    """Whatever happens, all answers are valid, and a restart answers the same."""
    store = tmp_path_factory.mktemp("life") / "catalog.json"
    catalog = new(store, mode, "configured")
    for kind, key, body in acts:
        if kind == "changed":
            catalog.invalidate(key)
        else:
            catalog.store(kind, key, body)
    asyncio.run(catalog.flush())
    again = new(store, mode, "configured")
    for path in ("/api/tags", "/v1/models", "/api/version", "/api/ps", "/v1/models/llava"):
        answer = catalog.answer("GET", path)
        assert answer == again.answer("GET", path)
        assert answer is None or isinstance(orjson.loads(answer.body), dict)
    assert show(catalog, b'{"model":"llava"}') == show(again, b'{"model":"llava"}')
