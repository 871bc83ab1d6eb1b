"""Who is let in, who is not, and what each is told."""

from __future__ import annotations

import base64
import hmac
import json
import time
from hashlib import sha256

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from gpugate.errors import AuthError, GateError, ProviderUnavailable, TokenExpired
from gpugate.proxy.auth import MAX_CACHED, MAX_TOKEN, NO_TOKEN, SIGNATURE_INVALID, User, Verifier
from gpugate.proxy.jwks import JwksCache, ScopeRules

NOW = float(int(time.time()))  # PyJWT compares `nbf` and `iat` with the real clock
SECRET = "0123456789abcdef0123456789abcdef"
BOB = User("bob", frozenset({"chat"}))
"""The user of an identity provider's token that names no scope."""
MALFORMED = "token is missing or malformed"
RSA_KEY = rsa.generate_private_key(65537, 2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
ED_KEY = ed25519.Ed25519PrivateKey.generate()


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


def verifier(**changes: object) -> Verifier:
    settings: dict[str, object] = {
        "secret": SECRET,
        "algorithms": ["HS256"],
        "issuer": "",
        "audience": "",
        "leeway_s": 10.0,
        "require_exp": True,
        "jwks": None,
        "clock": Clock(),
    }
    return Verifier(**{**settings, **changes})  # type: ignore[arg-type]


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def raw_token(payload: bytes, header: object = None, secret: str = SECRET) -> str:
    """An HS256 token over any bytes, which no library would make."""
    head = b64(json.dumps(header or {"alg": "HS256", "typ": "JWT"}).encode())
    signed = f"{head}.{b64(payload)}"
    return f"{signed}.{b64(hmac.digest(secret.encode(), signed.encode(), 'sha256'))}"


def token(**claims: object) -> str:
    return raw_token(json.dumps({"sub": "ann", "exp": NOW + 60, **claims}).encode())


async def told(judge: Verifier, text: str) -> tuple[str, str]:
    with pytest.raises(GateError) as caught:
        await judge.verify(text)
    return caught.value.code, caught.value.message


def jwks_of(*members: dict[str, object], clock: Clock | None = None) -> JwksCache:
    async def fetch() -> bytes:
        return json.dumps({"keys": list(members)}).encode()

    return JwksCache(fetch, clock=clock or Clock())


def member(key: object, **extra: object) -> dict[str, object]:
    algorithm = {rsa.RSAPrivateKey: "RS256", ec.EllipticCurvePrivateKey: "ES256"}
    name = next((alg for kind, alg in algorithm.items() if isinstance(key, kind)), "EdDSA")
    made = jwt.get_algorithm_by_name(name).to_jwk(key.public_key(), as_dict=True)  # type: ignore[attr-defined]
    return {**made, **extra}


class TestGoodTokens:
    async def test_good_token(self) -> None:
        """A good token gives its subject and everything, if it names no scope."""
        assert User("ann", None) == await verifier().verify(token())

    @pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
    async def test_each_hmac(self, algorithm: str) -> None:
        """32 bytes are enough for each of the three."""
        text = jwt.api_jws.PyJWS().encode(
            json.dumps({"sub": "ann", "exp": NOW + 1}).encode(), "k" * 64, algorithm
        )

        assert User("ann", None) == await verifier(secret="k" * 64, algorithms=[algorithm]).verify(text)

    async def test_short_hs512_secret(self) -> None:
        """A secret of 32 bytes is used with HS512 without a warning."""
        head = b64(json.dumps({"alg": "HS512"}).encode())
        signed = f"{head}.{b64(json.dumps({'exp': NOW + 1}).encode())}"
        text = f"{signed}.{b64(hmac.digest(SECRET.encode(), signed.encode(), 'sha512'))}"

        assert User("-", None) == await verifier(algorithms=["HS512"]).verify(text)

    async def test_no_expiry_where_none_is_required(self) -> None:
        """A static token works if the settings say so, and is remembered."""
        judge, text = verifier(require_exp=False), raw_token(b'{"sub":"ann"}')

        assert User("ann", None) == await judge.verify(text)
        assert User("ann", None) == judge.cached_user(text)

    async def test_audience_that_nobody_asks_for(self) -> None:
        """A token for somebody is accepted if no audience is configured."""
        assert User("ann", None) == await verifier().verify(token(aud="someone"))

    @pytest.mark.parametrize("audience", ["gate", ["other", "gate"]])
    async def test_our_audience(self, audience: object) -> None:
        """The audience may stand alone or in a list."""
        assert User("ann", None) == await verifier(audience="gate").verify(token(aud=audience))

    async def test_fraction_of_a_second(self) -> None:
        """An expiry may be a fraction."""
        assert User("ann", None) == await verifier(leeway_s=0).verify(token(exp=NOW + 0.5))

    async def test_padded_parts(self) -> None:
        """Padding is not canonical, and some issuers add it."""
        payload = base64.urlsafe_b64encode(json.dumps({"exp": NOW + 60}).encode()).decode()
        signed = b64(b'{"alg":"HS256"}') + "." + payload
        text = signed + "." + b64(hmac.digest(SECRET.encode(), signed.encode(), "sha256"))

        assert User("-", None) == await verifier().verify(text)


class TestMalformed:
    @pytest.mark.parametrize(
        "text",
        [
            "",
            "x",
            "a.b",
            "a.b.c",
            "a.b.c.d",
            "....",
            "é.é.é",
            "\udc80.a.b",
            "eyJ.e30.x",
            "x" * (MAX_TOKEN + 1),
        ]
        + [
            f"{b64(header)}.e30.x"
            for header in (b"[]", b"1", b"null", b"{", b"\xff", b'{"alg":"HS256"', b"[" * 9000)
        ],
    )
    async def test_not_a_token(self, text: str) -> None:
        """What is no token is called malformed, whatever it is."""
        assert ("INVALID_TOKEN", MALFORMED) == await told(verifier(), text)

    @pytest.mark.parametrize(
        "payload", [b"[]", b'"x"', b"1", b"null", b"", b"{", b"\xff", b'{"exp":NaN}', b'{"exp":1e999}']
    )
    async def test_claims_that_are_no_object(self, payload: bytes) -> None:
        """Claims must be a JSON object, however well they are signed."""
        assert ("INVALID_TOKEN", MALFORMED) == await told(verifier(), raw_token(payload))

    @pytest.mark.parametrize("expires", ["1900000000", True, None, [], {}, 1e300, -1e300, 10**400])
    @pytest.mark.parametrize("required", [True, False])
    async def test_expiry_that_is_no_number(self, expires: object, required: bool) -> None:
        """An expiry must be a number that can be a date, also where none is required."""
        assert ("INVALID_TOKEN", MALFORMED) == await told(verifier(require_exp=required), token(exp=expires))

    async def test_no_expiry(self) -> None:
        """A token that never ends is refused, unless the settings allow it."""
        assert ("INVALID_TOKEN", MALFORMED) == await told(verifier(), raw_token(b'{"sub":"ann"}'))

    @pytest.mark.parametrize("subject", [1, None, ["ann"], {}])
    async def test_subject_that_is_no_text(self, subject: object) -> None:
        """A subject is a text."""
        assert ("INVALID_TOKEN", MALFORMED) == await told(verifier(), token(sub=subject))

    @pytest.mark.parametrize("name", ["nbf", "iat"])
    async def test_other_times_that_are_no_number(self, name: str) -> None:
        """The other times must be numbers too."""
        assert ("INVALID_TOKEN", MALFORMED) == await told(verifier(), token(**{name: "soon"}))

    @settings(deadline=None)
    @given(st.text(max_size=60) | st.lists(st.binary(max_size=20).map(b64), max_size=4).map(".".join))
    async def test_anything(self, text: str) -> None:
        """Nothing that a stranger sends lets him in, or breaks the judge."""
        judge = verifier()

        assert judge.cached_user(text) is None
        assert (await told(judge, text))[0] == "INVALID_TOKEN"


class TestSignature:
    async def test_other_secret(self) -> None:
        """A token of another gateway is badly signed."""
        assert ("INVALID_TOKEN", SIGNATURE_INVALID) == await told(
            verifier(), raw_token(b"{}", secret="x" * 32)
        )

    @pytest.mark.parametrize("change", range(1, 44))
    async def test_tampered_signature(self, change: int) -> None:
        """One letter changed, cut or added anywhere in the signature: it is the signature that is wrong."""
        good, judge = token(), verifier()
        other = "A" if good[-change] != "A" else "B"
        end = good[len(good) - change + 1 :]

        for bad in (good[:-change] + other + end, good[:-change] + end, good[:-change] + "AA" + end):
            assert ("INVALID_TOKEN", SIGNATURE_INVALID) == await told(judge, bad)

    @pytest.mark.parametrize("signature", ["", "!!!!", "é".encode().hex(), "A" * 43])
    async def test_strange_signature(self, signature: str) -> None:
        """No signature, or no base64, is an invalid one too."""
        text = token().rsplit(".", 1)[0] + "." + signature

        assert ("INVALID_TOKEN", SIGNATURE_INVALID) == await told(verifier(), text)

    async def test_tampered_claims(self) -> None:
        """Claims that were changed after signing do not count."""
        head, _, signature = token().split(".")
        text = f"{head}.{b64(json.dumps({'sub': 'root', 'exp': NOW + 60}).encode())}.{signature}"

        assert ("INVALID_TOKEN", SIGNATURE_INVALID) == await told(verifier(), text)

    @pytest.mark.parametrize(
        "algorithm", ["none", "None", "NONE", "", "HS384", "RS256", "ES256", 1, None, [], {}]
    )
    async def test_other_algorithm(self, algorithm: object) -> None:
        """No algorithm but the configured ones, and none is none."""
        header = {"alg": algorithm}
        unsigned = f"{b64(json.dumps(header).encode())}.{b64(json.dumps({'exp': NOW + 60}).encode())}."

        assert ("INVALID_TOKEN", SIGNATURE_INVALID) == await told(verifier(), unsigned)
        assert ("INVALID_TOKEN", SIGNATURE_INVALID) == await told(verifier(), raw_token(b"{}", header))

    async def test_none_that_is_configured(self) -> None:
        """Not even the settings can allow unsigned tokens."""
        text = b64(b'{"alg":"none"}') + ".e30."

        judge = verifier(algorithms=["none"], jwks=jwks_of(member(RSA_KEY)))
        assert ("INVALID_TOKEN", SIGNATURE_INVALID) == await told(judge, text)

    async def test_no_algorithm(self) -> None:
        """A header without an algorithm is not taken for the usual one."""
        assert ("INVALID_TOKEN", SIGNATURE_INVALID) == await told(
            verifier(), raw_token(b"{}", {"typ": "JWT"})
        )

    async def test_critical_header(self) -> None:
        """A token that demands what we do not know is refused."""
        header = {"alg": "HS256", "crit": ["x"], "x": 1}
        text = raw_token(json.dumps({"exp": NOW + 60}).encode(), header)

        assert ("INVALID_TOKEN", MALFORMED) == await told(verifier(), text)

    @pytest.mark.parametrize("name", ["nbf", "iat"])
    async def test_not_yet_valid(self, name: str) -> None:
        """A token from the future is refused beyond the leeway, and accepted within."""
        late = time.time() + 12
        assert ("INVALID_TOKEN", SIGNATURE_INVALID) == await told(verifier(), token(**{name: late}))
        assert User("ann", None) == await verifier().verify(token(**{name: time.time() + 9}))

    @pytest.mark.parametrize("claims", [{}, {"iss": "evil"}, {"iss": None}, {"iss": ["home"]}])
    async def test_other_issuer(self, claims: dict[str, object]) -> None:
        """The issuer must be the configured one."""
        assert ("INVALID_TOKEN", SIGNATURE_INVALID) == await told(verifier(issuer="home"), token(**claims))

    @pytest.mark.parametrize(
        "claims", [{}, {"aud": "evil"}, {"aud": []}, {"aud": {"gate": 1}}, {"aud": "gates"}]
    )
    async def test_other_audience(self, claims: dict[str, object]) -> None:
        """The audience must hold the configured one."""
        assert ("INVALID_TOKEN", SIGNATURE_INVALID) == await told(verifier(audience="gate"), token(**claims))

    async def test_no_secret(self) -> None:
        """Without a secret no HMAC counts, least of all one with an empty key."""
        text = raw_token(json.dumps({"exp": NOW + 60}).encode(), secret="")

        assert ("INVALID_TOKEN", SIGNATURE_INVALID) == await told(verifier(secret=""), text)

    def test_secret_that_is_a_key(self) -> None:
        """A public key in place of the secret is a mistake that is told at once."""
        pem = RSA_KEY.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

        with pytest.raises(ValueError, match="public key"):
            verifier(secret=pem.decode())


class TestExpiry:
    async def test_expired(self) -> None:
        """An old token is told that it is old."""
        assert ("TOKEN_EXPIRED", "token has expired") == await told(verifier(), token(exp=NOW - 11))

    async def test_the_very_second(self) -> None:
        """At its expiry a token has expired; the leeway comes on top."""
        assert ("TOKEN_EXPIRED", "token has expired") == await told(verifier(leeway_s=0), token(exp=NOW))
        assert ("TOKEN_EXPIRED", "token has expired") == await told(verifier(), token(exp=NOW - 10))
        assert User("ann", None) == await verifier().verify(token(exp=NOW - 9.9))

    async def test_expired_and_forged(self) -> None:
        """A forged token is told nothing about its age."""
        text = raw_token(json.dumps({"exp": 1}).encode(), secret="x" * 32)

        assert ("INVALID_TOKEN", SIGNATURE_INVALID) == await told(verifier(), text)

    async def test_expired_and_from_elsewhere(self) -> None:
        """Nor is one that was never meant for us."""
        assert SIGNATURE_INVALID == (await told(verifier(issuer="home"), token(exp=1)))[1]


class TestScopes:
    @pytest.mark.parametrize(
        ("scope", "words"),
        [
            ("chat", {"chat"}),
            ("chat pod", {"chat", "pod"}),
            ("  chat\tpod ", {"chat", "pod"}),
            (["chat", "cost"], {"chat", "cost"}),
            ("", set()),
            ([], set()),
            ("dragons", {"dragons"}),
            (None, set()),
            (True, set()),
            (1, set()),
            ({"chat": True}, set()),
            (["chat", 1], set()),
            ([["chat"]], set()),
        ],
    )
    async def test_scope_claim(self, scope: object, words: set[str]) -> None:
        """Words or a list of words; what cannot be read covers nothing."""
        assert User("ann", frozenset(words)) == await verifier().verify(token(scope=scope))

    def test_admin(self) -> None:
        """Admin covers all, other scopes themselves, and no claim everything."""
        assert (True, True) == (
            User("a", frozenset({"admin"})).has_scope("chat"),
            User("a", None).has_scope("admin"),
        )
        assert (True, False) == (
            User("a", frozenset({"chat"})).has_scope("chat"),
            User("a", frozenset({"chat"})).has_scope("pod"),
        )
        assert User("a", frozenset()).has_scope("chat") is False


class TestMemory:
    async def test_remembered_until_it_expires(self) -> None:
        """A remembered token ends when it would have ended."""
        clock = Clock()
        judge, text = verifier(clock=clock), token(exp=NOW + 60)

        assert judge.cached_user(text) is None
        user = await judge.verify(text)
        clock.now = NOW + 69.9
        assert user == judge.cached_user(text)
        clock.now = NOW + 70
        assert judge.cached_user(text) is None
        assert ("TOKEN_EXPIRED", "token has expired") == await told(judge, text)

    async def test_refused_tokens(self) -> None:
        """Refused tokens are not remembered."""
        judge = verifier()
        with pytest.raises(TokenExpired):
            await judge.verify(token(exp=1))

        assert judge.cached_user(token(exp=1)) is None

    async def test_many_tokens(self) -> None:
        """The memory is bounded, and the oldest go first."""
        judge = verifier()
        texts = [token(jti=str(number)) for number in range(MAX_CACHED + 2)]
        for text in texts:
            await judge.verify(text)

        assert [None, None] == [judge.cached_user(text) for text in texts[:2]]
        assert MAX_CACHED == sum(judge.cached_user(text) is not None for text in texts)

    async def test_memory_holds_no_token(self) -> None:
        """What is remembered is a digest, not the token."""
        judge, text = verifier(), token()
        await judge.verify(text)

        assert [sha256(text.encode()).digest()] == list(judge._cached)


class TestEndOfToken:
    """A token of our own that ends within a week is told, once for each user."""

    DAY = 86_400

    async def test_told_once(self) -> None:
        """Not with each of the user's tokens, nor again when one is verified anew."""
        told: list[tuple[str, float]] = []
        clock = Clock()
        judge = verifier(clock=clock, on_ending=lambda *what: told.append(what))
        end = NOW + 10 * self.DAY
        text = token(exp=end, iat=NOW - 20 * self.DAY)
        await judge.verify(text)
        clock.now = end - 7 * self.DAY - 1
        assert judge.cached_user(text)
        assert [] == told

        clock.now += 1
        assert judge.cached_user(text) is None  # so that it is verified, and told, within the week
        for jti in "123":
            await judge.verify(text)
            await judge.verify(token(exp=end, jti=jti))
        assert [("ann", end)] == told
        clock.now = end - 9
        assert judge.cached_user(text)

        await judge.verify(token(exp=clock.now + 30 * self.DAY))  # a new one, whose end is told in its time
        await judge.verify(token(exp=clock.now + 2 * self.DAY))
        assert 2 == len(told)

    async def test_not_told(self) -> None:
        """Tokens that are made for a day or less, never end, or are an identity provider's."""
        told: list[object] = []
        judge = verifier(
            require_exp=False, jwks=jwks_of(member(RSA_KEY)), on_ending=lambda *what: told.append(what)
        )

        await judge.verify(token(iat=NOW - 5, exp=NOW + self.DAY - 5))
        await judge.verify(raw_token(b'{"sub": "ann"}'))
        await judge.verify(jwt.encode({"sub": "bob", "exp": NOW + self.DAY}, RSA_KEY, "RS256"))
        assert [] == told


class TestIdentityProvider:
    @pytest.mark.parametrize(("key", "algorithm"), [(RSA_KEY, "RS256"), (EC_KEY, "ES256"), (ED_KEY, "EdDSA")])
    async def test_each_kind(self, key: object, algorithm: str) -> None:
        """RS256, ES256 and EdDSA work without being listed."""
        text = jwt.encode({"sub": "bob", "exp": NOW + 60}, key, algorithm, {"kid": "k"})  # type: ignore[arg-type]
        judge = verifier(secret="", jwks=jwks_of(member(key, kid="k")))

        assert BOB == await judge.verify(text)

    async def test_scopes(self) -> None:
        """They are read by the rules for it; those of our own tokens are not."""
        rules = ScopeRules(("roles",), {"ops": "pod cost"}, "")
        judge = verifier(jwks=jwks_of(member(RSA_KEY)), foreign_scopes=rules)
        claims = {"sub": "bob", "exp": NOW + 60, "scope": "admin", "roles": ["ops"]}

        text = jwt.encode(claims, RSA_KEY, "RS256")
        assert User("bob", frozenset({"pod", "cost"})) == await judge.verify(text)
        assert User("ann", frozenset({"chat"})) == await judge.verify(token(scope="chat", roles=["ops"]))
        assert User("ann", None) == await judge.verify(token(roles=["ops"], scp="chat"))

    async def test_secret_beside_it(self) -> None:
        """A secret and a provider work side by side."""
        judge = verifier(jwks=jwks_of(member(RSA_KEY)))

        assert User("ann", None) == await judge.verify(token())
        text = jwt.encode({"sub": "bob", "exp": NOW + 60}, RSA_KEY, "RS256")
        assert BOB == await judge.verify(text)

    async def test_public_key_as_secret(self) -> None:
        """A token signed with the provider's public key as if it were a secret is refused."""
        pem = RSA_KEY.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        text = raw_token(json.dumps({"exp": NOW + 60}).encode(), secret=pem.decode())

        for secret in ("", SECRET):
            judge = verifier(secret=secret, algorithms=["HS256", "RS256"], jwks=jwks_of(member(RSA_KEY)))
            assert ("INVALID_TOKEN", SIGNATURE_INVALID) == await told(judge, text)

    async def test_shared_secret_in_the_set(self) -> None:
        """A symmetric key that a provider shows to all the world verifies nothing."""
        judge = verifier(secret="", jwks=jwks_of({"kty": "oct", "k": b64(SECRET.encode()), "alg": "HS256"}))

        assert ("INVALID_TOKEN", SIGNATURE_INVALID) == await told(judge, token())

    async def test_algorithm_that_is_not_configured(self) -> None:
        """The configured list is all there is."""
        text = jwt.encode({"exp": NOW + 60}, RSA_KEY, "RS512")
        jwks = jwks_of(member(RSA_KEY))

        assert SIGNATURE_INVALID == (await told(verifier(jwks=jwks), text))[1]
        assert User("-", frozenset({"chat"})) == await verifier(jwks=jwks, algorithms=["RS512"]).verify(text)

    async def test_another_key_of_the_same_name(self) -> None:
        """The name of a key is no proof."""
        text = jwt.encode({"exp": NOW + 60}, rsa.generate_private_key(65537, 2048), "RS256", {"kid": "k"})

        judge = verifier(jwks=jwks_of(member(RSA_KEY, kid="k")))
        assert ("INVALID_TOKEN", SIGNATURE_INVALID) == await told(judge, text)

    async def test_name_that_is_no_text(self) -> None:
        """A key's name is a text."""
        text = b64(b'{"alg":"RS256","kid":1}') + ".e30.AAAA"

        assert ("INVALID_TOKEN", MALFORMED) == await told(verifier(jwks=jwks_of(member(RSA_KEY))), text)

    async def test_memory_is_short(self) -> None:
        """A provider's token is judged anew after a minute: its key may have been withdrawn."""
        clock = Clock()
        judge = verifier(jwks=jwks_of(member(RSA_KEY)), clock=clock)
        text = jwt.encode({"sub": "bob", "exp": NOW + 3600}, RSA_KEY, "RS256")
        await judge.verify(text)
        clock.now += 59
        assert BOB == judge.cached_user(text)
        clock.now += 1
        assert judge.cached_user(text) is None

    async def test_provider_is_down(self) -> None:
        """A token that cannot be judged is not called bad."""

        async def fetch() -> bytes:
            raise ConnectionRefusedError

        judge = verifier(jwks=JwksCache(fetch))
        with pytest.raises(ProviderUnavailable, match="identity provider cannot be asked"):
            await judge.verify(jwt.encode({"exp": NOW + 60}, RSA_KEY, "RS256"))
        assert User("ann", None) == await judge.verify(token())

    async def test_new_key_during_an_outage(self) -> None:
        """A key that is not known may be new, so while nobody can be asked, nobody is called a forger."""
        clock, answers = Clock(), [json.dumps({"keys": [member(RSA_KEY, kid="old")]}).encode()]

        async def fetch() -> bytes:
            if not answers:
                raise TimeoutError
            return answers.pop()

        judge = verifier(jwks=JwksCache(fetch, clock=clock))
        await judge.verify(jwt.encode({"exp": NOW + 60}, RSA_KEY, "RS256", {"kid": "old"}))
        clock.now += 11
        with pytest.raises(ProviderUnavailable):
            await judge.verify(jwt.encode({"exp": NOW + 60}, EC_KEY, "ES256", {"kid": "new"}))
        forged = jwt.encode({"exp": NOW + 60}, rsa.generate_private_key(65537, 2048), "RS256", {"kid": "old"})
        assert ("INVALID_TOKEN", SIGNATURE_INVALID) == await told(judge, forged)

    async def test_key_replaced_without_a_name(self) -> None:
        """A provider that names no keys may replace them too."""
        clock, keys = Clock(), [RSA_KEY]

        async def fetch() -> bytes:
            return json.dumps({"keys": [member(key) for key in keys]}).encode()

        judge = verifier(jwks=JwksCache(fetch, clock=clock))
        await judge.verify(jwt.encode({"exp": NOW + 60}, RSA_KEY, "RS256"))
        keys[:] = [EC_KEY]
        text = jwt.encode({"sub": "bob", "exp": NOW + 60}, EC_KEY, "ES256")
        assert ("INVALID_TOKEN", SIGNATURE_INVALID) == await told(judge, text)
        clock.now += 10
        assert BOB == await judge.verify(text)


class TestSeveralTokens:
    """A request may carry more than one."""

    async def test_the_first_valid_one_counts(self) -> None:
        """Whatever stands before it."""
        for before in ([], ["x.y.z"], [NO_TOKEN, token(exp=1)]):
            good = [token(sub="ann"), token(sub="bob")]
            assert User("ann", None) == await verifier().verify_any([*before, *good])

    @pytest.mark.parametrize(
        ("tokens", "code", "message"),
        [
            ([], "INVALID_TOKEN", MALFORMED),
            ([NO_TOKEN, token(exp=1)], "INVALID_TOKEN", MALFORMED),
            ([token(exp=1), "x.y.z"], "TOKEN_EXPIRED", "token has expired"),
            (["x.y.z", token(exp=1)], "INVALID_TOKEN", MALFORMED),
        ],
    )
    async def test_the_first_error_is_told(self, tokens: list[str], code: str, message: str) -> None:
        """None is valid: it is about the first."""
        with pytest.raises(GateError) as caught:
            await verifier().verify_any(tokens)

        assert (code, message) == (caught.value.code, caught.value.message)

    async def test_outage_of_the_identity_provider(self) -> None:
        """It does not stand in the way of a token of our own."""

        async def fetch() -> bytes:
            raise ConnectionRefusedError

        judge, foreign = verifier(jwks=JwksCache(fetch)), jwt.encode({"exp": NOW + 60}, RSA_KEY, "RS256")
        assert User("ann", None) == await judge.verify_any([foreign, token()])
        with pytest.raises(ProviderUnavailable):
            await judge.verify_any([foreign, "x.y.z"])


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        (NO_TOKEN, "it is no JWT"),
        (raw_token(b'{"sub": "ann"}'), "it has no exp"),
        (token(exp="soon"), "its exp is no date"),
        (token(exp=NOW - 7330), "2h2m ago"),
        (token(aud="other"), "InvalidAudienceError"),
        (raw_token(b"{}", secret="x" * 32), "signed with another key"),
        (raw_token(b"{}", {"alg": "HS384"}), "its algorithm is not accepted"),
    ],
    ids=["none", "no exp", "exp no date", "ended", "audience", "key", "algorithm"],  # tokens hold the time
)
async def test_detail_for_the_log(text: str, detail: str) -> None:
    """The log says more than the client is told."""
    with pytest.raises(AuthError) as caught:
        await verifier(audience="gate" if "aud" in detail.lower() else "").verify(text)

    assert detail == caught.value.detail
