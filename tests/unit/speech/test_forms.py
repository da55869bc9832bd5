"""Transcription servers that take or answer less than OpenAI, and what their refusals mean."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from services.kit.errors import DomainError
from services.kit.spool import Spool
from services.speech.domain import Transcript
from services.speech.formats import find_format
from services.speech.providers import Recording
from services.speech.providers.openai import OpenAI
from tests.audio import tone
from tests.fakes.provider import Behaviour, Whole
from tests.fakes.whisper import FakeWhisper
from tests.unit.speech.conftest import openai_at

Body = dict[str, Any]


def refusal(status: int, message: str, **fields: object) -> Whole:
    """An error in OpenAI's words."""
    detail = {"message": message, "type": "invalid_request_error", "param": None, "code": None, **fields}
    return Whole(json.dumps({"error": detail}).encode(), status)


def raw(status: int, document: object) -> Whole:
    """An error in a server's own words."""
    return Whole(json.dumps(document).encode(), status)


class OtherServer(FakeWhisper):
    """Answers as it is told to."""

    give: Callable[[Body], Whole | None]

    def render(self, path: str, body: Body, behaviour: Behaviour) -> Whole:
        return self.give(body) or super().render(path, body, behaviour)


@asynccontextmanager
async def asking(give: Callable[[Body], Whole | None], model: str = "m") -> AsyncIterator[tuple[OpenAI, OtherServer]]:
    server = OtherServer()
    server.give, server.default = give, Behaviour("Good morning.")
    async with server, openai_at(server.url, model=model) as provider:
        yield provider, server


async def transcribe(provider: OpenAI) -> Transcript:
    with Spool() as spool:
        await spool.write(tone("mp3"))
        await spool.flush()
        format = find_format(spool.reader())
        assert format is not None
        return await provider.transcribe(Recording(spool, format, ""))


def forms(server: OtherServer) -> list[str | None]:
    return [request.json.get("response_format") for request in server.requests]


def takes(*taken: str | None, answer: Whole) -> Callable[[Body], Whole | None]:
    return lambda body: None if body.get("response_format") in taken else answer


GROQ = refusal(400, "response_format must be one of [json, text]")
OPENAI = refusal(
    400,
    "response_format 'verbose_json' is not compatible with model 'x'. Use 'json' or 'text' instead.",
    param="response_format",
    code="unsupported_value",
)
FASTAPI = raw(422, {"detail": [{"loc": ["body", "response_format"], "msg": "Input should be 'json'", "type": "enum"}]})
VLLM = raw(400, {"object": "error", "message": "Currently do not support verbose_json", "type": "BadRequestError"})
FAULT = raw(500, {"error": "verbose_json is not implemented"})


@pytest.mark.parametrize("answer", [GROQ, OPENAI, FASTAPI, VLLM, FAULT])
async def test_a_server_without_a_verbose_answer_is_asked_for_the_plain_one_from_then_on(answer: Whole) -> None:
    async with asking(takes("json", answer=answer)) as (provider, server):
        for _ in range(2):
            assert (await transcribe(provider)).text == "Good morning."
        assert forms(server) == ["verbose_json", "json", "json"]


async def test_a_server_that_knows_text_alone_is_asked_for_it() -> None:
    def give(body: Body) -> Whole | None:
        if body.get("response_format") == "text":
            return Whole(b"Good morning.\n", headers={"Content-Type": "text/plain"})
        return GROQ

    async with asking(give) as (provider, server):
        assert await transcribe(provider) == Transcript("Good morning.", "")
        assert forms(server) == ["verbose_json", "json", "text"]


@pytest.mark.parametrize("answer", [GROQ, FASTAPI])
async def test_a_server_without_response_format_is_asked_without(answer: Whole) -> None:
    async with asking(takes(None, answer=answer)) as (provider, server):
        for _ in range(2):
            assert (await transcribe(provider)).text == "Good morning."
        assert forms(server) == ["verbose_json", "json", "text", None, None]


async def test_a_server_that_refuses_every_form_has_rejected_the_request() -> None:
    async with asking(lambda _: GROQ) as (provider, server):
        with pytest.raises(DomainError) as caught:
            await transcribe(provider)
        assert (caught.value.reason, len(server.requests)) == ("PROVIDER_REJECTED", 4)


