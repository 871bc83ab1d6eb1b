"""An identity provider's public keys (JWKS): fetched, cached and refreshed; and what its tokens cover.

Nothing runs in the background: keys are fetched when they are needed, by one fetch that all waiting requests
share. During an outage of the provider the cached keys are used.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

import aiohttp
import orjson
from attrs import define, field, frozen
from jwt import PyJWK

from gpugate.config.schema import SCOPES
from gpugate.errors import ProviderUnavailable
from gpugate.tasks import report_crash, spawn

PROVIDER_UNREACHABLE = "the identity provider cannot be asked right now"
REFRESH_S = 600.0
PAUSE_S = 10.0  # between two fetches, so that bogus tokens do not hammer the provider
OUTAGE_S = 24 * 3600.0  # how long cached keys are used without a successful fetch
TIMEOUT_S = 5.0
MAX_BYTES = 256 * 1024
MAX_KEYS = 32  # real sets have two or three; each is tried on a token that names none

Fetch = Callable[[], Awaitable[bytes]]

_KINDS = {"RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP"}
_CURVES = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521", "ES256K": "secp256k1"}
# What a verifier needs; private members that a set shows by mistake are not read.
_PUBLIC = ("kty", "n", "e", "crv", "x", "y")


class KeyFetchError(Exception):
    """The keys could not be fetched; the message says why, without the URL."""


@define
class _Key:
    """One member of the set, and the key made of it for each algorithm so far."""

    kid: str | None
    members: Mapping[str, object]
    made: dict[str, PyJWK | None] = field(factory=dict)

    def for_algorithm(self, algorithm: str) -> PyJWK | None:
        if algorithm not in self.made:
            self.made[algorithm] = self._make(algorithm)
        return self.made[algorithm]

    def _make(self, algorithm: str) -> PyJWK | None:
        if self.members.get("kty") != _KINDS.get(algorithm[:2]):
            return None
        if self.members.get("alg", algorithm) != algorithm:
            return None
        if self.members.get("crv") != _CURVES.get(algorithm, self.members.get("crv")):
            return None
        public = {name: self.members[name] for name in _PUBLIC if name in self.members}
        try:
            return PyJWK(public, algorithm)
        except Exception:  # PyJWT and cryptography raise many kinds; one odd key must not cost the others
            return None


class JwksCache:
    """The keys of one JWKS document.

    Args:
        fetch: gets the document's bytes; raises KeyFetchError, OSError or TimeoutError.
        clock: seconds, monotonic.
        on_status: called once with the reason when fetching fails, and once with None when it works again.
    """

    pause_s = PAUSE_S

    def __init__(
        self,
        fetch: Fetch,
        *,
        clock: Callable[[], float] = time.monotonic,
        on_status: Callable[[str | None], None] | None = None,
    ) -> None:
        self._fetch = fetch
        self._clock = clock
        self._on_status = on_status
        self._keys: tuple[_Key, ...] | None = None
        self._document = b""
        self._changes = 0
        self._fetched_at = 0.0
        self._tried_at: float | None = None
        self._refreshing: asyncio.Task[None] | None = None
        self.failing = False

    async def ensure_fresh(self) -> None:
        """Fetch the keys if they are missing or old.

        Raises:
            ProviderUnavailable: there are none, or they are a day old.
        """
        if self._keys is None or self._clock() - self._fetched_at >= REFRESH_S:
            await self._refresh()
        if self._keys is None or self._clock() - self._fetched_at >= OUTAGE_S:
            raise ProviderUnavailable(PROVIDER_UNREACHABLE, retry_after_s=PAUSE_S)

    def has_key(self, kid: str | None) -> bool:
        """Whether the set has a key of this name."""
        return kid is not None and any(key.kid == kid for key in self._keys or ())

    def find(self, kid: str | None, algorithm: str) -> Sequence[PyJWK]:
        """The keys that may have signed a token with this `kid` (None: it names none)."""
        keys = self._keys or ()
        named = [key for key in keys if kid is None or key.kid == kid]
        nameless = [key for key in keys if key.kid is None]
        # In a set where keys have names, one without does not stand for all the others.
        chosen = named or (nameless if len(nameless) == len(keys) else [])
        return [made for key in chosen if (made := key.for_algorithm(algorithm)) is not None]

    async def refresh_if_unknown(self) -> bool:
        """Fetch again, unless that was done a moment ago; True if the keys are others now."""
        before = self._changes
        await self._refresh()
        return self._changes != before

    async def aclose(self) -> None:
        """Drop a fetch that is under way."""
        if (looking := self._refreshing) is not None:
            looking.cancel()
            await asyncio.wait([looking])

    async def _refresh(self) -> None:
        if self._refreshing is None or self._refreshing.done():  # done: it was cancelled before it began
            if self._tried_at is not None and self._clock() - self._tried_at < PAUSE_S:
                return
            self._tried_at = self._clock()
            self._refreshing = spawn(self._refresh_once(), "jwks")
        # Shielded: a client that hangs up must not cancel the fetch for the others.
        await asyncio.shield(self._refreshing)

    async def _refresh_once(self) -> None:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                document = await self._fetch()
            self._store(document)
        except (KeyFetchError, OSError) as error:
            self._report(str(error) or type(error).__name__)
        else:
            self._report(None)
        finally:
            self._refreshing = None

    def _store(self, document: bytes) -> None:
        if self._keys is None or document != self._document:
            self._keys = _keys_in(document)
            self._document = document
            self._changes += 1
        self._fetched_at = self._clock()

    def _report(self, trouble: str | None) -> None:
        was, self.failing = self.failing, trouble is not None
        if self._on_status is None or was == self.failing:
            return
        try:
            self._on_status(trouble)
        except Exception as error:  # the keys have been fetched all the same
            report_crash("jwks: telling of trouble", error, None)


@frozen
class ScopeRules:
    """What an identity provider's token covers (docs/api.md#tokens-and-scopes).

    Attributes:
        claims: `auth.scope_claims`.
        words: `auth.scope_map`.
        default: `auth.default_scope`.
    """

    claims: Sequence[str] = ("scope", "scp")
    words: Mapping[str, str] = field(factory=dict)
    default: str = "chat"

    def scopes_of(self, claims: Mapping[str, object]) -> frozenset[str]:
        """Return those of our scopes that the first claim with any of them holds, else the default's."""
        for name in self.claims:
            meant = " ".join(self.words.get(word, word) for word in _words_of(claims.get(name)))
            if ours := frozenset(meant.split()).intersection(SCOPES):
                return ours
        return frozenset(self.default.split())


