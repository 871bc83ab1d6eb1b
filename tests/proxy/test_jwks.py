"""An identity provider's keys: how they are fetched, kept, rotated and missed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
import jwt
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from gpugate.errors import ProviderUnavailable
from gpugate.proxy import jwks as module
from gpugate.proxy.jwks import (
    MAX_BYTES,
    OUTAGE_S,
    PAUSE_S,
    REFRESH_S,
    JwksCache,
    KeyFetchError,
    ScopeRules,
    http_fetch,
)

RSA_KEY = rsa.generate_private_key(65537, 2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())


def rsa_member(**extra: object) -> dict[str, object]:
    return {**jwt.get_algorithm_by_name("RS256").to_jwk(RSA_KEY.public_key(), as_dict=True), **extra}  # type: ignore[attr-defined]


def ec_member(**extra: object) -> dict[str, object]:
    return {**jwt.get_algorithm_by_name("ES256").to_jwk(EC_KEY.public_key(), as_dict=True), **extra}  # type: ignore[attr-defined]


class Idp:
    """An identity provider that a test can rotate, break and make slow; it counts its visits."""

    def __init__(self, *members: object) -> None:
        self.document: bytes | Exception = b""
        self.visits = 0
        self.open = asyncio.Event()
        self.open.set()
        self.now = 1000.0
        self.told: list[str | None] = []
        self.publish(*members)
        self.jwks = JwksCache(self.fetch, clock=lambda: self.now, on_status=self.told.append)

    def publish(self, *members: object) -> None:
        self.document = json.dumps({"keys": members}).encode()

    async def fetch(self) -> bytes:
        self.visits += 1
        await self.open.wait()
        if isinstance(self.document, Exception):
            raise self.document
        return self.document

    def count(self, kid: str | None, algorithm: str = "RS256") -> int:
        return len(self.jwks.find(kid, algorithm))


class TestFetching:
    async def test_keys_are_kept(self) -> None:
        """One fetch serves for ten minutes, the next is made on demand."""
        idp = Idp(rsa_member(kid="k"))
        await idp.jwks.ensure_fresh()
        idp.now += REFRESH_S - 1
        await idp.jwks.ensure_fresh()
        assert (1, 1) == (idp.visits, idp.count("k"))
        idp.now += 1
        await idp.jwks.ensure_fresh()
        assert 2 == idp.visits

    async def test_many_ask_at_once(self) -> None:
        """All who wait share one fetch."""
        idp = Idp(rsa_member(kid="k"))
        idp.open.clear()
        asking = [asyncio.ensure_future(idp.jwks.ensure_fresh()) for _ in range(20)]
        await asyncio.sleep(0)
        idp.open.set()
        await asyncio.gather(*asking)

        assert 1 == idp.visits

    async def test_first_asker_hangs_up(self) -> None:
        """The one who began the fetch may leave without breaking it for the others."""
        idp = Idp(rsa_member(kid="k"))
        idp.open.clear()
        first, second = (asyncio.ensure_future(idp.jwks.ensure_fresh()) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.sleep(0)
        idp.open.set()
        await second

        assert (True, 1, 1) == (first.cancelled(), idp.visits, idp.count("k"))

    async def test_new_key(self) -> None:
        """A name that is not known is looked for, but not more often than every ten seconds."""
        idp = Idp(rsa_member(kid="old"))
        await idp.jwks.ensure_fresh()
        idp.publish(rsa_member(kid="old"), rsa_member(kid="new"))
        assert await idp.jwks.refresh_if_unknown() is False
        idp.now += PAUSE_S
        assert await idp.jwks.refresh_if_unknown() is True
        assert (2, 1, 1) == (idp.visits, idp.count("old"), idp.count("new"))
        idp.now += PAUSE_S
        assert await idp.jwks.refresh_if_unknown() is False

    async def test_withdrawn_key(self) -> None:
        """A key that is gone from the set is gone, also if it was the only one."""
        idp = Idp(rsa_member(kid="a"), rsa_member(kid="b"))
        await idp.jwks.ensure_fresh()
        idp.publish(rsa_member(kid="b"))
        idp.now += REFRESH_S
        await idp.jwks.ensure_fresh()
        assert (0, 1) == (idp.count("a"), idp.count("b"))
        idp.publish()
        idp.now += REFRESH_S
        await idp.jwks.ensure_fresh()
        assert 0 == idp.count("b")

    async def test_closed_while_fetching(self) -> None:
        """Closing ends a fetch that is under way, and may be done twice."""
        idp = Idp()
        idp.open.clear()
        asking = asyncio.ensure_future(idp.jwks.ensure_fresh())
        await asyncio.sleep(0)
        await idp.jwks.aclose()
        await asyncio.wait([asking])
        await idp.jwks.aclose()

        assert asking.cancelled()


class TestOutage:
    async def test_never_reached(self) -> None:
        """Without any key nobody can be judged, and the provider is not hammered."""
        idp = Idp()
        idp.document = ConnectionRefusedError("refused")
        for _ in range(3):
            with pytest.raises(ProviderUnavailable) as caught:
                await idp.jwks.ensure_fresh()
            assert PAUSE_S == caught.value.retry_after_s
        assert (1, True, ["refused"]) == (idp.visits, idp.jwks.failing, idp.told)
        idp.publish(rsa_member(kid="k"))
        idp.now += PAUSE_S
        await idp.jwks.ensure_fresh()
        assert (2, False, ["refused", None]) == (idp.visits, idp.jwks.failing, idp.told)

    async def test_telling_that_fails(self) -> None:
        """A broken listener costs a report, not the keys."""
        reports: list[str] = []
        asyncio.get_running_loop().set_exception_handler(
            lambda loop, context: reports.append(str(context["exception"]))
        )

        def fail(trouble: str | None) -> None:
            raise RuntimeError("broken")

        idp = Idp()
        idp.jwks = JwksCache(idp.fetch, clock=lambda: idp.now, on_status=fail)
        idp.document = ConnectionRefusedError("refused")
        with pytest.raises(ProviderUnavailable):
            await idp.jwks.ensure_fresh()
        idp.publish(rsa_member(kid="k"))
        idp.now += PAUSE_S
        await idp.jwks.ensure_fresh()
        assert (1, ["broken", "broken"]) == (idp.count("k"), reports)

    async def test_old_keys(self) -> None:
        """Old keys are good for a day, counted from the last fetch that worked."""
        idp = Idp(rsa_member(kid="k"))
        await idp.jwks.ensure_fresh()
        idp.document = TimeoutError()
        idp.now += OUTAGE_S - 1
        await idp.jwks.ensure_fresh()
        assert 1 == idp.count("k")
        idp.now += 1
        with pytest.raises(ProviderUnavailable):
            await idp.jwks.ensure_fresh()

    @pytest.mark.parametrize(
        "document",
        [b"", b"<html>", b"[]", b"null", b'{"keys":{}}', b'{"keys":null}', b"{}", b"[" * 9999, b"\xff"],
    )
    async def test_answer_that_is_no_key_set(self, document: bytes) -> None:
        """Rubbish is an outage: the old keys stay."""
        idp = Idp(rsa_member(kid="k"))
        await idp.jwks.ensure_fresh()
        idp.document = document
        idp.now += REFRESH_S
        await idp.jwks.ensure_fresh()

        assert (1, True) == (idp.count("k"), idp.jwks.failing)

    async def test_answer_that_never_comes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A fetch ends after its time."""
        monkeypatch.setattr(module, "TIMEOUT_S", 0.01)
        idp = Idp()
        idp.open.clear()

        with pytest.raises(ProviderUnavailable):
            await idp.jwks.ensure_fresh()
        assert ["TimeoutError"] == idp.told


