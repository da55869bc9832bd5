"""The chat process: `python -m services.chat`."""

import asyncio
import time

from backendai.chat.v1.chat_pb2 import DESCRIPTOR
from backendai.chat.v1.chat_pb2_grpc import add_ChatServiceServicer_to_server, add_TaskServiceServicer_to_server

from services.chat.announcer import Announcer
from services.chat.billing import Billing
from services.chat.catalog import Catalogs
from services.chat.reaper import Reaper
from services.chat.servicer import ChatServicer, TaskServicer
from services.chat.settings import Settings
from services.chat.settler import Settler
from services.chat.store.idempotency import KeyStore
from services.chat.store.runs import RunStore
from services.chat.store.search import SearchStore
from services.chat.store.sessions import SessionStore
from services.chat.store.shares import ShareStore
from services.chat.store.turns import TurnStore
from services.chat.store.upkeep import UpkeepStore
from services.chat.usecases.keys import KeyUseCases
from services.chat.usecases.runs import RunUseCases
from services.chat.usecases.sessions import SessionUseCases
from services.chat.usecases.shares import ShareUseCases
from services.chat.usecases.turns import TurnUseCases
from services.kit import process
from services.kit.bus import Bus
from services.kit.grpc_client import dial
from services.kit.grpc_server import Server, serve
from services.kit.postgres.engine import create_engine
from services.kit.postgres.errors import is_down
from services.kit.postgres.pool import Database
from services.kit.tls import Tls


async def main(settings: Settings, stop: asyncio.Event) -> None:
    """Put the parts together and serve until `stop`."""
    tls = Tls.of(settings.grpc_tls_dir)
    # What decides races runs straight on the driver; what is put together from filters and pages runs on the engine.
    url, half = settings.database_url.get_secret_value(), settings.chat_database_pool // 2
    prepared = settings.database_prepared_statements
    engine = create_engine(url, pool_size=half, application="chat", prepared_statements=prepared)
    database = Database(url, pool_size=half, application="chat", prepared_statements=prepared)
    bus = Bus(settings.nats_url, name="chat")
    billing = Billing(dial(settings.billing_address, "billing", tls))
    catalogs = Catalogs(
        billing,
        configured=settings.providers,
        default=(settings.default_ai_provider, settings.default_ai_model),
        clock=time.monotonic,
    )
    announcer, upkeep, runs = Announcer(bus), UpkeepStore(database), RunStore(database)
    settler = Settler(billing, upkeep, announcer)
    turns = TurnUseCases(
        turns=TurnStore(engine, database),
        runs=runs,
        catalogs=catalogs,
        billing=billing,
        announcer=announcer,
        settler=settler,
        deadline_seconds=settings.task_deadline_s,
        history_messages=settings.chat_history_messages,
        clock=time.monotonic,
    )
    server = Server(
        settings.chat_listen,
        tls=tls,
        ops_listen=settings.ops_listen,
        reflects=DESCRIPTOR if settings.grpc_reflection else None,
        is_down=is_down,
        ready=False,
    )
    reaper = Reaper(
        upkeep=upkeep,
        runs=runs,
        turns=turns,
        settler=settler,
        billing=billing,
        announcer=announcer,
        clock=time.monotonic,
        tell_ready=server.set_ready,
    )
    session_store = SessionStore(engine)
    sessions = SessionUseCases(
        session_store, SearchStore(engine), catalogs=catalogs, billing=billing, announcer=announcer
    )
    keys = KeyUseCases(KeyStore(engine))
    shares = ShareUseCases(session_store, ShareStore(engine, database))
    add_ChatServiceServicer_to_server(ChatServicer(sessions, turns, shares, keys), server.grpc)
    add_TaskServiceServicer_to_server(
        TaskServicer(RunUseCases(runs, catalogs, settler, history_messages=settings.chat_history_messages)), server.grpc
    )
    bus.start()
    background = [asyncio.create_task(settler.run()), asyncio.create_task(reaper.run())]
    await serve(server, stop, drain_seconds=settings.drain_seconds)
    for task in background:
        task.cancel()
    await bus.close()
    await database.close()
    await engine.dispose()


if __name__ == "__main__":
    chosen = Settings.read()
    process.run("chat", chosen, lambda stop: main(chosen, stop))
