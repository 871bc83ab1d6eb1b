"""A simulated Ollama over HTTP, surface by surface, against docs/ollama.md#routes."""

import asyncio
import hashlib
import json

import pytest
from gpugate_demo.ollama import SimulatedOllama
from gpugate_demo.text_generator import fixed

CHAT = {"model": "llama3.2:3b", "messages": [{"role": "user", "content": "hi"}]}
NDJSON, JSON, JSON_UTF8, SSE = (
    "application/x-ndjson",
    "application/json",
    "application/json; charset=utf-8",
    "text/event-stream",
)


def lines(got):
    return [json.loads(line) for line in got.body.splitlines()]


def events(got):
    """(event, data) of each SSE frame."""
    found = []
    for frame in got.text.removesuffix("\n\n").split("\n\n"):
        fields = dict(line.split(": ", 1) for line in frame.split("\n"))
        data = fields["data"]
        found.append((fields.get("event"), data if data == "[DONE]" else json.loads(data)))
    return found


@pytest.fixture(autouse=True)
def two_words(ollama):
    ollama.reply = fixed("Good", " day")


class TestAbout:
    @pytest.mark.parametrize(
        ("method", "path", "status", "kind", "text"),
        [
            ("GET", "/", 200, "text/plain; charset=utf-8", "Ollama is running"),
            ("HEAD", "/", 200, "text/plain; charset=utf-8", ""),
            ("GET", "/api/version", 200, JSON_UTF8, '{"version":"0.32.15"}'),
            ("HEAD", "/api/tags", 200, JSON_UTF8, ""),
            ("GET", "/api/ps", 200, JSON_UTF8, '{"models":[]}'),
            ("GET", "/api/status", 200, JSON_UTF8, '{"cloud":{"disabled":true,"source":"env"}}'),
            ("GET", "/api/experimental/model-recommendations", 200, JSON_UTF8, '{"recommendations":[]}'),
            ("GET", "/nothing", 404, "text/plain", "404 page not found"),
            ("POST", "/v1/messages/count_tokens", 404, "text/plain", "404 page not found"),
            ("GET", "/api/chat", 405, "text/plain", "405 method not allowed"),
        ],
    )
    async def test_plain_answers(self, ask, method, path, status, kind, text):
        got = await ask(method, path)

        assert (status, kind, text) == (got.status, got.kind, got.text)

    async def test_a_slash_too_many(self, ask):
        """gin redirects, keeping the query."""
        got = await ask("GET", "/api/tags/?a=b")

        assert (301, "/api/tags?a=b") == (got.status, got.headers["Location"])

    async def test_tags(self, ask):
        models = lines(await ask("GET", "/api/tags"))[0]["models"]

        assert {"llama3.2:3b", "llava:latest", "nomic-embed-text:latest"} <= {
            model["name"] for model in models
        }
        assert {64} == {len(model["digest"]) for model in models}
        assert {"gguf"} == {model["details"]["format"] for model in models}

    async def test_openai_models(self, ask):
        listed = lines(await ask("GET", "/v1/models"))[0]
        one = lines(await ask("GET", "/v1/models/llava"))[0]

        assert ("list", "model") == (listed["object"], listed["data"][0]["object"])
        assert "llava" == one["id"]
        assert 404 == (await ask("GET", "/v1/models/none")).status

    async def test_no_models(self, session):
        """The real one gives null, not an empty list."""
        async with SimulatedOllama(models=[]) as empty, session.get(empty.url + "/v1/models") as response:
            assert {"object": "list", "data": None} == await response.json()

    async def test_show(self, ask):
        shown = lines(await ask("POST", "/api/show", {"name": "llava"}))[0]

        assert ["completion", "vision"] == shown["capabilities"]
        assert (404, '{"error":"model \'none\' not found"}') == (
            (await ask("POST", "/api/show", {"model": "none"})).status,
            (await ask("POST", "/api/show", {"model": "none"})).text,
        )
        assert '{"error":"model is required"}' == (await ask("POST", "/api/show", {})).text

    async def test_account(self, ask):
        assert 401 == (await ask("POST", "/api/me", {})).status

    async def test_foreign_origin(self, ask):
        """Every method is refused with an empty body; a preflight that is welcome is 204."""
        foreign = {"Origin": "https://webui.example"}
        for method, path in (("GET", "/api/tags"), ("POST", "/api/chat"), ("OPTIONS", "/api/chat")):
            got = await ask(method, path, headers=foreign)
            assert (403, b"") == (got.status, got.body)

        got = await ask("OPTIONS", "/api/chat", headers={"Origin": "http://localhost:3000"})
        assert (204, "http://localhost:3000") == (got.status, got.headers["Access-Control-Allow-Origin"])

    async def test_an_allowed_origin_streams(self, ask):
        """CORS headers are on streamed answers too."""
        got = await ask("POST", "/api/chat", CHAT, headers={"Origin": "http://localhost:3000"})

        assert "http://localhost:3000" == got.headers["Access-Control-Allow-Origin"]

    async def test_strange_host(self, ask, session):
        """Refused on loopback, unless that is switched off."""
        assert 403 == (await ask("GET", "/api/tags", headers={"Host": "evil.example"})).status
        async with (
            SimulatedOllama(check_host=False) as free,
            session.get(free.url, headers={"Host": "evil.example"}) as response,
        ):
            assert 200 == response.status


