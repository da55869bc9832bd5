"""The service as its clients see it: over gRPC, with reasons for failures."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import grpc
import pytest
from backendai.common.v1 import common_pb2
from backendai.speech.v1 import speech_pb2 as pb
from backendai.speech.v1.speech_pb2_grpc import SpeechServiceStub, add_SpeechServiceServicer_to_server

from services.kit.grpc_client import dial
from services.kit.grpc_errors import error_info
from services.kit.grpc_server import Server
from services.speech.servicer import SpeechServicer
from services.speech.usecases import Transcriptions
from tests.audio import tone
from tests.fakes.provider import Behaviour
from tests.fakes.whisper import FakeWhisper
from tests.integration.waiting import until
from tests.unit.speech.conftest import NANO_PER_SECOND, Account

if TYPE_CHECKING:  # exists for the type checker only
    from backendai.speech.v1.speech_pb2_grpc import SpeechServiceAsyncStub as Stub

NOTHING = (0, 0)


@pytest.fixture
async def stub(transcriptions: Transcriptions) -> AsyncIterator[Stub]:
    """A client of the service, served for real."""
    server = Server("127.0.0.1:0")
    port = server.grpc.add_insecure_port("127.0.0.1:0")
    add_SpeechServiceServicer_to_server(
        SpeechServicer(transcriptions, provider="openai", model="whisper-1"), server.grpc
    )
    await server.grpc.start()
    channel = dial(f"127.0.0.1:{port}", "speech")
    yield SpeechServiceStub(channel)
    await channel.close()
    await server.drain(0)


def head(
    account: Account, *, role: common_pb2.Role.ValueType = common_pb2.ROLE_MEMBER, **fields: Any
) -> pb.TranscribeHead:
    """Alice's request."""
    caller = common_pb2.Caller(user_id="alice", workspace_id=str(account.workspace_id), role=role)
    return pb.TranscribeHead(**{"caller": caller, "hold_id": str(uuid4()), **fields})


async def messages(first: pb.TranscribeHead | None, *chunks: bytes) -> AsyncIterator[pb.TranscribeRequest]:
    if first is not None:
        yield pb.TranscribeRequest(head=first)
    for chunk in chunks:
        yield pb.TranscribeRequest(chunk=chunk)


async def refusal(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call
    info = error_info(failed.value)
    assert info is not None, failed.value
    return failed.value.code(), info.reason


async def test_a_file_in_pieces_becomes_text(stub: Stub, account: Account) -> None:
    file = tone("wav", 1.5, rate=16_000)
    answer = await stub.Transcribe(messages(head(account), file[:7], file[7:9_000], b"", file[9_000:]), timeout=30)
    assert answer == pb.TranscribeResponse(
        text="Good morning.",
        language="en",
        duration_seconds=1.5,
        charged_nano=round(1.5 * NANO_PER_SECOND),
        provider="openai",
        model="whisper-1",
    )


@pytest.mark.parametrize(
    ("fields", "code", "reason"),
    [
        ({"role": common_pb2.ROLE_UNSPECIFIED}, grpc.StatusCode.NOT_FOUND, "NOT_FOUND"),
        ({"role": common_pb2.ROLE_VIEWER}, grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED"),
        ({"hold_id": "7"}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT"),
        ({"caller": common_pb2.Caller()}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT"),
        ({"language": "xx"}, grpc.StatusCode.INVALID_ARGUMENT, "LANGUAGE_UNKNOWN"),
    ],
)
async def test_a_bad_head_is_refused_before_the_file(
    stub: Stub, account: Account, fields: dict[str, Any], code: grpc.StatusCode, reason: str
) -> None:
    async def endless() -> AsyncIterator[pb.TranscribeRequest]:
        yield pb.TranscribeRequest(head=head(account, **fields))
        assert "send-the-file" not in dict(await call.initial_metadata())
        await call.code()

    call = stub.Transcribe(endless(), timeout=30)
    assert await refusal(call) == (code, reason)
    assert await account.spent_and_held() == NOTHING


async def test_a_stream_without_a_head_or_with_two_is_refused(stub: Stub, account: Account) -> None:
    async def twice() -> AsyncIterator[pb.TranscribeRequest]:
        yield pb.TranscribeRequest(head=head(account))
        yield pb.TranscribeRequest(head=head(account))

    wrong = (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT")
    assert await refusal(stub.Transcribe(messages(None), timeout=30)) == wrong
    assert await refusal(stub.Transcribe(messages(None, b"sound"), timeout=30)) == wrong
    assert await refusal(stub.Transcribe(twice(), timeout=30)) == wrong


async def test_a_call_that_is_cancelled_leaves_nothing(stub: Stub, account: Account, whisper: FakeWhisper) -> None:
    whisper.default = Behaviour(fault="hang")
    call = stub.Transcribe(messages(head(account), tone("wav")), timeout=30)
    waiting = asyncio.ensure_future(call)
    await whisper.until(lambda: whisper.requests)
    waiting.cancel()
    await whisper.until(lambda: whisper.requests[0].closed_early)

    async def nothing_left() -> bool:
        return await account.spent_and_held() == NOTHING

    await until(nothing_left, saying="nothing held")


async def test_a_slow_provider_is_told_before_the_caller_s_deadline(
    stub: Stub, account: Account, whisper: FakeWhisper
) -> None:
    whisper.default = Behaviour(fault="hang")
    code, reason = await refusal(stub.Transcribe(messages(head(account), tone("wav")), timeout=4))
    assert (code, reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "PROVIDER_TIMEOUT")
    assert await account.spent_and_held() == NOTHING
