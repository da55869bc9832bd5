"""What chat says on NATS: there is work, stop that run, this task has ended. Hints all: nothing waits for them."""

from collections.abc import Sequence

from backendai.chat.v1 import chat_pb2 as pb

from services.chat.convert import task_to_proto
from services.chat.domain import Task, TaskId, Waiting
from services.kit import telemetry
from services.kit.bus import CANCEL_SUBJECT, JOBS_SUBJECT, MAX_PAYLOAD_BYTES, Bus, events_subject
from services.kit.telemetry import SpanKind


class Announcer:
    """Publishes chat's hints."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def work(self, task_id: TaskId, traceparent: str = "") -> None:
        """Wake an agent, as a part of the task's trace: the current one unless it is named."""
        attributes = {"messaging.system": "nats"}
        with telemetry.span(f"publish {JOBS_SUBJECT}", SpanKind.PRODUCER, parent=traceparent, attributes=attributes):
            await self._bus.publish(JOBS_SUBJECT, str(task_id).encode(), headers=telemetry.headers())

    async def work_again(self, waiting: Sequence[Waiting]) -> None:
        """Wake agents for tasks that wait: as many as there are not wake-ups waiting already."""
        if waiting:
            for task in waiting[await self._bus.jobs_waiting() :]:
                await self.work(task.id, task.traceparent)

    async def cancel(self, task_id: TaskId) -> None:
        """Tell the agents to stop a run."""
        await self._bus.publish(CANCEL_SUBJECT, str(task_id).encode())

    async def ended(self, task: Task, last_event: int = 0) -> None:
        """Tell the waiters how a task has ended; without the answer when it is too long for one message.

        The status entry is ended here too: an agent that is dead or frozen leaves one that says `processing`.
        """
        event = pb.TaskEvent(attempt=task.attempt, seq=last_event + 1, ended=task_to_proto(task))
        status = pb.TaskStatus(state=event.ended.state, attempt=task.attempt, updated_at=event.ended.updated_at)
        await self._bus.put_status(str(task.id), status.SerializeToString())
        if event.ByteSize() > MAX_PAYLOAD_BYTES:
            del event.ended.ai_messages[:]
        await self._bus.publish(events_subject(str(task.id)), event.SerializeToString())
