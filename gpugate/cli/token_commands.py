"""`gpugate token issue`, and the tokens of the command line's own requests."""

from __future__ import annotations

import base64
import json
import math
import re
import sys
import time
from argparse import Namespace
from datetime import UTC, datetime

from gpugate.cli.errors import OK, WRONG, CliError
from gpugate.cli.settings import settings_as_given
from gpugate.config import Settings, duration
from gpugate.config.schema import SCOPES
from gpugate.config.units import show_duration


def issue(args: Namespace) -> int:
    """Print a token, and on stderr what it is; raise CliError (WRONG) for what cannot be signed or meant."""
    if not args.subject.strip():
        raise CliError("--subject: must not be empty", WRONG)
    scope, lifetime_s = _scope(args.scope), _lifetime(args.expires)
    settings = settings_as_given(args)
    if lifetime_s is None and settings.auth.require_exp:
        raise CliError("--expires: a token that never ends is refused while auth.require_exp is true", WRONG)
    token = sign_token(settings, args.subject, scope, lifetime_s)
    end = "never" if lifetime_s is None else show_time(time.time() + lifetime_s)
    lines = [f"subject: {args.subject}", f"scopes: {scope or 'all'}", f"ends: {end}"]
    if lifetime_s is None:
        lines.append("warning: it can be taken back only by another auth.secret, which ends all tokens")
    print("\n".join(lines), file=sys.stderr)
    print(token)
    return OK


def sign_token(settings: Settings, subject: str, scope: str | None, lifetime_s: float | None) -> str:
    """Return a token that this gateway accepts for `lifetime_s` seconds; None: for ever.

    `scope` None grants all scopes.

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
    claims: dict[str, object] = {"sub": subject, "iat": now}
    claims |= {"exp": now + max(1, round(lifetime_s))} if lifetime_s is not None else {}
    claims |= {"iss": auth.issuer} if auth.issuer else {}
    claims |= {"aud": auth.audience} if auth.audience else {}
    claims |= {"scope": scope} if scope is not None else {}
    return jwt.encode(claims, auth.secret, algorithm=algorithm)


def show_time(seconds: float) -> str:
    """Return an instant, in seconds since 1970, as "2026-12-31 10:00 UTC"; after the year 9999 "never"."""
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"
    except (ValueError, OverflowError, OSError):
        return "never"


def describe_end(token: str, now: float, within_s: float = math.inf) -> str | None:
    """Say when a token ends; it is not verified.

    With `within_s` None is returned unless it ends, or has ended, before that.
    """
    try:
        payload = token.split(".")[1]
        end = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["exp"]
        left_s = float(end) - now
    except (ValueError, TypeError, LookupError) as error:
        said = "never ends" if isinstance(error, KeyError) else "is no token of gpugate's"
        return said if within_s == math.inf else None
    if left_s > within_s:
        return None
    unit_s = 86_400 if abs(left_s) >= 86_400 else 60
    about = show_duration(abs(left_s) // unit_s * unit_s)
    return (
        f"ends on {show_time(end)}, in {about}" if left_s > 0 else f"ended on {show_time(end)}, {about} ago"
    )


def _scope(text: str | None) -> str | None:
    if text is None:
        return None
    words = list(dict.fromkeys(re.split(r"[\s,]+", text.strip(" ,\t\n"))))
    for word in words:
        if word not in SCOPES:
            raise CliError(f"--scope: {word!r} is none of {', '.join(SCOPES)}", WRONG)
    return " ".join(words)


def _lifetime(text: str) -> float | None:
    if text == "never":
        return None
    years = re.fullmatch(r"([0-9]{1,3})y", text)
    try:
        lifetime_s = duration(f"{int(years[1]) * 365}d" if years else text)
    except ValueError as error:
        raise CliError(f"--expires: {error}, is {text!r}", WRONG) from None
    if lifetime_s <= 0:
        raise CliError(f"--expires: must be more than 0, is {text}", WRONG)
    return lifetime_s
