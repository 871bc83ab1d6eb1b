"""Verifies bearer tokens and caches the users of good ones.

A token is refused in one of three ways (docs/api.md#tokens-and-scopes), and the first that applies is told:

1. It is missing or malformed: no JWT, claims that are no object, `exp` missing or no number.
2. Its signature is invalid, or its issuer, its audience, its algorithm; or it is not valid yet.
3. It has expired. Only said of a token that has passed everything else.

An HS256 secret and an identity provider's keys never meet: the token's algorithm picks one of the two, out of
what is configured, and a key is only ever used with algorithms of its own kind.
"""

from __future__ import annotations

import base64
import binascii
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from hashlib import sha256
from math import inf
from typing import Any, Protocol

import aiohttp
import jwt
from attrs import frozen
from jwt import PyJWK
from jwt.algorithms import HMACAlgorithm
from jwt.exceptions import InvalidSubjectError
from jwt.types import Options

from gpugate.billing.model import BY_HAND
from gpugate.config.schema import Auth
from gpugate.config.units import show_duration
from gpugate.errors import AuthError, GateError, InvalidToken, ProviderUnavailable, TokenExpired
from gpugate.proxy.jwks import PROVIDER_UNREACHABLE, JwksCache, ScopeRules, http_fetch

SIGNATURE_INVALID = "token signature is invalid"
MAX_TOKEN = 16 * 1024  # characters; real ones have a few hundred
NO_TOKEN = ""  # stands for the token of a place that has something else in it
MAX_CACHED = 4096
TOLD_BEFORE_S = 7 * 86_400.0
SHORT_LIFE_S = 86_400.0  # a program makes such tokens itself, and renews them
JWKS_CACHE_S = 60.0  # a withdrawn key's tokens work for at most this long after the refresh
MAX_TIMESTAMP = 2.0**53  # seconds; an `exp` beyond it is no date

SYMMETRIC = ("HS256", "HS384", "HS512")
DEFAULT_ASYMMETRIC = ("RS256", "ES256", "EdDSA")


class HeaderLookup(Protocol):
    """The part of a header mapping that is used here; aiohttp's has it."""

    def getall(self, key: str, default: tuple[str, ...]) -> Sequence[str]:
        """Return every value of one header."""


@frozen
class User:
    """The owner of a token. `scopes` is what the token covers; None covers everything."""

    subject: str
    scopes: frozenset[str] | None

    def has_scope(self, scope: str) -> bool:
        """Say whether the token covers `scope`; "admin" covers all (docs/api.md#tokens-and-scopes)."""
        scopes = self.scopes
        return scopes is None or scope in scopes or "admin" in scopes


def subject_of(user: User | None) -> str:
    """Return the user's name for the ledger; that of manual use where no token was needed."""
    return user.subject if user is not None else BY_HAND


