"""gpugate/ollama/catalog_cache.py: what clients may know while the pod is off."""

from __future__ import annotations

import asyncio
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpugate.errors import ModelNotFound
from gpugate.ollama import catalog_cache as catalog_module
from gpugate.ollama.catalog_cache import MAX_COMING, MAX_SHOWS, CatalogCache, CatalogMode, cache_key
from gpugate.ollama.routes import match_route
from gpugate.ollama.validation import LocalResponse, OllamaBody

NATIVE = "application/json; charset=utf-8"
TAGS = b'{"models":[{"name":"llava:latest","modified_at":"1970-01-01T00:01:00Z"} , {"name":"a:1b"}]}'
V1 = b'{"object":"list","data":[{"id":"llava:latest","object":"model","created":60,"owned_by":"library"}]}\n'
EMPTY = b'{"models":[]}'
SHOW = b'{"details":{"family":"llama"}}'
VERSION = b'{"version":"0.33.1"}'


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


def is_made(answer: LocalResponse | None) -> bool:
    """Say whether it is a `show` that was made here, of a model whose own is not known."""
    assert answer is not None
    assert (200, NATIVE) == (answer.status, answer.content_type)
    shown = orjson.loads(answer.body)
    return (["completion"], {}) == (shown.get("capabilities"), shown.get("model_info"))


def show(catalog: CatalogCache, raw: bytes) -> LocalResponse | None:
    return catalog.answer("POST", "/api/show", body_of("POST", "/api/show", raw).fields)


@pytest.mark.parametrize("mode", ["remembered", "empty", "static"])
def test_nothing_is_known_yet(store: Path, mode: CatalogMode) -> None:
    """Every list is empty but valid, and any model may be on the pod."""
    catalog = new(store, mode)
    assert LocalResponse(200, NATIVE, EMPTY) == catalog.answer("GET", "/api/tags")
    assert LocalResponse(200, NATIVE, EMPTY) == catalog.answer("GET", "/api/ps")
    expected = {"object": "list", "data": []}
    answer = catalog.answer("GET", "/v1/models")
    assert answer is not None
    assert ("application/json", expected) == (answer.content_type, orjson.loads(answer.body))
    one = catalog.answer("GET", "/v1/models/llava")
    assert one is not None
    assert (200, "llava") == (one.status, orjson.loads(one.body)["id"])
    assert is_made(show(catalog, b'{"model":"llava"}'))
    assert catalog.answer("GET", "/api/unknown") is None
    assert not catalog.lacks("llava")


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
    assert is_made(show(catalog, b'{"model":"llava"}'))
    assert is_made(show(catalog, b'{"model":"llava","verbose":true}'))
    assert not is_made(show(catalog, b'{"model":"other"}'))


def test_a_model_that_went(store: Path) -> None:
    """What the newest list lacks is not shown either."""
    catalog = new(store)
    catalog.store("show", "llava:latest", SHOW)
    catalog.store("show", "gone:latest", SHOW)
    catalog.store("tags", "", TAGS)
    assert not is_made(show(catalog, b'{"model":"llava"}'))
    with pytest.raises(ModelNotFound, match="model 'gone' not found"):
        show(catalog, b'{"model":"gone"}')


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
    """No model is listed, whatever was remembered; one by one they are known, and so is the version."""
    catalog = new(store, "empty", "llava")
    for kind, key, body in (("tags", "", TAGS), ("v1/models", "", V1), ("show", "llava:latest", SHOW)):
        catalog.store(kind, key, body)
    catalog.store("version", "", b'{"version":"0.33.1"}')
    assert (names(catalog), v1_names(catalog)) == ([], [])
    assert not is_made(show(catalog, b'{"model":"llava"}'))
    assert catalog.answer("GET", "/v1/models/llava") is not None
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
    assert is_made(show(catalog, b'{"model":"m4"}'))
    assert not is_made(show(catalog, b'{"model":"m5"}'))


