"""The outermost layer: names each request, bounds how many run and how large their heads are, ends what breaks."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterable
from functools import partial

import structlog
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.cors import Cors
from gateway.metrics import HTTP_SECONDS
from gateway.problems import Problem, internal, response_of, unavailable, uri_too_long
from services.kit import telemetry
from services.kit.ids import new_id
from services.kit.logs import where
from services.kit.telemetry import SpanKind

log = structlog.get_logger()

MAX_REQUESTS = 1_000
MAX_HEADER_BYTES = 16 * 1024
MAX_URL_BYTES = 64_000  # 5,000 characters to translate, percent-encoded, are 60,000 bytes; the parser ends at 65,535
TRACEPARENT = telemetry.TRACEPARENT.encode()
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
PROBES = ("/healthz", "/readyz")
SANE_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


def request_id_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The caller's X-Request-Id when it is a sane one, else a new one."""
    for name, value in headers:
        if name == b"x-request-id" and SANE_REQUEST_ID.fullmatch(value):
            return value.decode()
    return str(new_id())


class Edge:
    """Pure ASGI. Once `draining` is set, every answer asks its client to open its next connection elsewhere."""

    def __init__(self, app: ASGIApp, *, draining: asyncio.Event, cors: Cors, max_requests: int = MAX_REQUESTS) -> None:
        self._app, self._draining, self._cors, self._max_requests = app, draining, cors, max_requests
        self._running: set[object] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; log one line without anything that the caller has written but the method."""
        if scope["type"] != "http":
            return
        if not telemetry.tracing() or scope["path"] in PROBES:
            await self._answer(scope, receive, send)
            return
        parent = next((value.decode("latin-1") for name, value in scope["headers"] if name == TRACEPARENT), "")
        with telemetry.span(_method(scope), SpanKind.SERVER, parent=parent, starts_trace=True) as span:
            status = await self._answer(scope, receive, send)
            span.update_name(f"{_method(scope)} {_route(scope)}")
            span.set_attribute("http.response.status_code", status)
            span.set_attribute("backendai.request_id", scope["request_id"])
            if status >= 500:
                telemetry.fail(span, str(status))

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> int:
        """Pass the request on; the status it was answered with."""
        started_at, status = time.perf_counter(), 0
        request_id: str = request_id_of(scope["headers"])
        scope["request_id"] = request_id
        extra = [(b"x-request-id", request_id.encode()), (b"x-content-type-options", b"nosniff")]

        async def tell(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                seconds = time.perf_counter() - started_at
                HTTP_SECONDS.labels(_method(scope), _route(scope), status).observe(seconds)
                closing = [(b"connection", b"close")] if self._draining.is_set() else []
                headers = [*message["headers"], *extra, *closing]
                message = {**message, "headers": self._cors.added(headers, request=scope["headers"])}
            await send(message)

        slot = object()
        self._running.add(slot)
        # For streams, which may be many and long, and have a bound of their own.
        scope["release_slot"] = partial(self._running.discard, slot)
        try:
            refusal = self._refusal(scope)
            answer = self._cors.preflight(scope) if refusal is None else response_of(refusal, request_id)
            app = self._app if answer is None else answer
            await app(scope, receive, tell)
        except ClientDisconnect:
            log.debug("client_gone", request_id=request_id)
        except Exception as error:
            log.error("request_failed", request_id=request_id, **where(error))
            if status:
                raise
            await response_of(internal(), request_id)(scope, receive, tell)
        finally:
            self._running.discard(slot)
        self._log(scope, status, request_id, time.perf_counter() - started_at)
        return status

    def _refusal(self, scope: Scope) -> Problem | None:
        """Why a request is not even looked at."""
        if len(self._running) > self._max_requests and scope["path"] not in PROBES:
            return unavailable("Too many requests are running here. Try again.", code="overloaded")
        if len(scope["query_string"]) + len(scope["raw_path"]) > MAX_URL_BYTES:
            return uri_too_long()
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADER_BYTES:
            return Problem(431, "headers_too_large", "The request's headers are too large.")
        return None

    def _log(self, scope: Scope, status: int, request_id: str, seconds: float) -> None:
        write = log.warning if status >= 500 else log.info if status >= 400 else log.debug
        milliseconds = round(seconds * 1000, 1)
        write(
            "request",
            method=_method(scope),
            route=_route(scope),
            status=status,
            ms=milliseconds,
            request_id=request_id,
        )


def _method(scope: Scope) -> str:
    """The request's method, if it is one: clients can make up any."""
    method: str = scope["method"]
    return method if method in METHODS else "OTHER"


def _route(scope: Scope) -> str:
    """The template of the path, which has names where the ids are."""
    return getattr(scope.get("route"), "path", "-")
