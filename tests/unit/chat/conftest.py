"""The chat service's use cases on a real Postgres, with billing played by a gRPC server that counts."""

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from uuid import UUID, uuid4

import grpc
import pytest
from backendai.billing.v1 import billing_pb2 as pb
from backendai.billing.v1 import billing_pb2_grpc as rpc
from sqlalchemy.ext.asyncio import AsyncEngine

from services.chat.announcer import Announcer
from services.chat.billing import Billing
from services.chat.catalog import Catalogs
from services.chat.domain import Ending, Session, SessionId, SessionSettings, TaskId, TaskState, Usage
from services.chat.reaper import Reaper
from services.chat.settler import Settler
from services.chat.store.idempotency import Key
from services.chat.store.runs import RunStore
from services.chat.store.search import SearchStore
from services.chat.store.sessions import SessionStore
from services.chat.store.shares import ShareStore
from services.chat.store.turns import TurnStore
from services.chat.store.upkeep import UpkeepStore
from services.chat.usecases.runs import RunUseCases
from services.chat.usecases.sessions import SessionUseCases
from services.chat.usecases.shares import ShareUseCases
from services.chat.usecases.turns import Turn, TurnUseCases
from services.kit.bus import Bus
from services.kit.callers import Caller, Role, WorkspaceId
from services.kit.errors import DomainError, Kind, Unavailable
from services.kit.grpc_client import dial
from services.kit.grpc_errors import to_status
from services.kit.ids import new_id
from services.kit.postgres.engine import create_engine
from services.kit.postgres.pool import Database

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
WORKSPACE = WorkspaceId(uuid4())
HELD_NANO = 1_000_000


class InsufficientCredits(DomainError):
    """As billing says it."""

    kind, reason, detail = Kind.PRECONDITION, "INSUFFICIENT_CREDITS", "Nothing is available."


class CountingBilling(rpc.BillingServiceServicer):
    """Holds, settles and releases in memory; `credit` is how many more holds it grants, `down` refuses all calls.

    Once it `loses_its_database`, it holds and can't say so.
    """

    def __init__(self) -> None:
        self.credit = 1_000_000
        self.down = False
        self.loses_its_database = False
        self.held: dict[str, int] = {}
        self.settled: dict[str, int] = {}
        self.released: set[str] = set()

    async def _may_serve(self, context: Context) -> None:
        if self.down:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "down")

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        tier = pb.RateTier(input_nano_per_million=1_000_000_000, output_nano_per_million=2_000_000_000)
        model: dict[str, Any] = {
            "context_window_tokens": 4096,
            "max_output_tokens": 1024,
            "rates": pb.Rates(tiers=[tier]),
        }
        names = [("local", "small"), ("google", "gemini-2.5-pro"), ("openai", "gpt")]
        return pb.ListModelsResponse(models=[pb.Model(provider=p, model=m, **model) for p, m in names])

    async def CheckCredits(self, request: pb.CheckCreditsRequest, context: Context) -> pb.CheckCreditsResponse:
        await self._may_serve(context)
        if not self.credit:
            await context.abort_with_status(to_status(InsufficientCredits()))
        return pb.CheckCreditsResponse()

    async def HoldCredits(self, request: pb.HoldCreditsRequest, context: Context) -> pb.HoldCreditsResponse:
        await self._may_serve(context)
        if not self.credit:
            await context.abort_with_status(to_status(InsufficientCredits()))
        self.credit -= 1
        self.held[request.hold_id] = HELD_NANO
        if self.loses_its_database:
            await context.abort_with_status(to_status(Unavailable()))
        return pb.HoldCreditsResponse(held_nano=HELD_NANO, rates=pb.Rates(tiers=[pb.RateTier()]), output_tokens=512)

    async def SettleHolds(self, request: pb.SettleHoldsRequest, context: Context) -> pb.SettleHoldsResponse:
        await self._may_serve(context)
        for settlement in request.settlements:
            cost = settlement.usage.input_tokens * 1_000 + settlement.usage.output_tokens * 2_000
            self.settled.setdefault(settlement.hold_id, cost)
            self.held.pop(settlement.hold_id, None)
        return pb.SettleHoldsResponse(
            settled=[
                pb.SettledHold(hold_id=one.hold_id, charged_nano=self.settled[one.hold_id])
                for one in request.settlements
            ]
        )

    async def ReleaseHolds(self, request: pb.ReleaseHoldsRequest, context: Context) -> pb.ReleaseHoldsResponse:
        await self._may_serve(context)
        for hold_id in request.hold_ids:
            self.released.add(hold_id)
            self.held.pop(hold_id, None)
        return pb.ReleaseHoldsResponse()


