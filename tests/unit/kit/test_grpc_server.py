"""What a server says to bytes that are no message."""

from collections.abc import AsyncIterator
from typing import Any, cast

import grpc
import pytest
from backendai.speech.v1 import speech_pb2, speech_pb2_grpc
from backendai.translate.v1 import translate_pb2, translate_pb2_grpc

from services.kit.grpc_errors import reason_of
from services.kit.grpc_server import Server
from services.speech.servicer import SpeechServicer
from services.speech.usecases import Transcriptions
from services.translate.servicer import TranslateServicer
from services.translate.usecases import Translations

# A lone surrogate, as some languages write it where UTF-8 has none, and two fields that end too soon.
BROKEN = [b"\x12\x03\xed\xa0\x80", b"\xff\xff", b"\x0a\xff"]


@pytest.fixture
async def channel() -> AsyncIterator[grpc.aio.Channel]:
    """To a server of one method that takes a message and one that takes a stream; neither gets as far as its work."""
    server = Server("127.0.0.1:0")
    port = server.grpc.add_insecure_port("127.0.0.1:0")
    translations, transcriptions = cast("Translations", None), cast("Transcriptions", None)
    translate_pb2_grpc.add_TranslateServiceServicer_to_server(TranslateServicer(translations), server.grpc)
    speech = SpeechServicer(transcriptions, provider="openai", model="whisper-1")
    speech_pb2_grpc.add_SpeechServiceServicer_to_server(speech, server.grpc)
    await server.grpc.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.drain(0)


async def refusal(call: Any) -> tuple[str, str]:
    """Code and reason that a call fails with."""
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call
    return failed.value.code().name, reason_of(failed.value)


@pytest.mark.parametrize("sent", BROKEN)
async def test_bytes_that_are_no_message_are_an_invalid_argument(channel: grpc.aio.Channel, sent: bytes) -> None:
    package = translate_pb2.DESCRIPTOR.package
    call: Any = channel.unary_unary(f"/{package}.TranslateService/TranslateText")
    assert await refusal(call(sent)) == ("INVALID_ARGUMENT", "INVALID_ARGUMENT")


@pytest.mark.parametrize("sent", BROKEN[1:])
async def test_bytes_in_a_stream_that_are_no_message_are_an_invalid_argument(
    channel: grpc.aio.Channel, sent: bytes
) -> None:
    package = speech_pb2.DESCRIPTOR.package
    call: Any = channel.stream_unary(f"/{package}.SpeechService/Transcribe")
    assert await refusal(call(iter([sent]))) == ("INVALID_ARGUMENT", "INVALID_ARGUMENT")