class Verifier:
    """Verifies tokens, and caches the users of good ones under the tokens' digests.

    Args:
        secret: for HS256 and its kin, at least 32 bytes; empty for none.
        algorithms: `auth.algorithms`; those of the wrong kind for a key are not used with it.
        issuer: what `iss` must be; empty for anything.
        audience: what `aud` must be or hold; empty for anything, also for a token that has one.
        leeway_s: how far clocks may differ, in seconds.
        require_exp: whether a token without an expiry is malformed.
        jwks: the identity provider's keys, or None.
        foreign_scopes: what its tokens cover.
        clock: seconds since 1970.
        on_ending: called with subject and end once a user's token of our own secret ends within a week.

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
        foreign_scopes: ScopeRules | None = None,
        clock: Callable[[], float] = time.time,
        on_ending: Callable[[str, float], None] = lambda subject, end: None,
    ) -> None:
        allowed = tuple(algorithms)
        self._symmetric = tuple(name for name in allowed if name in SYMMETRIC) if secret else ()
        asymmetric = tuple(name for name in allowed if name not in SYMMETRIC and name != "none")
        self._asymmetric = (asymmetric or DEFAULT_ASYMMETRIC) if jwks is not None else ()
        self._secret = secret.encode()
        _refuse_public_key(self._secret)
        self._jwks = jwks
        self._foreign_scopes = foreign_scopes or ScopeRules()
        self._issuer = issuer
        self._audience = audience
        self._leeway_s = leeway_s
        self._required = ["exp"] if require_exp else []
        self._clock = clock
        self._on_ending = on_ending
        self._told_of_end: set[str] = set()
        self._cached: dict[bytes, tuple[User, float]] = {}

    def cached_user(self, token: str) -> User | None:
        """Return the user of a token that was verified before and has not expired; None: call `verify`."""
        key = token_digest(token)
        found = self._cached.get(key)
        if found is None:
            return None
        if self._clock() < found[1]:
            return found[0]
        self._cached.pop(key, None)
        return None

    def user_from_headers(self, headers: HeaderLookup) -> User | None:
        """Return the same for the token in a request's headers; None also where they are unusual."""
        token = single_token(headers)
        return self.cached_user(token) if token else None

    async def verify_any(self, tokens: Iterable[str]) -> User:
        """Return the user of the first of a request's tokens that is valid.

        Raises:
            GateError: as `verify` does for the first of them, or InvalidToken if there is none.
        """
        errors: list[GateError] = []
        try:
            for token in tokens:
                try:
                    return self.cached_user(token) or await self.verify(token)
                except (AuthError, ProviderUnavailable) as error:
                    errors.append(error)
            raise errors[0] if errors else InvalidToken(detail="there is none")
        finally:
            errors.clear()  # their tracebacks lead to this frame: the cycle would keep the tokens in memory

    async def verify(self, token: str) -> User:
        """Verify a token, and cache its user.

        Raises:
            InvalidToken: malformed, or not signed as it should be; the message says which.
            TokenExpired: it was good once.
            ProviderUnavailable: the identity provider's keys are needed and cannot be had.
        """
        header = _header_of(token)
        algorithm = header.get("alg")
        scopes_of: Callable[[Mapping[str, object]], frozenset[str] | None] = _scopes_of
        cached_until = inf
        if algorithm in self._symmetric:
            claims = self._claims(token, self._secret, str(algorithm))
        elif self._jwks is not None and algorithm in self._asymmetric:
            claims = await self._claims_by_jwks(token, header.get("kid"), str(algorithm), self._jwks)
            cached_until = self._clock() + JWKS_CACHE_S
            scopes_of = self._foreign_scopes.scopes_of
        else:
            raise InvalidToken(SIGNATURE_INVALID, detail="its algorithm is not accepted")
        if claims is None:
            raise InvalidToken(SIGNATURE_INVALID, detail="signed with another key")
        expires = self._check_expiry(claims)
        user = User(claims.get("sub") or "-", scopes_of(claims))
        if cached_until == inf:
            cached_until = self._tell_of_end(user.subject, claims)
        self._cache(token, user, min(expires, cached_until))
        return user

    def _tell_of_end(self, subject: str, claims: Mapping[str, Any]) -> float:
        """Tell of a token that ends within a week, unless it was made for a day or less.

        Returns when to ask again, in seconds since 1970; infinity: never.
        """
        end, issued = claims.get("exp"), claims.get("iat")
        if end is None or (isinstance(issued, int | float) and end - issued <= SHORT_LIFE_S):
            return inf
        if self._clock() < end - TOLD_BEFORE_S:
            self._told_of_end.discard(subject)
            return float(end - TOLD_BEFORE_S)
        if subject not in self._told_of_end and len(self._told_of_end) < MAX_CACHED:
            self._told_of_end.add(subject)
            self._on_ending(subject, end)
        return inf

    def _claims(self, token: str, key: bytes | PyJWK, algorithm: str) -> Mapping[str, Any] | None:
        """Return the claims, all checked but for the expiry; None if `key` has not signed them.

        Raises:
            InvalidToken: `key` has signed them, and they are malformed or not meant for this gateway.
        """
        is_shared = isinstance(key, bytes)
        options: Options = {
            "require": self._required,
            "verify_exp": False,  # checked last, and by the injected clock
            "verify_aud": bool(self._audience),
            "verify_jti": False,
        }
        try:
            with warnings.catch_warnings():
                # A secret has at least 32 bytes, which is enough for each HMAC; PyJWT wants more for HS512.
                warnings.simplefilter("ignore" if is_shared else "error", jwt.InsecureKeyLengthWarning)
                claims: Mapping[str, Any] = jwt.decode(
                    token,
                    key,
                    algorithms=[algorithm],
                    options=options,
                    audience=self._audience or None,
                    issuer=self._issuer or None,
                    leeway=self._leeway_s,
                )
        except (jwt.InvalidSignatureError, jwt.InsecureKeyLengthWarning):
            return None
        except jwt.MissingRequiredClaimError as error:
            message = "" if error.claim == "exp" else SIGNATURE_INVALID
            raise InvalidToken(message, detail=f"it has no {error.claim}") from None
        except (jwt.DecodeError, jwt.InvalidIssuedAtError, InvalidSubjectError, RecursionError) as error:
            raise InvalidToken(detail=_kind(error)) from None
        except jwt.PyJWTError as error:
            raise InvalidToken(SIGNATURE_INVALID, detail=_kind(error)) from None
        return claims

    async def _claims_by_jwks(
        self, token: str, kid: str | None, algorithm: str, jwks: JwksCache
    ) -> Mapping[str, Any] | None:
        await jwks.ensure_fresh()
        keys = jwks.find(kid, algorithm)
        claims = self._claims_by_any(token, keys, algorithm)
        # An unknown key may be a new one. Without a `kid` one cannot tell, so fetch the set as well.
        if claims is None and not jwks.has_key(kid) and await jwks.refresh_if_unknown():
            keys = jwks.find(kid, algorithm)
            claims = self._claims_by_any(token, keys, algorithm)
        if claims is None and not keys and jwks.failing:
            raise ProviderUnavailable(PROVIDER_UNREACHABLE, retry_after_s=jwks.pause_s)
        return claims

    def _claims_by_any(self, token: str, keys: Iterable[PyJWK], algorithm: str) -> Mapping[str, Any] | None:
        for key in keys:
            claims = self._claims(token, key, algorithm)
            if claims is not None:
                return claims
        return None

    def _check_expiry(self, claims: Mapping[str, Any]) -> float:
        """Return when the token ends, leeway included: seconds since 1970, or infinity."""
        if "exp" not in claims:
            return inf
        expires = claims["exp"]
        is_number = isinstance(expires, int | float) and not isinstance(expires, bool)
        if not is_number or not abs(expires) <= MAX_TIMESTAMP:  # NaN, too
            raise InvalidToken(detail="its exp is no date")
        until: float = expires + self._leeway_s
        if (late_s := self._clock() - until) >= 0:
            raise TokenExpired(detail=f"{show_duration(late_s // 60 * 60)} ago")
        return until

    def _cache(self, token: str, user: User, until: float) -> None:
        remembered = self._cached
        remembered.pop(key := token_digest(token), None)
        if len(remembered) >= MAX_CACHED:
            del remembered[next(iter(remembered))]
        remembered[key] = (user, until)


