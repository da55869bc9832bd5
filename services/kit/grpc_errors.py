"""DomainError to gRPC status and back, with the reason as google.rpc.ErrorInfo and never as text to be parsed."""

import grpc
from google.protobuf.any_pb2 import Any
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from services.kit.errors import DomainError, Kind

DOMAIN = "backendai"


def to_status(error: DomainError) -> grpc.Status:
    """The rich status that `abort_with_status` sends."""
    info = Any()
    info.Pack(ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata))
    code: int = error.kind.value.value[0]
    status: grpc.Status = rpc_status.to_status(Status(code=code, message=error.detail, details=[info]))
    return status


def unexpected() -> grpc.Status:
    """What is told of an error that nobody expected: nothing of its own words."""
    status: grpc.Status = rpc_status.to_status(Status(code=Kind.UPSTREAM.value.value[0], message="internal error"))
    return status


def error_info(error: grpc.aio.AioRpcError) -> ErrorInfo | None:
    """The ErrorInfo a failed call carries; None for a failure of the transport or of an unexpected kind."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # the stubs know the sync error only
    for detail in status.details if status is not None else ():
        info = ErrorInfo()
        if detail.Unpack(info):
            return info
    return None


def reason_of(error: grpc.aio.AioRpcError) -> str:
    """The reason a failed call carries, "" when it carries none."""
    info = error_info(error)
    return info.reason if info is not None else ""


class RemoteError(DomainError):
    """Another service's DomainError, passed on as it came."""

    def __init__(self, error: grpc.aio.AioRpcError, info: ErrorInfo) -> None:
        self.kind, self.reason = Kind(error.code()), info.reason
        super().__init__(error.details(), **dict(info.metadata))
