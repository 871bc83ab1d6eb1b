"""How an https endpoint's certificate is verified."""

from __future__ import annotations

import hashlib
import hmac
import re
import ssl
from functools import lru_cache

from attrs import frozen

_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


@frozen
class TlsPolicy:
    """`Endpoint.tls`, parsed.

    Attributes:
        verify: the chain and the host's name are checked.
        ca_file: the only trusted authorities; empty: the system's.
        fingerprint: SHA-256 (hex) of the only certificate that is accepted; empty: any.
    """

    verify: bool = True
    ca_file: str = ""
    fingerprint: str = ""

    @classmethod
    def of(cls, text: str) -> TlsPolicy:
        """Read "system", "insecure", "sha256:<hex>" (colons allowed) or the path of a CA file.

        Raises:
            ValueError: the fingerprint is not 64 hex digits, or there is no text.
        """
        if text == "system":
            return cls()
        if text == "insecure":
            return cls(verify=False)
        if text.startswith("sha256:"):
            fingerprint = text.removeprefix("sha256:").replace(":", "").lower()
            if not _FINGERPRINT.fullmatch(fingerprint):
                raise ValueError("a sha256 fingerprint has 64 hex digits")
            return cls(verify=False, fingerprint=fingerprint)
        if not text:
            raise ValueError('tls is "system", "insecure", "sha256:<hex>" or the path of a CA file')
        return cls(ca_file=text)

    def accepts(self, certificate: bytes | None) -> bool:
        """Say whether this certificate (DER) is the pinned one; always true where none is pinned."""
        if not self.fingerprint:
            return True
        seen = hashlib.sha256(certificate or b"").hexdigest()
        return hmac.compare_digest(seen, self.fingerprint)


@lru_cache(maxsize=32)
def context(policy: TlsPolicy) -> ssl.SSLContext:
    """Return the context for a policy. Kept, as reading the system's authorities takes tens of ms.

    Raises:
        OSError: the CA file cannot be read, or holds no certificate (`ssl.SSLError`).
    """
    made = ssl.create_default_context(cafile=policy.ca_file or None)
    if not policy.verify:
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
    made.set_alpn_protocols(["http/1.1"])
    return made
