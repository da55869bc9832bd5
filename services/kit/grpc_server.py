"""One way to serve gRPC: callers checked, calls counted, traced and their errors mapped in one interceptor, health
told, SIGTERM drained.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from typing import Any

import grpc
import structlog
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from services.kit import ops, telemetry
from services.kit.errors import DomainError, InvalidArgument, Unavailable
from services.kit.grpc_errors import to_status, unexpected
from services.kit.logs import where
from services.kit.metrics import GRPC_SERVER_SECONDS
from services.kit.peers import CallerNotAllowed, check_caller
from services.kit.telemetry import TRACEPARENT, SpanKind
from services.kit.tls import Tls

log = structlog.get_logger()

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # A client looks its names up when it dials: so it finds new replicas within five minutes. Calls under way go on.
    ("grpc.max_connection_age_ms", 300_000),
    ("grpc.max_connection_age_grace_ms", 600_000),
)


Context = grpc.aio.ServicerContext[Any, Any]
Behaviour = Callable[[Any, Any], Awaitable[Any]]


class CallInterceptor(grpc.aio.ServerInterceptor):
    """What happens to each call around its servicer.

    With TLS the caller's certificate is held against the method's allow-list. A DomainError becomes its rich status, a
    lost database UNAVAILABLE, and all else INTERNAL without the error's own words.
    """

    def __init__(self, is_down: Callable[[BaseException], bool], *, checks_callers: bool) -> None:
        self._is_down, self._checks_callers = is_down, checks_callers
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Wrap the methods that answer once; streams of the health service and of reflection pass."""
        known = self._handlers.get(details.method)
        if known is not None:
            return known
        handler: Any = await continuation(details)
        if handler is None or handler.response_streaming:
            return handler  # type: ignore[no-any-return]
        if handler.request_streaming:  # its messages are read, and fail, while the behaviour runs
            wrapped = grpc.stream_unary_rpc_method_handler(
                self._wrapped(handler.stream_unary, details.method, None),
                request_deserializer=handler.request_deserializer,
                response_serializer=handler.response_serializer,
            )
        else:
            wrapped = grpc.unary_unary_rpc_method_handler(
                self._wrapped(handler.unary_unary, details.method, handler.request_deserializer),
                response_serializer=handler.response_serializer,
            )
        self._handlers[details.method] = wrapped
        return wrapped

    def _wrapped(self, behaviour: Behaviour, method: str, read: Callable[[bytes], Any] | None) -> Behaviour:
        """The behaviour with all that happens around it, the reading of the request included, where there is one."""
        name = method.removeprefix("/")

        async def answer(request: Any, context: Context) -> Any:
            started_at, code = time.perf_counter(), grpc.StatusCode.OK
            with telemetry.span(name, SpanKind.SERVER, parent=_traceparent(context)) as span:
                try:
                    if self._checks_callers:
                        check_caller(method, context.auth_context())
                    return await behaviour(request if read is None else read(request), context)
                except asyncio.CancelledError:
                    code = grpc.StatusCode.CANCELLED
                    raise
                except grpc.aio.AbortError:
                    code = grpc.StatusCode.UNKNOWN
                    raise
                except Exception as error:
                    status = self._status_of(error, method)
                    code = status.code
                    await context.abort_with_status(status)
                finally:
                    GRPC_SERVER_SECONDS.labels(method, code.name).observe(time.perf_counter() - started_at)
                    telemetry.end_call(span, code.name)

        return answer

    def _status_of(self, error: Exception, method: str) -> grpc.Status:
        if isinstance(error, CallerNotAllowed):
            log.warning("caller_not_allowed", method=method)
        if isinstance(error, DecodeError):  # bytes that are no message, or text that is no UTF-8
            error = InvalidArgument("The request is not a message of the method's type.")
        if isinstance(error, DomainError):
            return to_status(error)
        if self._is_down(error):
            log.warning("database_unreachable", method=method, error=type(error).__name__)
            return to_status(Unavailable())
        log.error("call_failed", method=method, **where(error))
        return unexpected()


def _traceparent(context: Context) -> str:
    """Where the caller's trace goes on here."""
    if not telemetry.tracing():
        return ""
    return next((str(value) for key, value in context.invocation_metadata() or () if key == TRACEPARENT), "")


class Server:
    """A gRPC server with the health service; ready from its start, unless `ready` leaves that to `set_ready`.

    `ops_listen` is where the platform asks by HTTP, see `ops`; with `tls` no client comes in without a certificate;
    `reflects` is the proto file whose services are described to whoever asks.
    """

    def __init__(
        self,
        listen: str,
        *,
        tls: Tls | None = None,
        ops_listen: str | None = None,
        reflects: FileDescriptor | None = None,
        is_down: Callable[[BaseException], bool] = lambda _: False,
        ready: bool = True,
        options: Sequence[tuple[str, int]] = (),
    ) -> None:
        interceptor = CallInterceptor(is_down, checks_callers=tls is not None)
        self.grpc = grpc.aio.server(interceptors=[interceptor], options=(*OPTIONS, *options))
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.grpc)
        self.listen, self._tls, self._ops_listen, self._reflects = listen, tls, ops_listen, reflects
        self._ready, self._draining = ready, False
        self._running = ExitStack()

    async def start(self) -> None:
        """Bind and accept; a port in use is an error that names it."""
        if self._reflects is not None:
            services = [service.full_name for service in self._reflects.services_by_name.values()]
            reflection.enable_server_reflection([*services, health.SERVICE_NAME, reflection.SERVICE_NAME], self.grpc)
        try:
            port = self._bind()
        except RuntimeError:
            port = 0
        if port == 0:
            await self.grpc.stop(None)
            raise SystemExit(f"{self.listen} is in use or not an address of this machine: set another one.")
        await self.grpc.start()
        await self.set_ready(self._ready)
        self._running.enter_context(ops.serve(self._ops_listen, self._is_ready))
        log.info("listening", address=self.listen, tls=self._tls is not None)

    def _bind(self) -> int:
        if self._tls is None:
            return self.grpc.add_insecure_port(self.listen)
        return self.grpc.add_secure_port(self.listen, self._tls.server_credentials())

    async def _is_ready(self) -> bool:
        return self._ready and not self._draining

    async def set_ready(self, ready: bool) -> None:
        """Tell the health service's watchers, the load balancers among them."""
        self._ready = ready
        status = health_pb2.HealthCheckResponse
        await self._health.set("", status.SERVING if ready else status.NOT_SERVING)

    async def drain(self, seconds: float) -> None:
        """Stop accepting, let calls in flight finish for that long, end the rest."""
        self._draining = True  # for good, whatever `set_ready` is told meanwhile
        await self._health.enter_graceful_shutdown()
        await self.grpc.stop(seconds)
        self._running.close()


async def serve(server: Server, stop: asyncio.Event, *, drain_seconds: float) -> None:
    """Serve until `stop`, then drain."""
    await server.start()
    await stop.wait()
    await server.drain(drain_seconds)
