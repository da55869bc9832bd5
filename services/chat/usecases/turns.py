"""A turn as users drive it: admit, hold, accept; then read it, or cancel it."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from services.chat.announcer import Announcer
from services.chat.billing import Billing
from services.chat.catalog import Catalogs
from services.chat.domain import (
    CANCEL_GRACE,
    Admission,
    Hold,
    Message,
    MessageId,
    SessionId,
    Task,
    TaskId,
    TaskState,
    TurnKind,
    check_content,
    input_tokens,
)
from services.chat.errors import LeaseLost
from services.chat.settler import Settler
from services.chat.store.idempotency import Key
from services.chat.store.runs import RunStore
from services.chat.store.turns import TurnStore
from services.kit.callers import Caller
from services.kit.errors import DomainError, NotFound, PermissionDenied, Unavailable
from services.kit.ids import new_id

log = structlog.get_logger()

TWIN_PATIENCE_SECONDS = 4.0
# How long a cancel waits for the charge of what has ended; billing may be away.
SETTLEMENT_PATIENCE_SECONDS = 2.0
POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Turn:
    """An accepted turn; the message is None when it was deleted since."""

    task: Task
    user_message: Message | None


class TurnUseCases:
    """What users do with turns."""

    def __init__(
        self,
        *,
        turns: TurnStore,
        runs: RunStore,
        catalogs: Catalogs,
        billing: Billing,
        announcer: Announcer,
        settler: Settler,
        deadline_seconds: float,
        history_messages: int,
        clock: Callable[[], float],
    ) -> None:
        self._turns, self._runs, self._catalogs, self._billing = turns, runs, catalogs, billing
        self._announcer, self._settler, self._clock = announcer, settler, clock
        self._deadline_seconds, self._history_messages = deadline_seconds, history_messages

    async def send_message(
        self, caller: Caller, session_id: SessionId, task_id: TaskId, content: str, key: Key | None
    ) -> Turn:
        """Store a user message and queue its run. A caller that goes away changes nothing any more."""
        check_content(content)
        return await asyncio.shield(self._start(caller, session_id, task_id, content, key))

    async def regenerate_answer(self, caller: Caller, session_id: SessionId, task_id: TaskId, key: Key | None) -> Turn:
        """Queue a run that answers the last user message again. A caller that goes away changes nothing any more."""
        return await asyncio.shield(self._start(caller, session_id, task_id, None, key))

    async def _start(
        self, caller: Caller, session_id: SessionId, task_id: TaskId, content: str | None, key: Key | None
    ) -> Turn:
        """Admit, hold, accept. Without content the last user message is answered again."""
        admission = await self._admit(caller, session_id, task_id, content, key)
        if isinstance(admission, Turn):
            return admission
        hold = await self._fund(caller, admission, key)
        task, message = await self._accept(caller, admission, content, hold, key)
        await self._announcer.work(task_id)
        return Turn(task, message)

    async def _accept(
        self, caller: Caller, admission: Admission, content: str | None, hold: Hold, key: Key | None
    ) -> tuple[Task, Message]:
        """Store the message and queue the task, or give the turn up when what it needs is gone."""
        try:
            if content is None:
                return await self._turns.accept_again(admission, hold)
            return await self._turns.accept(caller, admission, MessageId(new_id()), content, hold)
        except DomainError:
            await self._turns.abandon(admission.task_id, key)
            raise

    async def _admit(
        self, caller: Caller, session_id: SessionId, task_id: TaskId, content: str | None, key: Key | None
    ) -> Admission | Turn:
        """Take the run slot, or find the turn that the same key has taken before."""
        give_up_at = self._clock() + TWIN_PATIENCE_SECONDS
        while True:
            admitted = await self._turns.admit(
                caller,
                session_id,
                task_id,
                kind=TurnKind.REGENERATE if content is None else TurnKind.SEND,
                content_bytes=len((content or "").encode()),
                deadline_seconds=self._deadline_seconds,
                history=self._history_messages,
                key=key,
            )
            if isinstance(admitted, Admission):
                return admitted
            twin = await self._find_twin(caller, session_id, admitted, give_up_at)
            if twin is not None:
                return twin

    async def _find_twin(
        self, caller: Caller, session_id: SessionId, task_id: TaskId, give_up_at: float
    ) -> Turn | None:
        """The accepted turn of the same key, once it is accepted; None when it was refused meanwhile."""
        while True:
            try:
                turn = await self.get_task(caller, session_id, task_id)
            except NotFound:
                return None
            if turn.task.state is not TaskState.ADMITTED:
                return turn
            if self._clock() > give_up_at:
                raise Unavailable("The same request is still being accepted. Try again.")
            await asyncio.sleep(POLL_SECONDS)

    async def _fund(self, caller: Caller, admission: Admission, key: Key | None) -> Hold:
        """Hold credits for an admitted turn; a refusal removes the turn, an uncertain end leaves it to the reaper."""
        try:
            model = (await self._catalogs.current()).require(admission.provider, admission.model)
            tokens = input_tokens(admission, model)
            return await self._billing.hold(caller, admission, input_tokens=tokens)
        except BaseException as error:
            refused = isinstance(error, DomainError) and not isinstance(error, Unavailable)
            await (self._turns.withdraw if refused else self._turns.abandon)(admission.task_id, key)
            raise

    async def get_task(self, caller: Caller, session_id: SessionId, task_id: TaskId) -> Turn:
        """A task of a session the caller can see."""
        task = await self._turns.get(caller, session_id, task_id)
        message = await self._turns.user_message(task.user_message_id) if task.user_message_id is not None else None
        return Turn(task, message)

    async def cancel_task(self, caller: Caller, session_id: SessionId, task_id: TaskId) -> Task:
        """Cancel a task: at once when it is queued, within the grace when it runs; its final state."""
        task = await self._turns.get(caller, session_id, task_id)
        cancelled = None if task.state.ended else await self._turns.request_cancel(caller, session_id, task_id)
        if cancelled is None:
            if not await self._turns.may_write(caller, session_id):
                raise PermissionDenied
        elif cancelled.state.ended:
            await self._settler.settle(cancelled)
        else:
            await self._announcer.cancel(task_id)
            await self._wait_until_cancelled(caller, session_id, task_id)
        return await self._once_settled(caller, session_id, task_id)

    async def _wait_until_cancelled(self, caller: Caller, session_id: SessionId, task_id: TaskId) -> None:
        """Give the attempt its grace, then end the task with what its last heartbeat brought."""
        give_up_at = self._clock() + CANCEL_GRACE.total_seconds()
        while not (await self._turns.get(caller, session_id, task_id)).state.ended:
            if self._clock() > give_up_at:
                await self.end_overdue_cancels(task_id)
            await asyncio.sleep(POLL_SECONDS)

    async def _once_settled(self, caller: Caller, session_id: SessionId, task_id: TaskId) -> Task:
        """An ended task with its charge; without it when billing takes too long."""
        give_up_at = self._clock() + SETTLEMENT_PATIENCE_SECONDS
        while True:
            task = await self._turns.get(caller, session_id, task_id)
            if task.settled or self._clock() > give_up_at:
                return task
            await asyncio.sleep(POLL_SECONDS)

    async def end_overdue_cancels(self, task_id: TaskId | None = None, limit: int = 100) -> int:
        """End runs that were asked to stop and did not in time; how many."""
        overdue = await self._runs.overdue_cancels(limit, task_id)
        for found, attempt, ending in overdue:
            try:
                await self._settler.settle(await self._runs.end(found, attempt, ending))
            except LeaseLost:
                log.debug("cancel_overtaken", task_id=str(found))
        return len(overdue)
