"""`gpugate token issue`."""

from __future__ import annotations

from pathlib import Path

import jwt
import pytest

from gpugate.cli.main import main
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
        (("--scope", "chat root"), "gpugate: --scope: 'root' is none of chat, pod, cost, admin"),
        (("--scope", ""), "gpugate: --scope: '' is none of chat, pod, cost, admin"),
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
