"""Servers that take less than OpenAI and Gemini do are asked in a simpler form, and that is remembered."""

import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from services.common.providers.errors import ProviderError
from services.translate.providers import Provider
from services.translate.providers.google import Google
from services.translate.providers.openai import OpenAI
from tests.fakes.gemini import FakeGemini
from tests.fakes.openai import FakeOpenAI
from tests.fakes.provider import Behaviour, FakeProvider, Whole
from tests.unit.translate.conftest import KEY, a_job, translated

Body = dict[str, Any]
Refuse = Callable[[Body], Whole | None]


def refusal(status: int, message: str, **fields: object) -> Whole:
    """An error in OpenAI's words."""
    detail = {"message": message, "type": "invalid_request_error", "param": None, "code": None, **fields}
    return Whole(json.dumps({"error": detail}).encode(), status)


def raw(status: int, document: object) -> Whole:
    """An error in a server's own words."""
    return Whole(json.dumps(document).encode(), status)


class PickyOpenAI(FakeOpenAI):
    """Refuses what it does not take."""

    refuse_body: Refuse

    def render(self, path: str, body: Body, behaviour: Behaviour) -> Any:
        return self.refuse_body(body) or super().render(path, body, behaviour)


class PickyGemini(FakeGemini):
    """Refuses what it does not take."""

    refuse_body: Refuse

    def render(self, path: str, body: Body, behaviour: Behaviour) -> Any:
        return self.refuse_body(body) or super().render(path, body, behaviour)


@asynccontextmanager
async def asking(fake: PickyOpenAI | PickyGemini, refuse: Refuse) -> AsyncIterator[tuple[Provider, FakeProvider]]:
    fake.refuse_body, fake.default = refuse, translated()
    async with fake:
        make = OpenAI if isinstance(fake, FakeOpenAI) else Google
        provider = make("some-model", api_key=KEY, base_url=fake.url)
        try:
            yield provider, fake
        finally:
            await provider.close()


def shape(body: Body) -> str:
    """The type of the response format."""
    return str((body.get("response_format") or {}).get("type", ""))


def takes(*shapes: str, answer: Whole) -> Refuse:
    return lambda body: None if shape(body) in shapes else answer


DEEPSEEK = refusal(400, "This response_format type is unavailable now", code="invalid_request_error")
GROQ = refusal(400, "This model does not support response format `json_schema`. See supported models.")
OPENAI = refusal(
    400,
    "Invalid parameter: 'response_format' of type 'json_schema' is not supported with this model.",
    param="response_format",
)
LM_STUDIO = raw(400, {"error": "'response_format.type' must be 'json_schema'"})
MISTRAL = raw(422, {"detail": [{"type": "extra_forbidden", "loc": ["body", "response_format"], "msg": "Extra inputs"}]})
NOT_IMPLEMENTED = raw(501, {"error": {"code": 501, "message": "Structured output is not implemented", "type": "x"}})


@pytest.mark.parametrize("answer", [DEEPSEEK, GROQ, OPENAI, MISTRAL, NOT_IMPLEMENTED])
async def test_a_server_without_a_schema_is_asked_for_json_once_and_from_then_on(answer: Whole) -> None:
    async with asking(PickyOpenAI(), takes("json_object", answer=answer)) as (provider, fake):
        for _ in range(2):
            assert (await provider.translate(a_job(), output_tokens=500)).translated_text == "Hallo Welt"
        assert [shape(request.json) for request in fake.requests] == ["json_schema", "json_object", "json_object"]


@pytest.mark.parametrize("answer", [DEEPSEEK, GROQ, LM_STUDIO, MISTRAL])
async def test_a_server_without_any_json_mode_is_asked_without(answer: Whole) -> None:
    async with asking(PickyOpenAI(), takes("", answer=answer)) as (provider, fake):
        for _ in range(2):
            assert (await provider.translate(a_job(), output_tokens=500)).translated_text == "Hallo Welt"
        assert [shape(request.json) for request in fake.requests] == ["json_schema", "json_object", "", ""]


