"""Polls without a call to chat: the status bucket tells that a task still runs, to those whom chat has allowed it."""

from __future__ import annotations

import time
from collections.abc import Callable

from backendai.chat.v1 import chat_pb2
from backendai.common.v1 import common_pb2
from google.protobuf.message import DecodeError

from services.kit.bus import Bus

FRESH_SECONDS = 10.0
ALLOWED_SECONDS = 10.0
MAX_ALLOWED = 10_000
READ_SECONDS = 0.1

Key = tuple[str, str, str, str]


class Statuses:
    """Answers `processing` from an entry younger than 10 s; whatever else there is to say is chat's to say."""

    def __init__(self, bus: Bus, *, clock: Callable[[], float] = time.time) -> None:
        self._bus, self._clock = bus, clock
        self._allowed: dict[Key, float] = {}

    def allow(self, caller: common_pb2.Caller, task: chat_pb2.Task) -> None:
        """Remember for 10 s that chat has shown this user this task, while it runs; forget it once it has ended."""
        key = (caller.user_id, caller.workspace_id, task.session_id, task.id)
        self._allowed.pop(key, None)
        if task.state == chat_pb2.TASK_STATE_PROCESSING:
            if len(self._allowed) >= MAX_ALLOWED:
                del self._allowed[next(iter(self._allowed))]
            self._allowed[key] = self._clock() + ALLOWED_SECONDS

    async def find(self, caller: common_pb2.Caller, session_id: str, task_id: str) -> chat_pb2.Task | None:
        """The task as far as the bucket tells it; None when chat has to be asked."""
        key = (caller.user_id, caller.workspace_id, session_id, task_id)
        if self._allowed.get(key, 0.0) <= self._clock():
            return None
        entry = await self._bus.find_status(task_id, timeout_seconds=READ_SECONDS)
        try:
            status = chat_pb2.TaskStatus.FromString(entry) if entry is not None else None
        except DecodeError:
            return None
        return _task(task_id, status) if status is not None and self._is_fresh(status) else None

    def _is_fresh(self, status: chat_pb2.TaskStatus) -> bool:
        age = self._clock() - status.updated_at.seconds
        return status.state == chat_pb2.TASK_STATE_PROCESSING and age < FRESH_SECONDS


def _task(task_id: str, status: chat_pb2.TaskStatus) -> chat_pb2.Task:
    return chat_pb2.Task(
        id=task_id,
        state=status.state,
        attempt=status.attempt,
        created_at=status.created_at,
        updated_at=status.updated_at,
        user_message_id=status.user_message_id,
        held_nano=status.held_nano,
    )
