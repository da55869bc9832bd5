"""The google-genai SDK against Gemini's wire format."""

from contextlib import aclosing
from typing import Any

import pytest

from services.agent.domain import Message, Settings, ToolCall
from services.agent.providers import Chunk, Dropped, Finish, ModelCall, ReportedUsage
from services.agent.providers.google import Google
from services.agent.tools import Tool
from services.common.providers.errors import ProviderError
from tests.fakes.gemini import UNKNOWN_KEY, FakeGemini
from tests.fakes.provider import Behaviour
from tests.unit.agent.conftest import KEY

SECRET_WORDS = "my secret question"
FULL = Settings(
    provider="google",
    model="gemini-2.5-pro",
    framework="langgraph",
    system_prompt="You are a helpful research assistant.",
    temperature=0.7,
    max_tokens=500,
    top_p=0.9,
    frequency_penalty=0.5,
    presence_penalty=-0.5,
    model_parameters={
        "topK": 40,
        "stop_sequences": ["END"],
        "seed": 7,
        "thinkingConfig": {"thinkingBudget": 128},
        "safetySettings": [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_ONLY_HIGH"}],
    },
)


def a_call(settings: Settings = FULL, **fields: Any) -> ModelCall:
    defaults: dict[str, Any] = {"messages": [Message("user", SECRET_WORDS)], "output_tokens": 300}
    return ModelCall(settings, **(defaults | fields))


def with_parameters(**parameters: Any) -> Settings:
    return Settings("google", "gemini-2.5-pro", "none", model_parameters=parameters)


async def collect(provider: Google, call: ModelCall | None = None) -> list[Chunk]:
    async with aclosing(provider.stream(call or a_call())) as chunks:
        return [chunk async for chunk in chunks]


async def failure(provider: Google, call: ModelCall | None = None) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        await collect(provider, call)
    return caught.value


def text_of(chunks: list[Chunk]) -> str:
    return "".join(chunk for chunk in chunks if isinstance(chunk, str))


def last_usage(chunks: list[Chunk]) -> ReportedUsage:
    return [chunk for chunk in chunks if isinstance(chunk, ReportedUsage)][-1]


async def test_everything_the_session_sets_reaches_the_wire(google: Google, gemini_fake: FakeGemini) -> None:
    await collect(google)
    [request] = gemini_fake.requests
    assert request.path == "/v1beta/models/gemini-2.5-pro:streamGenerateContent?alt=sse"
    body = request.json
    assert body["contents"] == [{"role": "user", "parts": [{"text": SECRET_WORDS}]}]
    assert body["systemInstruction"]["parts"] == [{"text": "You are a helpful research assistant."}]
    assert body["safetySettings"] == [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_ONLY_HIGH"}]
    assert body["generationConfig"] == {
        "temperature": 0.7,
        "topP": 0.9,
        "topK": 40,
        "maxOutputTokens": 300,
        "stopSequences": ["END"],
        "seed": 7,
        "frequencyPenalty": 0.5,
        "presencePenalty": -0.5,
        "thinkingConfig": {"thinking_budget": 128},  # Gemini reads both spellings
    }


async def test_the_official_sdk_sends_the_request(google: Google, gemini_fake: FakeGemini) -> None:
    await collect(google)
    headers = gemini_fake.requests[0].headers
    assert "google-genai-sdk/" in headers["User-Agent"]
    assert headers["x-goog-api-key"] == KEY


async def test_a_conversation_is_told_in_geminis_roles(google: Google, gemini_fake: FakeGemini) -> None:
    messages = [Message("user", "a"), Message("assistant", "b"), Message("assistant", ""), Message("user", "c")]
    await collect(google, a_call(messages=messages))
    assert gemini_fake.requests[0].json["contents"] == [
        {"role": "user", "parts": [{"text": "a"}]},
        {"role": "model", "parts": [{"text": "b"}]},
        {"role": "user", "parts": [{"text": "c"}]},
    ]


async def test_model_parameters_cannot_change_what_is_asked_or_paid(google: Google, gemini_fake: FakeGemini) -> None:
    settings = with_parameters(
        candidateCount=8, systemInstruction="x", httpOptions={"base_url": "http://127.0.0.1:1"}, tools=[{}]
    )
    await collect(google, a_call(settings))
    assert gemini_fake.requests[0].json == {
        "contents": [{"role": "user", "parts": [{"text": SECRET_WORDS}]}],
        "generationConfig": {"maxOutputTokens": 300},
    }


@pytest.mark.parametrize(("asked", "sent"), [(50, 50), (5_000, 300)])
async def test_a_limit_among_the_model_parameters_counts_when_it_is_lower(
    asked: int, sent: int, google: Google, gemini_fake: FakeGemini
) -> None:
    await collect(google, a_call(with_parameters(maxOutputTokens=asked)))
    assert gemini_fake.requests[0].json["generationConfig"] == {"maxOutputTokens": sent}


async def test_a_parameter_that_gemini_does_not_have_is_left_out(google: Google, gemini_fake: FakeGemini) -> None:
    chunks = await collect(google, a_call(with_parameters(frobnicate=SECRET_WORDS, topK=40)))
    assert chunks[0] == Dropped("frobnicate")
    assert gemini_fake.requests[0].json["generationConfig"] == {"topK": 40, "maxOutputTokens": 300}


async def test_the_answer_comes_in_pieces_with_its_usage_and_its_end(google: Google, gemini_fake: FakeGemini) -> None:
    gemini_fake.default = Behaviour("Héllo wörld 🎉 !", input_tokens=20)
    chunks = await collect(google)
    assert text_of(chunks) == "Héllo wörld 🎉 !"
    assert last_usage(chunks) == ReportedUsage(20, 4)
    assert chunks[-1] == Finish("stop")


async def test_thinking_is_output(google: Google, gemini_fake: FakeGemini) -> None:
    gemini_fake.default = Behaviour("Yes", thinking_tokens=40)
    assert last_usage(await collect(google)) == ReportedUsage(12, 41)


async def test_the_usage_is_known_before_the_end(google: Google, gemini_fake: FakeGemini) -> None:
    gemini_fake.default = Behaviour(tokens=5)
    chunks = await collect(google)
    assert chunks[:4] == ["word1 ", ReportedUsage(12, 1), "word2 ", ReportedUsage(12, 2)]


async def test_tool_calls_and_their_signatures_go_there_and_back(google: Google, gemini_fake: FakeGemini) -> None:
    async def add(_: str) -> str:
        return "3"

    gemini_fake.queue.append(Behaviour("", tool_calls=(("add", '{"a":1,"b":2}'),)))
    tool = Tool("add", "Adds.", {"type": "object", "properties": {"a": {"type": "integer"}}}, add)
    chunks = await collect(google, a_call(tools=[tool]))
    [call] = [chunk for chunk in chunks if isinstance(chunk, ToolCall)]
    assert (call.name, call.arguments) == ("add", '{"a":1,"b":2}')
    messages = [
        Message("user", "1 + 2?"),
        Message("assistant", "", (call,)),
        Message("tool", "3", tool_call_id=call.id),
    ]
    await collect(google, a_call(messages=messages, tools=[tool]))
    first, second = gemini_fake.requests
    assert first.json["tools"][0]["functionDeclarations"][0]["name"] == "add"
    assert second.json["contents"][1:] == [
        {
            "role": "model",
            "parts": [{"functionCall": {"name": "add", "args": {"a": 1, "b": 2}}, "thoughtSignature": "c2lnbmF0dXJl"}],
        },
        {"role": "user", "parts": [{"functionResponse": {"name": "add", "response": {"result": "3"}}}]},
    ]


async def test_calls_one_after_the_other_use_one_connection(google: Google, gemini_fake: FakeGemini) -> None:
    await collect(google)
    await collect(google)
    assert len({request.peer for request in gemini_fake.requests}) == 1


async def test_closing_the_stream_closes_the_connection(google: Google, gemini_fake: FakeGemini) -> None:
    gemini_fake.default = Behaviour(tokens=1_000, token_delay_ms=20)
    async with aclosing(google.stream(a_call())) as chunks:
        assert await anext(chunks) == "word1 "
    await gemini_fake.until(lambda: gemini_fake.requests[0].closed_early)


@pytest.mark.parametrize(
    ("error", "code", "retryable"),
    [
        ("invalid_key", "provider_auth_failed", False),
        ("no_key", "provider_auth_failed", False),
        ("no_access", "provider_rejected", False),
        ("bad_parameter", "provider_rejected", False),
        ("context_too_long", "context_too_long", False),
        ("rate_limit", "provider_rate_limited", True),
        ("server_error", "provider_unavailable", True),
        ("overloaded", "provider_unavailable", True),
    ],
)
async def test_an_error_of_the_provider_has_a_stable_code(
    error: str, code: str, retryable: bool, google: Google, gemini_fake: FakeGemini
) -> None:
    gemini_fake.default = Behaviour(error=error)
    caught = await failure(google)
    assert (caught.code, caught.retryable) == (code, retryable)


async def test_the_sdk_itself_tries_once(google: Google, gemini_fake: FakeGemini) -> None:
    gemini_fake.default = Behaviour(error="overloaded")
    await failure(google)
    assert len(gemini_fake.requests) == 1


async def test_a_wrong_key_is_told_without_the_key(gemini_fake: FakeGemini) -> None:
    provider = Google(api_key=UNKNOWN_KEY, base_url=gemini_fake.url)
    caught = await failure(provider)
    await provider.close()
    assert caught.code == "provider_auth_failed"
    assert caught.detail == "google answered 400 (INVALID_ARGUMENT, API_KEY_INVALID)."


async def test_the_provider_says_how_long_to_wait(google: Google, gemini_fake: FakeGemini) -> None:
    gemini_fake.default = Behaviour(error="rate_limit")
    assert (await failure(google)).retry_after_seconds == 1


@pytest.mark.parametrize(
    ("fault", "after", "code", "retryable"),
    [
        ("cut", 2, "provider_unavailable", True),
        ("hang_up", 0, "provider_unavailable", True),
        ("error_event", 1, "provider_unavailable", True),
        ("malformed", 0, "provider_bad_response", False),
        ("malformed", 2, "provider_bad_response", False),
        ("empty", 0, "content_filtered", False),
        ("unfinished", 2, "provider_unavailable", True),
    ],
)
async def test_a_broken_answer_has_a_stable_code(
    fault: str, after: int, code: str, retryable: bool, google: Google, gemini_fake: FakeGemini
) -> None:
    gemini_fake.default = Behaviour(fault=fault, fault_after=after)
    caught = await failure(google)
    assert (caught.code, caught.retryable) == (code, retryable)
    assert len(gemini_fake.requests) == 1


@pytest.mark.parametrize("after", [0, 2])
async def test_silence_is_a_timeout(after: int, gemini_fake: FakeGemini) -> None:
    provider = Google(api_key=KEY, base_url=gemini_fake.url, idle_seconds=0.2)
    gemini_fake.default = Behaviour(fault="hang", fault_after=after)
    assert (await failure(provider)).code == "provider_timeout"
    await provider.close()


async def test_a_provider_that_nobody_runs_is_unavailable() -> None:
    async with FakeGemini() as gone:
        url = gone.url
    provider = Google(api_key=KEY, base_url=url)
    assert (await failure(provider)).code == "provider_unavailable"
    await provider.close()


async def test_an_answer_stopped_for_safety_ends_so(google: Google, gemini_fake: FakeGemini) -> None:
    gemini_fake.default = Behaviour("I won't", finish_reason="content_filter")
    assert (await collect(google))[-1] == Finish("content_filter")


async def test_an_answer_cut_at_the_limit_ends_so(google: Google, gemini_fake: FakeGemini) -> None:
    gemini_fake.default = Behaviour("Once upon", finish_reason="length")
    assert (await collect(google))[-1] == Finish("length")
