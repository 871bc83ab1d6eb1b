"""`gpugate token issue`, and the tokens of the command line's own requests."""

from __future__ import annotations

import re
import time
from argparse import Namespace

from gpugate.cli.errors import OK, WRONG, CliError
from gpugate.cli.settings import settings_as_given
from gpugate.config import Settings, duration
from gpugate.config.schema import SCOPES


def issue(args: Namespace) -> int:
    """Print a token; raise CliError (WRONG) for an invalid argument, or without a secret to sign with."""
    if not args.subject.strip():
        raise CliError("--subject: must not be empty", WRONG)
    scope, lifetime_s = _scope(args.scope), _lifetime(args.expires)
    print(sign_token(settings_as_given(args), args.subject, scope, lifetime_s))
    return OK


def sign_token(settings: Settings, subject: str, scope: str | None, lifetime_s: float) -> str:
    """Return a token that this gateway accepts for `lifetime_s` seconds; `scope` None grants all scopes.

    Raises:
        CliError: (WRONG) there is no secret, or no HS algorithm is accepted.
    """
    auth = settings.auth
    algorithm = next((name for name in auth.algorithms if name.startswith("HS")), None)
    if not auth.secret:
        also = "; tokens come from the identity provider of auth.jwks_url" if auth.jwks_url else ""
        raise CliError(f"auth.secret: there is no secret to sign with{also}", WRONG)
    if algorithm is None:
        raise CliError("auth.algorithms: accepts no signature made with auth.secret (HS256)", WRONG)
    import jwt  # it imports cryptography, which takes longer than the rest of the command line

    now = int(time.time())
    claims: dict[str, object] = {"sub": subject, "iat": now, "exp": now + max(1, round(lifetime_s))}
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
            raise CliError(f"--scope: {word!r} is none of {', '.join(SCOPES)}", WRONG)
    return " ".join(words)


def _lifetime(text: str) -> float:
    try:
        lifetime_s = duration(text)
    except ValueError as error:
        raise CliError(f"--expires: {error}, is {text!r}", WRONG) from None
    if lifetime_s <= 0:
        raise CliError(f"--expires: must be more than 0, is {text}", WRONG)
    return lifetime_s
