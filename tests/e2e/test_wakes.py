"""What wakes the pod and what never does (docs/api.md#what-wakes-the-pod), over real sockets."""

from __future__ import annotations

import asyncio
import json

import pytest
from gpugate_demo.faults import Answer, Hang, HangAfter
from gpugate_testing.fakes import FakeCloud

from gpugate.ollama.catalog_refresher import CatalogRefresher
from tests.e2e.support import CHAT, GENERATE, MODEL, SOON, House, bearer, chat_body, open_house, part_of

NEVER = [
    ("GET", "/", None),
    ("HEAD", "/", None),
    ("GET", "/api/version", None),
    ("HEAD", "/api/version", None),
    ("GET", "/api/tags", None),
    ("HEAD", "/api/tags", None),
    ("GET", "/api/ps", None),
    ("GET", "/api/status", None),
    ("POST", "/api/show", {"model": MODEL}),
    ("POST", "/api/show", {"model": "nothing"}),
    ("GET", "/v1/models", None),
    ("GET", f"/v1/models/{MODEL}", None),
    ("GET", "/v1/models/nothing", None),
    ("POST", "/api/generate", {"model": MODEL, "keep_alive": 0}),
    ("POST", "/api/generate", {"model": MODEL, "keep_alive": "0s", "prompt": ""}),
    ("POST", "/api/chat", {"model": MODEL, "keep_alive": 0, "messages": []}),
    ("POST", "/api/v1/generate", {"model": MODEL, "keep_alive": 0}),
    ("GET", "/api/unknown", None),
    ("HEAD", "/v1/unknown", None),
    ("POST", "/api/unknown", {"model": MODEL}),
    ("POST", "/v1/unknown/deep", {"model": MODEL}),
    ("PUT", "/v1/unknown", {}),
    ("POST", "/api/me", {}),
    ("POST", "/api/signout", {}),
    ("GET", "/api/experimental/model-recommendations", None),
    ("POST", "/api/experimental/web_search", {"query": "x"}),
    ("POST", "/api/experimental/web_fetch", {"url": "x"}),
    ("DELETE", "/api/user/keys/x", None),
    ("POST", "/v1/messages/count_tokens", {"model": MODEL, "messages": []}),
    ("POST", "/v1/moderations", {"model": MODEL, "input": "x"}),
    ("POST", "/v1/images/generations", {"model": MODEL, "prompt": "x"}),
    ("POST", "/v1/rerank", {"model": MODEL, "query": "x", "documents": ["y"]}),
    ("GET", "/api/v1/health", None),
    ("GET", "/api/v1/gpu/status", None),
    ("GET", "/api/v1/nothing", None),
    ("POST", "/api/v1/nothing", {}),
    ("GET", "/dashboard", None),
    ("GET", "/metrics", None),
    ("POST", "/elsewhere", {}),
    ("GET", "/favicon.ico", None),
    ("OPTIONS", "/api/chat", None),
    ("OPTIONS", "/v1/chat/completions", None),
    ("GET", "/api/chat", None),
    ("DELETE", "/api/generate", None),
    ("GET", "/v1/chat/completions", None),
    ("GET", "/api/tags/", None),
    ("POST", "/api/chat/", CHAT),
    ("POST", "//api/chat", CHAT),
    ("POST", "/api/tags/", {}),
    ("GET", "/api/chat/", None),
]
REFUSED = [  # by Ollama, without a look at its models
    ("POST", "/api/chat", {"messages": []}),
    ("POST", "/api/chat", [1]),
    ("POST", "/api/generate", {}),
    ("POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
    ("POST", "/v1/messages", {"max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}),
    ("POST", "/api/embed", {"input": "x"}),
]
WAKES = [
    ("POST", "/api/generate", GENERATE),
    ("POST", "/api/generate", {"model": MODEL}),
    ("POST", "/api/chat", CHAT),
    ("POST", "/api/chat", {**CHAT, "keep_alive": 0}),
    ("POST", "/api/chat", {"model": MODEL}),
    ("POST", "/api/embed", {"model": MODEL, "input": "x"}),
    ("POST", "/api/embeddings", {"model": MODEL, "prompt": "x"}),
    ("POST", "/v1/chat/completions", CHAT),
    ("POST", "/v1/completions", GENERATE),
    ("POST", "/v1/embeddings", {"model": MODEL, "input": "x"}),
    ("POST", "/v1/responses", {"model": MODEL, "input": "x"}),
    ("POST", "/v1/messages", {**CHAT, "max_tokens": 9}),
    ("POST", "/api/v1/chat", CHAT),
    ("POST", "/api/v1/generate", GENERATE),
    ("POST", "/api/pull", {"model": "tiny"}),
    ("POST", "/api/create", {"model": "mine", "from": MODEL}),
    ("POST", "/api/copy", {"source": MODEL, "destination": "mine"}),
    ("DELETE", "/api/delete", {"model": MODEL}),
    ("HEAD", "/api/blobs/sha256:" + "0" * 64, None),
    ("POST", "/api/v1/gpu/start", None),
]


def named(value: object) -> str:
    return value if isinstance(value, str) else ""


@pytest.mark.parametrize(("method", "path", "body"), NEVER + REFUSED, ids=named)
async def test_never_wakes(house: House, method, path, body):
    """Answered at once, and no start is asked for."""
    answer = await house.ask(method, path, json=body)
    assert answer.headers["X-Request-Id"]
    assert 0 == house.cloud.starts
    assert 0 == house.cloud.calls.count("start")
    assert 0 == len(house.ollama.seen)


@pytest.mark.parametrize(("method", "path", "body"), NEVER, ids=named)
async def test_never_resets_the_idle_clock(opened, method, path, body):
    """On a pod that serves, the idle time goes on."""
    house = await opened()
    await house.warm()
    await house.chat()
    await asyncio.sleep(0.02)
    before = house.idle_for()
    await house.ask(method, path, json=body)
    assert 0.02 <= before < house.idle_for()


@pytest.mark.parametrize(("method", "path", "body"), REFUSED, ids=named)
async def test_a_pod_that_serves_refuses_itself(opened, method, path, body):
    """Its own words count then, and to be asked is a use of it."""
    house = await opened()
    await house.warm()
    await house.chat()
    before = house.idle_since
    answer = await house.ask(method, path, json=body)
    direct = await house.ask(method, path, url=house.ollama.url, json=body)
    assert (direct.status, shape_of(direct.json)) == (answer.status, shape_of(answer.json))
    assert None is not house.idle_since != before


@pytest.mark.parametrize(("method", "path", "body"), WAKES, ids=named)
async def test_wakes(house: House, method, path, body):
    """The pod is started once and answers."""
    answer = await house.ask(method, path, json=body)
    assert answer.status < 500, answer.body
    await house.until(lambda: house.cloud.starts == 1)


CONTEXT = {"num_ctx": 8192, "temperature": 0.2}
EMBEDS = "nomic-embed-text:latest"


@pytest.mark.parametrize(
    ("path", "body", "num_ctx"),
    [
        ("/api/chat", CHAT, None),
        ("/api/chat", {**CHAT, "options": CONTEXT, "shift": False}, 8192),
        ("/api/generate", {**GENERATE, "options": CONTEXT, "keep_alive": 0}, 8192),
        ("/api/embed", {"model": EMBEDS, "input": "x", "options": CONTEXT}, 8192),
        ("/api/embeddings", {"model": EMBEDS, "prompt": "x", "options": CONTEXT, "keep_alive": "1h"}, 8192),
        ("/v1/chat/completions", {**CHAT, "options": CONTEXT}, None),
        ("/v1/embeddings", {"model": EMBEDS, "input": "x"}, None),
        ("/api/v1/chat", {**CHAT, "options": CONTEXT}, 8192),
        ("/api/v1/story/generate", {"prompt": "a fox"}, None),
    ],
    ids=named,
)
async def test_a_cold_request_loads_its_model_once(opened, path, body, num_ctx):
    """The preload loads it as the request wants it, and the request finds it loaded."""
    house = await opened(pod__preload="requested", models__story=MODEL)
    answer = await house.ask("POST", path, json=body)
    assert 200 == answer.status, answer.body
    assert [num_ctx] == [options[0] for _, options in house.ollama.store.loads]


class TestWhatIsNotKnown:
    """Whatever stands under /api and /v1 that neither computes nor is metadata."""

    PATHS = [
        ("POST", "/api/me"),
        ("POST", "/api/signout"),
        ("POST", "/api/experimental/web_search"),
        ("POST", "/v1/rerank"),
        ("POST", "/v1/unknown"),
        ("PUT", "/api/unknown"),
    ]

    @pytest.mark.parametrize(("method", "path"), PATHS, ids=named)
    async def test_asleep(self, house: House, method, path):
        """503 at once, in the dialect of the path."""
        answer = await house.ask(method, path, json={"model": MODEL})
        error = answer.json["error"]
        assert (503, 0) == (answer.status, house.cloud.calls.count("start"))
        assert (error if path.startswith("/api") else error["message"]).startswith("the pod is not running")
        assert answer.headers["Retry-After"]

    @pytest.mark.parametrize(("method", "path"), PATHS, ids=named)
    async def test_while_ready(self, house: House, method, path):
        """The pod is asked, body and all, and its answer is the answer."""
        await house.warm()
        answer = await house.ask(method, path, json={"model": MODEL})
        direct = await house.ask(method, path, url=house.ollama.url, json={"model": MODEL})
        through, past = house.ollama.calls(path)
        assert (method, through.body) == (through.method, past.body)
        assert (direct.status, direct.body) == (answer.status, answer.body)

    async def test_polling_does_not_keep_a_pod(self, opened):
        """Nor does an unload."""
        house = await opened(pod__idle_timeout=0.3)
        await house.warm()
        async with asyncio.timeout(SOON):
            while house.gateway.lifecycle.current_status != "STOPPED":
                for path in ("/api/me", "/v1/unknown", "/v1/messages/count_tokens", "/api/generate"):
                    await house.ask("POST", path, json={"model": MODEL, "keep_alive": 0})
                await asyncio.sleep(0.02)
        assert 1 == house.cloud.starts

    @pytest.mark.parametrize("is_warm", [False, True])
    async def test_counting_tokens(self, house: House, *, is_warm):
        """Anthropic's 404, so that its clients estimate: Ollama has no such path."""
        if is_warm:
            await house.warm()
        answer = await house.ask("POST", "/v1/messages/count_tokens", json={"model": MODEL})
        assert (404, "error", "not_found_error") == (
            answer.status,
            answer.json["type"],
            answer.json["error"]["type"],
        )
        assert int(is_warm) == len(house.ollama.calls("/v1/messages/count_tokens"))

    async def test_counting_tokens_where_the_engine_can(self, house: House):
        """Its bytes."""
        await house.warm()
        house.ollama.faults.add("/v1/messages/count_tokens", Answer(200, b'{"input_tokens":7}'))
        answer = await house.ask("POST", "/v1/messages/count_tokens", json={"model": MODEL})
        assert (200, b'{"input_tokens":7}') == (answer.status, answer.body)


class TestWakePaths:
    async def test_one(self, opened):
        """Its POST wakes the pod and waits for it; nothing else there does."""
        house = await opened(server__wake_paths=("/v1/rerank", "/v1/images/*"))
        for method, path in (("GET", "/v1/rerank"), ("POST", "/v1/rerank/x"), ("POST", "/v1/images")):
            assert 503 == (await house.ask(method, path, json={})).status
        assert 0 == house.cloud.starts
        answer = await house.ask("POST", "/v1/rerank?a=b", json={"model": MODEL})
        assert (404, 1) == (answer.status, house.cloud.starts)  # the simulated Ollama has no such path
        assert answer.headers["X-Gpugate-Waited-Ms"]
        (seen,) = house.ollama.calls("/v1/rerank")
        assert "a=b" == seen.query

    async def test_one_with_a_star(self, opened):
        """For the rest of the path; to use it is a use of the pod."""
        house = await opened(server__wake_paths=("/v1/images/*",))
        await house.warm()
        await house.chat()
        await asyncio.sleep(0.02)
        before = house.idle_for()
        await house.ask("POST", "/v1/images/generations", json={"model": MODEL})
        assert None is not house.idle_since != before


@pytest.mark.parametrize("is_warm", [False, True])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/tags/"),
        ("HEAD", "/api/tags/"),
        ("POST", "/api/tags/"),
        ("GET", "/api/chat/"),
        ("POST", "/api/chat/"),
        ("DELETE", "/api/delete/"),
        ("GET", "//api/tags"),
        ("HEAD", "//api/tags"),
        ("POST", "//api/tags"),
        ("DELETE", "/api//tags"),
        ("POST", "/api//tags/"),
    ],
)
async def test_slashes_as_ollama_has_them(house: House, method, path, *, is_warm):
    """Status, place, content type and page are those of the pod's router, asleep as well."""
    if is_warm:
        await house.warm()
    gate = await house.ask(method, path)
    direct = await house.ask(method, path, url=house.ollama.url)
    names = ("Location", "Content-Type", "Content-Length")
    kept = [[answer.headers.get(name) for name in names] for answer in (direct, gate)]
    assert (direct.status, direct.body, kept[0]) == (gate.status, gate.body, kept[1])
    assert int(is_warm) == house.cloud.starts


@pytest.mark.parametrize("is_warm", [False, True])
async def test_a_web_socket_for_responses(house: House, *, is_warm):
    """426: clients that try one first go on with a POST. A plain GET is the wrong method, as in Ollama."""
    if is_warm:
        await house.warm()
    offer = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
    }
    answer = await house.ask("GET", "/v1/responses", headers={**house.auth, **offer})
    assert (426, "HTTP/1.1") == (answer.status, answer.headers["Upgrade"])
    assert "close" == answer.headers["Connection"]
    assert "invalid_request_error" == answer.json["error"]["type"]
    assert 405 == (await house.ask("GET", "/v1/responses")).status
    assert 401 == (await house.ask("GET", "/v1/responses", headers=offer)).status
    assert int(is_warm) == house.cloud.starts


