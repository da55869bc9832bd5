"""Read bytes as a provider's answer, by the code that reads real ones, without HTTP."""

import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from backendai.chat.v1 import chat_pb2
from backendai.chat.v1.chat_pb2 import TaskEvent

from services.agent.domain import Budget, Completed, Message, Settings, Step, Turn, Usage
from services.agent.errors import RunError
from services.agent.events import Events
from services.agent.providers import Chunk, ModelCall, Unseen
from services.agent.providers.google_reader import GeminiReader
from services.agent.providers.openai_reader import ChatCompletionReader
from services.agent.runs import Reply, Run
from services.agent.tasks import heartbeat_of, step_to_wire, usage_to_wire
from services.agent.tools import Tools
from services.common.providers.errors import ProviderError
from services.common.providers.event_stream import Answer
from services.common.providers.refusals import Refused, in_stream, meaning_of
from services.common.providers.retries import Retries
from services.kit.money import Tier

OPENAI, GOOGLE = "openai", "google"
OUTPUT_TOKENS = 65_536
_TIERS = (Tier(None, 1_000_000, 1_000_000),)


@dataclass(slots=True)
class Reading:
    """What came of an answer."""

    text: str = ""
    finish: str = ""
    usage: Usage = field(default_factory=Usage)
    calls: list[tuple[str, str]] = field(default_factory=list)
    """Name and arguments of each tool call."""
    code: str = ""
    """Of the error, if there was one."""
    past_first_delta: bool = False
    unexpected: BaseException | None = None
    """An exception that was no ProviderError inside the reader, which the run reports as a bad response."""

    @property
    def answer(self) -> tuple[object, ...]:
        """All that two equal answers have in common."""
        return self.text, self.finish, self.usage, self.calls, self.code


class FedProvider:
    """A provider that answers with the given bytes."""

    def __init__(self, vendor: str, pieces: Iterable[bytes]) -> None:
        self._vendor, self._pieces = vendor, pieces
        self.has_delta = False
        """True once the model has written something."""

    async def stream(self, call: ModelCall) -> AsyncGenerator[Chunk]:
        """See Provider."""
        is_google = self._vendor == GOOGLE
        gemini, completion = GeminiReader(GOOGLE), ChatCompletionReader(OPENAI)
        answer = Answer(_feed(self._pieces))
        async for document in answer.objects():
            if (refusal := in_stream(document)) is not None:
                raise meaning_of(self._vendor, refusal)
            chunks = gemini.read(document) if is_google else completion.read(document, is_whole=answer.is_whole)
            for chunk in chunks:
                self.has_delta = self.has_delta or isinstance(chunk, str | Unseen)
                yield chunk
        for chunk in (gemini if is_google else completion).finish(is_whole=answer.is_whole):
            yield chunk

    async def close(self) -> None:
        """See Provider."""


async def _feed(pieces: Iterable[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def read(vendor: str, pieces: Sequence[bytes]) -> Reading:
    """Read the answer as a run does. Also puts what came of it on every wire that it goes to."""
    published: list[bytes] = []

    async def publish(_: str, payload: bytes) -> None:
        published.append(payload)

    async def keep(_: Turn, step: Step) -> None:
        step_to_wire(step).SerializeToString()

    provider = FedProvider(vendor, pieces)
    events = Events(publish, "task", 1)
    run = Run(a_turn(vendor), {vendor: provider}, Tools(), events, keep, Retries(tries=1))
    reading = Reading()
    with _caught(reading):
        try:
            reply = await run.ask(run.turn.conversation)
        except (ProviderError, RunError, Refused) as error:
            reading.code = getattr(error, "code", "refused")
        else:
            await _take(reading, run, reply)
    await events.flush()
    reading.text = run.text
    reading.past_first_delta = provider.has_delta
    _check_wires(run, published)
    return reading


async def _take(reading: Reading, run: Run, reply: Reply) -> None:
    answer, message = reply.answer, reply.message
    reading.finish, reading.usage = answer.finish_reason, run.usage
    reading.calls = [(call.name, call.arguments) for call in message.tool_calls]
    _complete(answer)
    if message.tool_calls:
        await run.use_tools(message)


def _check_wires(run: Run, published: Sequence[bytes]) -> None:
    """Nothing of the run may be refused by protobuf, JSON or Postgres."""
    heartbeat_of(run.turn, run.text, run.usage).SerializeToString()
    for payload in published:
        event = TaskEvent.FromString(payload)
        for text in (event.delta, event.tool_call.id, event.tool_call.name, event.tool_call.arguments_json):
            assert "\0" not in text
            json.dumps(text, ensure_ascii=False).encode()


def _complete(answer: Completed) -> None:
    assert "\0" not in answer.content
    assert "\0" not in answer.finish_reason
    chat_pb2.CompleteTaskRequest(
        content=answer.content, finish_reason=answer.finish_reason, usage=usage_to_wire(Usage(1, 1))
    ).SerializeToString()
    json.dumps([answer.content, answer.finish_reason], ensure_ascii=False).encode()


@contextmanager
def _caught(reading: Reading) -> Any:
    """Keep the exception that the run's last resort logs."""

    def keep(error: BaseException) -> dict[str, object]:
        reading.unexpected = error
        return {}

    with mock.patch("services.agent.runs.where", keep):
        yield


def a_turn(vendor: str) -> Turn:
    """A turn with one question."""
    return Turn(
        task_id="task",
        attempt=1,
        settings=Settings(vendor, "a-model", "none"),
        history=(Message("user", "What is the capital of France?"),),
        steps=(),
        budget=Budget(held_nano=10_000_000, tiers=_TIERS, output_tokens=OUTPUT_TOKENS),
        deadline_at=time.time() + 60,
    )
