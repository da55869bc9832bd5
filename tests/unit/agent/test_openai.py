"""The openai SDK against OpenAI's wire format."""

from contextlib import aclosing
from typing import Any

import pytest

from services.agent.domain import Message, Settings, ToolCall
from services.agent.providers import Chunk, Finish, ModelCall, ReportedUsage, Unseen
from services.agent.providers.openai import OpenAICompatible
from services.agent.providers.openai_reader import ChatCompletionReader
from services.agent.providers.openai_request import DIALECTS
from services.agent.tools import Tool
from services.common.providers.errors import ProviderError
from tests.fakes.openai import UNKNOWN_KEY, FakeOpenAI, call_id
from tests.fakes.provider import Behaviour
from tests.unit.agent.conftest import KEY

SECRET_WORDS = "my secret question"
FULL = Settings(
    provider="openai",
    model="gpt-4o-mini",
    framework="none",
    system_prompt="You are terse.",
    temperature=0.7,
    max_tokens=500,
    top_p=0.9,
    frequency_penalty=0.5,
    presence_penalty=-0.5,
    model_parameters={"seed": 7, "stop": ["END"], "logit_bias": {"50256": -100}},
)


def a_call(settings: Settings = FULL, **fields: Any) -> ModelCall:
    defaults: dict[str, Any] = {"messages": [Message("user", SECRET_WORDS)], "output_tokens": 300}
    return ModelCall(settings, **(defaults | fields))


def with_parameters(**parameters: Any) -> Settings:
    return Settings("openai", "gpt-4o-mini", "none", model_parameters=parameters)


async def collect(provider: OpenAICompatible, call: ModelCall | None = None) -> list[Chunk]:
    async with aclosing(provider.stream(call or a_call())) as chunks:
        return [chunk async for chunk in chunks]


async def failure(provider: OpenAICompatible) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        await collect(provider)
    return caught.value


async def test_everything_the_session_sets_reaches_the_wire(openai: OpenAICompatible, openai_fake: FakeOpenAI) -> None:
    await collect(openai)
    [request] = openai_fake.requests
    assert request.json == {
        "model": "gpt-4o-mini",
        "messages": [
            {"role": "system", "content": "You are terse."},
            {"role": "user", "content": SECRET_WORDS},
        ],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_completion_tokens": 300,
        "temperature": 0.7,
        "top_p": 0.9,
        "frequency_penalty": 0.5,
        "presence_penalty": -0.5,
        "seed": 7,
        "stop": ["END"],
        "logit_bias": {"50256": -100},
    }


async def test_the_official_sdk_sends_the_request(openai: OpenAICompatible, openai_fake: FakeOpenAI) -> None:
    await collect(openai)
    headers = openai_fake.requests[0].headers
    assert headers["User-Agent"].startswith("AsyncOpenAI/Python")
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert headers["Content-Type"] == "application/json"


async def test_what_the_session_leaves_open_is_not_sent(openai: OpenAICompatible, openai_fake: FakeOpenAI) -> None:
    await collect(openai, a_call(Settings("openai", "gpt-4o-mini", "none")))
    assert openai_fake.requests[0].json.keys() == {
        "model",
        "messages",
        "stream",
        "stream_options",
        "max_completion_tokens",
    }


@pytest.mark.parametrize("name", sorted(DIALECTS))
async def test_each_provider_is_given_the_output_limit_under_its_name(name: str, openai_fake: FakeOpenAI) -> None:
    provider = OpenAICompatible(name, api_key=KEY, base_url=openai_fake.url)
    await collect(provider)
    await provider.close()
    body = openai_fake.requests[0].json
    assert body[DIALECTS[name].limit] == 300
    assert len({"max_tokens", "max_completion_tokens"} & body.keys()) == 1


async def test_model_parameters_cannot_change_what_is_asked_or_paid(
    openai: OpenAICompatible, openai_fake: FakeOpenAI
) -> None:
    settings = with_parameters(model="gpt-5", messages=[], stream=False, n=10, service_tier="priority", tools=[{}])
    await collect(openai, a_call(settings))
    body = openai_fake.requests[0].json
    assert body["model"] == "gpt-4o-mini"
    assert body["messages"] == [{"role": "user", "content": SECRET_WORDS}]
    assert body["stream"] is True
    assert not {"n", "service_tier", "tools"} & body.keys()