async def test_metadata_without_a_pod_does_not_keep_it(opened):
    """Polling of the lists and of the status does not put the idle stop off."""
    house = await opened(pod__idle_timeout=0.4)
    await house.warm()

    async def poll() -> None:
        while house.gateway.lifecycle.current_status != "STOPPED":
            for path in ("/api/tags", "/api/ps", "/api/version", "/api/v1/gpu/status", "/api/v1/health"):
                await house.ask("GET", path)
            await house.ask("POST", "/api/generate", json={"model": MODEL, "keep_alive": 0})
            await asyncio.sleep(0.02)

    async with asyncio.timeout(SOON):
        await poll()
    assert 1 == house.cloud.starts


class TestWhileOff:
    async def test_ps(self, house: House):
        """Nothing is loaded."""
        answer = await house.ask("GET", "/api/ps")
        assert (200, {"models": []}) == (answer.status, answer.json)

    @pytest.mark.parametrize("path", ["/api/unknown", "/v1/unknown", "/api/blobs"])
    async def test_unknown_get(self, house: House, path):
        """503 in the dialect of the path."""
        answer = await house.ask("GET", path)
        assert 503 == answer.status
        error = answer.json["error"]
        assert (error if path.startswith("/api") else error["message"]).startswith("the pod is not running")

    @pytest.mark.parametrize(
        ("path", "body"),
        [
            ("/api/generate", {"model": MODEL, "keep_alive": 0}),
            ("/api/chat", {"model": MODEL, "keep_alive": "0", "messages": []}),
        ],
    )
    async def test_unload(self, house: House, path, body):
        """As Ollama answers it."""
        cold = await house.ask("POST", path, json=body)
        direct = await house.ask("POST", path, url=house.ollama.url, json=body)
        assert (direct.status, direct.headers["Content-Type"]) == (cold.status, cold.headers["Content-Type"])
        assert {**direct.json, "created_at": ""} == {**cold.json, "created_at": ""}

    @pytest.mark.parametrize(
        ("path", "body"),
        [
            ("/api/chat", b"{"),
            ("/api/chat", b""),
            ("/api/chat", b"[1]"),
            ("/api/chat", b'{"model":""}'),
            ("/api/chat", b'{"model":5}'),
            ("/api/generate", b'"text"'),
            ("/api/generate", b"{}"),
            ("/v1/chat/completions", b"{}"),
            ("/v1/completions", b"{"),
            ("/v1/embeddings", b"{}"),
            ("/v1/embeddings", b'{"input":"a"}'),
            ("/api/embed", b"{}"),
            ("/api/embeddings", b"{}"),
            ("/v1/messages", b"{}"),
            ("/api/pull", b"{}"),
            ("/api/show", b"{}"),
            ("/api/copy", b"{}"),
        ],
        ids=named,
    )
    async def test_what_ollama_refuses_unseen(self, house: House, path, body):
        """Refused with its status, content type and shape, in other words, and nothing wakes."""
        cold = await house.ask("POST", path, data=body)
        assert 0 == house.cloud.calls.count("start")
        direct = await house.ask("POST", path, url=house.ollama.url, data=body)
        kinds = [answer.headers["Content-Type"] for answer in (direct, cold)]
        assert (direct.status, kinds[0]) == (cold.status, kinds[1])
        assert shape_of(direct.json) == shape_of(cold.json)

    async def test_wrong_method(self, house: House):
        """405 as the pod's router says it."""
        cold = await house.ask("GET", "/api/chat")
        direct = await house.ask("GET", "/api/chat", url=house.ollama.url)
        assert (direct.status, direct.body) == (cold.status, cold.body)


