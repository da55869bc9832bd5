"""Both SDKs against their vendors' wire formats."""

import asyncio
import json
from typing import Any

import pytest

from services.common.providers.errors import ProviderError
from services.translate.domain import Answer, Usage
from services.translate.providers import Provider
from services.translate.providers.google import Google, text_of
from services.translate.providers.openai import OpenAI
from services.translate.providers.placeholder import Placeholder
from services.translate.providers.wire import INSTRUCTIONS
from tests.fakes import gemini as gemini_wire
from tests.fakes import openai as openai_wire
from tests.fakes.gemini import FakeGemini
from tests.fakes.openai import FakeOpenAI
from tests.fakes.provider import Behaviour, FakeProvider
from tests.unit.translate.conftest import INJECTION, KEY, a_job, translated

Wire = tuple[Provider, FakeProvider]


@pytest.fixture(params=["openai", "google"])
def wire(request: pytest.FixtureRequest) -> Wire:
    """A provider and the server it talks to."""
    fake = {"openai": "openai_fake", "google": "gemini_fake"}[request.param]
    return request.getfixturevalue(request.param), request.getfixturevalue(fake)


async def failure(provider: Provider) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        await provider.translate(a_job(), output_tokens=500)
    return caught.value


def user_message(fake: FakeProvider) -> Any:
    """What the user's message says, of the last request."""
    body = fake.requests[-1].json
    if isinstance(fake, FakeOpenAI):
        [message] = [message for message in body["messages"] if message["role"] == "user"]
        return json.loads(message["content"])
    [content] = body["contents"]
    assert content["role"] == "user"
    [part] = content["parts"]
    return json.loads(part["text"])


def instructions(fake: FakeProvider) -> str:
    """What the provider was told to do, of the last request."""
    body = fake.requests[-1].json
    if isinstance(fake, FakeOpenAI):
        [message] = [message for message in body["messages"] if message["role"] == "system"]
        return str(message["content"])
    [part] = body["systemInstruction"]["parts"]
    return str(part["text"])


async def test_a_text_is_translated_and_its_language_told(wire: Wire) -> None:
    provider, fake = wire
    fake.default = translated("Guten Tag", "en", output_tokens=20)
    answer = await provider.translate(a_job("Good day"), output_tokens=500)
    assert answer == Answer("Guten Tag", "en", Usage(100, 20))


async def test_the_text_travels_in_its_own_field_and_never_among_the_instructions(wire: Wire) -> None:
    provider, fake = wire
    await provider.translate(a_job(INJECTION, "de", "en"), output_tokens=500)
    assert user_message(fake) == {"text": INJECTION, "source": "en", "target": "de"}
    assert instructions(fake) == INSTRUCTIONS
    assert fake.requests[-1].body.count(INJECTION.encode()) == 1


@pytest.mark.parametrize("text", ['", "target": "fr"} {"', 'a\n\t"quoted"\\ \u2028 \0 end', "日本語 🎉"])
async def test_a_text_can_not_break_out_of_its_field(wire: Wire, text: str) -> None:
    provider, fake = wire
    await provider.translate(a_job(text), output_tokens=500)
    assert user_message(fake) == {"text": text, "source": None, "target": "de"}


async def test_openai_is_sent_a_strict_schema_and_the_limit(openai: OpenAI, openai_fake: FakeOpenAI) -> None:
    await openai.translate(a_job(), output_tokens=500)
    [request] = openai_fake.requests
    assert request.path == "/v1/chat/completions"
    assert request.headers["Authorization"] == f"Bearer {KEY}"
    assert request.headers["User-Agent"].startswith("AsyncOpenAI/Python")
    body = request.json
    assert set(body) == {"model", "messages", "response_format", "max_completion_tokens", "stream"}
    assert (body["model"], body["max_completion_tokens"], body["stream"]) == ("gpt-4.1-mini", 500, False)
    assert body["response_format"]["type"] == "json_schema"
    schema = body["response_format"]["json_schema"]
    assert schema["strict"] is True
    assert schema["schema"]["required"] == ["source", "translated_text"]
    assert schema["schema"]["additionalProperties"] is False
    assert {name: field["type"] for name, field in schema["schema"]["properties"].items()} == {
        "source": "string",
        "translated_text": "string",
    }


