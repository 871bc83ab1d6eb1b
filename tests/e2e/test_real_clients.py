"""The Python clients of Ollama, OpenAI and Anthropic through the gateway, cold and warm (docs/clients.md)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import ollama as ollama_client
import openai
import pytest
from gpugate_demo.faults import Answer, BreakAfter, CloseBeforeHead
from ollama import AsyncClient, ResponseError
from openai import AsyncOpenAI

from gpugate.errors import NoCapacity
from tests.e2e.conftest import Opener
from tests.e2e.support import MODEL, House, bearer, token

HI = [{"role": "user", "content": "hi"}]
TEXT = " word0 word1 word2 word3 word4"


@pytest.fixture
async def client(house_on_both: House) -> AsyncIterator[AsyncClient]:
    client = AsyncClient(host=house_on_both.url, headers=bearer())
    yield client
    await client.close()


@pytest.fixture
async def openai_client(house_on_both: House) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(
        base_url=house_on_both.url + "/v1", api_key=token(), max_retries=2, timeout=10
    ) as client:
        yield client


@pytest.fixture(params=["cold", "warm"])
async def temperature(request: pytest.FixtureRequest, house_on_both: House) -> str:
    if request.param == "warm":
        await house_on_both.warm()
    return str(request.param)


class TestOllama:
    async def test_chat(self, house_on_both, client, temperature):
        """Answered whether the pod was on or off; one start at most."""
        answer = await client.chat(MODEL, HI)
        assert TEXT == answer.message.content
        assert answer.done
        assert 1 == house_on_both.cloud.starts

    async def test_chat_streamed(self, house_on_both, client, temperature):
        """Word by word, with done at the end."""
        parts = [part async for part in await client.chat(MODEL, HI, stream=True)]
        assert TEXT == "".join(part.message.content or "" for part in parts)
        assert parts[-1].done

    async def test_generate(self, house_on_both, client, temperature):
        """Plain and streamed."""
        assert TEXT == (await client.generate(MODEL, "hi")).response
        parts = [part.response async for part in await client.generate(MODEL, "hi", stream=True)]
        assert TEXT == "".join(parts)

    async def test_embed(self, house_on_both, client, temperature):
        """One vector for each text."""
        assert 2 == len((await client.embed("nomic-embed-text", ["a", "b"])).embeddings)

    async def test_models_once_seen(self, house_on_both, client, temperature):
        """list and show answer the same with the pod on and off; ps is empty while it is off."""
        await house_on_both.warm()
        live, shown = await client.list(), await client.show(MODEL)
        await client.chat(MODEL, HI)
        assert [MODEL] == [model.model for model in (await client.ps()).models]
        await house_on_both.stop()
        assert live == await client.list()
        assert shown == await client.show(MODEL)
        assert [] == (await client.ps()).models
        assert 1 == house_on_both.cloud.starts

    async def test_first_contact(self, house_on_both, client):
        """On a new install: what `ollama list` and `ollama run` ask, in this order. The load wakes."""
        model = (await client.list()).models[0].model
        shown = await client.show(model)
        assert (["completion"], {}) == (shown.capabilities, dict(shown.modelinfo))
        assert "gguf" == shown.details.format
        assert 0 == house_on_both.cloud.starts
        assert "load" == (await client.generate(model)).done_reason
        assert TEXT == (await client.chat(model, HI)).message.content
        assert model in [each.model for each in (await client.list()).models]
        assert 1 == house_on_both.cloud.starts

    async def test_first_contact_with_a_model_that_is_not_listed(self, house_on_both, client):
        """Nobody knows what the pod has: it is asked."""
        assert MODEL not in [each.model for each in (await client.list()).models]
        assert ["completion"] == (await client.show(MODEL)).capabilities
        assert TEXT == (await client.chat(MODEL, HI)).message.content

    async def test_a_model_to_be_pulled(self, house_on_both, client):
        """Once the pod's models are known, `show` is a 404, after which Ollama's command line pulls it."""
        await house_on_both.warm()
        await house_on_both.learned()
        await house_on_both.stop()
        with pytest.raises(ResponseError, match="model 'tiny:1b' not found") as caught:
            await client.show("tiny:1b")
        assert 404 == caught.value.status_code
        await client.pull("tiny:1b")
        assert TEXT == (await client.chat("tiny:1b", HI)).message.content

    async def test_unload(self, house_on_both, client):
        """`keep_alive=0` without a prompt is answered by a gateway whose pod is off."""
        answer = await client.generate(MODEL, keep_alive=0)
        assert "unload" == answer.done_reason
        assert 0 == house_on_both.cloud.starts

    async def test_no_capacity(self, house_on_both, client):
        """The error is a string with the reason, its status 503."""
        house_on_both.cloud.fail("start", NoCapacity("no A40 is free"))
        with pytest.raises(ResponseError, match="no A40 is free") as caught:
            await client.chat(MODEL, HI)
        assert 503 == caught.value.status_code
        assert isinstance(caught.value.error, str)

    async def test_no_token(self, house_on_both):
        """401, as a string."""
        client = AsyncClient(host=house_on_both.url)
        with pytest.raises(ResponseError, match="token is missing or malformed") as caught:
            await client.list()
        assert 401 == caught.value.status_code
        await client.close()

    async def test_unknown_model(self, house_on_both, client, temperature):
        """The pod's own 404."""
        with pytest.raises(ResponseError, match="model 'nothing' not found") as caught:
            await client.chat("nothing", HI)
        assert 404 == caught.value.status_code

    async def test_pod_lost_in_mid_stream(self, house_on_both, client, temperature):
        """The words so far, then ResponseError."""
        house_on_both.ollama.faults.add("/api/chat", BreakAfter(2))
        heard = []

        async def listen() -> None:
            async for part in await client.chat(MODEL, HI, stream=True):
                heard.append(part.message.content)

        with pytest.raises(ResponseError, match="lost"):
            await listen()
        assert [" word0", " word1"] == heard

    async def test_pull_list_delete(self, house_on_both, client):
        """The models' own endpoints, with progress."""
        progress = [step.status async for step in await client.pull("tiny:latest", stream=True)]
        assert "success" == progress[-1]
        assert "tiny:latest" in [model.model for model in (await client.list()).models]
        await client.copy("tiny:latest", "copy:latest")
        await client.delete("tiny:latest")
        names = [model.model for model in (await client.list()).models]
        assert "copy:latest" in names
        assert "tiny:latest" not in names

    async def test_blocking_client_in_a_thread(self, house_on_both):
        """The client without asyncio, streamed, cold."""

        def talk() -> str:
            client = ollama_client.Client(host=house_on_both.url, headers=bearer())
            try:
                return "".join(p.message.content or "" for p in client.chat(MODEL, HI, stream=True))
            finally:
                client.close()

        assert TEXT == await asyncio.to_thread(talk)