def shape_of(body):
    """The keys in their order, and the values that are no words for people."""
    if not isinstance(body, dict):
        return type(body)
    return [
        (name, value if name in ("type", "param", "code") else shape_of(value))
        for name, value in body.items()
    ]


class TestRemembered:
    LISTS = ("/api/tags", "/v1/models", "/api/version", "/api/status")

    async def test_across_a_restart(self, tmp_path, ollama, cloud):
        """A new gateway whose pod never ran answers with what the last one saw."""
        async with open_house(tmp_path, ollama, cloud) as house:
            await house.warm()
            await house.learned()
            live = [await house.ask("GET", path) for path in self.LISTS]
            shown = await house.ask("POST", "/api/show", json={"model": MODEL})
        async with open_house(tmp_path, ollama, FakeCloud()) as house:
            again = [await house.ask("GET", path) for path in self.LISTS]
            assert [a.body for a in live] == [a.body for a in again]
            assert [a.headers["Content-Type"] for a in live] == [a.headers["Content-Type"] for a in again]
            assert shown.body == (await house.ask("POST", "/api/show", json={"model": MODEL})).body
            head = await house.ask("HEAD", "/api/tags")
            assert str(len(live[0].body)) == head.headers["Content-Length"]
            one = await house.ask("GET", f"/v1/models/{MODEL}")
            assert MODEL == one.json["id"]
            assert 0 == house.cloud.starts

    async def test_after_a_crash(self, tmp_path, ollama, cloud):
        """On disk soon after it was seen, not only at a clean exit."""
        async with open_house(tmp_path, ollama, cloud) as house:
            await house.warm()
            await house.until(lambda: (tmp_path / "catalog.json").exists())
            assert MODEL in (tmp_path / "catalog.json").read_text()

    async def test_before_the_first_answer(self, opened):
        """`catalog.models` and the models that the configuration names fill the gap, as Ollama lists them."""
        house = await opened(
            catalog__models=("qwen3:8b",),
            models__story="mistral",
            models__code="qwen3:8b",
            pod__preload="a:1b",
        )
        await house.off()
        models = (await house.ask("GET", "/api/tags")).json["models"]
        keys = {"name", "model", "modified_at", "size", "digest", "details"}
        assert all(keys == set(model) and 64 == len(model["digest"]) for model in models)
        names = ["qwen3:8b", "a:1b", "llava:latest", "mistral:latest"]
        assert names == [model["name"] for model in models] == [model["model"] for model in models]
        assert names == [m["id"] for m in (await house.ask("GET", "/v1/models")).json["data"]]
        assert "llava" == (await house.ask("GET", "/v1/models/llava")).json["id"]
        assert 0 == house.cloud.starts

    @pytest.mark.parametrize("model", ["llava", "anything:1b"])
    async def test_show_before_the_first_answer(self, house: House, model):
        """200 for any name, so that a client goes on to its chat, which wakes the pod."""
        answer = await house.ask("POST", "/api/show", json={"model": model})
        assert (200, ["completion"], {}) == (
            answer.status,
            answer.json["capabilities"],
            answer.json["model_info"],
        )
        assert 200 == (await house.ask("GET", f"/v1/models/{model}")).status
        assert 0 == house.cloud.starts

    async def test_shows_that_no_client_asked_for(self, house: House):
        """Each listed model's own is learned while the pod serves."""
        await house.warm()
        await house.learned()
        names = [model["name"] for model in (await house.ask("GET", "/api/tags")).json["models"]]
        live = [await house.ask("POST", "/api/show", json={"model": name}) for name in names]
        await house.stop()
        again = [await house.ask("POST", "/api/show", json={"model": name}) for name in names]
        assert [answer.body for answer in live] == [answer.body for answer in again]

    async def test_a_model_that_was_pulled_inside_the_pod(self, opened):
        """It is learned without the gateway's doing, and does not keep the pod running."""
        house = await opened(pod__reconcile_interval=0.1, pod__idle_timeout=1.5)
        await house.warm()
        await house.learned()
        pulled = await house.ask("POST", "/api/pull", url=house.ollama.url, json={"model": "inside:1b"})
        assert 200 == pulled.status
        catalog = part_of(house.gateway, CatalogRefresher).catalog
        await house.until(lambda: "inside:1b" in catalog._shows)
        await house.off()
        assert "inside:1b" in json.dumps((await house.ask("GET", "/api/tags")).json)
        assert "llama" in json.dumps((await house.ask("POST", "/api/show", json={"model": "Inside:1B"})).json)

    async def test_another_pod(self, tmp_path, ollama, cloud):
        """At another provider nothing is known any more."""
        async with open_house(tmp_path, ollama, cloud) as house:
            await house.warm()
            await house.learned()
        async with open_house(tmp_path, ollama, FakeCloud(), pod__provider=("other",)) as house:
            tags = await house.ask("GET", "/api/tags")
            names = [model["name"] for model in tags.json["models"]]
            assert ["llava:latest", "deepseek-coder:latest"] == names
            assert 200 == (await house.ask("POST", "/api/show", json={"model": "nothing"})).status

    async def test_empty(self, opened):
        """`when_stopped = "empty"`: empty lists, also after the models were seen."""
        house = await opened(catalog__when_stopped="empty")
        await house.warm()
        await house.ask("GET", "/api/tags")
        await house.stop()
        assert {"models": []} == (await house.ask("GET", "/api/tags")).json

    async def test_static(self, opened):
        """`when_stopped = "static"`: the configured names and no other."""
        house = await opened(catalog__when_stopped="static", catalog__models=("one", "two"))
        await house.warm()
        await house.ask("GET", "/api/tags")
        await house.stop()
        names = [model["name"] for model in (await house.ask("GET", "/api/tags")).json["models"]]
        assert ["one", "two"] == [name.removesuffix(":latest") for name in names]

    async def test_pod_that_vanishes_without_a_word(self, house: House):
        """A list that was asked of it comes from memory as soon as the loss is known."""
        await house.warm()
        live = (await house.ask("GET", "/api/tags")).body
        house.ollama.faults.add("/api/tags", Hang())
        house.ollama.faults.add("/api/ps", Hang())
        asks = [asyncio.ensure_future(house.ask("GET", path)) for path in ("/api/tags", "/api/ps")]
        await house.ollama.until(lambda: house.ollama.in_flight == 2)
        house.cloud.turn_off(at_once=True)
        house.gateway.lifecycle._machine.inspect_schedule.schedule(0, 0.0)
        house.gateway.lifecycle._on_timer()
        tags, running = await asyncio.wait_for(asyncio.gather(*asks), SOON)
        assert (live, {"models": []}) == (tags.body, running.json)

    async def test_pod_in_trouble(self, house: House):
        """The list is answered while the pod's Ollama is away, from memory."""
        await house.warm()
        live = (await house.ask("GET", "/api/tags")).body
        await house.ollama.stop()
        assert live == (await house.ask("GET", "/api/tags")).body