@pytest.mark.parametrize(
    ("sent", "text"),
    [
        (b'{"text": "Good morning."}', "Good morning."),
        (b'\xef\xbb\xbf{"text": " Good morning. "}', "Good morning."),
        (b'"Good morning."', "Good morning."),
        (b"Good morning.\n", "Good morning."),
        (b'{"segments": [{"text": "Good"}, {"text": " morning."}], "language": "en"}', "Good morning."),
        (b'{"text": ""}', ""),
        (rb'{"text": "Hi \ud83d"}', "Hi \ufffd"),
        (rb'{"text": "\ud83d\ude00"}', "\U0001f600"),
        (rb'{"text": "a\u0000b"}', "a\ufffdb"),
        (rb'{"segments": [{"text": "\ud83d"}, {"text": "\ude00"}]}', "\U0001f600"),
        (b'{"text": "a\nb"}', "a\nb"),
        (b"a\0b \xff", "a\ufffdb \ufffd"),
    ],
)
async def test_a_transcript_is_read_where_it_is(sent: bytes, text: str) -> None:
    async with asking(lambda _: Whole(sent)) as (provider, server):
        assert (await transcribe(provider)).text == text
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("language", "read"),
    [("english", "en"), ("English", "en"), ("en", "en"), ("\ud83d", ""), ("en\0glish", ""), (5, ""), (None, "")],
)
async def test_what_a_server_calls_the_language_never_fails_the_transcript(language: object, read: str) -> None:
    sent = json.dumps({"text": "Hi.", "language": language}).encode()
    async with asking(lambda _: Whole(sent)) as (provider, _):
        assert await transcribe(provider) == Transcript("Hi.", read)


@pytest.mark.parametrize(
    "sent",
    [
        *(b"", b" \n", b"{}", b"null", b"[]", b"5", b'{"text": null}', b'{"text": 5}', b'{"segments": []}'),
        *(b'{"segments": [{"text": 5}]}', b'{"text": "Hal', b"<html></html>", b'data: {"text": "Hi"}\n\n'),
        b"[" * 100_000,
    ],
    ids=lambda sent: sent[:30].decode(),
)
async def test_what_is_no_transcript_is_a_bad_response(sent: bytes) -> None:
    async with asking(lambda _: Whole(sent)) as (provider, _):
        with pytest.raises(DomainError) as caught:
            await transcribe(provider)
        assert caught.value.reason == "PROVIDER_BAD_RESPONSE"


@pytest.mark.parametrize(("body", "text"), [(b"42", "42"), (b"", ""), (b"Null.", "Null."), (b"[music]", "[music]")])
async def test_text_that_was_asked_for_is_taken_as_it_is(body: bytes, text: str) -> None:
    def give(sent: Body) -> Whole:
        return Whole(body) if sent.get("response_format") == "text" else GROQ

    async with asking(give) as (provider, _):
        assert (await transcribe(provider)).text == text


# --- refusals ---

WHISPER = "Invalid file format. Supported formats: ['flac', 'm4a', 'mp3', 'mp4', 'mpeg', 'mpga', 'oga', 'ogg', 'wav']"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (refusal(400, WHISPER), "AUDIO_UNDECODABLE"),
        (refusal(400, "Audio file might be corrupted or unsupported", param="file"), "AUDIO_UNDECODABLE"),
        (refusal(400, "The audio file could not be decoded or its format is not supported."), "AUDIO_UNDECODABLE"),
        (refusal(400, "could not process file - is it a valid media file?"), "AUDIO_UNDECODABLE"),
        (raw(500, {"error": "failed to decode audio"}), "AUDIO_UNDECODABLE"),
        (raw(422, {"detail": [{"loc": ["body", "file"], "msg": "bad"}]}), "AUDIO_UNDECODABLE"),
        (refusal(400, "Audio file is too short. Minimum audio length is 0.1 seconds."), "AUDIO_TOO_SHORT"),
        (refusal(400, "Language 'xx' is not supported", param="language"), "LANGUAGE_UNSUPPORTED"),
        (refusal(413, "Maximum content size limit (26214400) exceeded"), "AUDIO_TOO_LARGE"),
        (refusal(400, "Your credit balance is too low"), "PROVIDER_RATE_LIMITED"),
        (refusal(402, "Insufficient Balance"), "PROVIDER_RATE_LIMITED"),
        (refusal(403, "Project does not have access to model x", code="model_not_found"), "PROVIDER_REJECTED"),
        (Whole(b"<html>403</html>", 403, {"Content-Type": "text/html"}), "PROVIDER_UNAVAILABLE"),
        (refusal(400, "Content Exists Risk"), "CONTENT_FILTERED"),
        (refusal(400, "Something else"), "PROVIDER_REJECTED"),
        (raw(500, {"error": "Internal error"}), "PROVIDER_UNAVAILABLE"),
        (raw(200, {"error": {"message": "Rate limit reached", "code": 429}}), "PROVIDER_RATE_LIMITED"),
        (raw(200, {"error": {"message": WHISPER, "code": 400}}), "AUDIO_UNDECODABLE"),
    ],
    ids=lambda value: value.body[:70].decode() if isinstance(value, Whole) else value,
)
async def test_a_refusal_has_one_meaning(answer: Whole, reason: str) -> None:
    async with asking(lambda _: answer) as (provider, server):
        with pytest.raises(DomainError) as caught:
            await transcribe(provider)
        assert (caught.value.reason, len(server.requests)) == (reason, 1)
