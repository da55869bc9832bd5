"""One way to dial a service: round robin over its replicas, jittered reconnects for ever, a deadline on every call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc

from services.kit.errors import Unavailable
from services.kit.grpc_errors import RemoteError, error_info
from services.kit.grpc_server import MAX_MESSAGE_BYTES

DEADLINE_SECONDS = 5.0
# A call that never left (the connection was refused) is tried again by gRPC itself; nothing else is retried here.
OPTIONS = (
    ("grpc.lb_policy_name", "round_robin"),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.enable_http_proxy", 0),
)


class DeadlineInterceptor(grpc.aio.UnaryUnaryClientInterceptor):
    """Gives every call without a deadline the default one."""

    async def intercept_unary_unary(
        self, continuation: Callable[..., Any], details: grpc.aio.ClientCallDetails, request: Any
    ) -> Any:
        """Pass the call on, with a deadline."""
        if details.timeout is None:
            details = grpc.aio.ClientCallDetails(
                details.method, DEADLINE_SECONDS, details.metadata, details.credentials, details.wait_for_ready
            )
        return await continuation(details, request)


def dial(address: str) -> grpc.aio.Channel:
    """A channel that connects in the background; a call on it fails fast with UNAVAILABLE while nobody answers."""
    return grpc.aio.insecure_channel(address, options=OPTIONS, interceptors=[DeadlineInterceptor()])


def as_domain_error(error: grpc.aio.AioRpcError) -> Exception:
    """What a failed call means to the caller: the callee's own DomainError, Unavailable, or the error itself."""
    info = error_info(error)
    if info is not None:
        return RemoteError(error, info)
    if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        return Unavailable()
    return error
