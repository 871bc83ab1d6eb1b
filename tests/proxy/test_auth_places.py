"""Where a request's tokens are looked for."""

from __future__ import annotations

import base64

import pytest
from multidict import CIMultiDict

from gpugate.proxy.auth import MAX_TOKEN, NO_TOKEN, single_token, tokens_of


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


def authorized(*values: str, **more: str) -> CIMultiDict[str]:
    return CIMultiDict([*(("Authorization", value) for value in values), *more.items()])


@pytest.mark.parametrize(
    "value",
    [
        "Bearer x.y.z",
        "bearer x.y.z",
        "BEARER x.y.z",
        "Bearer   x.y.z",
        "Bearer x.y.z ",
        basic("ann:x.y.z"),
        basic(":x.y.z"),
        basic("müller:x.y.z"),
        basic("ann:x.y.z").replace("Basic", "basic "),
    ],
)
def test_authorization(value: str) -> None:
    """Bearer, or the password of Basic; the scheme's case and the number of spaces do not matter."""
    assert ["x.y.z"] == tokens_of("", authorized(value))


@pytest.mark.parametrize(
    "value",
    [
        "",
        "Bearer",
        "Bearer ",
        "x.y.z",
        "Bearerx",
        "Bearer é",
        "Bearer \udcff",
        "Bearer " + "x" * (MAX_TOKEN + 1),
        "Bearer a b",
        "Bearer\tx",
        "Bearer a\tb",
        "Token x",
        "Basic",
        "Basic x",
        "Basic \udcff",
        "Basic x.y.z",
        basic("x.y.z"),
        basic("x.y.z:"),
        basic("ann:é"),
        basic("ann:a b"),
        basic("ann:" + "x" * (MAX_TOKEN + 1)),
    ],
)
def test_malformed(value: str) -> None:
    """Everything else is no token, and says so in its place."""
    assert [NO_TOKEN] == tokens_of("", authorized(value))
    assert ["key"] == tokens_of("", authorized(value, **{"x-api-key": "key"}))[1:]


def test_order() -> None:
    """The path, Authorization, x-api-key."""
    assert [] == tokens_of("", CIMultiDict())
    assert ["path", "b", "key"] == tokens_of("path", authorized("Bearer b", **{"X-API-Key": " key "}))


def test_two_of_a_kind() -> None:
    """A header that came twice has no token."""
    twice = CIMultiDict([("X-Api-Key", "a"), ("X-Api-Key", "a")])

    assert [NO_TOKEN] == tokens_of("", twice)
    assert [NO_TOKEN] == tokens_of("", authorized("Bearer a", "Bearer a"))
    assert ["", ""] == [single_token(twice), single_token(authorized("Bearer a", "Bearer a"))]


@pytest.mark.parametrize(
    ("headers", "token"),
    [
        (authorized("Bearer a"), "a"),
        (CIMultiDict({"x-api-key": "a"}), "a"),
        (authorized("Bearer a", **{"x-api-key": "b"}), "a"),
        (authorized(basic("ann:a")), ""),
        (authorized("bearer a", **{"x-api-key": "b"}), ""),
        (CIMultiDict(), ""),
    ],
)
def test_usual_form(headers: CIMultiDict[str], token: str) -> None:
    """The short cut finds what comes first, or nothing."""
    assert token == single_token(headers)
    assert not token or token == tokens_of("", headers)[0]
