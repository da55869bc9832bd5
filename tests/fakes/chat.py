"""Chat's TaskService in memory: hands out the tasks it is given and records what agents say of them."""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any, Self

import grpc
from backendai.billing.v1 import billing_pb2
from backendai.chat.v1 import chat_pb2, chat_pb2_grpc
from google.protobuf.timestamp_pb2 import Timestamp

from services.kit.errors import DomainError, Kind, Unavailable
from services.kit.grpc_server import Server
from services.kit.ids import new_id

WAIT_SECONDS = 15.0
Context = grpc.aio.ServicerContext[Any, Any]


class AttemptOver(DomainError):
    """What chat answers to an attempt that is over."""

    kind, reason, detail = Kind.CONFLICT, "LEASE_LOST", "The attempt is over."


class FakeChat(chat_pb2_grpc.TaskServiceServicer):
    """A TaskService on a loopback port."""

    def __init__(self, port: int) -> None:
        self.address = f"127.0.0.1:{port}"
        self.queue: deque[chat_pb2.ClaimedTask] = deque()
        self.attempts: Counter[str] = Counter()
        self.claims: list[int] = []
        """The limit of each claim."""
        self.heartbeats: list[Sequence[chat_pb2.Heartbeat]] = []
        self.steps: list[chat_pb2.RecordStepRequest] = []
        self.completed: list[chat_pb2.CompleteTaskRequest] = []
        self.failed: list[chat_pb2.FailTaskRequest] = []
        self.lost: set[str] = set()
        self.cancelled: set[str] = set()
        self.refusals: Counter[str] = Counter()
        """How many of the next calls of an RPC are answered with UNAVAILABLE."""
        self._changed = asyncio.Event()
        self._server: Server | None = None

    async def __aenter__(self) -> Self:
        self._server = Server(self.address)
        chat_pb2_grpc.add_TaskServiceServicer_to_server(self, self._server.grpc)
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        await self._server.drain(0)

    def add(self, **fields: Any) -> chat_pb2.ClaimedTask:
        """Queue a task; it is claimed once a wake-up tells of it."""
        task = make_task(**fields)
        self.queue.append(task)
        return task

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until something that agents said makes the condition true; an assertion fails after 15 s."""
        async with asyncio.timeout(WAIT_SECONDS):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    def _arrived(self, rpc: str) -> None:
        self._changed.set()
        if self.refusals[rpc] > 0:
            self.refusals[rpc] -= 1
            raise Unavailable

    def _check(self, task_id: str, attempt: int) -> None:
        if task_id in self.lost or attempt != self.attempts[task_id]:
            raise AttemptOver

    async def ClaimTasks(self, request: chat_pb2.ClaimTasksRequest, context: Context) -> chat_pb2.ClaimTasksResponse:
        self.claims.append(request.limit)
        self._arrived("ClaimTasks")
        tasks = [self.queue.popleft() for _ in range(min(request.limit, len(self.queue)))]
        for task in tasks:
            self.attempts[task.task_id] = max(self.attempts[task.task_id] + 1, task.attempt)
            task.attempt = self.attempts[task.task_id]
        return chat_pb2.ClaimTasksResponse(tasks=tasks)

    async def HeartbeatTasks(
        self, request: chat_pb2.HeartbeatTasksRequest, context: Context
    ) -> chat_pb2.HeartbeatTasksResponse:
        self.heartbeats.append(request.heartbeats)
        self._arrived("HeartbeatTasks")
        return chat_pb2.HeartbeatTasksResponse(
            lost_task_ids=[beat.task_id for beat in request.heartbeats if beat.task_id in self.lost],
            cancelled_task_ids=[beat.task_id for beat in request.heartbeats if beat.task_id in self.cancelled],
        )

    async def RecordStep(self, request: chat_pb2.RecordStepRequest, context: Context) -> chat_pb2.RecordStepResponse:
        self._arrived("RecordStep")
        self._check(request.task_id, request.attempt)
        self.steps.append(request)
        return chat_pb2.RecordStepResponse()

    async def CompleteTask(
        self, request: chat_pb2.CompleteTaskRequest, context: Context
    ) -> chat_pb2.CompleteTaskResponse:
        self._arrived("CompleteTask")
        self._check(request.task_id, request.attempt)
        self.completed.append(request)
        return chat_pb2.CompleteTaskResponse()

    async def FailTask(self, request: chat_pb2.FailTaskRequest, context: Context) -> chat_pb2.FailTaskResponse:
        self._arrived("FailTask")
        self._check(request.task_id, request.attempt)
        self.failed.append(request)
        return chat_pb2.FailTaskResponse()


def make_task(
    *,
    text: str = "What is the capital of France?",
    provider: str = "openai",
    model: str = "gpt-4o-mini",
    framework: str = "none",
    deadline_seconds: float = 600,
    history: Sequence[chat_pb2.Message] | None = None,
    settings: dict[str, Any] | None = None,
    **fields: Any,
) -> chat_pb2.ClaimedTask:
    """A task as chat hands it out: one question, 1 credit held, 1,000 tokens of answer."""
    now = time.time()
    return chat_pb2.ClaimedTask(
        **{
            "task_id": str(new_id()),
            "session_id": str(new_id()),
            "user_message_id": str(new_id()),
            "settings": chat_pb2.SessionSettings(
                ai_provider=provider, ai_model=model, agent_framework=framework, **(settings or {})
            ),
            "history": history or [chat_pb2.Message(role="user", content=text)],
            "held_nano": 1_000_000_000,
            "rates": billing_pb2.Rates(
                tiers=[billing_pb2.RateTier(input_nano_per_million=10**9, output_nano_per_million=4 * 10**9)]
            ),
            "output_tokens": 1_000,
            "created_at": Timestamp(seconds=int(now)),
            "deadline_at": Timestamp(
                seconds=int(now + deadline_seconds), nanos=int((now + deadline_seconds) % 1 * 1e9)
            ),
            **fields,
        }
    )
