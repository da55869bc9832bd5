"""The billing process: `python -m services.billing`."""

import asyncio
from datetime import UTC, date, datetime
from itertools import count

import structlog
from backendai.billing.v1.billing_pb2 import DESCRIPTOR
from backendai.billing.v1.billing_pb2_grpc import add_BillingServiceServicer_to_server

from services.billing.prices import load_prices
from services.billing.servicer import BillingServicer
from services.billing.settings import Settings
from services.billing.store import Store
from services.billing.usecases import Billing
from services.kit import process
from services.kit.grpc_server import Server, serve
from services.kit.logs import where
from services.kit.money import to_nano
from services.kit.postgres.errors import is_down
from services.kit.postgres.pool import Database
from services.kit.tls import Tls

SWEEP_SECONDS = 2.0
TELL_HELD_EVERY = 15  # sweeps: the sum reads every account

log = structlog.get_logger()


async def main(settings: Settings, stop: asyncio.Event) -> None:
    """Put the parts together and serve until `stop`. Without Postgres every call is UNAVAILABLE until it is there."""
    tls = Tls.of(settings.grpc_tls_dir)
    database = Database(
        settings.database_url.get_secret_value(),
        pool_size=settings.billing_database_pool,
        application="billing",
        prepared_statements=settings.database_prepared_statements,
    )
    billing = Billing(
        store=Store(database),
        prices=load_prices(settings.billing_prices_file),
        today=_today,
        signup_nano=to_nano(settings.billing_signup_credits),
        ceiling_nano=to_nano(settings.billing_hold_ceiling),
    )
    server = Server(
        settings.billing_listen,
        tls=tls,
        ops_listen=settings.ops_listen,
        reflects=DESCRIPTOR if settings.grpc_reflection else None,
        is_down=is_down,
        ready=False,
    )
    add_BillingServiceServicer_to_server(BillingServicer(billing), server.grpc)
    sweep = asyncio.create_task(sweep_expired(billing, server))
    try:
        await serve(server, stop, drain_seconds=settings.drain_seconds)
    finally:
        sweep.cancel()
        await database.close()


async def sweep_expired(billing: Billing, server: Server) -> None:
    """Give expired holds back for ever. A sweep that works is also what makes the process ready: it asks the tables."""
    ready, rounds = False, count()
    while True:
        try:
            if next(rounds) % TELL_HELD_EVERY == 0:
                await billing.tell_held()
            if released := await billing.release_expired():
                log.info("holds_expired", count=released)
            now_ready = True
        except Exception as error:
            now_ready = False
            log.warning("sweep_failed", **({"error": type(error).__name__} if is_down(error) else where(error)))
        if now_ready != ready:
            ready = now_ready
            await server.set_ready(ready)
            log.info("ready" if ready else "not_ready")
        await asyncio.sleep(SWEEP_SECONDS)


def _today() -> date:
    return datetime.now(UTC).date()


if __name__ == "__main__":
    chosen = Settings.read()
    process.run("billing", chosen, lambda stop: main(chosen, stop))
