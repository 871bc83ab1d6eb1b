"""A schedule at a whole gateway: the pod is kept although nobody uses it, and the ledger says why."""

from __future__ import annotations

from tests.e2e.support import MODEL, open_house


async def test_a_scheduled_pod(tmp_path, ollama):
    """It outlives its idle timeout; a stop by hand ends it."""
    async with open_house(tmp_path, ollama, pod__idle_timeout=0.05) as house:
        house.gateway.lifecycle.start_by_schedule(60.0, MODEL)
        await house.until(lambda: house.gateway.lifecycle.serving is not None)
        status = await house.status()
        assert 50 < status["stops_in_seconds"] <= 60
        loaded = (await house.ask("GET", "/api/ps")).json["models"]
        assert [MODEL] == [one["name"] for one in loaded]
        await house.stop()
        sessions = (await house.ask("GET", "/api/v1/cost/sessions")).json["data"]["sessions"]
        assert [("schedule", "schedule")] == [(one["started_by"], one["start_reason"]) for one in sessions]
