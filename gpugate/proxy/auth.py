"""Who asks: bearer tokens in, users out; knows nothing of paths, bodies or the pod.

A token is judged in this order, and the first failure is the one that is told: its shape, its
signature, the shape of its claims, who it is from and for, and last its age. So "has expired" is
only ever said to somebody who once held a good token.

An HS256 secret and an identity provider's keys never meet: the token's algorithm picks one of the
two, out of what is configured, and a key is only ever used with algorithms of its own kind.
"""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from math import inf
from typing import Protocol

import orjson
from attrs import frozen
from jwt import PyJWK, PyJWS
from jwt.algorithms import HMACAlgorithm
from jwt.exceptions import InvalidKeyError, InvalidTokenError

from gpugate.billing.model import BY_HAND
from gpugate.errors import InvalidToken, ProviderUnavailable, TokenExpired
from gpugate.proxy.jwks import PROVIDER_UNREACHABLE, JwksCache

SIGNATURE_INVALID = "token signature is invalid"
MAX_TOKEN = 16 * 1024  # characters; real ones have a few hundred
MAX_CACHED = 4096
JWKS_CACHE_S = 60.0  # a withdrawn key's tokens work for at most this long after it is known
MAX_TIMESTAMP = 2.0**53  # seconds; an `exp` beyond it is no date

SYMMETRIC = ("HS256", "HS384", "HS512")
DEFAULT_ASYMMETRIC = ("RS256", "ES256", "EdDSA")

_BASE64URL = re.compile(r"[A-Za-z0-9_-]*={0,2}", re.ASCII)
_HASHES = {"HS256": HMACAlgorithm.SHA256, "HS384": HMACAlgorithm.SHA384, "HS512": HMACAlgorithm.SHA512}


class HeaderLookup(Protocol):
    """What is asked of a request's headers; aiohttp's fit."""

    def getall(self, key: str, default: tuple[str, ...]) -> Sequence[str]:
        """Every value of one header."""


@frozen
class User:
    """Who asks. `scopes` is what the token covers; None covers everything."""

    subject: str
    scopes: frozenset[str] | None

    def has_scope(self, scope: str) -> bool:
        """Whether the token covers `scope`; "admin" covers all (docs/api.md#tokens-and-scopes)."""
        scopes = self.scopes
        return scopes is None or scope in scopes or "admin" in scopes


def subject_of(user: User | None) -> str:
    """In whose name something is asked for; the owner's own hand where nobody had to say who he is."""
    return user.subject if user is not None else BY_HAND


class _Hmac(HMACAlgorithm):
    """HMAC without PyJWT's advice on length: 32 bytes is what the settings ask for, for all three."""

    def check_key_length(self, key: bytes) -> str | None:
        return None


