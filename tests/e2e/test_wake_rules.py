"""Wake rules at a whole gateway: who is refused, in which shape, and who is served all the same."""

from __future__ import annotations

from tests.e2e.support import CHAT, MODEL, bearer, open_house

GUESTS = {"name": "no guests", "users": ["guest*"]}
BY_MODEL = {"models": ["big:*"]}
MESSAGES = {"model": MODEL, "max_tokens": 10, "messages": [{"role": "user", "content": "hi"}]}
GUEST = bearer(sub="guest-7")


async def test_a_refusal_in_each_dialect(tmp_path, ollama):
    """403 in the words of each path, naming the rule; the provider is asked for nothing."""
    async with open_house(tmp_path, ollama, wake=[GUESTS, BY_MODEL]) as house:
        native = await house.ask("POST", "/api/chat", json=CHAT, headers=GUEST)
        assert (403, "WAKE_DENIED") == (native.status, native.json["code"])
        assert '"no guests"' in native.json["error"]

        openai = await house.ask("POST", "/v1/chat/completions", json=CHAT, headers=GUEST)
        assert (403, "WAKE_DENIED") == (openai.status, openai.json["error"]["code"])
        assert "permission_error" == openai.json["error"]["type"]

        anthropic = await house.ask("POST", "/v1/messages", json=MESSAGES, headers=GUEST)
        assert (403, "permission_error") == (anthropic.status, anthropic.json["error"]["type"])

        own = await house.ask("POST", "/api/v1/story/generate", json={"prompt": "x"}, headers=GUEST)
        assert (403, "WAKE_DENIED") == (own.status, own.json["error"]["code"])

        by_hand = await house.ask("POST", "/api/v1/gpu/start", headers=GUEST)
        assert (403, "WAKE_DENIED") == (by_hand.status, by_hand.json["error"]["code"])

        by_model = await house.ask("POST", "/api/chat", json={**CHAT, "model": "big:70b"})
        assert (403, True) == (by_model.status, "number 2" in by_model.json["error"])
        assert "start" not in house.cloud.calls

        assert 200 == (await house.chat()).status
        served = await house.ask("POST", "/api/chat", json=CHAT, headers=GUEST)
        assert 200 == served.status


async def test_path_and_agent(tmp_path, ollama):
    """A path is compared decoded, so that another spelling of it is no way around a rule."""
    rules = [{"name": "curl", "agents": ["curl/*"]}, {"name": "path", "paths": ["/api/chat"]}]
    async with open_house(tmp_path, ollama, wake=rules) as house:
        agent = {**house.auth, "User-Agent": "curl/8.5"}
        refused = await house.ask("POST", "/v1/chat/completions", json=CHAT, headers=agent)
        assert (403, True) == (refused.status, '"curl"' in refused.json["error"]["message"])
        for path in ("/api/chat", "/api/%63hat"):
            answer = await house.ask("POST", path, json=CHAT)
            assert (403, True) == (answer.status, '"path"' in answer.json["error"])
        assert "start" not in house.cloud.calls


async def test_a_refusal_is_counted(tmp_path, ollama):
    """One for each request, and for each start by hand."""
    async with open_house(tmp_path, ollama, wake=[GUESTS], metrics__enabled=True) as house:
        for _ in range(2):
            await house.ask("POST", "/api/chat", json=CHAT, headers=GUEST)
        await house.ask("POST", "/api/v1/gpu/start", headers=GUEST)
        page = (await house.ask("GET", "/metrics")).body.decode()
        assert 'gpugate_wakes_total{outcome="denied",pod="main"} 3.0' in page