@pytest.mark.parametrize(
    "answer",
    [
        refusal(400, "Unsupported parameter: 'max_completion_tokens'. Use 'max_tokens' instead."),
        refusal(400, "Unrecognized request argument supplied: max_completion_tokens"),
        raw(422, {"detail": [{"type": "extra_forbidden", "loc": ["body", "max_completion_tokens"], "msg": "Extra"}]}),
        raw(400, {"object": "error", "message": "[{'loc': ('body', 'max_completion_tokens'), 'msg': 'extra fields'}]"}),
    ],
)
async def test_a_server_that_refuses_the_newer_name_of_the_limit_is_sent_the_older(answer: Whole) -> None:
    def refuse(body: Body) -> Whole | None:
        return answer if "max_completion_tokens" in body else None

    async with asking(PickyOpenAI(), refuse) as (provider, fake):
        for _ in range(2):
            await provider.translate(a_job(), output_tokens=500)
        assert [request.json.get("max_tokens") for request in fake.requests] == [None, 500, 500]
        assert all(shape(request.json) == "json_schema" for request in fake.requests)


async def test_a_server_may_refuse_both() -> None:
    def refuse(body: Body) -> Whole | None:
        if "max_completion_tokens" in body:
            return refusal(400, "Unknown name: max_completion_tokens")
        return DEEPSEEK if shape(body) else None

    async with asking(PickyOpenAI(), refuse) as (provider, fake):
        assert (await provider.translate(a_job(), output_tokens=500)).translated_text == "Hallo Welt"
        last = fake.requests[-1].json
        assert (len(fake.requests), shape(last), last["max_tokens"]) == (4, "", 500)


async def test_a_limit_above_the_model_s_own_is_lowered_to_it() -> None:
    def refuse(body: Body) -> Whole | None:
        text = "max_tokens is too large: 30000. This model supports at most 16384 completion tokens."
        return refusal(400, text, param="max_tokens") if body["max_completion_tokens"] > 16_384 else None

    async with asking(PickyOpenAI(), refuse) as (provider, fake):
        assert (await provider.translate(a_job(), output_tokens=30_000)).translated_text == "Hallo Welt"
        assert [request.json["max_completion_tokens"] for request in fake.requests] == [30_000, 16_384]


TOO_LARGE = (
    "Request too large for model `x` in organization `o` on tokens per minute (TPM): Limit 6000, Requested 8000, "
    "please reduce your message size and try again."
)


@pytest.mark.parametrize("status", [413, 429])
async def test_a_request_too_large_for_the_rate_is_sent_once_more_with_a_smaller_limit(status: int) -> None:
    def refuse(body: Body) -> Whole | None:
        return refusal(status, TOO_LARGE, type="tokens") if body["max_completion_tokens"] > 2_100 else None

    async with asking(PickyOpenAI(), refuse) as (provider, fake):
        assert (await provider.translate(a_job(), output_tokens=4_100)).translated_text == "Hallo Welt"
        assert [request.json["max_completion_tokens"] for request in fake.requests] == [4_100, 2_100]


async def test_what_stays_too_large_for_the_rate_is_a_rate_limit() -> None:
    async with asking(PickyOpenAI(), lambda _: refusal(413, TOO_LARGE)) as (provider, fake):
        with pytest.raises(ProviderError) as caught:
            await provider.translate(a_job(), output_tokens=4_100)
        assert (caught.value.reason, len(fake.requests)) == ("PROVIDER_RATE_LIMITED", 2)


# --- Gemini ---

GEMMA = {
    "shape": "JSON mode is not enabled for models/gemma-3-27b-it",
    "instructions": "Developer instruction is not enabled for models/gemma-3-27b-it",
}


def gemini_refusal(message: str) -> Whole:
    error = {"code": 400, "message": message, "status": "INVALID_ARGUMENT"}
    return Whole(json.dumps({"error": error}).encode(), 400)