def tokens_of(path_token: str, headers: HeaderLookup) -> list[str]:
    """Return the tokens of a request, in the order in which they count (docs/api.md#tokens-and-scopes).

    What stands in a place and is no token is NO_TOKEN.

    Args:
        path_token: the one that stood in the path; empty without one.
    """
    found = [path_token] if path_token else []
    if authorization := headers.getall("Authorization", ()):
        found.append(_from_authorization(authorization[0]) if len(authorization) == 1 else NO_TOKEN)
    if key := headers.getall("X-Api-Key", ()):
        found.append(_token(key[0]) if len(key) == 1 else NO_TOKEN)
    return found


def single_token(headers: HeaderLookup) -> str:
    """Return the token of a request that has it in one header, in the usual form; else "".

    It saves time: what it returns is all that `tokens_of` would find first.
    """
    values = headers.getall("Authorization", ())
    if not values:
        values = headers.getall("X-Api-Key", ())
        return values[0] if len(values) == 1 else ""
    return values[0][7:] if len(values) == 1 and values[0].startswith("Bearer ") else ""


def _from_authorization(value: str) -> str:
    scheme, _, credentials = value.partition(" ")
    match scheme.lower():
        case "bearer":
            return _token(credentials)
        case "basic":
            return _token(_password(credentials.strip(" ")))
    return NO_TOKEN