def test_large_shows(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only so many bytes are kept, and one answer that is too large is not kept at all."""
    monkeypatch.setattr(catalog_module, "MAX_SHOWS_BYTES", 250)
    monkeypatch.setattr(catalog_module, "MAX_SHOW", 120)
    catalog = new(store)
    large = b'{"details":"' + b"x" * 85 + b'"}'
    assert all(catalog.store("show", f"{name}:latest", large) for name in "abc")
    assert is_made(show(catalog, b'{"model":"a"}'))
    assert not is_made(show(catalog, b'{"model":"b"}'))
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
    for path in ("/api/tags", "/v1/models", "/api/version", "/api/ps"):
        answer = catalog.answer("GET", path)
        assert answer == again.answer("GET", path)
        assert answer is None or isinstance(orjson.loads(answer.body), dict)
    assert shown_or_refused(catalog) == shown_or_refused(again)


def shown_or_refused(catalog: CatalogCache) -> object:
    """Return how one model is told, in both dialects."""
    try:
        return show(catalog, b'{"model":"llava"}'), catalog.answer("GET", "/v1/models/llava")
    except ModelNotFound as error:
        return error.message


# --- models that the configuration names --------------------------------------------------------


def test_named_models(tmp_path: Path) -> None:
    """Listed until something is learned: those of `catalog.models` first, and each model once."""
    named = ["llama3.2:3b", "LLaVA", "qwen/coder"]
    catalog = CatalogCache("remembered", ("llava", "own:1b"), tmp_path / "catalog.json", named=named)
    expected = ["llava", "own:1b", "llama3.2:3b", "qwen/coder:latest"]
    assert expected == names(catalog) == v1_names(catalog)
    assert catalog.hint is not None
    assert catalog.hint.endswith("are llava, own:1b, llama3.2:3b, qwen/coder:latest")
    assert not catalog.lacks("something else")
    catalog.store("tags", "", TAGS)
    assert names(catalog) == ["llava:latest", "a:1b"]
    assert catalog.hint is None


def test_named_models_with_an_empty_pod(tmp_path: Path) -> None:
    """A pod without models, such as one whose volume is not mounted, does not empty the list."""
    catalog = CatalogCache("remembered", (), tmp_path / "catalog.json", named=["llava"])
    assert not catalog.store("tags", "", EMPTY)
    assert names(catalog) == ["llava:latest"]


def test_a_static_list_without_models(tmp_path: Path) -> None:
    """Named models are listed: only `when_stopped = "empty"` gives an empty list."""
    catalog = CatalogCache("static", (), tmp_path / "catalog.json", named=["llava"])
    assert names(catalog) == v1_names(catalog) == ["llava:latest"]


def test_a_made_show(store: Path) -> None:
    """It holds what the list knows of the model."""
    catalog = new(store)
    details = {"family": "qwen3", "parameter_size": "8.2B"}
    entry = {"name": "q:8b", "details": details, "modified_at": "2026-01-01T00:00:00Z", "size": 5}
    catalog.store("tags", "", orjson.dumps({"models": [entry]}))
    answer = show(catalog, b'{"model":"Q:8b","verbose":true}')
    assert answer is not None
    expected = {
        "details": details,
        "model_info": {},
        "capabilities": ["completion"],
        "modified_at": "2026-01-01T00:00:00Z",
    }
    assert (200, NATIVE, expected) == (answer.status, answer.content_type, orjson.loads(answer.body))


def test_a_verbose_show_of_which_the_plain_one_is_known(store: Path) -> None:
    """The plain one is better than one that is made."""
    catalog = new(store)
    catalog.store("show", "llava:latest", SHOW)
    assert LocalResponse(200, NATIVE, SHOW) == show(catalog, b'{"model":"llava","verbose":true}')


# --- models that the pod lacks ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "lacked"),
    [
        ("llava", False),
        (" LLaVA:Latest", False),
        ("library/llava", False),
        ("registry.ollama.ai/library/llava", False),
        ("https://registry.ollama.ai/library/llava:latest", False),
        ("llava:local", False),
        ("a:1b", False),
        ("a", True),
        ("llava:7b", True),
        ("user/llava", True),
        ("nothing", True),
        ("gpt-oss:120b-cloud", False),
        ("gpt-oss:cloud", False),
        ("cloud", True),
    ],
)
def test_a_model_that_is_lacked(store: Path, model: str, lacked: bool) -> None:
    """Names are compared as Ollama does; a model of its cloud needs no pod that has it."""
    catalog = new(store)
    catalog.store("version", "", VERSION)
    catalog.store("tags", "", TAGS)
    assert (lacked, lacked) == (catalog.lacks(model), catalog.refuses(model))


def test_a_model_that_is_lacked_by_another_engine(store: Path) -> None:
    """Without a version it is no Ollama, and may answer by any name."""
    catalog = new(store)
    catalog.store("tags", "", TAGS)
    assert not catalog.refuses("nothing")


def test_a_model_that_is_coming(store: Path) -> None:
    """It is not lacked until there is a list without it."""
    catalog = new(store)
    catalog.store("tags", "", TAGS)
    catalog.expect("New")
    assert not catalog.lacks("new:latest")
    catalog.store("tags", "", TAGS)
    assert catalog.lacks("new:latest")


def test_many_models_that_are_coming(store: Path) -> None:
    """Only so many names are kept, and no long one."""
    catalog = new(store)
    catalog.store("tags", "", TAGS)
    for number in range(MAX_COMING + 1):
        catalog.expect(f"m{number}")
    assert not catalog.lacks(f"m{MAX_COMING - 1}")
    assert catalog.lacks(f"m{MAX_COMING}")
    catalog.store("tags", "", TAGS)
    catalog.expect("x" * 2000)
    assert catalog.lacks("x" * 2000)


# --- one pod ------------------------------------------------------------------------------------


async def test_another_pod(store: Path) -> None:
    """What was learned of one pod is not said of another, neither after a restart nor while it runs."""
    before = CatalogCache("remembered", (), store, named=["llava"], pods=["runpod:a"])
    before.learn_from("runpod:a")
    before.store("tags", "", TAGS)
    before.store("show", "a:1b", SHOW)
    await before.flush()
    assert names(CatalogCache("remembered", (), store, pods=["runpod:a"])) == ["llava:latest", "a:1b"]
    other = CatalogCache("remembered", (), store, named=["llava"], pods=["runpod:b"])
    assert (["llava:latest"], False) == (names(other), other.lacks("nothing"))
    assert is_made(show(other, b'{"model":"a:1b"}'))
    before.learn_from("runpod:b")
    assert names(before) == ["llava:latest"]


async def test_a_second_provider(store: Path) -> None:
    """Its models are listed; but the first provider's pod, which the next start tries, may have others."""
    catalog = CatalogCache("remembered", (), store, pods=["runpod:a", "vastai:1"])
    catalog.learn_from("vastai:1")
    catalog.store("tags", "", TAGS)
    assert (["llava:latest", "a:1b"], False) == (names(catalog), catalog.lacks("nothing"))
    await catalog.flush()
    again = CatalogCache("remembered", (), store, pods=["runpod:a", "vastai:1"])
    assert (["llava:latest", "a:1b"], False) == (names(again), again.lacks("nothing"))
    again.learn_from("runpod:a")
    assert names(again) == []


def test_a_file_of_an_earlier_version(store: Path) -> None:
    """It does not say of which pod it was: its lists are used, but no model is lacked by them."""
    store.write_bytes(orjson.dumps({"format": 1, "answers": {"tags": TAGS.decode()}, "shows": {}}))
    told = Told()
    catalog = CatalogCache("remembered", (), store, pods=["runpod:a"], warn=told)
    assert (["llava:latest", "a:1b"], False, []) == (names(catalog), catalog.lacks("nothing"), told)
    catalog.learn_from("runpod:a")
    assert catalog.store("tags", "", TAGS)
    assert catalog.lacks("nothing")


async def test_another_engine(store: Path) -> None:
    """Its /v1/models alone is kept, and stands in no list of Ollama's; nothing is refused by it."""
    ollama = new(store)
    ollama.store("tags", "", orjson.dumps({"models": [{"name": "llava:latest"}]}))
    ollama.store("version", "", b'{"version":"0.33.1"}')
    await ollama.flush()
    catalog = CatalogCache("remembered", (), store, speaks_ollama=False)
    assert ([], []) == (names(catalog), v1_names(catalog))
    learned = b'{"models":[{"name":"x"}],"object":"list","data":[{"id":"org/Qwen-7B"}]}'
    assert catalog.store("v1/models", "", learned)
    assert not catalog.store("tags", "", b'{"models":[{"name":"x"}]}')
    answer = catalog.answer("GET", "/v1/models")
    assert answer is not None
    assert (learned, []) == (answer.body, names(catalog))
    assert not catalog.refuses("another")