async def test_gemma_is_asked_without_json_mode_and_with_the_instructions_in_the_message() -> None:
    def refuse(body: Body) -> Whole | None:
        if "systemInstruction" in body:
            return gemini_refusal(GEMMA["instructions"])
        return gemini_refusal(GEMMA["shape"]) if "responseMimeType" in body["generationConfig"] else None

    async with asking(PickyGemini(), refuse) as (provider, fake):
        for _ in range(2):
            assert (await provider.translate(a_job(), output_tokens=500)).translated_text == "Hallo Welt"
        assert len(fake.requests) == 5
        last = fake.requests[-1].json
        assert "You translate." in last["contents"][0]["parts"][0]["text"]
        assert last["generationConfig"] == {"maxOutputTokens": 500}


# --- every other refusal, by the one table ---


@pytest.mark.parametrize(
    ("answer", "reason", "retryable"),
    [
        (refusal(400, "Your credit balance is too low"), "PROVIDER_RATE_LIMITED", False),
        (refusal(402, "Insufficient Balance"), "PROVIDER_RATE_LIMITED", False),
        (refusal(400, "Invalid prompt: flagged as potentially violating our policy"), "CONTENT_FILTERED", False),
        (refusal(400, "Content Exists Risk"), "CONTENT_FILTERED", False),
        (refusal(400, "Output blocked by content filtering policy"), "CONTENT_FILTERED", False),
        (refusal(400, "prompt too long; exceeded max context length by 5 tokens"), "CONTEXT_TOO_LONG", False),
        (refusal(403, "Project does not have access to model x", code="model_not_found"), "PROVIDER_REJECTED", False),
        (refusal(403, "Country, region, or territory not supported"), "PROVIDER_REJECTED", False),
        (Whole(b"<html>403</html>", 403, {"Content-Type": "text/html"}), "PROVIDER_UNAVAILABLE", True),
        (refusal(400, "Failed to validate JSON", code="json_validate_failed"), "PROVIDER_BAD_RESPONSE", True),
        (refusal(400, "temperature is not supported", param="temperature"), "PROVIDER_REJECTED", False),
        (Whole(b"[" * 100_000, 400), "PROVIDER_REJECTED", False),
        (Whole(b"\xff\xfe", 500), "PROVIDER_UNAVAILABLE", True),
    ],
    ids=lambda value: value.body[:60].decode("latin-1") if isinstance(value, Whole) else "",
)
@pytest.mark.parametrize("fake", [PickyOpenAI, PickyGemini])
async def test_a_refusal_has_one_meaning_whoever_says_it(
    fake: type[PickyOpenAI | PickyGemini], answer: Whole, reason: str, retryable: bool
) -> None:
    async with asking(fake(), lambda _: answer) as (provider, server):
        with pytest.raises(ProviderError) as caught:
            await provider.translate(a_job(), output_tokens=500)
        assert (caught.value.reason, caught.value.retryable) == (reason, retryable)
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "Fri, 31 Dec 99999 23:59:59 GMT"}, None),
        ({"Retry-After": "Fri, 31 Dec 9999 23:59:59 GMT"}, 86_400),
        ({"Retry-After": "1e400"}, None),
        ({"retry-after-ms": "1500", "Retry-After": "60"}, 1.5),
    ],
)
@pytest.mark.parametrize("fake", [PickyOpenAI, PickyGemini])
async def test_how_long_to_wait_is_read_and_bounded(
    fake: type[PickyOpenAI | PickyGemini], headers: Mapping[str, str], seconds: float | None
) -> None:
    answer = Whole(b"{}", 429, headers)
    async with asking(fake(), lambda _: answer) as (provider, _):
        with pytest.raises(ProviderError) as caught:
            await provider.translate(a_job(), output_tokens=500)
        assert caught.value.retry_after_seconds == seconds


async def test_both_wires_answer_with_half_a_surrogate_pair_as_a_replacement_character() -> None:
    for fake in (PickyOpenAI(), PickyGemini()):
        async with asking(fake, lambda _: None) as (provider, server):
            server.default = Behaviour(r'{"source": "en", "translated_text": "Hallo \ud83d"}')
            assert (await provider.translate(a_job(), output_tokens=500)).translated_text == "Hallo \ufffd"
            server.default = Behaviour('{"source": "en", "translated_text": "Hallo \ud83d"}')
            assert (await provider.translate(a_job(), output_tokens=500)).translated_text == "Hallo \ufffd"