def _words_of(claim: object) -> list[str]:
    """Return the words of a claim, which is a text or a list; a role's name may have blanks."""
    if isinstance(claim, str):
        return [claim, *claim.split()]
    return [word for word in claim if isinstance(word, str)] if isinstance(claim, list) else []


def http_fetch(session: aiohttp.ClientSession, url: str) -> Fetch:
    """A fetch of `url` for `JwksCache`: bounded in size, and no redirects, which could lead to plain http."""

    async def fetch() -> bytes:
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        try:
            async with session.get(url, headers=headers, allow_redirects=False) as answer:
                if answer.status != 200:
                    raise KeyFetchError(f"the identity provider answered {answer.status}")
                return await _bounded(answer.content)
        except aiohttp.ClientError as error:
            raise KeyFetchError(f"the identity provider cannot be reached: {type(error).__name__}") from error

    return fetch


async def _bounded(content: aiohttp.StreamReader) -> bytes:
    body = bytearray()
    async for chunk in content.iter_any():
        body += chunk
        if len(body) > MAX_BYTES:
            raise KeyFetchError("the identity provider's key set is too large")
    return bytes(body)


def _keys_in(document: bytes) -> tuple[_Key, ...]:
    """The usable keys. An empty set is an answer: all were withdrawn."""
    try:
        parsed = orjson.loads(document)
    except orjson.JSONDecodeError:
        raise KeyFetchError("the identity provider's key set is no JSON") from None
    members = parsed.get("keys") if isinstance(parsed, dict) else None
    if not isinstance(members, list):
        raise KeyFetchError("the identity provider's answer is no key set")
    usable = [member for member in members if isinstance(member, dict) and _signs(member)]
    return tuple(_Key(kid=_kid_of(member), members=member) for member in usable[:MAX_KEYS])


def _kid_of(member: Mapping[str, object]) -> str | None:
    kid = member.get("kid")
    return kid if isinstance(kid, str) else None


def _signs(member: Mapping[str, object]) -> bool:
    """Whether the key may be used on signatures, and is not a shared secret."""
    operations = member.get("key_ops")
    return (
        member.get("use", "sig") == "sig"
        and (not isinstance(operations, list) or "verify" in operations)
        and member.get("kty") in _KINDS.values()
    )
