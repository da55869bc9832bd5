"""The gateway put together, served, and drained."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from functools import partial
from typing import cast

import uvicorn
from backendai.billing.v1.billing_pb2_grpc import BillingServiceStub
from backendai.chat.v1.chat_pb2_grpc import ChatServiceStub
from backendai.speech.v1.speech_pb2_grpc import SpeechServiceStub
from backendai.translate.v1.translate_pb2_grpc import TranslateServiceStub

from gateway.accounts import Accounts
from gateway.app import create_app
from gateway.auth import Authenticator, IssuerKeys, Keys, SharedSecret
from gateway.cors import Cors
from gateway.cursors import Cursors
from gateway.health import Health
from gateway.jwks import RemoteKeys
from gateway.parts import Parts
from gateway.protocol import BoundedProtocol
from gateway.settings import Settings
from gateway.statuses import Statuses
from gateway.streams import Streams
from gateway.turns import Turns
from gateway.uploads import Uploads
from services.kit import ops
from services.kit.bus import Bus
from services.kit.grpc_client import dial
from services.kit.tls import Tls

# Without these there is no chat; without another service its own routes answer 503.
NEEDED = ("chat", "billing")
BACKLOG = 2_048
# Longer than proxies keep an idle connection, so that they hang up first.
KEEP_ALIVE_SECONDS = 120
# A client that takes nothing of what it is sent for so long is hung up on.
STALLED_SECONDS = 300
# How long clients are sent away with their next answer before idle connections are closed under them.
LAME_DUCK_SECONDS = 1.0
# How much of the drain is left for those who wait to be told that their run goes on.
FAREWELL_SECONDS = 1.0
# After so long nobody listens on the socket any more: who is sent away finds another gateway.
DEAF_SECONDS = 0.3


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; a port in use is a sentence that names it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise SystemExit(
            f"{host}:{port} is in use or not an address of this machine: set GATEWAY_HOST or GATEWAY_PORT."
        ) from error
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; the connections inherit it
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STALLED_SECONDS * 1_000)
    return listener


class HttpServer(uvicorn.Server):
    """uvicorn without signal handlers of its own: the process has one stop event."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave them to the process."""
        yield


class Gateway:
    """The parts of one process. `start` dials, `close` hangs up."""

    def __init__(self, settings: Settings) -> None:
        self._settings, tls = settings, Tls.of(settings.grpc_tls_dir)
        self._channels = {
            "chat": dial(settings.chat_address, "chat", tls),
            "billing": dial(settings.billing_address, "billing", tls),
            "speech": dial(settings.speech_address, "speech", tls),
            "translate": dial(settings.translate_address, "translate", tls),
        }
        self._keys, self._issuer = _keys(settings)
        self._fetching: asyncio.Task[None] | None = None
        self.bus, self.draining = Bus(settings.nats_url, name="gateway"), asyncio.Event()
        self.parts = self._put_together()
        self.cors = Cors(settings.origins)
        self.app = create_app(self.parts, draining=self.draining, cors=self.cors)

    def _put_together(self) -> Parts:
        settings = self._settings
        billing = BillingServiceStub(self._channels["billing"])
        return Parts(
            settings=settings,
            chat=ChatServiceStub(self._channels["chat"]),
            billing=billing,
            speech=SpeechServiceStub(self._channels["speech"]),
            translate=TranslateServiceStub(self._channels["translate"]),
            authenticator=Authenticator(self._keys, issuer=settings.auth_issuer, audience=settings.auth_audience),
            accounts=Accounts(billing),
            cursors=Cursors(settings.cursor_secret.get_secret_value()),
            statuses=Statuses(self.bus),
            turns=Turns(self.bus),
            streams=Streams(self.bus),
            uploads=Uploads(),
            health=Health({name: self._channels[name] for name in NEEDED}, self.bus, self.draining),
        )

    def start(self) -> None:
        """Dial in the background; nothing waits for anybody to start."""
        self.bus.start()
        if self._issuer is not None:
            self._fetching = asyncio.create_task(self._issuer.run())

    async def close(self) -> None:
        """Hang up."""
        if self._fetching is not None and self._issuer is not None:
            self._fetching.cancel()
            await self._issuer.close()
        await self.bus.close()
        for channel in self._channels.values():
            await channel.close()

    async def serve(self, listener: socket.socket, stop: asyncio.Event) -> None:
        """Serve on a bound socket until `stop`, then drain."""
        server = HttpServer(self._config())
        self.start()
        with ops.serve(self._settings.ops_listen, self._is_ready):
            await self._serve(server, listener, stop)
        await self.close()

    async def _serve(self, server: HttpServer, listener: socket.socket, stop: asyncio.Event) -> None:
        serving = asyncio.create_task(server.serve([listener]))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        await self._drain(server, serving)

    async def _is_ready(self) -> bool:
        ready, _ = await self.parts.health.check()
        return ready

    async def _drain(self, server: HttpServer, serving: asyncio.Task[None]) -> None:
        """Send clients away, then close; who still waits for a run is told in time that it goes on."""
        seconds = self._settings.drain_seconds
        self.draining.set()
        await asyncio.wait((serving,), timeout=min(LAME_DUCK_SECONDS, seconds / 4))
        server.should_exit = True
        await asyncio.wait((serving,), timeout=min(DEAF_SECONDS, seconds / 4))
        self.parts.streams.stop()
        await asyncio.wait((serving,), timeout=max(0.0, seconds - FAREWELL_SECONDS))
        self.parts.turns.stop()
        await serving

    def _config(self) -> uvicorn.Config:
        return uvicorn.Config(
            self.app,
            http=cast("type[asyncio.Protocol]", partial(BoundedProtocol, cors=self.cors)),
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=max(1, round(self._settings.drain_seconds)),
        )


def _keys(settings: Settings) -> tuple[Keys, RemoteKeys | None]:
    """What tokens are checked with, and what has to be fetched for it."""
    if settings.auth_jwt_secret is not None:
        return SharedSecret(settings.auth_jwt_secret.get_secret_value()), None
    issuer = RemoteKeys(settings.auth_jwks_url or "")
    return IssuerKeys(issuer), issuer
