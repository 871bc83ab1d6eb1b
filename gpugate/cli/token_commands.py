"""`gpugate token issue`, and tokens for the command line's own calls; only ever signs, never judges."""

from __future__ import annotations

import re
import time
from argparse import Namespace

from gpugate.cli.errors import OK, WRONG, Failure
from gpugate.cli.settings import settings_as_given
from gpugate.config import Settings, duration

SCOPES = ("chat", "pod", "cost", "admin")  # docs/api.md#tokens-and-scopes


def issue(args: Namespace) -> int:
    """Print a token; raise Failure (2) if it cannot be meant or there is no secret to sign with."""
    if not args.subject.strip():
        raise Failure("--subject: must not be empty", WRONG)
    scope, life_s = _scope(args.scope), _life(args.expires)
    print(signed(settings_as_given(args), args.subject, scope, life_s))
    return OK


def signed(settings: Settings, subject: str, scope: str | None, life_s: float) -> str:
    """Return a token that this gateway accepts, good for `life_s` seconds; no scope means all.

    Raises:
        Failure: there is no secret, or the configuration accepts no signature made with one.
    """
    auth = settings.auth
    algorithm = next((name for name in auth.algorithms if name.startswith("HS")), None)
    if not auth.secret:
        also = "; tokens come from the identity provider of auth.jwks_url" if auth.jwks_url else ""
        raise Failure(f"auth.secret: there is no secret to sign with{also}", WRONG)
    if algorithm is None:
        raise Failure("auth.algorithms: accepts no signature made with auth.secret (HS256)", WRONG)
    import jwt  # with its cryptography it costs more than all of the command line

    now = int(time.time())
    claims: dict[str, object] = {"sub": subject, "iat": now, "exp": now + max(1, round(life_s))}
    claims |= {"iss": auth.issuer} if auth.issuer else {}
    claims |= {"aud": auth.audience} if auth.audience else {}
    claims |= {"scope": scope} if scope is not None else {}
    return jwt.encode(claims, auth.secret, algorithm=algorithm)


def _scope(text: str | None) -> str | None:
    if text is None:
        return None
    words = list(dict.fromkeys(re.split(r"[\s,]+", text.strip(" ,\t\n"))))
    for word in words:
        if word not in SCOPES:
            raise Failure(f"--scope: {word!r} is none of {', '.join(SCOPES)}", WRONG)
    return " ".join(words)


def _life(text: str) -> float:
    try:
        life_s = duration(text)
    except ValueError as error:
        raise Failure(f"--expires: {error}, is {text!r}", WRONG) from None
    if life_s <= 0:
        raise Failure(f"--expires: must be more than 0, is {text}", WRONG)
    return life_s
