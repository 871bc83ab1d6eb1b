"""`GET /api/v1/why`: a cold chat whose start fails at first, its idle stop, and a restart."""

from __future__ import annotations

import re
from pathlib import Path

from gpugate_demo.ollama import SimulatedOllama
from gpugate_testing.fakes import FakeCloud

from gpugate.errors import Transient
from tests.e2e.support import CHAT, House, bearer, open_house


async def why(house: House, query: str = "", **claims: object) -> tuple[int, str]:
    """The status, and all lines or the error's code."""
    answer = await house.ask("GET", f"/api/v1/why{query}", headers=bearer(**claims))
    if answer.status != 200:
        return answer.status, answer.json["error"]["code"]
    assert {"lines"} == set(answer.json["data"])
    return answer.status, "\n".join(answer.json["data"]["lines"])


async def ask(house: House, name: str, user: str) -> None:
    """A chat of this user, with this id."""
    headers = {**bearer(sub=user), "X-Request-Id": name}
    assert 200 == (await house.ask("POST", "/api/chat", json=CHAT, headers=headers)).status


async def test_a_chat_and_its_session(tmp_path: Path, ollama: SimulatedOllama) -> None:
    """What it waited for, whom the pod was started and stopped for, and who may know."""
    cloud = FakeCloud(boot_s=0.2)
    async with open_house(tmp_path, ollama, cloud, pod__idle_timeout=0.4, pod__start_backoff=0.2) as house:
        assert (404, "NOT_FOUND") == await why(house)
        cloud.fail("start", Transient("busy"))
        await ask(house, "r-alice", "alice")
        assert re.search(r"^idle; stops in 0\.\d s if nothing comes$", (await why(house))[1], re.MULTILINE)
        await house.off()

        status, own = await why(house, "?request=r-alice", sub="alice", scope="chat")
        assert 200 == status
        failed = r"fake failed to start it \(transient\) for 0\.\d s"
        assert re.match(rf"request r-alice waited [\d.]+ s: {failed}, boot [\d.]+ s", own)
        assert "it started the pod:\nstarted at " in own
        assert (200, own) == await why(house, "?request=r-alice", sub="bob", scope="cost")
        assert (403, "FORBIDDEN") == await why(house, "?request=r-alice", sub="bob", scope="chat")
        assert (404, "NOT_FOUND") == await why(house, "?request=r-other", sub="alice")

        _, last = await why(house)
        assert re.match(r"started at \d\d:\d\d for alice's chat, at fake", last)
        assert re.search(r"^stopped: idle for 0\.\d s after alice's chat$", last, re.MULTILINE)
        session = re.findall(r"this is session (\S+);", last)[0]
        assert (200, last) == await why(house, f"?session={session}")
        assert "another user's chat" in (await why(house, "?session=" + session, sub="bob", scope="chat"))[1]
        assert (404, "NOT_FOUND") == await why(house, "?session=none")
        assert (400, "INVALID_REQUEST") == await why(house, "?sesion=none")
        assert (400, "INVALID_REQUEST") == await why(house, "?session=a&request=b")
        assert (401, "INVALID_TOKEN") == await why(house, exp="soon")

    async with open_house(tmp_path, ollama, FakeCloud()) as house:
        _, last = await why(house)
        assert re.match(r"started at \d\d:\d\d for alice's request, at fake", last)
        assert re.search(r"^stopped: idle for 0\.\d s after alice's request$", last, re.MULTILINE)
        assert "it started the pod:" in (await why(house, "?request=r-alice", sub="alice", scope="chat"))[1]
