"""What the dashboard asks a gateway for: its files, open requests, past events, the newest sessions."""

from __future__ import annotations

import asyncio

from gpugate.dashboard.feature import PAGE, dashboard_routes
from tests.e2e.support import House, bearer


async def test_the_files_are_public_and_carry_a_strict_policy(house: House) -> None:
    """No token, no pod; a browser that has a file is told so."""
    for path in dashboard_routes():
        async with house.http.get(house.url + path, allow_redirects=False) as answer:
            assert (308 if path == f"{PAGE}/" else 200) == answer.status, path
            policy = answer.headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy
            assert "frame-ancestors 'none'" in policy
            assert "unsafe" not in policy
            tag = answer.headers.get("ETag")
        if tag:
            async with house.http.get(house.url + path, headers={"If-None-Match": f'"x", {tag}'}) as answer:
                assert (304, b"") == (answer.status, await answer.read())
    async with house.http.get(f"{house.url}{PAGE}/", allow_redirects=False) as answer:
        assert "../dashboard" == answer.headers["Location"]
    async with house.http.post(house.url + PAGE) as answer:
        assert 401 == answer.status
    assert "STOPPED" == (await house.status())["status"]


async def test_who_waits_and_who_is_served(house: House) -> None:
    """A token without the scope for costs sees its own requests only."""
    house.cloud.boot_s = 3600.0
    body = {"model": "llama3.2:3b", "messages": [{"role": "user", "content": "x"}]}
    asking = asyncio.ensure_future(house.ask("POST", "/api/chat", json=body, headers=bearer(sub="alice")))
    while not (await house.status())["waiting"]:
        await asyncio.sleep(0.01)

    async def listed(**claims: object) -> list[tuple[str, str]]:
        async with house.call("GET", "/api/v1/gpu/requests", headers=bearer(**claims)) as answer:
            data = (await answer.json())["data"]
        assert data["count"] == len(data["requests"])
        return [(one["user"], one["state"]) for one in data["requests"]]

    assert [("alice", "waiting")] == await listed(sub="bob")
    assert [("alice", "waiting")] == await listed(sub="alice", scope="chat")
    assert [] == await listed(sub="bob", scope="chat pod")
    asking.cancel()


async def test_past_events_are_replayed(house: House) -> None:
    """The last ones come first, the present state after them; more than there are is no mistake."""
    await house.warm()

    async def first_kinds(replay: str, count: int) -> list[str]:
        kinds = []
        async with house.call("GET", f"/api/v1/gpu/events?replay={replay}") as answer:
            assert 200 == answer.status
            async for line in answer.content:
                if line.startswith(b"event: "):
                    kinds.append(line.decode().split()[1])
                if len(kinds) == count:
                    return kinds
        return kinds

    assert ["state"] == await first_kinds("0", 1)
    assert "session" in await first_kinds("500", 5)
    for wrong in ("-1", "many", "99999", "٣"):
        async with house.call("GET", "/api/v1/gpu/events", params={"replay": wrong}) as answer:
            assert 400 == answer.status
            assert (await answer.json())["error"]["message"].startswith("replay: ")


async def test_the_newest_sessions(house: House) -> None:
    """`limit` leaves out the older ones; the summary names the day and the budget."""
    for _ in range(3):
        await house.warm()
        await house.stop()

    async def ids(query: str) -> list[str]:
        async with house.call("GET", f"/api/v1/cost/sessions?{query}") as answer:
            return [row["id"] for row in (await answer.json())["data"]["sessions"]]

    every = await ids("")
    assert 3 == len(every)
    assert every == await ids("limit=0") == await ids("limit=10")
    assert every[1:] == await ids("limit=2")
    async with house.call("GET", "/api/v1/cost/sessions?limit=-1") as answer:
        assert (await answer.json())["error"]["message"].startswith("limit: ")
    async with house.call("GET", "/api/v1/cost/summary") as answer:
        data = (await answer.json())["data"]
    assert data["monthlyBudget"] is None
    assert data["today"] == data["byDay"][-1]["date"]
