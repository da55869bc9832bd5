"""Which services may call a method: what its proto says, held against the caller's certificate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache

from backendai.common.v1 import common_pb2
from google.protobuf import descriptor_pool

from services.kit.errors import DomainError, Kind

OURS = "backendai."


class CallerNotAllowed(DomainError):
    """The method is not for the service that the caller's certificate names."""

    kind, reason, detail = Kind.FORBIDDEN, "CALLER_NOT_ALLOWED", "This method is not for your service."


@cache
def callers_of(method: str) -> frozenset[str] | None:
    """The services that may call `/package.Service/Method`, as its proto says; None for one that is not ours.

    None stands for the health service and reflection, which whoever has a certificate may ask.
    """
    service, _, name = method.removeprefix("/").partition("/")
    if not service.startswith(OURS):
        return None
    found = descriptor_pool.Default().FindMethodByName(f"{service}.{name}")
    return frozenset(found.GetOptions().Extensions[common_pb2.callers])


def names_of(auth_context: Mapping[str, Iterable[bytes]]) -> frozenset[str]:
    """The DNS names of the certificate that a peer has shown."""
    return frozenset(name.decode() for name in auth_context.get("x509_subject_alternative_name", ()))


def check_caller(method: str, auth_context: Mapping[str, Iterable[bytes]]) -> None:
    """CallerNotAllowed unless the peer's certificate names a service that may call the method."""
    allowed = callers_of(method)
    if allowed is not None and allowed.isdisjoint(names_of(auth_context)):
        raise CallerNotAllowed