def _password(credentials: str) -> str:
    """Return the password in Basic's credentials (RFC 7617); the user's name may be any, or none."""
    try:
        pair = base64.b64decode(credentials, validate=True).decode("latin-1")
    except (binascii.Error, ValueError):
        return NO_TOKEN
    return pair.partition(":")[2]


def _token(text: str) -> str:
    token = text.strip(" ")
    # Printable as well: neither a second word nor a tab is part of a token.
    return token if _is_plausible(token) and " " not in token and token.isprintable() else NO_TOKEN


def token_digest(token: str) -> bytes:
    """Return the key under which a token's user is cached, so that no token stays in memory."""
    return sha256(token.encode("utf-8", "surrogatepass")).digest()


def _is_plausible(token: str) -> bool:
    return 0 < len(token) <= MAX_TOKEN and token.isascii()


def _refuse_public_key(secret: bytes) -> None:
    try:
        HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(secret)
    except jwt.InvalidKeyError as error:
        if secret:
            raise ValueError("auth.secret looks like a public key or a certificate") from error


def _header_of(token: str) -> Mapping[str, Any]:
    """Return the token's header.

    PyJWT would call a token malformed whose signature is no base64; here that is an invalid signature.

    Raises:
        InvalidToken: malformed, or its signature cannot be one.
    """
    signed, _, signature = token.rpartition(".")
    bare = signature.rstrip("=")
    try:
        header = jwt.get_unverified_header(f"{signed}." if _is_plausible(token) else "")
    except (jwt.InvalidTokenError, RecursionError):  # the latter: JSON nested too deeply, in some versions
        raise InvalidToken(detail="it is no JWT") from None
    try:
        decoded = base64.urlsafe_b64decode(bare + "=" * (-len(bare) % 4))
        is_clean = base64.urlsafe_b64encode(decoded).decode().rstrip("=") == bare
    except ValueError:
        is_clean = False
    if not is_clean:
        raise InvalidToken(SIGNATURE_INVALID, detail="its signature is no base64")
    return header


def _kind(error: Exception) -> str:
    """Name an error of PyJWT, whose text may quote claims."""
    return type(error).__name__


def _scopes_of(claims: Mapping[str, object]) -> frozenset[str] | None:
    """Return what a token of our own secret covers: all without `scope`, nothing if it is of another type."""
    if "scope" not in claims:
        return None
    scope = claims["scope"]
    words = scope.split() if isinstance(scope, str) else scope
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        return frozenset()
    return frozenset(words)


def make_verifier(
    auth: Auth, session: aiohttp.ClientSession, resources: AsyncExitStack, warn: Callable[[str], None]
) -> Verifier:
    """Return the verifier for `[auth]`; `resources` closes its cache of keys, if it has one."""
    jwks = None
    if auth.jwks_url:
        fetch = http_fetch(session, auth.jwks_url)
        on_status = lambda problem: warn(f"the identity provider: {problem or 'answers again'}")  # noqa: E731
        jwks = JwksCache(fetch, on_status=on_status)
        resources.push_async_callback(jwks.aclose)

    def on_ending(subject: str, end: float) -> None:
        at = f"{datetime.fromtimestamp(end, UTC):%Y-%m-%d %H:%M} UTC"
        warn(f"the token of {subject} ends on {at}: make another one with `gpugate token issue`")

    return Verifier(
        secret=auth.secret,
        algorithms=auth.algorithms,
        issuer=auth.issuer,
        audience=auth.audience,
        leeway_s=auth.leeway,
        require_exp=auth.require_exp,
        jwks=jwks,
        foreign_scopes=ScopeRules(auth.scope_claims, auth.scope_map, auth.default_scope),
        on_ending=on_ending,
    )
