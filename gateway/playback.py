"""Which of a task's events a client is still to be shown, and whether they add up to its answer. Pure."""

from __future__ import annotations

import zlib
from enum import Enum, auto
from typing import NamedTuple

from backendai.chat.v1 import chat_pb2

FAILED = chat_pb2.TASK_STATE_FAILED


class Position(NamedTuple):
    """An event's place: `<attempt>.<seq>`. Attempts count from 1, and so do the events of each."""

    attempt: int
    seq: int

    def __str__(self) -> str:
        return f"{self.attempt}.{self.seq}"


START = Position(0, 0)


class Taken(Enum):
    """What becomes of an event."""

    SHOWN = auto()
    KNOWN = auto()
    """The client has it, or it is of an attempt that another one has replaced."""
    GAP = auto()
    """Something before it is missing; it has not been taken."""


class Fingerprint:
    """Tells two texts apart without keeping them."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Begin with an empty text."""
        self._bytes = self._sum = 0

    def add(self, text: str) -> None:
        """Append a piece."""
        encoded = text.encode()
        self._bytes += len(encoded)
        self._sum = zlib.crc32(encoded, self._sum)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Fingerprint) and (self._bytes, self._sum) == (other._bytes, other._sum)

    __hash__ = None  # type: ignore[assignment]  # it changes


class Playback:
    """The events of one task in order, for a client that has seen them up to `seen`."""

    def __init__(self, seen: Position = START) -> None:
        self.seen, self.at = seen, START
        self._text = Fingerprint()

    def take(self, event: chat_pb2.TaskEvent) -> Taken:
        """The next event, wherever it comes from: stored or heard, once or twice."""
        position = Position(event.attempt, event.seq)
        if position <= self.at:
            return Taken.KNOWN
        kind = event.WhichOneof("event")
        if kind != "reset" and not self._follows(position):
            return Taken.GAP
        if kind == "reset" or position.attempt > self.at.attempt:
            self._text.clear()
        if kind == "delta":
            self._text.add(event.delta)
        self.at = position
        if position <= self.seen:
            return Taken.KNOWN
        self.seen = position
        return Taken.SHOWN

    def _follows(self, position: Position) -> bool:
        attempt, seq = self.at
        return position in ((attempt, seq + 1), (position.attempt, 1))

    def has_told(self, task: chat_pb2.Task) -> bool:
        """Whether the client has exactly the answer that an ended task has stored. A failed one has none to tell."""
        if task.state == FAILED:
            return True
        told = Fingerprint()
        told.add(answer_text(task))
        return told == self._text and self.seen <= self._after(self.at)

    def end_of(self, task: chat_pb2.Task) -> Position:
        """The place of an ended task's last event."""
        if self.seen.attempt > task.attempt:
            return sealed(task).end
        if self.seen.attempt < task.attempt:
            return Position(task.attempt, 1)
        return self.seen if self.seen == self._after(self.at) else self._after(self.seen)

    @staticmethod
    def _after(position: Position) -> Position:
        return Position(position.attempt, position.seq + 1)


class Sealed(NamedTuple):
    """The places of a stored answer that is told whole. It counts as one more attempt: it voids what was told before,
    and a client that is cut in the midst of it goes on wherever it asks."""

    reset: Position
    answer: Position
    end: Position


def sealed(task: chat_pb2.Task) -> Sealed:
    """Where an ended task's stored answer is told."""
    attempt = task.attempt + 1
    return Sealed(Position(attempt, 1), Position(attempt, 2), Position(attempt, 3))


def answer_text(task: chat_pb2.Task) -> str:
    """What the deltas of a run add up to."""
    return "".join(message.content for message in task.ai_messages if message.role == "assistant")