class TestModelThatThePodLacks:
    """Refused in the words of Ollama before anything wakes, once the pod's models are known."""

    @pytest.fixture
    async def known(self, house: House) -> House:
        await house.warm()
        await house.learned()
        await house.stop()
        return house

    @pytest.mark.parametrize(
        ("path", "body"),
        [
            ("/api/chat", CHAT),
            ("/api/generate", GENERATE),
            ("/api/embed", {"input": "x"}),
            ("/api/embeddings", {"prompt": "x"}),
            ("/v1/chat/completions", CHAT),
            ("/v1/completions", GENERATE),
            ("/v1/embeddings", {"input": "x"}),
            ("/v1/responses", {"input": "x"}),
            ("/v1/messages", {**CHAT, "max_tokens": 9}),
            ("/api/show", {}),
        ],
        ids=named,
    )
    async def test_refused(self, known: House, path, body):
        """With the status and the message of the pod's own refusal."""
        asked = {**body, "model": "nothing"}
        cold = await known.ask("POST", path, json=asked)
        direct = await known.ask("POST", path, url=known.ollama.url, json=asked)
        assert (404, 404) == (cold.status, direct.status)
        assert ("MODEL_NOT_FOUND", 1) == (cold.headers["X-Gpugate-Code"], known.cloud.starts)
        told, meant = cold.json["error"], direct.json["error"]
        if path.startswith("/api"):
            assert ("model 'nothing' not found", "MODEL_NOT_FOUND") == (told, cold.json["code"])
        else:
            assert "model 'nothing' not found" == told["message"]
            assert ("not_found_error", meant["type"]) == (told["type"], told["type"])

    @pytest.mark.parametrize(
        ("path", "body", "message"),
        [
            (
                "/api/v1/code/assist",
                {"code": "x", "question": "why?", "model": "nothing"},
                "the question about the code could not be answered: model 'nothing' not found",
            ),
            ("/api/v1/chat", {**CHAT, "model": "nothing"}, "model 'nothing' not found"),
        ],
        ids=named,
    )
    async def test_own_services(self, known: House, path, body, message):
        """In the envelope."""
        answer = await known.ask("POST", path, json=body)
        error = answer.json["error"]
        assert (404, "MODEL_NOT_FOUND", message) == (answer.status, error["code"], error["message"])
        assert 1 == known.cloud.starts

    async def test_own_services_with_configured_models(self, opened):
        """`[models]` is refused likewise."""
        house = await opened(models__vision="nothing")
        await house.warm()
        await house.learned()
        await house.stop()
        answer = await house.ask("POST", "/api/v1/story/generate", json={"prompt": "a dragon"})
        assert (404, "MODEL_NOT_FOUND") == (answer.status, answer.json["error"]["code"])
        assert "the story could not be told: model 'nothing' not found" == answer.json["error"]["message"]

    @pytest.mark.parametrize("model", ["LLAVA", "library/llava:latest", "registry.ollama.ai/library/llava"])
    async def test_other_spellings(self, known: House, model):
        """A model in another spelling is the same: the pod is asked."""
        await known.chat(model=model)
        assert 2 == known.cloud.starts

    @pytest.mark.parametrize(
        ("method", "path", "body"),
        [
            ("DELETE", "/api/delete", {"model": "nothing"}),
            ("POST", "/api/copy", {"source": "nothing", "destination": "other"}),
            ("POST", "/api/push", {"name": "nothing"}),
        ],
        ids=named,
    )
    async def test_changes(self, known: House, method, path, body):
        """Nothing wakes for what is not there."""
        answer = await known.ask(method, path, json=body)
        assert (404, "model 'nothing' not found") == (answer.status, answer.json["error"])
        assert 1 == known.cloud.starts

    async def test_copy_of_what_is_there(self, known: House):
        """Is no matter for its destination, which nobody has yet."""
        body = {"source": MODEL, "destination": "other"}
        assert 200 == (await known.ask("POST", "/api/copy", json=body)).status
        assert 2 == known.cloud.starts

    async def test_pulled(self, known: House):
        """A model that is pulled is not refused: meanwhile, afterwards, and once the pod is off again."""
        pull = asyncio.ensure_future(known.ask("POST", "/api/pull", json={"model": "new:1b"}))
        await known.waiting(1)
        chat = await known.chat(model="new:1b")
        assert (200, 200) == ((await pull).status, chat.status)
        await known.until(lambda: known.in_flight == 0)
        await known.stop()
        assert 200 == (await known.chat(model="new:1b")).status

    async def test_from_the_pod_while_it_serves(self, known: House):
        """A pod that serves answers for itself."""
        await known.warm()
        answer = await known.chat(model="nothing")
        assert (404, "X-Gpugate-Code" in answer.headers) == (answer.status, False)


