"""RunPod's answers in gpugate's words (docs/providers.md#runpod-operations), call by call, no lifecycle."""

from __future__ import annotations

import asyncio

import pytest
from gpugate_testing.clouds import Fault, Garbage, Hang, Html1010, Http, LostResponse, RateLimit, Reset
from runpod_support import FIXED, SECRET_ENV, House, ephemeral, play

from gpugate import (
    Ambiguous,
    AuthFailed,
    Blocked,
    Conflict,
    Misconfigured,
    NoCapacity,
    NoFunds,
    NotFound,
    ProviderError,
    RateLimited,
    Transient,
)

JSON = {"Content-Type": "application/problem+json"}
HTML = {"Content-Type": "text/html"}


def said(status: int, detail: str, *errors: str) -> Http:
    return Http(status, {"title": "t", "status": status, "detail": detail, "errors": list(errors)}, JSON)


CASES: list[tuple[Fault, type[ProviderError], str]] = [
    (
        said(400, "There are not enough free GPUs on the host machine to start this pod."),
        NoCapacity,
        "free GPUs",
    ),
    (said(400, "not enough free memory on the host machine"), NoCapacity, "memory"),
    (
        said(400, "no longer any instances available with the requested specifications"),
        NoCapacity,
        "no longer",
    ),
    (said(400, "This machine does not have the resources to deploy this pod."), NoCapacity, "resources"),
    (said(400, "please migrate your pod"), NoCapacity, "migrate"),
    (said(500, "There are not enough free GPUs on the host machine"), NoCapacity, "free GPUs"),
    (said(400, "something else"), Misconfigured, "something else"),
    (said(401, "invalid bearer token"), AuthFailed, "api_key"),
    (said(402, "Insufficient balance."), NoFunds, "Add credit"),
    (said(403, "access denied"), AuthFailed, "write access"),
    (said(404, "pod not found"), NotFound, "pod_id"),
    (
        said(422, "failed.", "$: additional properties 'x' not allowed"),
        Misconfigured,
        "additional properties 'x'",
    ),
    (said(503, "try later"), Transient, "503: try later"),
    (Http(502, b"<html>", HTML), Transient, "edge answered 502"),
    (Http(403, b"<html>blocked</html>", HTML), Blocked, "CDN"),
    (Html1010(), Blocked, "1010"),
    (Http(404, b"<html>", HTML), Misconfigured, "api_base"),
    (Http(410, b"gone"), Misconfigured, "REST v1 is retired"),
    (Http(302, b"", {"Location": "https://elsewhere.example"}), Misconfigured, "redirect"),
    (Http(418, b""), Misconfigured, "418"),
    (Http(429, b"slow down"), RateLimited, "429"),
    (RateLimit(7), RateLimited, "rate limit"),
    (Hang(30), Ambiguous, "within 10 s"),
    (LostResponse(), Ambiguous, "broke"),
    (Reset(), Ambiguous, "broke"),
    (Reset(mid_body=True), Ambiguous, "broke"),
    (Garbage(), Ambiguous, "no JSON"),
    (Garbage(b"[]"), Ambiguous, "not the pod"),
    (Garbage(b'{"id":"another","status":"RUNNING"}'), Ambiguous, "not the pod"),
]


@pytest.mark.parametrize(("fault", "kind", "words"), CASES, ids=[f"{c[1].__name__}-{c[2]}" for c in CASES])
def test_an_answer_to_a_start(fault: Fault, kind: type[ProviderError], words: str) -> None:
    """Each has its kind, and a line that says what to do."""

    async def scenario(house: House) -> None:
        house.cloud.fail("start", fault)
        with pytest.raises(ProviderError) as told:
            await house.provider.start()
        assert kind is type(told.value)
        assert words in told.value.message
        assert "\n" not in told.value.message

    play(scenario, FIXED, start=False)


@pytest.mark.parametrize(
    ("fault", "wait"),
    [
        (RateLimit(7), 7.0),
        (RateLimit(None), None),
        (Http(429, {"detail": "x"}, {"RateLimit": '"minute";r=0;t=12, "hour";r=9;t=99'}), 12.0),
        (Http(429, {"detail": "x"}, {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}), None),
        (Http(429, {"detail": "x"}, {"Retry-After": "-1"}), None),
    ],
)
def test_a_rate_limit(fault: Fault, wait: float | None) -> None:
    """Its pause is Retry-After, else the end of the window that is used up, else unknown."""

    async def scenario(house: House) -> None:
        house.cloud.fail("get", fault)
        with pytest.raises(RateLimited) as told:
            await house.provider.inspect()
        assert wait == told.value.retry_after

    play(scenario, FIXED, start=False)


