"""OpenAI and whoever speaks its chat completions: one SDK, one dialect each.

The SDK authenticates, builds the request, sends it and tells what a failure is. Its types are passed by, both ways: a
call with a history of 20 messages costs 8 ms of CPU through them and 0.7 ms with a body already in wire form and an
answer read as JSON.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast

import aiohttp
import httpx2
import openai
import orjson
from openai import AsyncOpenAI, AsyncStream, DefaultAioHttpClient

from services.agent.domain import Message, ToolCall, Usage
from services.agent.providers import CONNECT_TIMEOUT_SECONDS, Chunk, Finish, ModelCall, Thought
from services.agent.tools import Tool
from services.common.providers.errors import (
    ProviderBadResponse,
    ProviderError,
    ProviderUnavailable,
    broken_connection,
    silence,
)
from services.common.providers.refusals import Refusal, in_stream, meaning_of, read_refusal

DRAIN_SECONDS = 0.1
MAX_LINE_BYTES = 8 * 1024 * 1024
# What would change what is asked for, what is paid for or how the answer comes.
RESERVED_PARAMETERS = frozenset(
    {
        *("model", "messages", "stream", "stream_options", "n", "best_of", "store", "background"),
        *("max_tokens", "max_completion_tokens", "n_predict", "prediction"),
        *("tools", "tool_choice", "parallel_tool_calls", "functions", "function_call", "web_search_options"),
        *("modalities", "audio", "service_tier"),
    }
)
REASONS = frozenset({"stop", "length", "tool_calls", "content_filter"})
# DeepSeek's word for an answer that it broke off.
BROKEN_OFF = frozenset({"insufficient_system_resource"})
LIMIT_PARAMETERS = ("max_completion_tokens", "max_tokens", "n_predict")


@dataclass(frozen=True, slots=True)
class Dialect:
    """Where a provider listens and what it calls the output limit."""

    base_url: str
    limit: str = "max_tokens"
    has_penalties: bool = True


DIALECTS: Mapping[str, Dialect] = {
    "openai": Dialect("https://api.openai.com/v1", limit="max_completion_tokens"),
    "anthropic": Dialect("https://api.anthropic.com/v1/", has_penalties=False),
    "groq": Dialect("https://api.groq.com/openai/v1"),
    "deepseek": Dialect("https://api.deepseek.com"),
    "local": Dialect("http://127.0.0.1:8000/v1"),
}


class OpenAICompatible:
    """One provider that is reached through the openai SDK."""

    def __init__(self, name: str, *, api_key: str, base_url: str | None = None, idle_seconds: float = 60.0) -> None:
        self._name = name
        self._dialect = DIALECTS[name]
        base_url = base_url or self._dialect.base_url
        # Absolute, since the SDK takes its time to join a relative one to its base.
        self._url = base_url.rstrip("/") + "/chat/completions"
        self._client = AsyncOpenAI(
            api_key=api_key,
            base_url=base_url,
            max_retries=0,
            timeout=httpx2.Timeout(idle_seconds, connect=CONNECT_TIMEOUT_SECONDS, pool=CONNECT_TIMEOUT_SECONDS),
            http_client=DefaultAioHttpClient(),
        )
        # The SDK took them from the environment, and would tell another vendor.
        self._client.organization = self._client.project = None

    async def stream(self, call: ModelCall) -> AsyncGenerator[Chunk]:
        """The answer as it is written. See Provider."""
        try:
            response = await self._post(wire_body(call, self._dialect))
            try:
                reader = _Reader()
                async for event in _events(response):
                    for chunk in reader.read(event):
                        yield chunk
                yield reader.finish()
            finally:
                await response.aclose()
        except (openai.APIError, httpx2.RequestError, _InStream) as error:
            raise self._meaning(error) from None

    async def _post(self, body: bytes) -> httpx2.Response:
        response = await self._client.post(
            self._url,
            content=body,
            cast_to=httpx2.Response,
            stream=True,
            stream_cls=AsyncStream[object],
            options={"headers": {"Content-Type": "application/json"}},
        )
        return cast(httpx2.Response, response)

    def _meaning(self, error: Exception) -> ProviderError:
        if isinstance(error, openai.APIStatusError):
            response = error.response
            return meaning_of(self._name, read_refusal(response.status_code, response.content, response.headers))
        if isinstance(error, _InStream):
            return meaning_of(self._name, error.refusal)
        return silence(self._name) if _was_silence(error) else broken_connection(self._name)

    async def close(self) -> None:
        """Hang up."""
        await self._client.close()


def _was_silence(error: BaseException) -> bool:
    """Whether aiohttp ran into a time-out. The SDK's transport reports every broken connection as one as well."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, aiohttp.ClientError):
            return isinstance(cause, aiohttp.ServerTimeoutError)
        cause = cause.__cause__
    return isinstance(error, openai.APITimeoutError | httpx2.TimeoutException)


# --- what is sent ---


