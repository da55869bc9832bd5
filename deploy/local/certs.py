"""Certificates for a trial of mutual TLS: `make certs`. In production an issuer makes them, such as cert-manager."""

import shutil
import sys
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from deploy.local.files import write_private
from deploy.local.problem import Problem
from deploy.local.settings import Settings

SERVICES = ("gateway", "chat", "billing", "agent", "speech", "translate")
LIFE = timedelta(days=30)
# Clocks that differ a little are no reason to refuse.
SKEW = timedelta(minutes=5)


class Authority:
    """Signs certificates; its key is in memory only."""

    def __init__(self, name: str = "BackendAI Chat trial") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        usage = x509.BasicConstraints(ca=True, path_length=0)
        self._certificate = (self._begun(self._name, self._key.public_key()).add_extension(usage, critical=True)).sign(
            self._key, hashes.SHA256()
        )

    def write(self, folder: Path, service: str) -> None:
        """A new certificate of the service's name as tls.crt, tls.key and ca.crt in a folder."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            self._begun(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, service)]), key.public_key())
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(service)]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )
        folder.mkdir(parents=True, exist_ok=True)
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        write_private(folder / "tls.key", pem.decode())
        write_private(folder / "tls.crt", _pem(certificate))
        write_private(folder / "ca.crt", _pem(self._certificate))

    def _begun(self, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - SKEW)
            .not_valid_after(now + LIFE)
        )


def write_all(folder: Path, services: Iterable[str] = SERVICES, *, authority: Authority | None = None) -> None:
    """A folder for each service in this one, all signed by one authority, a new one unless it is given."""
    authority = authority or Authority()
    for service in services:
        authority.write(folder / service, service)


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def main() -> None:
    """Make new ones in the data directory, and say how to use them."""
    folder = Settings.read().data / "certs"
    shutil.rmtree(folder, ignore_errors=True)
    write_all(folder)
    print(f"{folder} has a certificate for each service, good for {LIFE.days} days. To use them:")
    print(f"\n  GRPC_TLS_DIR={folder} make up")


if __name__ == "__main__":
    try:
        main()
    except Problem as problem:
        sys.exit(str(problem))
