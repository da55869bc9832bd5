"""The provider fakes themselves: what other tests and the benchmarks build on."""

import aiohttp
from google import genai
from google.genai import types
from openai import AsyncOpenAI

from tests.fakes.gemini import FakeGemini
from tests.fakes.openai import FakeOpenAI
from tests.fakes.provider import Behaviour
from tests.unit.agent.conftest import KEY


async def test_a_fake_is_scripted_and_asked_over_http(openai_fake: FakeOpenAI) -> None:
    root = openai_fake.url.removesuffix("/v1")
    headers = {"Authorization": f"Bearer {KEY}"}
    body = {"model": "m", "messages": []}
    script = {"default": {"text": "Hello", "tool_calls": [["add", "{}"]]}, "next": [{"error": "overloaded"}]}
    async with aiohttp.ClientSession() as session:
        await session.post(f"{root}/_script", json=script)
        answers = [await session.post(f"{root}/v1/chat/completions", json=body, headers=headers) for _ in range(2)]
        answer = await answers[1].json()
        async with session.get(f"{root}/_requests") as response:
            requests = await response.json()
        await session.delete(f"{root}/_requests")
    assert [response.status for response in answers] == [503, 200]
    assert answer["choices"][0]["message"]["content"] == "Hello"
    assert answer["choices"][0]["finish_reason"] == "tool_calls"
    assert [request["body"] for request in requests] == [body, body]
    assert requests[0]["headers"]["authorization"] == headers["Authorization"]
    assert not openai_fake.requests


async def test_openais_sdk_reads_a_whole_answer(openai_fake: FakeOpenAI) -> None:
    async with AsyncOpenAI(api_key=KEY, base_url=openai_fake.url, max_retries=0) as client:
        answer = await client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": "?"}])
    assert answer.choices[0].message.content == "The capital of France is Paris."
    assert answer.usage is not None
    assert answer.usage.total_tokens == 18


async def test_openais_sdk_reads_a_streamed_answer(openai_fake: FakeOpenAI) -> None:
    """With its own types, which the agent passes by: the fake has the true shape."""
    openai_fake.default = Behaviour(tool_calls=(("add", '{"a":1}'),))
    async with (
        AsyncOpenAI(api_key=KEY, base_url=openai_fake.url, max_retries=0) as client,
        client.chat.completions.stream(
            model="gpt-4o-mini", messages=[{"role": "user", "content": "?"}], stream_options={"include_usage": True}
        ) as stream,
    ):
        answer = await stream.get_final_completion()
    assert answer.choices[0].message.content == "The capital of France is Paris."
    assert answer.choices[0].message.tool_calls is not None
    assert answer.choices[0].message.tool_calls[0].function.arguments == '{"a":1}'
    assert answer.usage is not None


async def test_geminis_sdk_reads_a_whole_answer(gemini_fake: FakeGemini) -> None:
    gemini_fake.default = Behaviour(thinking_tokens=40)
    async with aiohttp.ClientSession() as session:
        options = types.HttpOptions(base_url=gemini_fake.url, api_version="v1beta", aiohttp_client=session)
        client = genai.Client(api_key=KEY, http_options=options)
        answer = await client.aio.models.generate_content(model="gemini-2.5-pro", contents="?")
    assert answer.text == "The capital of France is Paris."
    assert answer.usage_metadata is not None
    assert answer.usage_metadata.thoughts_token_count == 40
