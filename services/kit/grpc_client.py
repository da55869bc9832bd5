"""One way to dial a service: round robin over its replicas, jittered reconnects for ever, a deadline on every call."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

import grpc

from services.kit.errors import Unavailable
from services.kit.grpc_errors import RemoteError, error_info
from services.kit.grpc_server import MAX_MESSAGE_BYTES

T = TypeVar("T")

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


class Channel:
    """A channel for stubs whose calls end after the default deadline unless they name another one."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    def unary_unary(self, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        """What a stub makes its methods of. A plain function: an interceptor would cost each call a task of its own."""
        call: Callable[..., Any] = self._channel.unary_unary(*args, **kwargs)

        def with_deadline(request: Any, *, timeout: float = DEADLINE_SECONDS, **options: Any) -> Any:
            return call(request, timeout=timeout, **options)

        return with_deadline

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)


def dial(address: str) -> grpc.aio.Channel:
    """A channel that connects in the background; a call on it fails fast with UNAVAILABLE while nobody answers."""
    return cast("grpc.aio.Channel", Channel(grpc.aio.insecure_channel(address, options=OPTIONS)))


def as_domain_error(error: grpc.aio.AioRpcError) -> Exception:
    """What a failed call means to the caller: Unavailable, the callee's own DomainError, or the error itself.

    Unavailable stands for all that leaves open what the callee has done, whether it says so itself or is not there.
    """
    if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        return Unavailable()
    info = error_info(error)
    return RemoteError(error, info) if info is not None else error


async def outcome_of(call: Awaitable[T]) -> T:
    """A call's answer; what it fails with comes out as `as_domain_error` has it."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise as_domain_error(error) from error
