"""Outcomes that a caller may act on, said once and mapped to gRPC in one place."""

from collections.abc import Mapping
from enum import Enum

import grpc


class Kind(Enum):
    """What sort of failure it is; its value is the gRPC code that it travels as."""

    INVALID = grpc.StatusCode.INVALID_ARGUMENT
    NOT_FOUND = grpc.StatusCode.NOT_FOUND
    FORBIDDEN = grpc.StatusCode.PERMISSION_DENIED
    CONFLICT = grpc.StatusCode.ABORTED
    PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
    EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
    UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
    TIMEOUT = grpc.StatusCode.DEADLINE_EXCEEDED
    # A server of somebody else's failed. Only with a reason: INTERNAL without one is a defect of ours.
    UPSTREAM = grpc.StatusCode.INTERNAL


class DomainError(Exception):
    """An expected failure. A subclass names its kind and reason; its docstring says when it happens."""

    kind: Kind
    reason: str
    detail: str

    def __init__(self, detail: str | None = None, **metadata: str) -> None:
        self.detail = detail if detail is not None else self.detail
        self.metadata: Mapping[str, str] = metadata
        super().__init__(self.detail)


class InvalidArgument(DomainError):
    """A field is missing or malformed."""

    kind, reason, detail = Kind.INVALID, "INVALID_ARGUMENT", "A field of the request is not valid."


class NotFound(DomainError):
    """The object does not exist, or not for this caller: the two must not be told apart."""

    kind, reason, detail = Kind.NOT_FOUND, "NOT_FOUND", "Not found."


class PermissionDenied(DomainError):
    """The caller can see the object but may not do this."""

    kind, reason, detail = Kind.FORBIDDEN, "PERMISSION_DENIED", "You may not do this."


class InvalidCursor(DomainError):
    """A page token that this list did not give out."""

    kind, reason, detail = Kind.INVALID, "INVALID_CURSOR", "The cursor is not one that this list gave out."


class Unavailable(DomainError):
    """A database or another service can't be reached; the caller should try again soon."""

    kind, reason, detail = Kind.UNAVAILABLE, "UNAVAILABLE", "A part of the system is not reachable now. Try again."
