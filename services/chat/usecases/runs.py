"""A run as agents drive it."""

from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from services.chat.catalog import Catalogs
from services.chat.domain import Claim, Ending, HistoryMessage, Model, Step, TaskId, cut_history
from services.chat.errors import LeaseLost
from services.chat.metrics import STALE_WRITES
from services.chat.settler import Settler
from services.chat.store.runs import Beat, RunStore
from services.kit.tokens import BYTES_PER_TOKEN

log = structlog.get_logger()

HISTORIES_BYTES = 6 * 1024 * 1024
"""What the histories of one claim have together. With 16 newest messages and system prompts of 400 kB each, and as many
model_parameters of 128 KiB, a claim stays below the 16 MiB of one gRPC message."""


@dataclass(frozen=True, slots=True)
class Work:
    """A claimed task and its conversation, cut to the model's context."""

    claim: Claim
    history: Sequence[HistoryMessage]


class RunUseCases:
    """What agents do with tasks."""

    def __init__(self, store: RunStore, catalogs: Catalogs, settler: Settler, *, history_messages: int) -> None:
        self._store, self._catalogs, self._settler = store, catalogs, settler
        self._history_messages = history_messages

    async def claim_tasks(self, worker: str, limit: int) -> Sequence[Work]:
        """Lease queued tasks, oldest first, each with its history."""
        catalog = await self._catalogs.current()
        claims = await self._store.claim(worker, limit)
        if not claims:
            return ()
        models = [catalog.models.get((claim.settings.ai_provider, claim.settings.ai_model)) for claim in claims]
        share = HISTORIES_BYTES // len(claims)
        windows = [min(model.context_window_tokens * BYTES_PER_TOKEN, share) if model else 0 for model in models]
        histories = await self._store.histories(claims, windows, limit=self._history_messages)
        return [
            Work(claim, _cut(histories[claim.task_id], model, claim))
            for claim, model in zip(claims, models, strict=True)
        ]

    async def heartbeat_tasks(self, beats: Sequence[Beat]) -> tuple[Sequence[TaskId], Sequence[TaskId]]:
        """Renew leases; the tasks whose lease is lost, and those to stop."""
        kept = await self._store.heartbeat(beats) if beats else {}
        lost = [beat.task_id for beat in beats if beat.task_id not in kept]
        STALE_WRITES.inc(len(lost))
        return lost, [task_id for task_id, cancelled in kept.items() if cancelled]

    async def record_step(self, task_id: TaskId, attempt: int, step: Step) -> None:
        """Keep a finished step."""
        try:
            await self._store.record_step(task_id, attempt, step)
        except LeaseLost:
            _count_stale(task_id, attempt)
            raise

    async def end_task(self, task_id: TaskId, attempt: int, ending: Ending, *, last_event: int) -> None:
        """End a task; a write of an attempt that is over is refused and counted."""
        try:
            task = await self._store.end(task_id, attempt, ending, last_event=last_event)
        except LeaseLost:
            _count_stale(task_id, attempt)
            raise
        log.info("task_ended", task_id=str(task_id), attempt=attempt, state=ending.state, error=ending.error_code)
        self._settler.enqueue(task, last_event)


def _count_stale(task_id: TaskId, attempt: int) -> None:
    STALE_WRITES.inc()
    log.warning("stale_write_refused", task_id=str(task_id), attempt=attempt)


def _cut(history: Sequence[HistoryMessage], model: Model | None, claim: Claim) -> Sequence[HistoryMessage]:
    if model is None:  # the price list lost the model since the hold: the newest message alone always goes
        return history[-1:]
    return cut_history(
        history, model, system_prompt=claim.settings.system_prompt, output_tokens=claim.hold.output_tokens
    )
