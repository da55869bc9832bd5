"""What the platform asks of a process, by HTTP on a port of its own: /metrics, /healthz, /readyz.

Answered by threads, so that a stuck event loop can be told from a dead process. Not for the public.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from socketserver import ThreadingMixIn
from threading import Thread
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import structlog
from prometheus_client import make_wsgi_app

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

log = structlog.get_logger()

ANSWER_SECONDS = 2.0
REQUEST_SECONDS = 10
# How long the end waits for the thread to look up.
POLL_SECONDS = 0.2

Ready = Callable[[], Awaitable[bool]]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _ServerOfIPv6(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    timeout = REQUEST_SECONDS

    def log_message(self, *_args: object) -> None:
        """Probes are not news."""


class _Answers:
    """The WSGI application."""

    def __init__(self, loop: asyncio.AbstractEventLoop, ready: Ready) -> None:
        self._loop, self._ready, self._metrics = loop, ready, make_wsgi_app()

    def __call__(self, environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/metrics":
            metrics: Iterable[bytes] = self._metrics(environ, start)
            return metrics
        if path not in ("/healthz", "/readyz"):
            return _say(start, "404 Not Found", "/metrics, /healthz, /readyz")
        if self._ask(_alive if path == "/healthz" else self._ready):
            return _say(start, "200 OK", "ok")
        return _say(start, "503 Service Unavailable", "not ready" if path == "/readyz" else "stuck")

    def _ask(self, question: Ready) -> bool:
        """The event loop's own answer; no when it does not come in time."""
        asked: Future[bool] = asyncio.run_coroutine_threadsafe(_answer(question), self._loop)
        try:
            return asked.result(ANSWER_SECONDS)
        except TimeoutError:
            asked.cancel()
            return False


async def _answer(question: Ready) -> bool:
    return await question()


async def _alive() -> bool:
    return True


def _say(start: StartResponse, status: str, text: str) -> Iterable[bytes]:
    start(status, [("Content-Type", "text/plain; charset=utf-8")])
    return (f"{text}\n".encode(),)


@contextmanager
def serve(listen: str | None, ready: Ready) -> Iterator[None]:
    """Answer while the block runs, in a running event loop; nowhere when `listen`, host:port, is None."""
    if listen is None:
        yield
        return
    host, _, port = listen.rpartition(":")
    try:
        answers = _Answers(asyncio.get_running_loop(), ready)
        kind = _ServerOfIPv6 if ":" in host else _Server
        server = make_server(host.strip("[]"), int(port), answers, server_class=kind, handler_class=_Handler)
    except (OSError, ValueError, OverflowError) as error:
        raise SystemExit(
            f"OPS_LISTEN: {listen} is in use or not an address of this machine: set another one."
        ) from error
    Thread(target=server.serve_forever, args=(POLL_SECONDS,), name="ops", daemon=True).start()
    log.info("ops_listening", address=listen)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
