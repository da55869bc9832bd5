"""One way to dial a service: round robin over its replicas, jittered reconnects for ever, a deadline on every call."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

import grpc

from services.kit import telemetry
from services.kit.errors import Unavailable
from services.kit.grpc_errors import RemoteError, error_info
from services.kit.grpc_server import MAX_MESSAGE_BYTES
from services.kit.telemetry import Span, SpanKind
from services.kit.tls import Tls

T = TypeVar("T")

DEADLINE_SECONDS = 5.0
# So often a call looks whether the certificate was renewed; calls on the old connection may go on for so long.
RENEWAL_SECONDS = 10.0
LONGEST_CALL_SECONDS = 600.0
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
    """A channel for stubs: each call ends after the default deadline unless it names another one, and is traced.

    With TLS it dials anew soon after the process's certificate was renewed; calls under way end on the old connection.
    """

    def __init__(self, address: str, callee: str, tls: Tls | None) -> None:
        self._address, self._callee, self._tls = address, callee, tls
        self._generation, self._looked_at = 0, time.monotonic()
        self._channel = self._dial()

    def _dial(self) -> grpc.aio.Channel:
        if self._tls is None:
            return grpc.aio.insecure_channel(self._address, options=OPTIONS)
        self._generation = self._tls.generation()
        options = (*OPTIONS, ("grpc.ssl_target_name_override", self._callee))
        return grpc.aio.secure_channel(self._address, self._tls.channel_credentials(), options=options)

    def _current(self) -> grpc.aio.Channel:
        if self._tls is not None and time.monotonic() - self._looked_at > RENEWAL_SECONDS:
            self._looked_at = time.monotonic()
            if self._tls.generation() != self._generation:
                old, self._channel = self._channel, self._dial()
                _keep(asyncio.ensure_future(old.close(LONGEST_CALL_SECONDS)))
        return self._channel

    def unary_unary(self, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        """What a stub makes its methods of."""
        return self._method("unary_unary", args, kwargs)

    def stream_unary(self, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        """What a stub makes its methods of that send a stream."""
        return self._method("stream_unary", args, kwargs)

    def _method(self, kind: str, args: Any, kwargs: Any) -> Callable[..., Any]:
        """A plain function: an interceptor would cost each call a task of its own."""
        channel, call = self._channel, getattr(self._channel, kind)(*args, **kwargs)
        name = str(args[0]).removeprefix("/")

        def with_deadline(request: Any, *, timeout: float = DEADLINE_SECONDS, **options: Any) -> Any:
            nonlocal channel, call
            if channel is not (current := self._current()):
                channel, call = current, getattr(current, kind)(*args, **kwargs)
            span = telemetry.begin(name, SpanKind.CLIENT)
            if not span.get_span_context().is_valid:
                return call(request, timeout=timeout, **options)
            made = call(request, timeout=timeout, metadata=tuple(telemetry.headers(span).items()), **options)
            if span.is_recording():
                _keep(asyncio.ensure_future(_end(span, made)))
            return made

        return with_deadline

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)

    async def close(self, grace: float | None = None) -> None:
        """Hang up."""
        await self._channel.close(grace)


_kept: set[asyncio.Future[None]] = set()


def _keep(work: asyncio.Future[None]) -> None:
    """Hold on to what nobody waits for, until it is done."""
    _kept.add(work)
    work.add_done_callback(_kept.discard)


async def _end(span: Span, call: Any) -> None:
    code: grpc.StatusCode = await call.code()
    telemetry.end_call(span, code.name)
    span.end()


def dial(address: str, callee: str, tls: Tls | None = None) -> grpc.aio.Channel:
    """A channel to a service that connects in the background; a call on it fails fast with UNAVAILABLE while nobody
    answers. With TLS the other end must show a certificate of the callee's name.
    """
    return cast("grpc.aio.Channel", Channel(address, callee, tls))


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
