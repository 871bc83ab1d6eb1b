"""A certificate for 127.0.0.1 by an authority of its own."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from pathlib import Path

from attrs import frozen
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

HOUR = datetime.timedelta(hours=1)


@frozen
class Certificate:
    """A server's context, and the authority that its clients have to trust."""

    context: ssl.SSLContext
    authority: bytes


def make_certificate(folder: Path) -> Certificate:
    """Make an authority and a certificate, valid for a day."""
    now = datetime.datetime.now(datetime.UTC)
    root, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())

    def begun(public: ec.EllipticCurvePublicKey, subject: str) -> x509.CertificateBuilder:
        builder = x509.CertificateBuilder(issuer_name=_name("simulated cluster"), subject_name=_name(subject))
        builder = builder.public_key(public).serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(now - HOUR).not_valid_after(now + 24 * HOUR)
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(root.public_key())
        return builder.add_extension(identifier, critical=False)

    usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
    identifier = x509.SubjectKeyIdentifier.from_public_key(root.public_key())
    authority = begun(root.public_key(), "simulated cluster")
    authority = authority.add_extension(x509.BasicConstraints(True, None), critical=True)
    authority = authority.add_extension(usage, critical=True).add_extension(identifier, critical=False)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    leaf = begun(key.public_key(), "api").add_extension(address, critical=False)
    leaf = leaf.add_extension(x509.BasicConstraints(False, None), critical=True)
    signed = leaf.sign(root, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "server.pem").write_bytes(pem + signed)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    own = authority.sign(root, hashes.SHA256())
    return Certificate(context, own.public_bytes(serialization.Encoding.PEM))


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
