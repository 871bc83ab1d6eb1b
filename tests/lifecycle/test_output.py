"""A program's own last words: for the log and the status, never for who waits."""

from __future__ import annotations

import pytest
from gpugate_testing.fakes import FakeCloud

from gpugate.errors import PodStartFailed, ProviderError, Transient
from gpugate.lifecycle.status import ProviderProblem
from gpugate.provider_api import Phase, PodReport
from tests.lifecycle.support import Stage, play

WORDS = "a prompt that was printed"
FAILED = PodReport(Phase.FAILED, "fake-1", detail="it ended with exit status 1", output=WORDS)
CALLS = {"start": Transient("it ended with exit status 1", output=WORDS), "inspect": FAILED}


@pytest.mark.parametrize("call", CALLS)
def test_a_start_that_fails(call: str) -> None:
    """A client reads the exit status; status and news have the words as well."""

    async def story() -> None:
        cloud = FakeCloud(boot_s=100)
        async with Stage([cloud], {"start_attempts": 1}) as stage:
            await stage.lifecycle.status()
            cloud.fail(call, CALLS[call])
            with pytest.raises(PodStartFailed) as refused:
                await stage.ask()

            assert "pod could not be started: alpha: it ended with exit status 1" == refused.value.message
            assert WORDS in ((await stage.lifecycle.status()).last_error or "")
            assert any(WORDS in news.message for news in stage.news if isinstance(news, ProviderProblem))

    play(story())


def test_a_pod_that_is_lost() -> None:
    """The same for one that had served."""

    async def story() -> None:
        cloud = FakeCloud()
        async with Stage([cloud]) as stage:
            await stage.ask()
            cloud.turn_off(at_once=True)
            cloud.fail("inspect", FAILED)
            await stage.lifecycle.diagnose(1)

            assert any(WORDS in news.message for news in stage.news if isinstance(news, ProviderProblem))

    play(story())


def test_an_error_in_full() -> None:
    """Without words it is the message alone."""
    assert "x" == ProviderError("x").in_full
    assert "x: y" == ProviderError("x", output="y").in_full