class TestNative:
    async def test_a_chat(self, ask):
        """Streams unless told otherwise: one object per line, the last with done and counts."""
        got = await ask("POST", "/api/chat", CHAT)
        first, second, last = lines(got)

        assert (200, NDJSON) == (got.status, got.kind)
        assert ["Good", " day", ""] == [line["message"]["content"] for line in (first, second, last)]
        assert [False, False, True] == [line["done"] for line in (first, second, last)]
        assert ("stop", 2) == (last["done_reason"], last["eval_count"])
        assert first["created_at"].endswith("Z")

    async def test_a_chat_in_one(self, ask):
        got = await ask("POST", "/api/chat", {**CHAT, "stream": False})

        assert (200, JSON_UTF8) == (got.status, got.kind)
        assert "Good day" == lines(got)[0]["message"]["content"]

    async def test_generate(self, ask):
        got = await ask("POST", "/api/generate", {"model": "llama3.2:3b", "prompt": "hi"})
        whole = await ask("POST", "/api/generate", {"model": "llama3.2:3b", "prompt": "hi", "stream": False})

        assert ["Good", " day", ""] == [line["response"] for line in lines(got)]
        assert "context" in lines(got)[-1]
        assert "Good day" == lines(whole)[0]["response"]

    async def test_a_limit(self, ask):
        """num_predict cuts, and the reason says so."""
        got = await ask("POST", "/api/chat", {**CHAT, "options": {"num_predict": 1}})

        assert ["Good", ""] == [line["message"]["content"] for line in lines(got)]
        assert "length" == lines(got)[-1]["done_reason"]

    async def test_load_and_unload(self, ask):
        """An empty request loads; with keep_alive 0 it unloads; both are one JSON object, streamed or not."""
        load = await ask("POST", "/api/generate", {"model": "llava"})
        loaded = lines(await ask("GET", "/api/ps"))[0]["models"]
        unload = await ask("POST", "/api/chat", {"model": "llava", "messages": [], "keep_alive": "0s"})

        assert ("load", JSON_UTF8) == (lines(load)[0]["done_reason"], load.kind)
        assert [("llava:latest", True)] == [(model["name"], model["size_vram"] > 0) for model in loaded]
        assert ("unload", JSON_UTF8) == (lines(unload)[0]["done_reason"], unload.kind)
        assert {"role": "assistant", "content": ""} == lines(unload)[0]["message"]
        assert '{"models":[]}' == (await ask("GET", "/api/ps")).text

    async def test_keep_alive_of_a_chat(self, ask):
        """0 unloads when the answer is done."""
        await ask("POST", "/api/chat", {**CHAT, "keep_alive": 0})
        assert '{"models":[]}' == (await ask("GET", "/api/ps")).text

        await ask("POST", "/api/chat", {**CHAT, "keep_alive": -1})
        assert "2318" in lines(await ask("GET", "/api/ps"))[0]["models"][0]["expires_at"]

    @pytest.mark.parametrize(
        ("path", "body", "status", "text"),
        [
            ("/api/chat", b"", 400, "missing request body"),
            ("/api/chat", b"{", 400, "unexpected EOF"),
            ("/api/chat", b"x", 400, "invalid character 'x' looking for beginning of value"),
            ("/api/chat", b"[]", 400, "json: cannot unmarshal array into Go value of type api.ChatRequest"),
            ("/api/chat", b"{}", 400, "model is required"),
            ("/api/generate", b"{}", 404, "model '' not found"),
            ("/api/chat", b'{"model":"nope","messages":[]}', 404, "model 'nope' not found"),
            ("/api/chat", b'{"model":"a b"}', 400, "invalid model name"),
            ("/api/chat", b'{"model":"llava","keep_alive":"-1"}', 400, 'time: missing unit in duration "-1"'),
            (
                "/api/chat",
                b'{"model":5}',
                400,
                "json: cannot unmarshal number into Go struct field ChatRequest.model of type string",
            ),
            (
                "/api/chat",
                b'{"model":"nomic-embed-text","messages":[{"role":"user","content":"x"}]}',
                400,
                '"nomic-embed-text" does not support chat',
            ),
            (
                "/api/generate",
                b'{"model":"llava","prompt":"x","images":["abc!"]}',
                400,
                "illegal base64 data at input byte 3",
            ),
            (
                "/api/generate",
                b'{"model":"llava","prompt":"x","think":true}',
                400,
                '"llava" does not support thinking',
            ),
            ("/api/embed", b'{"input":"x"}', 404, "model '' not found"),
            ("/api/embeddings", b'{"prompt":"x"}', 400, "model is required"),
            (
                "/api/embed",
                b'{"model":"nope","input":"x"}',
                404,
                'model "nope" not found, try pulling it first',
            ),
            ("/api/embed", b'{"model":"nomic-embed-text","input":[1]}', 400, "invalid input type"),
        ],
    )
    async def test_refusals(self, ask, path, body, status, text):
        """Ollama's statuses and texts; `error` is a string."""
        got = await ask("POST", path, data=body)

        assert (status, JSON_UTF8, {"error": text}) == (got.status, got.kind, json.loads(got.body))

    @pytest.mark.parametrize(
        "body", [b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe", b"9" * 5000, b"null", b'"x"']
    )
    async def test_hostile_bodies(self, ask, body):
        """Refused like any other."""
        for path in ("/api/chat", "/v1/chat/completions", "/v1/messages", "/v1/responses", "/api/pull"):
            assert 400 == (await ask("POST", path, data=body)).status

    async def test_pace(self, session):
        """The pieces come apart when a pace is set."""
        async with SimulatedOllama(reply=fixed(*"abcd"), tokens_per_second=50) as slow:
            began = asyncio.get_running_loop().time()
            async with session.post(slow.url + "/api/chat", json=CHAT) as response:
                await response.read()

            assert 0.079 <= asyncio.get_running_loop().time() - began

    async def test_vision(self, ask, ollama, png):
        """A picture reaches the reply as its facts."""
        ollama.reply = lambda asked: [f"{image.kind} {image.width}x{image.height}" for image in asked.images]
        message = {"role": "user", "content": "look", "images": [png]}

        got = await ask("POST", "/api/chat", {"model": "llava", "messages": [message]})
        assert "PNG 64x48" == lines(got)[0]["message"]["content"]


class TestOpenAi:
    async def test_a_chat_streams(self, ask):
        got = await ask("POST", "/v1/chat/completions", {**CHAT, "stream": True})
        found = [data for _, data in events(got)]

        assert SSE == got.kind
        assert "[DONE]" == found[-1]
        assert ["Good", " day", ""] == [data["choices"][0]["delta"]["content"] for data in found[:-1]]
        assert [None, None, "stop"] == [data["choices"][0]["finish_reason"] for data in found[:-1]]

    async def test_usage(self, ask):
        """Only when asked for, in a chunk without choices."""
        asked = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
        found = [data for _, data in events(await ask("POST", "/v1/chat/completions", asked))]

        assert ([], 2) == (found[-2]["choices"], found[-2]["usage"]["completion_tokens"])

    async def test_a_chat_in_one(self, ask):
        """The default on this surface."""
        got = await ask("POST", "/v1/chat/completions", CHAT)
        answer = json.loads(got.body)

        assert (JSON, "chat.completion") == (got.kind, answer["object"])
        assert {"role": "assistant", "content": "Good day"} == answer["choices"][0]["message"]

    async def test_completions(self, ask):
        asked = {"model": "llama3.2:3b", "prompt": "hi"}
        whole = json.loads((await ask("POST", "/v1/completions", asked)).body)
        stream = await ask("POST", "/v1/completions", {**asked, "stream": True})

        assert "Good day" == whole["choices"][0]["text"]
        assert "Good" == events(stream)[0][1]["choices"][0]["text"]
        assert "[DONE]" == events(stream)[-1][1]

    async def test_picture_parts(self, ask, ollama, png):
        ollama.reply = lambda asked: [f"{asked.prompt} {len(asked.images)}"]
        url = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{png}"}}
        content = [url, {"type": "text", "text": "look"}]

        got = await ask(
            "POST",
            "/v1/chat/completions",
            {"model": "llava", "messages": [{"role": "user", "content": content}]},
        )
        assert "look 1" == json.loads(got.body)["choices"][0]["message"]["content"]

    @pytest.mark.parametrize(
        ("path", "asked", "status", "kind", "text"),
        [
            (
                "/v1/chat/completions",
                {"model": "x", "messages": []},
                400,
                "invalid_request_error",
                "[] is too short",
            ),
            ("/v1/chat/completions", {**CHAT, "model": "x"}, 404, "not_found_error", "model 'x' not found"),
            ("/v1/completions", {"model": "x", "prompt": "y"}, 404, "not_found_error", "model 'x' not found"),
            ("/v1/responses", {"model": "x", "input": "y"}, 404, "not_found_error", "model 'x' not found"),
            ("/v1/embeddings", {"model": "x", "input": "y"}, 404, "not_found_error", 'model "x" not found'),
            ("/v1/embeddings", {"model": "x"}, 400, "invalid_request_error", "invalid input"),
            (
                "/v1/chat/completions",
                {**CHAT, "messages": [{"role": "user", "content": 5}]},
                400,
                None,
                "invalid",
            ),
        ],
    )
    async def test_refusals(self, ask, path, asked, status, kind, text):
        """An object with message, type, param and code."""
        got = await ask("POST", path, asked)
        error = json.loads(got.body)["error"]

        assert (status, None, None) == (got.status, error["param"], error["code"])
        assert text in error["message"]
        assert error["type"] == (kind or "invalid_request_error")

    async def test_embeddings(self, ask):
        """Floats and Base64 are the same numbers."""
        asked = {"model": "nomic-embed-text", "input": ["a", "b"]}
        floats = json.loads((await ask("POST", "/v1/embeddings", asked)).body)["data"]
        packed = json.loads(
            (await ask("POST", "/v1/embeddings", {**asked, "encoding_format": "base64"})).body
        )

        assert [768, 768] == [len(item["embedding"]) for item in floats]
        assert 4096 == len(packed["data"][0]["embedding"])
        assert 400 == (await ask("POST", "/v1/embeddings", {**asked, "encoding_format": "hex"})).status

    async def test_responses(self, ask):
        """Named and numbered events, without [DONE]."""
        got = await ask("POST", "/v1/responses", {"model": "llama3.2:3b", "input": "hi", "stream": True})
        found = events(got)

        assert [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.completed",
        ] == [name for name, _ in found]
        assert list(range(10)) == [data["sequence_number"] for _, data in found]
        assert "Good day" == found[-1][1]["response"]["output"][0]["content"][0]["text"]
        assert ("no-cache", SSE) == (got.headers["Cache-Control"], got.kind)

    async def test_transcriptions(self, ask):
        import aiohttp

        form = aiohttp.FormData()
        form.add_field("file", b"RIFF", filename="a.wav")
        form.add_field("model", "whisper")

        assert {"text": "Good day"} == json.loads(
            (await ask("POST", "/v1/audio/transcriptions", data=form)).body
        )
        assert 400 == (await ask("POST", "/v1/audio/transcriptions", data=b"")).status


class TestAnthropic:
    ASKED = {**CHAT, "max_tokens": 99}

    async def test_a_message_streams(self, ask):
        got = await ask("POST", "/v1/messages", {**self.ASKED, "stream": True})
        found = events(got)

        assert [
            "message_start",
            "content_block_start",
            "content_block_delta",
            "content_block_delta",
            "content_block_stop",
            "message_delta",
            "message_stop",
        ] == [name for name, _ in found]
        assert all(name == data["type"] for name, data in found)
        assert "end_turn" == found[-2][1]["delta"]["stop_reason"]

    async def test_a_message_in_one(self, ask):
        answer = json.loads((await ask("POST", "/v1/messages", {**self.ASKED, "system": "be brief"})).body)

        assert [{"type": "text", "text": "Good day"}] == answer["content"]

    @pytest.mark.parametrize(
        ("change", "status", "kind"),
        [
            ({"model": None}, 400, "invalid_request_error"),
            ({"max_tokens": None}, 400, "invalid_request_error"),
            ({"messages": []}, 400, "invalid_request_error"),
            ({"model": "none"}, 404, "not_found_error"),
        ],
    )
    async def test_refusals(self, ask, change, status, kind):
        got = await ask("POST", "/v1/messages", {**self.ASKED, **change})
        answer = json.loads(got.body)

        assert (status, "error", kind) == (got.status, answer["type"], answer["error"]["type"])
        assert "request_id" in answer


class TestEmbed:
    async def test_embed(self, ask):
        """Vectors of length one, the same for the same text, shorter if asked for."""
        asked = {"model": "nomic-embed-text", "input": ["a", "a", "b"]}
        answer = json.loads((await ask("POST", "/api/embed", asked)).body)
        short = json.loads((await ask("POST", "/api/embed", {**asked, "dimensions": 8})).body)

        first, same, other = answer["embeddings"]
        assert first == same != other
        assert 1 == pytest.approx(sum(value * value for value in first))
        assert [8, 8, 8] == [len(vector) for vector in short["embeddings"]]

    async def test_embeddings(self, ask):
        asked = {"model": "nomic-embed-text", "prompt": "a"}

        assert 768 == len(json.loads((await ask("POST", "/api/embeddings", asked)).body)["embedding"])
        assert (
            '{"embedding":[]}' == (await ask("POST", "/api/embeddings", {"model": "nomic-embed-text"})).text
        )


class TestModels:
    async def test_pull(self, ask):
        """Progress in lines, or its last line alone; the model is there afterwards."""
        got = await ask("POST", "/api/pull", {"name": "mistral"})
        whole = await ask("POST", "/api/pull", {"model": "mistral", "stream": False})

        assert ("pulling manifest", "success") == (lines(got)[0]["status"], lines(got)[-1]["status"])
        assert ({"status": "success"}, JSON) == (lines(whole)[0], whole.kind)
        assert 200 == (await ask("POST", "/api/show", {"model": "mistral"})).status

    async def test_a_pull_that_fails(self, session):
        """The first line is out already: the error comes in the stream; without streaming it is a 500."""
        async with SimulatedOllama(unpullable=["ghost"]) as ollama:
            async with session.post(ollama.url + "/api/pull", json={"model": "ghost"}) as response:
                last = (await response.read()).splitlines()[-1]
                assert (200, b'{"error":"pull model manifest: file does not exist"}') == (
                    response.status,
                    last,
                )
            async with session.post(
                ollama.url + "/api/pull", json={"model": "ghost", "stream": False}
            ) as response:
                assert 500 == response.status

    async def test_push(self, ask):
        assert "success" == lines(await ask("POST", "/api/push", {"model": "llava"}))[-1]["status"]
        assert "error" in lines(await ask("POST", "/api/push", {"model": "none"}))[-1]

    async def test_copy_and_delete(self, ask):
        copy = {"source": "llava", "destination": "mine"}

        assert [200, 404, 400] == [
            (await ask("POST", "/api/copy", copy)).status,
            (await ask("POST", "/api/copy", {**copy, "source": "none"})).status,
            (await ask("POST", "/api/copy", {})).status,
        ]
        assert [(200, b""), (404, b'{"error":"model \'mine\' not found"}')] == [
            (got.status, got.body)
            for got in [await ask("DELETE", "/api/delete", {"model": "mine"}) for _ in range(2)]
        ]

    async def test_create(self, ask, ollama):
        """From a model that is there, or from blobs that are."""
        blob = "sha256:" + hashlib.sha256(b"weights").hexdigest()

        assert (
            "success"
            == lines(await ask("POST", "/api/create", {"model": "m", "from": "llava"}))[-1]["status"]
        )
        assert 400 == (await ask("POST", "/api/create", {"model": "n", "files": {"f": blob}})).status
        await ask("POST", f"/api/blobs/{blob}", data=b"weights")
        assert 200 == (await ask("POST", "/api/create", {"model": "n", "files": {"f": blob}})).status
        assert 400 == (await ask("POST", "/api/create", {"model": "n"})).status

    async def test_blobs(self, ask, ollama):
        """Hashed and counted, not kept: 404, 201, then 200; a wrong digest is refused."""
        body = b"x" * 300_000
        digest = "sha256:" + hashlib.sha256(body).hexdigest()
        path = f"/api/blobs/{digest}"

        assert [404, 201, 200, 200] == [
            (await ask("HEAD", path)).status,
            (await ask("POST", path, data=body)).status,
            (await ask("POST", path, data=body)).status,
            (await ask("HEAD", path)).status,
        ]
        assert {digest: 300_000} == ollama.store.blobs
        assert (300_000, b"") == (ollama.calls(path)[1].body_size, ollama.calls(path)[1].body)
        wrong = await ask("POST", "/api/blobs/sha256:" + "0" * 64, data=body)
        assert (400, True) == (wrong.status, "digest mismatch" in wrong.text)
        assert 400 == (await ask("HEAD", "/api/blobs/sha256:zz")).status


class TestRecord:
    async def test_what_is_seen(self, ask, ollama):
        """Method, path, query, headers, body and how it ended."""
        await ask("POST", "/api/chat?x=1", CHAT, headers={"X-One": "1"})
        seen = ollama.calls("/api/chat")[0]

        assert ("POST", "x=1", "1", 200, True, False) == (
            seen.method,
            seen.query,
            seen.headers["X-One"],
            seen.status,
            seen.finished,
            seen.cancelled,
        )
        assert CHAT == json.loads(seen.body)
        assert len(seen.body) == seen.body_size

    async def test_secrets_stay_out_of_a_repr(self, ask, ollama):
        await ask("POST", "/api/chat", CHAT, headers={"Authorization": "Bearer hush"})

        assert "hush" not in repr(ollama.seen[0])

    async def test_a_client_that_leaves(self, session, ollama):
        """Is seen to have left, at once, in mid-stream."""
        ollama.reply = lambda asked: iter(lambda: "on and on", None)
        response = await session.post(ollama.url + "/api/chat", json=CHAT)
        await response.content.readline()
        assert 1 == ollama.in_flight
        response.close()

        await ollama.until(lambda: ollama.in_flight == 0)
        assert (True, False) == (ollama.seen[0].cancelled, ollama.seen[0].finished)

    async def test_a_taken_port(self, ollama):
        with pytest.raises(OSError):
            await SimulatedOllama(port=ollama.port).start()
