"""Mutual TLS between the services: who we are, whom we trust, read again when the files change."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Self

import grpc
import structlog

log = structlog.get_logger()

# The names that Kubernetes and cert-manager give in a Secret of the type kubernetes.io/tls.
CERTIFICATE, KEY, AUTHORITY = "tls.crt", "tls.key", "ca.crt"

Stamp = tuple[tuple[int, int], ...]


class Tls:
    """A process's certificate and key, and the authority that signs its peers' certificates.

    A certificate names its service as a DNS subject alternative name: `chat`, whatever address chat is dialled at.
    Renewed files are taken up by the next handshake; connections that stand go on.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._generation = folder, 0
        self._stamp, self._files = self._read()

    @classmethod
    def of(cls, folder: Path | None) -> Self | None:
        """That of a folder; None without one: plain text. What can't be used ends the process with a sentence."""
        if folder is None:
            return None
        try:
            return cls(folder)
        except ssl.SSLError as error:
            names = f"{CERTIFICATE}, {KEY} and {AUTHORITY}"
            raise SystemExit(f"GRPC_TLS_DIR: {names} in {folder} do not fit each other: {error.reason}.") from None
        except OSError as error:
            names = f"{CERTIFICATE}, {KEY} and {AUTHORITY}"
            raise SystemExit(f"GRPC_TLS_DIR: {folder} must hold {names}: {error.strerror}.") from None

    def generation(self) -> int:
        """Counts the changes of the files; they are read again when there was one."""
        try:
            if self._look() != self._stamp:
                self._stamp, self._files = self._read()
                self._generation += 1
                log.info("certificate_renewed")
        except OSError as error:
            log.error("certificate_unusable", folder=str(self._folder), error=type(error).__name__, errno=error.errno)
        return self._generation

    def server_credentials(self) -> grpc.ServerCredentials:
        """For a server that takes no client without a certificate. Each handshake looks whether the files are new."""
        used = self._generation

        def renew() -> grpc.ServerCertificateConfiguration | None:
            nonlocal used
            before, used = used, self.generation()
            return self._server_configuration() if used != before else None

        return grpc.dynamic_ssl_server_credentials(
            self._server_configuration(),
            renew,  # type: ignore[arg-type]  # None, for no news, is what the stubs forgot
            require_client_authentication=True,
        )

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """For a client, with the files as they are now."""
        certificate, key, authority = self._files
        return grpc.ssl_channel_credentials(authority, key, certificate)

    def _server_configuration(self) -> grpc.ServerCertificateConfiguration:
        certificate, key, authority = self._files
        return grpc.ssl_server_certificate_configuration([(key, certificate)], authority)

    def _read(self) -> tuple[Stamp, tuple[bytes, bytes, bytes]]:
        """The files of one moment, which fit each other: a Secret is replaced as a whole, but is read file by file."""
        while True:
            stamp = self._look()
            certificate, key, authority = self._paths()
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate, key)
            context.load_verify_locations(authority)
            files = certificate.read_bytes(), key.read_bytes(), authority.read_bytes()
            if self._look() == stamp:
                return stamp, files

    def _look(self) -> Stamp:
        return tuple((found.st_mtime_ns, found.st_ino) for found in (path.stat() for path in self._paths()))

    def _paths(self) -> tuple[Path, Path, Path]:
        return self._folder / CERTIFICATE, self._folder / KEY, self._folder / AUTHORITY