@pytest.mark.parametrize(("asked", "sent"), [(50, 50), (5_000, 300), (0, 300), (True, 300)])
async def test_a_limit_among_the_model_parameters_counts_when_it_is_lower(
    asked: object, sent: int, openai: OpenAICompatible, openai_fake: FakeOpenAI
) -> None:
    await collect(openai, a_call(with_parameters(max_tokens=asked)))
    body = openai_fake.requests[0].json
    assert body["max_completion_tokens"] == sent
    assert "max_tokens" not in body


async def test_an_answer_cancelled_before_its_first_word_is_not_sent_again(
    openai: OpenAICompatible, openai_fake: FakeOpenAI
) -> None:
    messages = [Message("user", "a"), Message("assistant", ""), Message("user", "b")]
    await collect(openai, a_call(with_parameters(), messages=messages))
    assert [message["role"] for message in openai_fake.requests[0].json["messages"]] == ["user", "user"]


async def test_the_environment_of_another_vendor_is_not_told(
    monkeypatch: pytest.MonkeyPatch, openai_fake: FakeOpenAI
) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org-secret")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-secret")
    provider = OpenAICompatible("groq", api_key=KEY, base_url=openai_fake.url)
    await collect(provider)
    await provider.close()
    assert not any(
        "secret" in value for name, value in openai_fake.requests[0].headers.items() if name != "Authorization"
    )


async def test_the_answer_comes_in_pieces_with_its_usage_and_its_end(
    openai: OpenAICompatible, openai_fake: FakeOpenAI
) -> None:
    openai_fake.default = Behaviour("Héllo wörld 🎉 !", input_tokens=20)
    chunks = await collect(openai)
    assert chunks == ["Héllo ", "wörld ", "🎉 ", "!", ReportedUsage(20, 4), Finish("stop")]


async def test_thinking_is_output(openai: OpenAICompatible, openai_fake: FakeOpenAI) -> None:
    openai_fake.default = Behaviour("Yes", thinking_tokens=40)
    assert ReportedUsage(12, 41) in await collect(openai)


async def test_no_usage_is_no_usage(openai: OpenAICompatible, openai_fake: FakeOpenAI) -> None:
    openai_fake.default = Behaviour("Yes", usage=False)
    assert await collect(openai) == ["Yes", Finish("stop")]


async def test_tool_calls_come_whole(openai: OpenAICompatible, openai_fake: FakeOpenAI) -> None:
    openai_fake.default = Behaviour("", tool_calls=(("add", '{"a":1,"b":2}'), ("now", "{}")))
    chunks = [chunk for chunk in await collect(openai) if not isinstance(chunk, Unseen)]
    assert [chunk for chunk in chunks if isinstance(chunk, ToolCall)] == [
        ToolCall(call_id(0), "add", '{"a":1,"b":2}'),
        ToolCall(call_id(1), "now", "{}"),
    ]
    assert chunks[-1] == Finish("tool_calls")


async def test_tools_and_their_results_are_sent_in_openais_shape(
    openai: OpenAICompatible, openai_fake: FakeOpenAI
) -> None:
    async def add(_: str) -> str:
        return "3"

    tool = Tool("add", "Adds.", {"type": "object", "properties": {}}, add)
    messages = [
        Message("user", "1 + 2?"),
        Message("assistant", "", (ToolCall("c1", "add", '{"a":1}'),)),
        Message("tool", "3", tool_call_id="c1"),
    ]
    await collect(openai, a_call(with_parameters(), messages=messages, tools=[tool]))
    body = openai_fake.requests[0].json
    assert body["messages"][1:] == [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}}],
        },
        {"role": "tool", "content": "3", "tool_call_id": "c1"},
    ]
    assert body["tools"] == [
        {
            "type": "function",
            "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {}}},
        }
    ]


async def test_calls_one_after_the_other_use_one_connection(openai: OpenAICompatible, openai_fake: FakeOpenAI) -> None:
    openai_fake.default = Behaviour("one two three", token_delay_ms=1, end_delay_ms=20)
    await collect(openai)
    await collect(openai)
    assert len({request.peer for request in openai_fake.requests}) == 1


async def test_closing_the_stream_closes_the_connection(openai: OpenAICompatible, openai_fake: FakeOpenAI) -> None:
    openai_fake.default = Behaviour(tokens=1_000, token_delay_ms=20)
    async with aclosing(openai.stream(a_call())) as chunks:
        assert await anext(chunks) == "word1 "
    await openai_fake.until(lambda: openai_fake.requests[0].closed_early)