class Verifier:
    """Judges tokens, and remembers the good ones.

    Args:
        secret: for HS256 and its kin, at least 32 bytes; empty for none.
        algorithms: `auth.algorithms`; those of the wrong kind for a key are not used with it.
        issuer: what `iss` must be; empty for anything.
        audience: what `aud` must be or hold; empty for anything, also for a token that has one.
        leeway_s: how far clocks may differ, in seconds.
        require_exp: whether a token without an expiry is malformed.
        jwks: the identity provider's keys, or None.
        clock: seconds since 1970.

    Raises:
        ValueError: the secret is something that cannot be a shared secret, such as a public key.
    """

    def __init__(
        self,
        *,
        secret: str,
        algorithms: Iterable[str],
        issuer: str,
        audience: str,
        leeway_s: float,
        require_exp: bool,
        jwks: JwksCache | None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        allowed = tuple(algorithms)
        self._symmetric = tuple(name for name in allowed if name in SYMMETRIC) if secret else ()
        asymmetric = tuple(name for name in allowed if name not in SYMMETRIC and name != "none")
        self._asymmetric = (asymmetric or DEFAULT_ASYMMETRIC) if jwks is not None else ()
        self._secret = secret.encode()
        self._jws = _jws_for(self._secret)
        self._jwks = jwks
        self._issuer = issuer
        self._audience = audience
        self._leeway_s = leeway_s
        self._require_exp = require_exp
        self._clock = clock
        self._cached: dict[bytes, tuple[User, float]] = {}

    def cached_user(self, token: str) -> User | None:
        """The user of a token that was good and still is, else None: then ask `verify`."""
        key = token_digest(token)
        found = self._cached.get(key)
        if found is None:
            return None
        if self._clock() < found[1]:
            return found[0]
        self._cached.pop(key, None)
        return None

    def user_from_headers(self, headers: HeaderLookup) -> User | None:
        """The same for the token in `Authorization`; a stranger's is taken apart by `bearer_token`, not
        here.
        """
        values = headers.getall("Authorization", ())
        if len(values) != 1 or not values[0].startswith("Bearer "):
            return None
        return self.cached_user(values[0][7:])

    async def verify(self, token: str) -> User:
        """Judge a token, and remember it if it is good.

        Raises:
            InvalidToken: malformed, or not signed as it should be; the message says which.
            TokenExpired: it was good once.
            ProviderUnavailable: the identity provider's keys are needed and cannot be had.
        """
        header = _header_of(token)
        algorithm = header.get("alg")
        longest = inf
        if algorithm in self._symmetric:
            payload = self._opened(token, self._secret, str(algorithm))
        elif self._jwks is not None and algorithm in self._asymmetric:
            payload = await self._opened_by_provider(token, header.get("kid"), str(algorithm), self._jwks)
            longest = self._clock() + JWKS_CACHE_S
        else:
            raise InvalidToken(SIGNATURE_INVALID)
        if payload is None:
            raise InvalidToken(SIGNATURE_INVALID)
        user, until = self._judged(_claims_of(payload))
        self._cache(token, user, min(until, longest))
        return user

    def _opened(self, token: str, key: bytes | PyJWK, algorithm: str) -> bytes | None:
        """The payload, if `key` signed it."""
        try:
            payload = self._jws.decode(token, key, algorithms=[algorithm])
        except InvalidTokenError:
            return None
        return bytes(payload)

    async def _opened_by_provider(
        self, token: str, kid: object, algorithm: str, jwks: JwksCache
    ) -> bytes | None:
        if kid is not None and not isinstance(kid, str):
            raise InvalidToken
        await jwks.ensure_fresh()
        keys = jwks.find(kid, algorithm)
        payload = self._opened_by_any(token, keys, algorithm)
        # A key that is not known may be a new one. Without a `kid` one cannot tell, so look as well.
        if payload is None and not jwks.has_key(kid) and await jwks.refresh_if_unknown():
            keys = jwks.find(kid, algorithm)
            payload = self._opened_by_any(token, keys, algorithm)
        if payload is None and not keys and jwks.failing:
            raise ProviderUnavailable(PROVIDER_UNREACHABLE, retry_after_s=jwks.pause_s)
        return payload

    def _opened_by_any(self, token: str, keys: Iterable[PyJWK], algorithm: str) -> bytes | None:
        for key in keys:
            payload = self._opened(token, key, algorithm)
            if payload is not None:
                return payload
        return None

    def _judged(self, claims: Mapping[str, object]) -> tuple[User, float]:
        """The user, and when the token ends: an instant, or infinity."""
        expires, not_before, issued = (_instant(claims, name) for name in ("exp", "nbf", "iat"))
        subject = claims.get("sub", "-")
        if not isinstance(subject, str) or (expires is None and self._require_exp):
            raise InvalidToken
        now = self._clock()
        if max(not_before or 0.0, issued or 0.0) > now + self._leeway_s or not self._meant_for_us(claims):
            raise InvalidToken(SIGNATURE_INVALID)
        until = inf if expires is None else expires + self._leeway_s
        if now >= until:
            raise TokenExpired
        return User(subject or "-", _scopes_of(claims)), until

    def _meant_for_us(self, claims: Mapping[str, object]) -> bool:
        if self._issuer and claims.get("iss") != self._issuer:
            return False
        audience = claims.get("aud")
        named = audience if isinstance(audience, list) else [audience]
        return not self._audience or self._audience in named

    def _cache(self, token: str, user: User, until: float) -> None:
        remembered = self._cached
        remembered.pop(key := token_digest(token), None)
        if len(remembered) >= MAX_CACHED:
            del remembered[next(iter(remembered))]
        remembered[key] = (user, until)


def bearer_token(headers: HeaderLookup) -> str:
    """The token of `Authorization: Bearer <token>`; the scheme's case does not matter.

    Raises:
        InvalidToken: there is none, more than one, another scheme, or something that is no token.
    """
    values = headers.getall("Authorization", ())
    if len(values) != 1:
        raise InvalidToken
    scheme, _, token = values[0].partition(" ")
    token = token.strip(" ")
    # Printable as well: neither a second word nor a tab is part of a token.
    if scheme.lower() != "bearer" or not _plausible(token) or " " in token or not token.isprintable():
        raise InvalidToken
    return token


def token_digest(token: str) -> bytes:
    """What a token is remembered under: who reads our memory finds none."""
    return sha256(token.encode("utf-8", "surrogatepass")).digest()


def _plausible(token: str) -> bool:
    return 0 < len(token) <= MAX_TOKEN and token.isascii()


def _jws_for(secret: bytes) -> PyJWS:
    jws = PyJWS(options={"verify_signature": True, "enforce_minimum_key_length": True})
    for name, digest in _HASHES.items():
        jws.unregister_algorithm(name)
        jws.register_algorithm(name, algorithm := _Hmac(digest))
        if secret:
            try:
                algorithm.prepare_key(secret)
            except InvalidKeyError as error:
                raise ValueError("auth.secret looks like a public key or a certificate") from error
    return jws


def _header_of(token: str) -> Mapping[str, object]:
    """The token's header, after a look at its shape.

    The third part is not looked at: whatever is wrong with it, it is not the right signature.
    """
    parts = token.split(".", 3) if _plausible(token) else []
    if len(parts) != 3:
        raise InvalidToken
    _decoded(parts[1])
    return _claims_of(_decoded(parts[0]))


def _decoded(part: str) -> bytes:
    bare = part.rstrip("=")
    if not _BASE64URL.fullmatch(part) or len(bare) % 4 == 1:
        raise InvalidToken
    return base64.urlsafe_b64decode(bare + "=" * (-len(bare) % 4))


def _claims_of(payload: bytes) -> Mapping[str, object]:
    """A JSON object. Strict: no NaN, no infinity, valid UTF-8, bounded depth."""
    try:
        claims = orjson.loads(payload)
    except orjson.JSONDecodeError:
        raise InvalidToken from None
    if not isinstance(claims, dict):
        raise InvalidToken
    return claims


def _instant(claims: Mapping[str, object], name: str) -> float | None:
    """One of the time claims in seconds since 1970, None if the token has none."""
    if name not in claims:
        return None
    value = claims[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > MAX_TIMESTAMP:
        raise InvalidToken
    return float(value)


def _scopes_of(claims: Mapping[str, object]) -> frozenset[str] | None:
    """The words of `scope`: no claim covers all, a claim that cannot be read covers nothing."""
    if "scope" not in claims:
        return None
    scope = claims["scope"]
    words = scope.split() if isinstance(scope, str) else scope
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        return frozenset()
    return frozenset(words)