class TestIdle:
    async def test_stops_after_the_last_answer(self, opened):
        """The clock begins at the end of an answer, however long that took."""
        house = await opened(pod__idle_timeout=0.6)
        go_on = asyncio.Event()
        house.ollama.faults.add("/api/chat", HangAfter(1, until=go_on))
        asyncio.get_running_loop().call_later(0.9, go_on.set)
        answer = await house.chat()
        assert answer.lines[-1]["done"]
        assert "READY" == house.gateway.lifecycle.current_status
        await house.off()
        assert 1 == house.cloud.starts

    async def test_status_while_in_flight(self, house: House):
        """`stops_in_seconds` and `idle_seconds` are null while anybody is answered."""
        await house.warm()
        await house.chat()
        seen = await house.status()
        assert 0 < seen["stops_in_seconds"] <= 900
        assert 0 <= seen["idle_seconds"] < SOON
        go_on = asyncio.Event()
        house.ollama.faults.add("/api/chat", HangAfter(1, until=go_on))
        async with house.call("POST", "/api/chat", data=chat_body()) as response:
            await response.content.readany()
            seen = await house.status()
            assert (None, None, 1) == (seen["stops_in_seconds"], seen["idle_seconds"], seen["in_flight"])
            go_on.set()
            await response.read()