@pytest.mark.parametrize("fault", [Hang(30), Reset(), Reset(mid_body=True), Garbage(), said(500, "x")])
def test_a_look_that_fails(fault: Fault) -> None:
    """It is an error, never "stopped"."""

    async def scenario(house: House) -> None:
        house.cloud.fail("get", fault, None)
        with pytest.raises(Transient):
            await house.provider.inspect()
        house.cloud.faults.heal()

    play(scenario, FIXED, start=False)


@pytest.mark.parametrize("body", [b"[]", b"{}", b'{"pods":null}', b'{"pods":[{"id":7}]}', b"null"])
def test_a_list_that_is_none(body: bytes) -> None:
    """Absence is concluded from whole lists only."""

    async def scenario(house: House) -> None:
        house.cloud.fail("list", Garbage(body))
        with pytest.raises(Transient):
            await house.provider.inspect()

    play(scenario, ephemeral(), start=False)


@pytest.mark.parametrize("fault", [said(500, "x"), Http(502, b"<html>"), LostResponse(), Hang(30), Garbage()])
def test_a_create_without_an_answer(fault: Fault) -> None:
    """A pod may have been made: that is said, and nothing is called stopped until it is known."""

    async def scenario(house: House) -> None:
        house.cloud.list_lag_s = 5
        house.cloud.fail("create", fault)
        with pytest.raises(Ambiguous):
            await house.provider.start()
        with pytest.raises(Transient):
            await house.provider.inspect()
        with pytest.raises(RateLimited):
            await house.provider.start()

    play(scenario, ephemeral(), start=False)


def test_nobody_listens() -> None:
    """A refused connection is transient, for a create as well: nothing can have been made."""

    async def scenario(house: House) -> None:
        await house.cloud.stop()
        with pytest.raises(Transient, match="cannot be reached"):
            await house.provider.start()

    play(scenario, FIXED, start=False)


def test_a_secret_that_comes_back() -> None:
    """RunPod may quote what it was sent; the key and the pod's environment are blotted out."""

    async def scenario(house: House) -> None:
        detail = f"env TOKEN={SECRET_ENV} and key {house.cloud.api_key} are wrong " + "x" * 500
        house.cloud.fail("create", said(422, detail), None)
        with pytest.raises(Misconfigured) as told:
            await house.provider.start()
        assert "TOKEN=*** and key ***" in told.value.message
        assert len(told.value.message) < 300

    play(scenario, ephemeral(), start=False)


def test_a_cancelled_create() -> None:
    """It is as unsure as one without an answer: the next start waits whether its pod turns up."""

    async def scenario(house: House) -> None:
        house.cloud.fail("create", Hang(2))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await house.provider.start()
        with pytest.raises(RateLimited):
            await house.provider.start()
        await asyncio.sleep(20)
        await house.provider.start()
        assert 1 == house.cloud.starts

    play(scenario, ephemeral(), start=False)


def test_conflicts() -> None:
    """409 is looked into: what is so already is fine, what cannot be says what to do."""

    async def scenario(house: House) -> None:
        house.pod.start()
        assert "provisioning" == (await house.provider.start()).phase
        house.pod.locked = True
        with pytest.raises(Conflict, match="unlock it"):
            await house.provider.stop()
        house.pod.locked = False
        house.cloud.error_bills = True
        pod = house.cloud.add_pod()
        pod.become("failed")
        with pytest.raises(Conflict, match="ERROR and does not stop"):
            await house.provider.stop()
        pod.become("stopped")
        assert "stopped" == (await house.provider.stop()).phase
        pod.become("gone")
        assert "gone" == (await house.provider.stop()).phase
        house.cloud.terminated_shows = True
        assert "gone" == (await house.provider.stop()).phase
        with pytest.raises(NotFound, match="deleted or migrated"):
            await house.provider.start()

    play(scenario, FIXED, start=False)
