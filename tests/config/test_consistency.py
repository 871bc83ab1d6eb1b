"""Keys that need or contradict each other."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gpugate.config import consistency, load_settings, warnings
from tests.config.support import env_complaints, load

BOT = {
    "GPUGATE_BOT__ENABLED": "true",
    "GPUGATE_BOT__TOKEN": "123456:ABC-DEF",
    "GPUGATE_BOT__SECRET_TOKEN": "abc_DEF-123",
    "GPUGATE_BOT__PUBLIC_URL": "https://gate.example",
}


def keys(env: dict[str, str]) -> list[str]:
    """Return the keys that are complained about."""
    return [line.split(": ")[1] for line in env_complaints(env)]


def test_an_identity_provider_instead_of_a_secret() -> None:
    """jwks_url alone is enough, also with the default algorithms."""
    assert [] == keys({"GPUGATE_AUTH__SECRET": "", "GPUGATE_AUTH__JWKS_URL": "https://id.example/keys"})


def test_an_identity_providers_algorithm_without_one() -> None:
    """RS256 with nothing but a secret would let nobody in."""
    assert ["auth.algorithms"] == keys({"GPUGATE_AUTH__ALGORITHMS": "HS256,RS256"})


def test_a_longer_hash_wants_a_longer_secret() -> None:
    """HS512 needs 64 bytes (RFC 7518)."""
    env = {"GPUGATE_AUTH__ALGORITHMS": "HS512"}

    assert ["auth.secret"] == keys(env)
    assert [] == keys({**env, "GPUGATE_AUTH__SECRET": "x" * 64})


def test_a_whole_bot() -> None:
    """With all it needs there is no complaint."""
    assert [] == keys(BOT)


@pytest.mark.parametrize("lacking", ["TOKEN", "SECRET_TOKEN", "PUBLIC_URL"])
def test_a_bot_that_lacks_something(lacking: str) -> None:
    """A webhook needs its token, its secret and an address; each is named."""
    assert [f"bot.{lacking.lower()}"] == keys({**BOT, f"GPUGATE_BOT__{lacking}": ""})


def test_a_polling_bot() -> None:
    """Polling needs the token alone."""
    env = {"GPUGATE_BOT__ENABLED": "yes", "GPUGATE_BOT__MODE": "polling"}

    assert ["bot.token"] == keys(env)
    assert [] == keys({**env, "GPUGATE_BOT__TOKEN": "1:x"})


def test_a_bot_that_is_off() -> None:
    """Then nothing of it is needed."""
    assert [] == keys({"GPUGATE_BOT__ENABLED": "0"})


def test_a_bot_without_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra that is missing is named before the gateway runs into it."""
    monkeypatch.setattr(consistency, "find_spec", lambda name: None)

    (line,) = env_complaints(BOT)
    assert "bot.enabled: needs the extra: pip install '.[telegram]'" in line

    monkeypatch.setattr("gpugate.install_hints.checkout_folder", lambda distribution: None)
    (line,) = env_complaints(BOT)
    assert "bot.enabled: needs the extra: pip install 'gpugate[telegram]'" in line


def no_package(name: str) -> None:
    """`find_spec`, where a package above the module is missing."""
    raise ModuleNotFoundError(name)


@pytest.mark.parametrize("missing", [lambda name: None, no_package])
def test_traces_without_their_library(
    monkeypatch: pytest.MonkeyPatch, missing: Callable[[str], None]
) -> None:
    """The extra that is missing is named, also where only a part of OpenTelemetry is installed."""
    monkeypatch.setattr(consistency, "find_spec", missing)

    (line,) = env_complaints({"GPUGATE_TRACING__ENABLED": "1"})
    assert "tracing.enabled: needs the extra: pip install '.[otel]'" in line


def test_a_share_of_nothing() -> None:
    """A user's share needs a budget to be a share of."""
    assert ["cost.user_share"] == keys({"GPUGATE_COST__USER_SHARE": "0.5"})
    assert [] == keys({"GPUGATE_COST__USER_SHARE": "0.5", "GPUGATE_COST__MONTHLY_BUDGET": "20"})


def test_news_for_a_stranger() -> None:
    """News go to allowed chats only."""
    assert ["bot.news"] == keys({"GPUGATE_BOT__NEWS": "1,2", "GPUGATE_BOT__ALLOWED_CHATS": "1"})


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a home folder the state folder must be named."""
    monkeypatch.setattr("gpugate.config.loader.default_state_dir", lambda env: None)

    assert ["state.dir"] == keys({})
    assert "" == load_settings(None, {}, complete=False).state.dir


@pytest.mark.parametrize(
    ("env", "keys"),
    [
        ({}, []),
        ({"GPUGATE_POD__IDLE_TIMEOUT": "15"}, ["pod.idle_timeout"]),
        ({"GPUGATE_POD__IDLE_TIMEOUT": "1m"}, []),
        ({"GPUGATE_POD__MAX_SESSION": "3m"}, ["pod.max_session"]),
        ({"GPUGATE_POD__MAX_SESSION": "181"}, []),
        ({"GPUGATE_POD__START_TIMEOUT": "11m"}, ["pod.start_timeout"]),
        ({"GPUGATE_QUEUE__MAX_WAIT": "2m"}, ["pod.start_timeout"]),
        ({"GPUGATE_POD__PROVIDER": "demo,local"}, ["pod.start_timeout"]),
        ({"GPUGATE_POD__PROVIDER": "demo,local", "GPUGATE_POD__START_TIMEOUT": "5m"}, []),
        ({"GPUGATE_AUTH__SCOPE_MAP": '{"ops": "pod"}'}, ["auth.scope_map"]),
        ({"GPUGATE_AUTH__JWKS_URL": "https://id.example/keys"}, ["auth.audience"]),
    ],
)
def test_what_may_surprise(env: dict[str, str], keys: list[str]) -> None:
    """What is probably not meant is allowed; `check` says so."""
    assert keys == [key for key, _ in warnings(load(env))]


def test_what_needs_ollama() -> None:
    """The renewals of a lease are blobs, so a pod of another engine would stop itself while it is used."""
    lease = {"GPUGATE_POD__LEASE": "x" * 16}

    assert [] == keys(lease)
    assert ["pod.lease"] == keys({**lease, "GPUGATE_POD__ENGINE": "openai"})
    assert ["pod.pull"] == keys({"GPUGATE_POD__PULL": "llava:13b", "GPUGATE_POD__ENGINE": "openai"})


@pytest.mark.parametrize(
    "path", ["tokenize", "/api/generate", "/api/*", "/api", "/k/x", "/*", "/dashboard", "/a*b"]
)
def test_no_extra_path(path: str) -> None:
    """Neither what is no path nor what is the gateway's own or Ollama's."""
    assert ["pod.extra_paths"] == keys({"GPUGATE_POD__EXTRA_PATHS": path})
    assert [] == keys({"GPUGATE_POD__EXTRA_PATHS": "/tokenize,/v1/score,/apis"})