def wire_body(call: ModelCall, dialect: Dialect) -> bytes:
    """The request as OpenAI's API takes it. The session's own settings go before its model_parameters."""
    settings = call.settings
    parameters = settings.model_parameters
    body: dict[str, Any] = {key: value for key, value in parameters.items() if key not in RESERVED_PARAMETERS}
    body["model"] = settings.model
    body["messages"] = _wire_messages(call)
    body["stream"] = True
    body["stream_options"] = {"include_usage": True}
    body[dialect.limit] = output_limit(call.output_tokens, parameters, LIMIT_PARAMETERS)
    if settings.temperature is not None:
        body["temperature"] = settings.temperature
    if settings.top_p is not None:
        body["top_p"] = settings.top_p
    if dialect.has_penalties:
        if settings.frequency_penalty is not None:
            body["frequency_penalty"] = settings.frequency_penalty
        if settings.presence_penalty is not None:
            body["presence_penalty"] = settings.presence_penalty
    if call.tools:
        body["tools"] = [_wire_tool(tool) for tool in call.tools]
    return orjson.dumps(body)


def output_limit(output_tokens: int, parameters: Mapping[str, Any], names: tuple[str, ...]) -> int:
    """The output limit: a lower one among the model_parameters counts, a higher one buys nothing."""
    asked = (parameters.get(name) for name in names)
    return min([output_tokens, *(value for value in asked if type(value) is int and value > 0)])


def _wire_messages(call: ModelCall) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if call.settings.system_prompt:
        messages.append({"role": "system", "content": call.settings.system_prompt})
    messages.extend(_wire_message(message) for message in call.messages if not message.says_nothing)
    return messages


def _wire_message(message: Message) -> dict[str, Any]:
    wire: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        wire["content"] = message.content or None
        wire["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    if message.tool_call_id:
        wire["tool_call_id"] = message.tool_call_id
    return wire


def _wire_tool(tool: Tool) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": function}


# --- what comes back ---


class _InStream(Exception):
    """An error that came inside the stream, after its 200."""

    def __init__(self, refusal: Refusal) -> None:
        self.refusal = refusal


async def _events(response: httpx2.Response) -> AsyncIterator[dict[str, Any]]:
    """The JSON objects of a stream of server-sent events, one a line, until [DONE] or the end."""
    rest = b""
    pieces = response.aiter_bytes()
    async for piece in pieces:
        lines = (rest + piece if rest else piece).split(b"\n")
        rest = lines.pop()
        for line in lines:
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                await _drain(pieces)
                return
            yield _parse(data)
        if len(rest) > MAX_LINE_BYTES:
            raise ProviderBadResponse


async def _drain(pieces: AsyncIterator[bytes]) -> None:
    """Read to the end, so that the connection is used again; a server that does not come to it loses its own."""
    with suppress(TimeoutError, httpx2.RequestError):
        async with asyncio.timeout(DRAIN_SECONDS):
            async for _ in pieces:
                pass


def _parse(data: bytes) -> dict[str, Any]:
    try:
        event = orjson.loads(data)
    except orjson.JSONDecodeError:
        raise ProviderBadResponse from None
    if not isinstance(event, dict):
        raise ProviderBadResponse
    if (refusal := in_stream(event)) is not None:
        raise _InStream(refusal)
    return event


@dataclass(slots=True)
class _Reader:
    """Turns chat.completion.chunk objects into chunks."""

    calls: dict[int, dict[str, str]] = field(default_factory=dict)
    reason: str = ""

    def read(self, event: dict[str, Any]) -> list[Chunk]:
        """What one object brings; ProviderBadResponse when it has another shape."""
        chunks: list[Chunk] = []
        try:
            for choice in event.get("choices") or ():
                self._read_choice(choice, chunks)
            if usage := event.get("usage"):
                chunks.append(Usage(int(usage["prompt_tokens"]), int(usage["completion_tokens"])))
        except (AttributeError, KeyError, TypeError, ValueError):
            raise ProviderBadResponse from None
        return chunks

    def _read_choice(self, choice: dict[str, Any], chunks: list[Chunk]) -> None:
        delta = choice.get("delta") or {}
        if text := delta.get("content") or delta.get("refusal"):
            chunks.append(text + "")
        if thought := delta.get("reasoning_content") or delta.get("reasoning"):
            chunks.append(Thought(len(thought.encode())))
        for piece in delta.get("tool_calls") or ():
            self._read_tool_call(piece)
        if reason := choice.get("finish_reason"):
            self.reason = reason
            chunks.extend(ToolCall(call["id"], call["name"], call["arguments"]) for call in self.calls.values())
            self.calls.clear()

    def _read_tool_call(self, piece: dict[str, Any]) -> None:
        call = self.calls.setdefault(piece.get("index", 0), {"id": "", "name": "", "arguments": ""})
        function = piece.get("function") or {}
        call["id"] = call["id"] or piece.get("id") or ""
        call["name"] += function.get("name") or ""
        call["arguments"] += function.get("arguments") or ""

    def finish(self) -> Finish:
        """The end; a stream that did not say how it ended, or had nothing at all, is no answer."""
        if not self.reason:
            raise ProviderBadResponse
        if self.reason in BROKEN_OFF:
            raise ProviderUnavailable
        return Finish(self.reason if self.reason in REASONS else "stop")