class SilentBus(Bus):
    """A bus nobody listens to: what chat does must not depend on it. It keeps what was said."""

    def __init__(self) -> None:
        self.said: list[tuple[str, bytes]] = []
        self.waiting = 0

    async def jobs_waiting(self) -> int:
        return self.waiting

    async def publish(self, subject: str, payload: bytes = b"", *, headers: dict[str, str] | None = None) -> None:
        self.said.append((subject, payload))


@dataclass
class Chat:
    """The service's parts, and what tests say often."""

    engine: AsyncEngine
    billing: CountingBilling
    bus: SilentBus
    sessions: SessionUseCases
    shares: ShareUseCases
    turns: TurnUseCases
    runs: RunUseCases
    run_store: RunStore
    upkeep: UpkeepStore
    settler: Settler
    reaper: Reaper
    clock: "Clock"
    alice: Caller = field(default_factory=lambda: Caller("alice", WORKSPACE, Role.MEMBER))
    bob: Caller = field(default_factory=lambda: Caller("bob", WORKSPACE, Role.MEMBER))

    async def session(self, **settings: object) -> Session:
        """A session of alice's."""
        return await self.sessions.create_session(self.alice, SessionSettings(**settings), None)  # type: ignore[arg-type]

    async def send(self, session_id: SessionId, content: str = "Hello?", key: Key | None = None) -> Turn:
        """A message of alice's."""
        return await self.turns.send_message(self.alice, session_id, TaskId(new_id()), content, key)

    async def answer(self, content: str = "Hi.", usage: Usage = Usage(10, 5)) -> TaskId:  # noqa: B008
        """Claim the next task and complete it, as an agent does."""
        (work,) = await self.runs.claim_tasks("worker", 1)
        await self.complete(work.claim.task_id, work.claim.attempt, content, usage)
        return work.claim.task_id

    async def complete(
        self,
        task_id: TaskId,
        attempt: int,
        content: str = "Hi.",
        usage: Usage = Usage(10, 5),  # noqa: B008
    ) -> None:
        """Complete an attempt and let the settler do what it does."""
        ending = Ending(TaskState.COMPLETED, content=content, finish_reason="stop", usage=usage)
        await self.runs.end_task(task_id, attempt, ending, last_event=0)
        await self.settle()

    async def settle(self) -> None:
        """One batch of the settler's, as its loop does it."""
        batch, self.settler._waiting = self.settler._waiting, []
        await self.settler._settle_batch(batch)

    async def sql(self, statement: str, **values: object) -> list[tuple[object, ...]]:
        """Look behind the curtain, or move what a test can't wait for."""
        from sqlalchemy import text

        async with self.engine.begin() as connection:
            result = await connection.execute(text(statement), values)
            return [tuple(row) for row in result] if result.returns_rows else []


@dataclass
class Clock:
    """Time that the tests move."""

    now: float = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def billing_server() -> AsyncIterator[tuple[CountingBilling, str]]:
    """Billing on a free port."""
    billing = CountingBilling()  # type: ignore[abstract]  # what it lacks is never called
    server = grpc.aio.server()
    rpc.add_BillingServiceServicer_to_server(billing, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield billing, f"127.0.0.1:{port}"
    await server.stop(None)


@pytest.fixture
async def chat(database_url: str, billing_server: tuple[CountingBilling, str]) -> AsyncIterator[Chat]:
    """The service, put together as `__main__` does it."""
    counting, address = billing_server
    engine = create_engine(database_url, pool_size=10, application="test")
    database = Database(database_url, pool_size=10, application="test")
    channel = dial(address, "chat")
    billing, bus, clock = Billing(channel), SilentBus(), Clock()
    catalogs = Catalogs(
        billing, configured=frozenset({"local", "openai"}), default=("local", "small"), clock=time.monotonic
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
        deadline_seconds=600,
        history_messages=100,
        clock=time.monotonic,
    )
    told: list[bool] = []

    async def tell_ready(ready: bool) -> None:
        told.append(ready)

    reaper = Reaper(
        upkeep=upkeep,
        runs=runs,
        turns=turns,
        settler=settler,
        billing=billing,
        announcer=announcer,
        clock=clock,
        tell_ready=tell_ready,
    )
    yield Chat(
        engine=engine,
        billing=counting,
        bus=bus,
        sessions=SessionUseCases(
            SessionStore(engine), SearchStore(engine), catalogs=catalogs, billing=billing, announcer=announcer
        ),
        shares=ShareUseCases(SessionStore(engine), ShareStore(engine, database)),
        turns=turns,
        runs=RunUseCases(runs, catalogs, settler, history_messages=100),
        run_store=runs,
        upkeep=upkeep,
        settler=settler,
        reaper=reaper,
        clock=clock,
    )
    await channel.close()
    await database.close()
    await engine.dispose()


def key_of(value: str, session_id: UUID, fingerprint: bytes = b"same") -> Key:
    """alice's idempotency key for sends to a session."""
    return Key("alice", f"send:{session_id}", value, fingerprint)