class TestMembers:
    @pytest.mark.parametrize(
        "member",
        [
            rsa_member(use="enc"),
            rsa_member(key_ops=["encrypt"]),
            rsa_member(alg="RS512"),
            rsa_member(n="!"),
            rsa_member(n=5),
            rsa_member(n=""),
            {"kty": "RSA"},
            {"kty": "oct", "k": "AAAA", "alg": "RS256"},
            {"kty": 1},
            {},
            "k",
            None,
            ec_member(),
        ],
    )
    async def test_member_of_no_use(self, member: object) -> None:
        """What cannot verify RS256 is passed over, and costs the others nothing."""
        idp = Idp(member, rsa_member(kid="k", use="sig", key_ops=["verify"]))
        await idp.jwks.ensure_fresh()

        assert (1, 1) == (idp.count("k"), idp.count(None))

    async def test_two_of_one_name(self) -> None:
        """Keys that share a name are all candidates."""
        idp = Idp(rsa_member(kid="k"), ec_member(kid="k"), rsa_member(kid="k"))
        await idp.jwks.ensure_fresh()

        assert (2, 1) == (idp.count("k"), idp.count("k", "ES256"))

    async def test_nameless(self) -> None:
        """A set without names serves every name; among names, a nameless one is not a joker."""
        idp = Idp(rsa_member())
        await idp.jwks.ensure_fresh()
        assert (1, 1, False) == (idp.count("any"), idp.count(None), idp.jwks.has_key("any"))
        idp.publish(rsa_member(), rsa_member(kid="k"), rsa_member(kid=7))
        idp.now += REFRESH_S
        await idp.jwks.ensure_fresh()
        assert (0, 1, 3, True) == (idp.count("x"), idp.count("k"), idp.count(None), idp.jwks.has_key("k"))

    async def test_other_curve(self) -> None:
        """A key of another curve does not verify ES256."""
        key = ec.generate_private_key(ec.SECP384R1())
        idp = Idp({**jwt.get_algorithm_by_name("ES384").to_jwk(key.public_key(), as_dict=True)})  # type: ignore[attr-defined]
        await idp.jwks.ensure_fresh()

        assert (0, 1) == (idp.count(None, "ES256"), idp.count(None, "ES384"))

    async def test_private_members(self) -> None:
        """A set that shows private keys by mistake is read as if it did not."""
        private = jwt.get_algorithm_by_name("RS256").to_jwk(RSA_KEY, as_dict=True)  # type: ignore[attr-defined]
        idp = Idp({**private, "key_ops": ["sign", "verify"]})
        await idp.jwks.ensure_fresh()
        (key,) = idp.jwks.find(None, "RS256")

        assert isinstance(key.key, rsa.RSAPublicKey)

    async def test_algorithms_without_a_kind(self) -> None:
        """An algorithm of no known kind finds nothing."""
        idp = Idp(rsa_member())
        await idp.jwks.ensure_fresh()

        assert [0, 0, 0] == [idp.count(None, name) for name in ("HS256", "none", "")]