class TestOpenAi:
    async def test_chat(self, house_on_both, openai_client, temperature):
        """A completion."""
        answer = await openai_client.chat.completions.create(model=MODEL, messages=HI)
        assert TEXT == answer.choices[0].message.content
        assert 1 == house_on_both.cloud.starts

    async def test_chat_streamed(self, house_on_both, openai_client, temperature):
        """Word by word."""
        stream = await openai_client.chat.completions.create(model=MODEL, messages=HI, stream=True)
        heard = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
        assert TEXT == "".join(heard)

    async def test_completions_and_embeddings(self, house_on_both, openai_client, temperature):
        """The older endpoint, and vectors."""
        answer = await openai_client.completions.create(model=MODEL, prompt="hi")
        assert TEXT == answer.choices[0].text
        vectors = await openai_client.embeddings.create(model="nomic-embed-text", input=["a", "b"])
        assert 2 == len(vectors.data)

    async def test_models_with_the_pod_off(self, house_on_both, openai_client):
        """The list is remembered; a model that is not in it is a 404, as on the pod."""
        await house_on_both.warm()
        live = [model.id async for model in openai_client.models.list()]
        await house_on_both.learned()
        await house_on_both.stop()
        assert live == [model.id async for model in openai_client.models.list()]
        assert MODEL == (await openai_client.models.retrieve(MODEL)).id
        with pytest.raises(openai.NotFoundError, match="model 'nothing' not found"):
            await openai_client.models.retrieve("nothing")

    async def test_failed_start_is_asked_for_once(self, house_on_both, openai_client):
        """`x-should-retry: false` keeps the library from renting the pod again and again."""
        house_on_both.cloud.fail("start", *[NoCapacity("none free")] * 9)
        with pytest.raises(openai.InternalServerError, match="none free") as caught:
            await openai_client.chat.completions.create(model=MODEL, messages=HI)
        assert "POD_START_FAILED" == caught.value.code
        assert "60" == caught.value.response.headers["Retry-After"]
        assert 1 == house_on_both.cloud.calls.count("start")

    async def test_bad_token(self, house_on_both):
        """AuthenticationError with the reason."""
        async with AsyncOpenAI(base_url=house_on_both.url + "/v1", api_key="wrong") as client:
            with pytest.raises(openai.AuthenticationError, match="missing or malformed"):
                await client.models.list()

    async def test_pod_lost_in_mid_stream(self, house_on_both, openai_client, temperature):
        """The words so far, then APIError."""
        house_on_both.ollama.faults.add("/v1/chat/completions", BreakAfter(3))
        heard = []

        async def listen() -> None:
            stream = await openai_client.chat.completions.create(model=MODEL, messages=HI, stream=True)
            async for chunk in stream:
                heard.append(chunk.choices[0].delta.content)

        with pytest.raises(openai.APIError, match="lost"):
            await listen()
        assert 3 == len(heard)

    async def test_plain_answer_lost_midway(self, house_on_both, openai_client):
        """Half a JSON is never taken for an answer."""
        await house_on_both.warm()
        house_on_both.ollama.faults.add("/v1/chat/completions", BreakAfter(1), times=None)
        with pytest.raises((openai.APIConnectionError, httpx.RemoteProtocolError)):
            await openai_client.with_options(max_retries=0).chat.completions.create(model=MODEL, messages=HI)

    async def test_service_that_breaks(self, house_on_both):
        """502 with the code, where the pod lives and its service does not."""
        await house_on_both.warm()
        house_on_both.ollama.faults.add("/v1/chat/completions", CloseBeforeHead(), times=None)
        async with AsyncOpenAI(base_url=house_on_both.url + "/v1", api_key=token(), max_retries=0) as client:
            with pytest.raises(openai.InternalServerError) as caught:
                await client.chat.completions.create(model=MODEL, messages=HI)
        assert (502, "UPSTREAM_ERROR") == (caught.value.status_code, caught.value.code)

    async def test_a_busy_pods_own_503_is_retried(self, house_on_both, openai_client):
        """What the pod says is not ours: the library may retry it."""
        await house_on_both.warm()
        busy = Answer(503, b'{"error":{"message":"server busy"}}', headers={"Retry-After-Ms": "10"})
        house_on_both.ollama.faults.add("/v1/chat/completions", busy)
        answer = await openai_client.chat.completions.create(model=MODEL, messages=HI)
        assert TEXT == answer.choices[0].message.content