class TestPreflight:
    async def test_allowed_origin(self, opened):
        """Answered here, without a token."""
        house = await opened(server__cors_origins=("https://chat.example",))
        headers = {
            "Origin": "https://chat.example",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization, x-stainless-os",
        }
        answer = await house.ask("OPTIONS", "/v1/chat/completions", headers=headers)
        assert 204 == answer.status
        assert "https://chat.example" == answer.headers["Access-Control-Allow-Origin"]
        assert "x-stainless-os" in answer.headers["Access-Control-Allow-Headers"]
        assert answer.headers["X-Request-Id"]
        assert 0 == house.cloud.starts

    async def test_strange_origin(self, house: House):
        """403, as Ollama does."""
        answer = await house.ask("OPTIONS", "/api/chat", headers={"Origin": "https://evil.example"})
        assert 403 == answer.status
        assert "Access-Control-Allow-Origin" not in answer.headers

    async def test_answers_carry_the_origin(self, opened):
        """Proxied answers, our own and errors alike."""
        house = await opened(server__cors_origins=("https://chat.example",))
        await house.warm()
        origin = {"Origin": "https://chat.example"}
        for method, path, headers in (
            ("POST", "/api/chat", bearer()),
            ("GET", "/api/v1/gpu/status", bearer()),
            ("GET", "/api/tags", bearer()),
            ("GET", "/api/tags", {}),
            ("GET", "/", {}),
        ):
            answer = await house.ask(method, path, headers={**headers, **origin}, data=chat_body())
            assert ["https://chat.example"] == answer.headers.getall("Access-Control-Allow-Origin"), path


async def test_open_webui_new_chat(house: House):
    """What Open WebUI sends for a new chat: title and answer at once, then the list and ps. One start."""
    title = house.chat(stream=False)
    answer = house.chat()
    got = await asyncio.gather(title, answer)
    assert [200, 200] == [a.status for a in got]
    assert 1 == house.cloud.starts
    tags = (await house.ask("GET", "/api/tags")).json
    assert MODEL in json.dumps(tags)