async def test_gemini_is_sent_its_response_schema_and_the_limit(google: Google, gemini_fake: FakeGemini) -> None:
    await google.translate(a_job(), output_tokens=500)
    [request] = gemini_fake.requests
    assert request.path == "/v1beta/models/gemini-3.5-flash-lite:generateContent"
    assert request.headers["x-goog-api-key"] == KEY
    assert "google-genai-sdk/" in request.headers["User-Agent"]
    body = request.json
    assert set(body) == {"contents", "systemInstruction", "generationConfig"}
    config = body["generationConfig"]
    assert (config["maxOutputTokens"], config["responseMimeType"]) == (500, "application/json")
    schema = config["responseSchema"]
    assert set(schema) == {"type", "properties", "required", "property_ordering"}
    assert (schema["type"], schema["required"]) == ("OBJECT", ["source", "translated_text"])
    assert {name: field["type"] for name, field in schema["properties"].items()} == {
        "source": "STRING",
        "translated_text": "STRING",
    }


async def test_thinking_is_output(wire: Wire) -> None:
    provider, fake = wire
    fake.default = translated(output_tokens=20, thinking_tokens=40)
    assert (await provider.translate(a_job(), output_tokens=500)).usage == Usage(100, 60)


def test_geminis_thoughts_are_no_part_of_its_answer() -> None:
    parts = [{"text": "Hm.", "thought": True}, {"text": '{"source": '}, {"text": '"en"}'}]
    candidate = {"content": {"parts": parts, "role": "model"}, "finishReason": "STOP"}
    assert text_of({"candidates": [candidate]}) == '{"source": "en"}'


async def test_usage_that_is_not_told_is_estimated(wire: Wire) -> None:
    provider, fake = wire
    fake.default = translated(usage=False)
    usage = (await provider.translate(a_job(), output_tokens=500)).usage
    assert usage.estimated
    assert usage.input_tokens > 200
    assert usage.output_tokens > 5


@pytest.mark.parametrize(
    "content",
    [
        *("", "Hallo Welt", "[]", "null", '"Hallo"', "{}", '{"source": "en"}'),
        *('{"source": "en", "translated_text": null}', '{"source": "en", "translated_text": ["Hallo"]}'),
        *('{"source": "en", "translated_text": "Ha', '{"source": "en", "translated_text": "Use {"a": 1}"}'),
    ],
)
async def test_an_answer_of_another_shape_does_not_fit(wire: Wire, content: str) -> None:
    provider, fake = wire
    fake.default = Behaviour(content)
    assert (await failure(provider)).reason == "PROVIDER_BAD_RESPONSE"


@pytest.mark.parametrize(
    ("behaviour", "reason", "retryable"),
    [
        (Behaviour(fault="malformed"), "PROVIDER_BAD_RESPONSE", False),
        (Behaviour(fault="hang_up"), "PROVIDER_UNAVAILABLE", True),
        (Behaviour(fault="cut"), "PROVIDER_UNAVAILABLE", True),
        (translated(finish_reason="length"), "PROVIDER_BAD_RESPONSE", False),
        (translated(finish_reason="content_filter"), "CONTENT_FILTERED", False),
        (Behaviour(error="invalid_key"), "PROVIDER_AUTH_FAILED", False),
        (Behaviour(error="no_access"), "PROVIDER_REJECTED", False),
        (Behaviour(error="bad_parameter"), "PROVIDER_REJECTED", False),
        (Behaviour(error="rate_limit"), "PROVIDER_RATE_LIMITED", True),
        (Behaviour(error="server_error"), "PROVIDER_UNAVAILABLE", True),
        (Behaviour(error="overloaded"), "PROVIDER_UNAVAILABLE", True),
    ],
    ids=lambda value: value.fault or value.error or value.finish_reason if isinstance(value, Behaviour) else "",
)
async def test_a_failure_has_one_meaning_on_both_wires(
    wire: Wire, behaviour: Behaviour, reason: str, retryable: bool
) -> None:
    provider, fake = wire
    fake.default = behaviour
    error = await failure(provider)
    assert (error.reason, error.retryable) == (reason, retryable)
    assert len(fake.requests) == 1
    assert KEY not in error.detail