class TestAnthropic:
    """Two tests, on one loop: the library takes seconds to import, so it is not imported above either."""

    async def test_message(self, house):
        """A message and a streamed one, cold and warm, with the token as x-api-key and as Bearer."""
        from anthropic import AsyncAnthropic

        asked = {"model": MODEL, "max_tokens": 99, "messages": HI}
        async with AsyncAnthropic(base_url=house.url, api_key=token(), timeout=10) as client:
            assert TEXT == (await client.messages.create(**asked)).content[0].text
        bearer_client = AsyncAnthropic(base_url=house.url, auth_token=token(), timeout=10)
        async with bearer_client, bearer_client.messages.stream(**asked) as stream:
            assert TEXT == "".join([text async for text in stream.text_stream])
        assert 1 == house.cloud.starts

    async def test_failed_start_is_asked_for_once(self, house):
        """The library's own error has the reason, and the pod is not rented again and again."""
        from anthropic import AsyncAnthropic, InternalServerError

        house.cloud.fail("start", *[NoCapacity("none free")] * 9)
        async with AsyncAnthropic(base_url=house.url, api_key=token(), timeout=10) as client:
            with pytest.raises(InternalServerError, match="none free"):
                await client.messages.create(model=MODEL, max_tokens=99, messages=HI)
        assert 1 == house.cloud.calls.count("start")


class TestHowATokenIsSent:
    """As docs/clients.md says, to a gateway with `auth.path_tokens`."""

    @pytest.fixture
    async def house(self, opened: Opener) -> House:
        house = await opened(auth__path_tokens=True)
        await house.off()
        return house

    async def test_in_the_path(self, house):
        """Clients that know a URL only keep its path."""
        host = f"{house.url}/k/{token()}"
        async with AsyncOpenAI(base_url=f"{host}/v1", api_key="unused", timeout=10) as client:
            answer = await client.chat.completions.create(model=MODEL, messages=HI)
            assert TEXT == answer.choices[0].message.content
        client = AsyncClient(host=host)
        assert TEXT == (await client.chat(MODEL, HI)).message.content
        await client.close()

    async def test_in_the_environment(self, house, monkeypatch):
        """OLLAMA_API_KEY is sent by the library of Ollama, and by what is built on it."""
        monkeypatch.setenv("OLLAMA_API_KEY", token())
        client = AsyncClient(host=house.url)
        assert TEXT == (await client.chat(MODEL, HI)).message.content
        await client.close()

    async def test_before_the_at_sign(self, house):
        """httpx sends it as Basic; the library of Ollama drops it."""
        url = house.url.replace("http://", f"http://me:{token()}@")
        async with httpx.AsyncClient(base_url=url, timeout=10) as client:
            answer = await client.post("/api/chat", json={"model": MODEL, "messages": HI, "stream": False})
            assert TEXT == answer.json()["message"]["content"]
        client = AsyncClient(host=url)
        with pytest.raises(ResponseError, match="token is missing"):
            await client.list()
        await client.close()
