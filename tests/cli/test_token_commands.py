"""`gpugate token issue`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import jwt
import pytest

from gpugate.cli.main import main
from gpugate.cli.token_commands import describe_end, show_time
from tests.cli.support import SECRET

DAY = 86_400


@pytest.fixture
def secret(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment with a secret and nothing else: no provider is needed to sign."""
    monkeypatch.setenv("GPUGATE_AUTH__SECRET", SECRET)


def issue(*args: str) -> int:
    """Run the command."""
    return main(["token", "issue", *args])


@pytest.mark.usefixtures("secret")
def test_a_token(capsys: pytest.CaptureFixture[str]) -> None:
    """Only the token is printed: subject, 30 days, no scope, which means all."""
    assert 0 == issue("--subject", "open-webui")

    (line,) = capsys.readouterr().out.splitlines()
    claims = jwt.decode(line, SECRET, algorithms=["HS256"])
    assert {"sub", "iat", "exp"} == set(claims)
    assert ("open-webui", 30 * DAY) == (claims["sub"], claims["exp"] - claims["iat"])


@pytest.mark.usefixtures("secret")
def test_what_was_issued(capsys: pytest.CaptureFixture[str]) -> None:
    """Standard error says what the token is, and not the token."""
    assert 0 == issue("--subject", "open-webui", "--scope", "pod chat", "--expires", "1y")

    captured = capsys.readouterr()
    claims = jwt.decode(captured.out.strip(), SECRET, algorithms=["HS256"])
    assert 365 * DAY == claims["exp"] - claims["iat"]
    subject, scopes, end = captured.err.splitlines()
    assert ("subject: open-webui", "scopes: pod chat") == (subject, scopes)
    assert f"ends: {datetime.fromtimestamp(claims['exp'], UTC):%Y-%m-%d %H:%M} UTC" == end

    assert 0 == issue("--subject", "x")
    assert "scopes: all" in capsys.readouterr().err.splitlines()


@pytest.mark.usefixtures("secret")
def test_a_token_that_never_ends(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused where the gateway would refuse it, else there is a warning."""
    assert 2 == issue("--subject", "x", "--expires", "never")
    captured = capsys.readouterr()
    assert ("", 1) == (captured.out, len(captured.err.splitlines()))
    assert captured.err.startswith("gpugate: --expires: ")
    assert "auth.require_exp" in captured.err

    monkeypatch.setenv("GPUGATE_AUTH__REQUIRE_EXP", "false")
    assert 0 == issue("--subject", "x", "--expires", "never")
    captured = capsys.readouterr()
    assert {"sub", "iat"} == set(jwt.decode(captured.out.strip(), SECRET, algorithms=["HS256"]))
    assert "ends: never" in captured.err.splitlines()
    assert "warning: " in captured.err


@pytest.mark.parametrize(
    ("left_s", "said"),
    [
        (29.5 * DAY, "ends on 2033-06-16 15:33 UTC, in 29d"),
        (90 * 60 + 5, "ends on 2033-05-18 05:03 UTC, in 1h30m"),
        (-3 * DAY, "ended on 2033-05-15 03:33 UTC, 3d ago"),
        (None, "never ends"),
    ],
)
def test_the_end_of_a_token(left_s: float | None, said: str) -> None:
    """It is told in words; the signature does not matter here."""
    now = 2e9
    claims = {} if left_s is None else {"exp": now + left_s}

    token = jwt.encode({"sub": "x", **claims}, "k" * 32)

    assert said == describe_end(token, now)
    assert (said if left_s and left_s < 7 * DAY else None) == describe_end(token, now, 7 * DAY)


@pytest.mark.parametrize("text", ["t0ken", "a.b.c", "a.W10.c", "a.eyJleHAiOiJzb29uIn0.c", ""])
def test_the_end_of_something_else(text: str) -> None:
    """An odd token is described as such, and no cause for a warning."""
    assert ("is no token of gpugate's", None) == (describe_end(text, 0), describe_end(text, 0, DAY))


@pytest.mark.usefixtures("secret")
def test_a_token_for_less(capsys: pytest.CaptureFixture[str]) -> None:
    """Scope and expiry are as asked, each word of the scope once."""
    assert 0 == issue("--subject", "x", "--scope", "chat, pod chat", "--expires", "1h30m")

    claims = jwt.decode(capsys.readouterr().out.strip(), SECRET, algorithms=["HS256"])
    assert ("chat pod", 5400) == (claims["scope"], claims["exp"] - claims["iat"])


@pytest.mark.usefixtures("secret")
def test_a_token_that_the_gateway_accepts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issuer, audience and algorithm are those that the configuration asks for."""
    for key, value in {"ISSUER": "me", "AUDIENCE": "gate", "ALGORITHMS": "HS384", "SECRET": "s" * 48}.items():
        monkeypatch.setenv(f"GPUGATE_AUTH__{key}", value)

    assert 0 == issue("--subject", "x")

    token = capsys.readouterr().out.strip()
    assert "x" == jwt.decode(token, "s" * 48, algorithms=["HS384"], issuer="me", audience="gate")["sub"]


@pytest.mark.usefixtures("secret")
@pytest.mark.parametrize(
    ("args", "line"),
    [
        (("--scope", "chat root"), "gpugate: --scope: 'root' is none of chat, pod, cost, metrics, admin"),
        (("--scope", ""), "gpugate: --scope: '' is none of chat, pod, cost, metrics, admin"),
        (("--expires", "0s"), "gpugate: --expires: must be more than 0, is 0s"),
        (("--expires=-1d",), "gpugate: --expires: must be more than 0, is -1d"),
        (("--expires", "soon"), "gpugate: --expires: must be a duration"),
    ],
)
def test_a_token_that_cannot_be_meant(
    capsys: pytest.CaptureFixture[str], args: tuple[str, ...], line: str
) -> None:
    """That is wrong usage, in one line, and no token."""
    assert 2 == issue("--subject", "x", *args)

    captured = capsys.readouterr()
    assert captured.err.startswith(line)
    assert (1, "") == (len(captured.err.splitlines()), captured.out)


@pytest.mark.usefixtures("secret")
def test_a_token_for_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    """A token needs a subject."""
    assert 2 == issue("--subject", " ")
    assert ["gpugate: --subject: must not be empty"] == capsys.readouterr().err.splitlines()


@pytest.mark.usefixtures("bare")
def test_nothing_to_sign_with(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a secret there is no token, also where an identity provider makes them."""
    assert 2 == issue("--subject", "x")
    assert ["gpugate: auth.secret: there is no secret to sign with"] == capsys.readouterr().err.splitlines()

    monkeypatch.setenv("GPUGATE_AUTH__JWKS_URL", "https://id.example/keys")
    assert 2 == issue("--subject", "x")
    assert "identity provider" in capsys.readouterr().err

    monkeypatch.setenv("GPUGATE_AUTH__SECRET", SECRET)
    monkeypatch.setenv("GPUGATE_AUTH__ALGORITHMS", "RS256")
    assert 2 == issue("--subject", "x")
    assert "accepts no signature made with auth.secret" in capsys.readouterr().err


def test_an_instant() -> None:
    """It is shown to the minute, in UTC; beyond the calendar's end it is never."""
    assert ["2033-05-18 03:33 UTC", "never"] == [show_time(2e9), show_time(2.0**53)]
