"""The official Python clients against the simulated Ollama."""

import pytest
from gpugate_demo.faults import BreakAfter, ErrorLine
from gpugate_demo.text_generator import fixed
from ollama import AsyncClient, ResponseError
from openai import APIConnectionError, AsyncOpenAI, NotFoundError

HI = [{"role": "user", "content": "hi"}]


@pytest.fixture(autouse=True)
def two_words(ollama):
    ollama.reply = fixed("Good", " day")


@pytest.fixture
async def client(ollama):
    client = AsyncClient(host=ollama.url)
    yield client
    await client.close()


@pytest.fixture
async def openai(ollama):
    async with AsyncOpenAI(base_url=ollama.url + "/v1", api_key="any", max_retries=0) as client:
        yield client


class TestOllamaClient:
    async def test_chat(self, client):
        stream = await client.chat("llama3.2:3b", HI, stream=True)

        assert "Good day" == "".join([part.message.content async for part in stream])
        assert "Good day" == (await client.chat("llama3.2:3b", HI)).message.content

    async def test_lists(self, client):
        """Everything its types ask for is there."""
        assert 5 == len((await client.list()).models)
        await client.generate("llava", keep_alive=-1)
        assert "llava:latest" == (await client.ps()).models[0].name
        assert "completion" in (await client.show("llava")).capabilities

    async def test_embed(self, client):
        assert 768 == len((await client.embed("nomic-embed-text", "a")).embeddings[0])

    async def test_models(self, client):
        statuses = [step.status async for step in await client.pull("mistral", stream=True)]

        assert "success" == statuses[-1]
        assert "success" == (await client.copy("mistral", "mine")).status
        assert "success" == (await client.delete("mine")).status
        assert "success" == (await client.create("new", from_="mistral")).status

    async def test_not_found(self, client):
        with pytest.raises(ResponseError) as refused:
            await client.chat("none", HI)

        assert (404, "model 'none' not found") == (refused.value.status_code, refused.value.error)

    async def test_failure_in_mid_stream(self, client, ollama):
        ollama.faults.add("/api/chat", ErrorLine(1, "boom"))
        with pytest.raises(ResponseError, match="boom"):
            [part async for part in await client.chat("llama3.2:3b", HI, stream=True)]


class TestOpenAiClient:
    async def test_chat(self, openai):
        whole = await openai.chat.completions.create(model="llama3.2:3b", messages=HI)
        stream = await openai.chat.completions.create(model="llama3.2:3b", messages=HI, stream=True)

        assert "Good day" == whole.choices[0].message.content
        assert "Good day" == "".join([chunk.choices[0].delta.content async for chunk in stream])

    async def test_responses(self, openai):
        whole = await openai.responses.create(model="llama3.2:3b", input="hi")
        stream = await openai.responses.create(model="llama3.2:3b", input="hi", stream=True)
        kinds = [event.type async for event in stream]

        assert "Good day" == whole.output_text
        assert ("response.created", "response.completed") == (kinds[0], kinds[-1])

    async def test_embeddings(self, openai):
        """It asks for Base64 by itself."""
        found = await openai.embeddings.create(model="nomic-embed-text", input="a")

        assert 768 == len(found.data[0].embedding)

    async def test_models(self, openai):
        assert 5 == len((await openai.models.list()).data)

    async def test_not_found(self, openai):
        with pytest.raises(NotFoundError, match="model 'none' not found"):
            await openai.chat.completions.create(model="none", messages=HI)

    async def test_a_broken_stream(self, openai, ollama):
        """Raises; only a clean end looks like success."""
        ollama.faults.add("/v1/chat/completions", BreakAfter(1))
        stream = await openai.chat.completions.create(model="llama3.2:3b", messages=HI, stream=True)

        with pytest.raises(APIConnectionError):
            [chunk async for chunk in stream]
