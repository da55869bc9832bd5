"""The gRPC edge: proto to use case to proto."""

from collections.abc import AsyncIterator
from typing import Any, TypeAlias

import grpc
from backendai.speech.v1 import speech_pb2 as pb
from backendai.speech.v1 import speech_pb2_grpc

from services.kit.errors import InvalidArgument
from services.kit.grpc_callers import to_caller
from services.kit.ids import parse_id
from services.speech.domain import Job
from services.speech.usecases import Transcriptions

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

# Of a caller's deadline this much is left for the answer to travel.
REPLY_SECONDS = 0.2
SEND_THE_FILE = "send-the-file"


class SpeechServicer(speech_pb2_grpc.SpeechServiceServicer):
    """backendai.speech.v1.SpeechService."""

    def __init__(self, transcriptions: Transcriptions, *, provider: str, model: str) -> None:
        self._transcriptions, self._provider, self._model = transcriptions, provider, model

    async def Transcribe(
        self, request_iterator: AsyncIterator[pb.TranscribeRequest], context: Context
    ) -> pb.TranscribeResponse:
        head = await _head(request_iterator)
        file = _chunks(request_iterator, context)
        paid = await self._transcriptions.transcribe(
            to_caller(head.caller), _job(head), file, patience_seconds=_patience_seconds(context)
        )
        return pb.TranscribeResponse(
            text=paid.transcript.text,
            language=paid.transcript.language,
            duration_seconds=paid.seconds,
            charged_nano=paid.charged_nano,
            provider=self._provider,
            model=self._model,
        )


async def _head(messages: AsyncIterator[pb.TranscribeRequest]) -> pb.TranscribeHead:
    async for message in messages:
        if message.WhichOneof("part") == "head":
            return message.head
        break
    raise InvalidArgument("The first message must be the head.")


async def _chunks(messages: AsyncIterator[pb.TranscribeRequest], context: Context) -> AsyncIterator[bytes]:
    """The file. The client is told to send it when it is first asked for: a refusal that met a client in the middle of
    a write would be lost, since gRPC then says INTERNAL.
    """
    await context.send_initial_metadata(((SEND_THE_FILE, "1"),))
    async for message in messages:
        if message.WhichOneof("part") != "chunk":
            raise InvalidArgument("After the head only chunks may come.")
        yield message.chunk


def _job(head: pb.TranscribeHead) -> Job:
    hold_id = parse_id(head.hold_id)
    if hold_id is None:
        raise InvalidArgument("hold_id must be a UUID.", field="hold_id")
    return Job.parse(hold_id=hold_id, language=head.language, may_repeat=head.may_repeat)


def _patience_seconds(context: Context) -> float | None:
    remaining: float | None = context.time_remaining()
    return None if remaining is None else max(0.0, remaining - REPLY_SECONDS)