@pytest.mark.parametrize(
    ("error", "code", "retryable"),
    [
        ("invalid_key", "provider_auth_failed", False),
        ("no_access", "provider_rejected", False),
        ("bad_parameter", "provider_rejected", False),
        ("context_too_long", "context_too_long", False),
        ("local_context_too_long", "context_too_long", False),
        ("content_policy", "content_filtered", False),
        ("rate_limit", "provider_rate_limited", True),
        ("quota", "provider_rate_limited", False),
        ("server_error", "provider_unavailable", True),
        ("overloaded", "provider_unavailable", True),
    ],
)
async def test_an_error_of_the_provider_has_a_stable_code(
    error: str, code: str, retryable: bool, openai: OpenAICompatible, openai_fake: FakeOpenAI
) -> None:
    openai_fake.default = Behaviour(error=error)
    caught = await failure(openai)
    assert (caught.code, caught.retryable) == (code, retryable)


async def test_the_sdk_itself_tries_once(openai: OpenAICompatible, openai_fake: FakeOpenAI) -> None:
    openai_fake.default = Behaviour(error="server_error")
    await failure(openai)
    assert len(openai_fake.requests) == 1


async def test_a_wrong_key_is_told_without_the_key(openai_fake: FakeOpenAI) -> None:
    provider = OpenAICompatible("openai", api_key=UNKNOWN_KEY, base_url=openai_fake.url)
    caught = await failure(provider)
    await provider.close()
    assert caught.code == "provider_auth_failed"
    assert caught.detail == "openai answered 401 (invalid_api_key, invalid_request_error)."


async def test_the_detail_of_a_refusal_names_the_parameter(openai: OpenAICompatible, openai_fake: FakeOpenAI) -> None:
    openai_fake.default = Behaviour(error="bad_parameter")
    caught = await failure(openai)
    assert caught.detail == "openai answered 400 (unsupported_value, invalid_request_error, temperature)."


async def test_the_provider_says_how_long_to_wait(openai: OpenAICompatible, openai_fake: FakeOpenAI) -> None:
    openai_fake.default = Behaviour(error="rate_limit", retry_after="7")
    assert (await failure(openai)).retry_after_seconds == 7


@pytest.mark.parametrize(
    ("fault", "after", "code", "retryable"),
    [
        ("cut", 2, "provider_unavailable", True),
        ("hang_up", 0, "provider_unavailable", True),
        ("error_event", 1, "provider_unavailable", True),
        ("malformed", 0, "provider_bad_response", False),
        ("malformed", 2, "provider_bad_response", False),
        ("cut_short", 2, "provider_unavailable", True),
    ],
)
async def test_a_broken_answer_has_a_stable_code(
    fault: str, after: int, code: str, retryable: bool, openai: OpenAICompatible, openai_fake: FakeOpenAI
) -> None:
    openai_fake.default = Behaviour(fault=fault, fault_after=after)
    caught = await failure(openai)
    assert (caught.code, caught.retryable) == (code, retryable)


@pytest.mark.parametrize("after", [0, 2])
async def test_silence_is_a_timeout(after: int, openai_fake: FakeOpenAI) -> None:
    provider = OpenAICompatible("openai", api_key=KEY, base_url=openai_fake.url, idle_seconds=0.2)
    openai_fake.default = Behaviour(fault="hang", fault_after=after)
    assert (await failure(provider)).code == "provider_timeout"
    await provider.close()


async def test_a_provider_that_nobody_runs_is_unavailable() -> None:
    async with FakeOpenAI() as gone:
        url = gone.url
    provider = OpenAICompatible("openai", api_key=KEY, base_url=url)
    assert (await failure(provider)).code == "provider_unavailable"
    await provider.close()


async def test_a_filtered_answer_ends_so(openai: OpenAICompatible, openai_fake: FakeOpenAI) -> None:
    openai_fake.default = Behaviour("I", finish_reason="content_filter")
    assert (await collect(openai))[-1] == Finish("content_filter")


async def test_thoughts_are_counted_and_not_shown() -> None:
    chunks = ChatCompletionReader("openai").read({"choices": [{"index": 0, "delta": {"reasoning_content": "hmm"}}]})
    assert list(chunks) == [Unseen(3)]
