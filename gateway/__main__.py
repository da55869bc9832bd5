"""The gateway process: `python -m gateway`."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from backendai.billing.v1.billing_pb2_grpc import BillingServiceStub
from backendai.chat.v1.chat_pb2_grpc import ChatServiceStub

from gateway.accounts import Accounts
from gateway.app import create_app
from gateway.auth import Authenticator, IssuerKeys, Keys, SharedSecret
from gateway.cursors import Cursors
from gateway.health import Health
from gateway.jwks import RemoteKeys
from gateway.parts import Parts
from gateway.protocol import BoundedProtocol
from gateway.settings import Settings
from gateway.statuses import Statuses
from gateway.turns import Turns
from services.kit import process
from services.kit.bus import Bus
from services.kit.grpc_client import dial

BACKLOG = 2_048
# Longer than proxies keep an idle connection, so that they hang up first.
KEEP_ALIVE_SECONDS = 120
# How much of the drain is left for those who wait to be told that their run goes on.
FAREWELL_SECONDS = 1.0


class Server(uvicorn.Server):
    """uvicorn without signal handlers of its own: the process has one stop event."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave them to the process."""
        yield


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; a port in use is a sentence that names it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise SystemExit(
            f"{host}:{port} is in use or not an address of this machine: set GATEWAY_HOST or GATEWAY_PORT."
        ) from error


async def main(settings: Settings, stop: asyncio.Event, listener: socket.socket) -> None:
    """Put the parts together and serve on `listener` until `stop`, then drain."""
    chat, billing = dial(settings.chat_address), dial(settings.billing_address)
    bus, draining = Bus(settings.nats_url, name="gateway"), asyncio.Event()
    turns = Turns(bus)
    keys, issuer = _keys(settings)
    parts = Parts(
        settings=settings,
        chat=ChatServiceStub(chat),
        billing=BillingServiceStub(billing),
        authenticator=Authenticator(keys, issuer=settings.auth_issuer, audience=settings.auth_audience),
        accounts=Accounts(BillingServiceStub(billing)),
        cursors=Cursors(settings.cursor_secret.get_secret_value()),
        statuses=Statuses(bus),
        turns=turns,
        health=Health({"chat": chat, "billing": billing}, bus, draining),
    )
    server = Server(
        uvicorn.Config(
            create_app(parts, draining=draining),
            http=BoundedProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
        )
    )
    bus.start()
    fetching = asyncio.create_task(issuer.run()) if issuer else None
    serving = asyncio.create_task(server.serve([listener]))
    await asyncio.wait((serving, asyncio.ensure_future(stop.wait())), return_when=asyncio.FIRST_COMPLETED)
    await _drain(server, serving, turns, draining, settings.drain_seconds)
    if issuer and fetching:
        fetching.cancel()
        await issuer.close()
    await bus.close()
    await chat.close()
    await billing.close()


def _keys(settings: Settings) -> tuple[Keys, RemoteKeys | None]:
    """What tokens are checked with, and what has to be fetched for it."""
    if settings.auth_jwt_secret is not None:
        return SharedSecret(settings.auth_jwt_secret.get_secret_value()), None
    issuer = RemoteKeys(settings.auth_jwks_url or "")
    return IssuerKeys(issuer), issuer


async def _drain(
    server: Server, serving: asyncio.Task[None], turns: Turns, draining: asyncio.Event, seconds: float
) -> None:
    """Send clients away with their next answer, then close; who waits for a run is told in time that it goes on."""
    draining.set()
    await asyncio.sleep(min(1.0, seconds / 4))
    server.should_exit = True
    patience = max(0.0, seconds - FAREWELL_SECONDS)
    await asyncio.wait((serving,), timeout=patience)
    turns.stop()
    await serving


if __name__ == "__main__":
    chosen = Settings()
    bound = listen(chosen.gateway_host, chosen.gateway_port)
    process.run("gateway", chosen, lambda stop: main(chosen, stop, bound))
