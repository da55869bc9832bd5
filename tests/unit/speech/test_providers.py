"""The openai SDK against the wire of OpenAI's transcriptions."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from services.kit.errors import DomainError
from services.kit.spool import Spool
from services.speech.domain import Transcript
from services.speech.errors import AudioTooShort, AudioUndecodable, LanguageUnsupported
from services.speech.formats import Format, find_format
from services.speech.providers import Recording
from services.speech.providers.openai import OpenAI
from tests.audio import CODECS, tone
from tests.fakes import openai as openai_wire
from tests.fakes.provider import Behaviour
from tests.fakes.whisper import EXTENSIONS, FakeWhisper
from tests.unit.speech.conftest import BOUNDS, KEY, openai_at


@pytest.fixture
async def spool() -> AsyncIterator[Spool]:
    with Spool() as spool:
        await spool.write(tone("mp3"))
        await spool.flush()
        yield spool


def recording(spool: Spool, language: str = "") -> Recording:
    format = find_format(spool.reader())
    assert format is not None
    return Recording(spool, format, language)


async def failure(provider: OpenAI, spool: Spool) -> DomainError:
    with pytest.raises(DomainError) as caught:
        await provider.transcribe(recording(spool))
    return caught.value


async def test_what_is_sent_is_what_openai_documents(provider: OpenAI, whisper: FakeWhisper, spool: Spool) -> None:
    await provider.transcribe(recording(spool, "de"))
    (request,) = whisper.requests
    assert request.path == "/v1/audio/transcriptions"
    assert request.headers["Authorization"] == f"Bearer {KEY}"
    assert request.headers["Content-Type"].startswith("multipart/form-data; boundary=")
    assert int(request.headers["Content-Length"]) > spool.size
    assert "OpenAI-Organization" not in request.headers
    assert request.json == {
        "model": "whisper-1",
        "language": "de",
        "response_format": "verbose_json",
        "file": {
            "filename": "audio.mp3",
            "content_type": "audio/mpeg",
            "size": spool.size,
            "sha256": hashlib.sha256(tone("mp3")).hexdigest(),
        },
    }


@pytest.mark.parametrize("extension", CODECS)
async def test_every_type_goes_out_under_a_name_that_openai_takes(
    provider: OpenAI, whisper: FakeWhisper, extension: str
) -> None:
    with Spool() as spool:
        await spool.write(tone(extension))
        await spool.flush()
        await provider.transcribe(recording(spool))
    assert whisper.requests[0].json["file"]["size"] == len(tone(extension))


def test_no_type_has_a_name_that_openai_refuses() -> None:
    assert {format.value.extension for format in Format} <= EXTENSIONS


async def test_without_a_language_the_provider_says_which_one_it_heard(
    provider: OpenAI, whisper: FakeWhisper, spool: Spool
) -> None:
    whisper.queue.append(Behaviour("Kia ora.", language="maori"))
    assert await provider.transcribe(recording(spool)) == Transcript("Kia ora.", "mi")
    assert "language" not in whisper.requests[0].json


async def test_a_language_that_was_asked_for_is_the_answer_s(
    provider: OpenAI, whisper: FakeWhisper, spool: Spool
) -> None:
    whisper.queue.append(Behaviour("Guten Tag.", language="english"))
    assert (await provider.transcribe(recording(spool, "de"))).language == "de"


@pytest.mark.parametrize(("told", "language"), [("fr", "fr"), ("", "")])
async def test_a_model_without_a_verbose_answer_is_asked_for_the_plain_one(
    whisper: FakeWhisper, spool: Spool, told: str, language: str
) -> None:
    whisper.queue.append(Behaviour("Bonjour.", language=told))
    async with openai_at(whisper.url, model="gpt-transcribe") as provider:
        assert await provider.transcribe(recording(spool)) == Transcript("Bonjour.", language)
    assert whisper.requests[0].json["response_format"] == "json"


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ({"error": "invalid_key"}, "PROVIDER_AUTH_FAILED"),
        ({"error": "no_access"}, "PROVIDER_REJECTED"),
        ({"error": "rate_limit"}, "PROVIDER_RATE_LIMITED"),
        ({"error": "quota"}, "PROVIDER_RATE_LIMITED"),
        ({"error": "server_error"}, "PROVIDER_UNAVAILABLE"),
        ({"error": "overloaded"}, "PROVIDER_UNAVAILABLE"),
        ({"fault": "hang_up"}, "PROVIDER_UNAVAILABLE"),
        ({"fault": "cut"}, "PROVIDER_UNAVAILABLE"),
        ({"fault": "malformed"}, "PROVIDER_BAD_RESPONSE"),
        ({"fault": "empty"}, "PROVIDER_BAD_RESPONSE"),
    ],
)
async def test_each_failure_has_its_reason(
    provider: OpenAI, whisper: FakeWhisper, spool: Spool, behaviour: dict[str, Any], reason: str
) -> None:
    whisper.default = Behaviour(**behaviour)
    error = await failure(provider, spool)
    assert error.reason == reason
    assert KEY not in str(error)
    assert len(whisper.requests) == 1


@pytest.mark.parametrize(
    ("error", "meaning"),
    [("unsupported_language", LanguageUnsupported), ("too_short", AudioTooShort), ("corrupt", AudioUndecodable)],
)
async def test_what_is_wrong_with_the_recording_is_the_caller_s_to_know(
    provider: OpenAI, whisper: FakeWhisper, spool: Spool, error: str, meaning: type[DomainError]
) -> None:
    whisper.queue.append(Behaviour(error=error))
    assert type(await failure(provider, spool)) is meaning


async def test_a_provider_that_is_not_there_is_unavailable(spool: Spool) -> None:
    async with openai_at("http://127.0.0.1:1/v1") as provider:
        assert (await failure(provider, spool)).reason == "PROVIDER_UNAVAILABLE"


async def test_a_wrong_key_is_told_as_such(whisper: FakeWhisper, spool: Spool) -> None:
    key = openai_wire.UNKNOWN_KEY
    provider = OpenAI("openai", "whisper-1", bounds=BOUNDS, api_key=key, base_url=whisper.url)
    assert (await failure(provider, spool)).reason == "PROVIDER_AUTH_FAILED"
    await provider.close()


async def test_a_caller_that_leaves_hangs_up(provider: OpenAI, whisper: FakeWhisper, spool: Spool) -> None:
    whisper.default = Behaviour(fault="hang")
    task = asyncio.create_task(provider.transcribe(recording(spool)))
    await whisper.until(lambda: whisper.requests)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await whisper.until(lambda: whisper.requests[0].closed_early)