async def test_a_model_that_refuses_has_filtered(openai: OpenAI, openai_fake: FakeOpenAI) -> None:
    openai_fake.default = Behaviour(refusal="I'm sorry, I can't assist with that.")
    assert (await failure(openai)).reason == "CONTENT_FILTERED"


async def test_a_prompt_that_gemini_blocks_is_filtered(google: Google, gemini_fake: FakeGemini) -> None:
    gemini_fake.default = Behaviour(fault="empty")
    assert (await failure(google)).reason == "CONTENT_FILTERED"


async def test_an_answer_without_choices_does_not_fit(openai: OpenAI, openai_fake: FakeOpenAI) -> None:
    openai_fake.default = Behaviour(fault="empty")
    assert (await failure(openai)).reason == "PROVIDER_BAD_RESPONSE"


async def test_a_content_policy_is_filtered(openai: OpenAI, openai_fake: FakeOpenAI) -> None:
    openai_fake.default = Behaviour(error="content_policy")
    assert (await failure(openai)).reason == "CONTENT_FILTERED"


async def test_a_quota_that_is_used_up_is_not_tried_again(openai: OpenAI, openai_fake: FakeOpenAI) -> None:
    openai_fake.default = Behaviour(error="quota")
    error = await failure(openai)
    assert (error.reason, error.retryable) == ("PROVIDER_RATE_LIMITED", False)


async def test_a_key_that_openai_does_not_know_is_not_told(openai_fake: FakeOpenAI) -> None:
    provider = OpenAI("gpt-4.1-mini", api_key=openai_wire.UNKNOWN_KEY, base_url=openai_fake.url)
    error = await failure(provider)
    await provider.close()
    assert error.detail == "openai answered 401 (invalid_api_key, invalid_request_error)."


async def test_a_key_that_gemini_does_not_know_is_not_told(gemini_fake: FakeGemini) -> None:
    provider = Google("gemini-3.5-flash-lite", api_key=gemini_wire.UNKNOWN_KEY, base_url=gemini_fake.url)
    error = await failure(provider)
    await provider.close()
    assert error.detail == "google answered 400 (INVALID_ARGUMENT, API_KEY_INVALID)."


async def test_how_long_to_wait_is_read_from_the_headers_or_the_body(wire: Wire) -> None:
    provider, fake = wire
    fake.default = Behaviour(error="rate_limit", retry_after="1")
    assert (await failure(provider)).retry_after_seconds == 1


async def test_cancelling_closes_the_connection(wire: Wire) -> None:
    provider, fake = wire
    fake.default = Behaviour(fault="hang")
    asking = asyncio.create_task(provider.translate(a_job(), output_tokens=500))
    await fake.until(lambda: fake.requests)
    asking.cancel()
    await fake.until(lambda: fake.requests[0].closed_early)


async def test_a_provider_that_nobody_runs_is_unavailable() -> None:
    async with FakeOpenAI() as gone:
        url = gone.url
    provider = OpenAI("gpt-4.1-mini", api_key=KEY, base_url=url)
    assert (await failure(provider)).reason == "PROVIDER_UNAVAILABLE"
    await provider.close()


async def test_calls_one_after_the_other_use_one_connection(wire: Wire) -> None:
    provider, fake = wire
    for _ in range(2):
        await provider.translate(a_job(), output_tokens=500)
    assert len({request.peer for request in fake.requests}) == 1


async def test_the_placeholder_says_that_it_is_one() -> None:
    answer = await Placeholder().translate(a_job("Hello", "de"), output_tokens=500)
    assert answer.translated_text == "[placeholder: not translated into de] Hello"
    assert answer.source == "und"
    assert answer.usage.estimated


async def test_the_placeholder_takes_the_source_it_is_told() -> None:
    answer = await Placeholder().translate(a_job("Hello", "de", "en"), output_tokens=500)
    assert answer.source == "en"
