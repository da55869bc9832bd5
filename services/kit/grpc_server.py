"""One way to serve gRPC: errors mapped in one interceptor, health told, SIGTERM drained."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from services.kit.errors import DomainError, Unavailable
from services.kit.grpc_errors import to_status

log = structlog.get_logger()

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
)


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Turns a DomainError into its rich status, a lost database into UNAVAILABLE and all else into INTERNAL."""

    def __init__(self, is_down: Callable[[BaseException], bool]) -> None:
        self._is_down = is_down

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Wrap the methods that answer once; streams of the health service pass."""
        handler: Any = await continuation(details)
        if handler is None or handler.response_streaming:
            return handler  # type: ignore[no-any-return]
        behaviour, make = handler.unary_unary, grpc.unary_unary_rpc_method_handler
        if handler.request_streaming:
            behaviour, make = handler.stream_unary, grpc.stream_unary_rpc_method_handler
        return make(
            self._guarded(behaviour, details.method),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _guarded(self, behaviour: Callable[..., Awaitable[Any]], method: str) -> Callable[..., Awaitable[Any]]:
        async def guarded(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            try:
                return await behaviour(request, context)
            except DomainError as error:
                await context.abort_with_status(to_status(error))
            except grpc.aio.AbortError:
                raise
            except Exception as error:
                await self._abort_unexpected(error, method, context)

        return guarded

    async def _abort_unexpected(
        self, error: Exception, method: str, context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        if self._is_down(error):
            log.warning("database_unreachable", method=method, error=type(error).__name__)
            await context.abort_with_status(to_status(Unavailable()))
        log.error("call_failed", method=method, exc_info=error)
        await context.abort(grpc.StatusCode.INTERNAL, "internal error")


class Server:
    """A gRPC server with the health service; ready from its start, unless `ready` leaves that to `set_ready`."""

    def __init__(
        self,
        listen: str,
        *,
        is_down: Callable[[BaseException], bool] = lambda _: False,
        ready: bool = True,
        options: Sequence[tuple[str, int]] = (),
    ) -> None:
        self.grpc = grpc.aio.server(interceptors=[ErrorInterceptor(is_down)], options=(*OPTIONS, *options))
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.grpc)
        self.listen = listen
        self._ready = ready

    async def start(self) -> None:
        """Bind and accept; a port in use is an error that names it."""
        try:
            port = self.grpc.add_insecure_port(self.listen)
        except RuntimeError:
            port = 0
        if port == 0:
            await self.grpc.stop(None)
            raise SystemExit(f"{self.listen} is in use or not an address of this machine: set another one.")
        await self.grpc.start()
        await self.set_ready(self._ready)
        log.info("listening", address=self.listen)

    async def set_ready(self, ready: bool) -> None:
        """Tell the health service's watchers, the load balancers among them."""
        self._ready = ready
        status = health_pb2.HealthCheckResponse
        await self._health.set("", status.SERVING if ready else status.NOT_SERVING)

    async def drain(self, seconds: float) -> None:
        """Stop accepting, let calls in flight finish for that long, end the rest."""
        await self._health.enter_graceful_shutdown()
        await self.grpc.stop(seconds)


async def serve(server: Server, stop: asyncio.Event, *, drain_seconds: float) -> None:
    """Serve until `stop`, then drain."""
    await server.start()
    await stop.wait()
    await server.drain(drain_seconds)