Serve = Callable[[Callable[[web.Request], Awaitable[web.StreamResponse]]], Awaitable[module.Fetch]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Starts a server with one handler on loopback, and gives a fetch of it."""
    closing: list[TestServer] = []
    async with aiohttp.ClientSession() as session:

        async def start(handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> module.Fetch:
            application = web.Application()
            application.router.add_get("/jwks.json", handler)
            server = TestServer(application, host="127.0.0.1")
            await server.start_server()
            closing.append(server)
            return http_fetch(session, str(server.make_url("/jwks.json")))

        yield start
    for server in closing:
        await server.close()


class TestHttp:
    async def test_answer(self, serve: Serve) -> None:
        """The document is read as it is, whatever its type is called."""

        async def handler(request: web.Request) -> web.Response:
            assert "identity" == request.headers["Accept-Encoding"]
            return web.Response(text='{"keys":[]}', content_type="text/plain")

        assert b'{"keys":[]}' == await (await serve(handler))()

    @pytest.mark.parametrize("status", [204, 302, 404, 500])
    async def test_other_status(self, serve: Serve, status: int) -> None:
        """Any other status fails, a redirect too: it might lead to plain http."""

        async def handler(request: web.Request) -> web.Response:
            return web.Response(status=status, headers={"Location": "/jwks.json"})

        with pytest.raises(KeyFetchError, match=str(status)):
            await (await serve(handler))()

    async def test_too_large(self, serve: Serve) -> None:
        """An endless document is cut off."""

        async def handler(request: web.Request) -> web.Response:
            return web.Response(body=b" " * (MAX_BYTES + 1))

        with pytest.raises(KeyFetchError, match="too large"):
            await (await serve(handler))()

    async def test_cut_short(self, serve: Serve) -> None:
        """Half a document is none, and the message holds no URL."""

        async def handler(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(headers={"Content-Length": "100"})
            await response.prepare(request)
            await response.write(b"{")
            assert request.transport is not None
            request.transport.abort()
            return response

        with pytest.raises(KeyFetchError, match="cannot be reached") as caught:
            await (await serve(handler))()
        assert "127.0.0.1" not in str(caught.value)

    async def test_nobody_there(self) -> None:
        """A refused connection is told without the address."""
        async with aiohttp.ClientSession() as session:
            idp = JwksCache(http_fetch(session, "http://127.0.0.1:1/jwks.json"))
            with pytest.raises(ProviderUnavailable, match="cannot be asked right now"):
                await idp.ensure_fresh()


class TestScopeRules:
    RULES = ScopeRules(("scope", "scp", "permissions", "roles"), {"gpu-users": "chat pod", "GPU Ops": "cost"})

    @pytest.mark.parametrize(
        ("claims", "scopes"),
        [
            ({}, "chat"),
            ({"scope": "openid profile email"}, "chat"),
            ({"scope": "openid admin"}, "admin"),
            ({"scope": "", "scp": "pod cost"}, "pod cost"),
            ({"scope": "openid", "scp": ["pod", "User.Read"]}, "pod"),
            ({"scope": "cost", "scp": "admin"}, "cost"),
            ({"permissions": ["gpu-users"], "roles": ["admin"]}, "chat pod"),
            ({"roles": ["GPU Ops", "dragons"]}, "cost"),
            ({"roles": "GPU Ops"}, "cost"),
            ({"roles": ["gpu-users", "GPU Ops"]}, "chat pod cost"),
            (
                {"scope": None, "scp": 1, "permissions": {"admin": True}, "roles": [1, ["admin"], "pod"]},
                "pod",
            ),
            ({"groups": ["admin"]}, "chat"),
        ],
    )
    def test_claims(self, claims: dict[str, object], scopes: str) -> None:
        """The first claim counts that holds one of our scopes, else the default."""
        assert set(scopes.split()) == self.RULES.scopes_of(claims)

    def test_map_goes_first(self) -> None:
        """A word of theirs that looks like ours means what the map says."""
        assert {"chat"} == ScopeRules(words={"admin": "chat"}).scopes_of({"scope": "admin"})

    def test_default(self) -> None:
        """It may be nothing, or several."""
        assert set() == ScopeRules(default="").scopes_of({"scope": "openid"})
        assert {"pod", "chat"} == ScopeRules(default="pod chat").scopes_of({})
