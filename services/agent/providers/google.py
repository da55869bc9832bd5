"""Gemini through google-genai."""

import asyncio
import base64
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import aiohttp
import orjson
from google import genai
from google.genai import errors as sdk_errors
from google.genai import types

from services.agent.domain import Message, ToolCall, Usage
from services.agent.providers import CONNECT_TIMEOUT_SECONDS, Chunk, Finish, ModelCall, Thought
from services.common.providers.errors import (
    ContentFiltered,
    ProviderBadResponse,
    ProviderError,
    ProviderRejected,
    broken_connection,
    silence,
)
from services.common.providers.refusals import meaning_of, read_refusal
from services.kit.ids import new_id

NAME = "google"
# The stable one lacks what new models need.
API_VERSION = "v1beta"
# What would change what is asked for, what is paid for or how the answer comes, or means another API than Gemini's.
RESERVED_PARAMETERS = frozenset(
    {
        *("model", "contents", "system_instruction", "http_options", "should_return_http_response", "store"),
        *("candidate_count", "max_output_tokens", "cached_content", "service_tier", "labels"),
        *("tools", "tool_config", "automatic_function_calling", "automatic_continuation", "continuation_token"),
        *("response_modalities", "speech_config", "image_config", "audio_timestamp", "audio_transcription_config"),
        *("routing_config", "model_selection_config", "model_armor_config", "generation_output_config"),
    }
)
FINISH_REASONS = {"STOP": "stop", "MAX_TOKENS": "length"}
FILTERED = frozenset({"SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "IMAGE_SAFETY", "LANGUAGE"})


class Google:
    """Gemini's API."""

    def __init__(self, *, api_key: str, base_url: str | None = None, idle_seconds: float = 60.0) -> None:
        self._api_key, self._base_url, self._idle_seconds = api_key, base_url, idle_seconds
        self._session: aiohttp.ClientSession | None = None
        self._client: genai.Client | None = None

    def _models(self) -> Any:
        """The SDK's models, made at the first call: its HTTP session belongs to the running loop."""
        if self._client is None:
            tracing = aiohttp.TraceConfig()
            tracing.on_request_end.append(_remember)
            self._session = aiohttp.ClientSession(
                connector=_Connector(limit=0), trust_env=True, trace_configs=[tracing]
            )
            options = types.HttpOptions(
                base_url=self._base_url,
                api_version=API_VERSION,
                aiohttp_client=self._session,
                # Without options of its own the SDK retries a broken connection by itself, after up to 10 s.
                retry_options=types.HttpRetryOptions(attempts=1),
            )
            self._client = genai.Client(vertexai=False, api_key=self._api_key, http_options=options)
        return self._client.aio.models

    async def stream(self, call: ModelCall) -> AsyncGenerator[Chunk]:
        """The answer as it is written. See Provider."""
        reader = _Reader()
        responses: list[aiohttp.ClientResponse] = []
        _responses.set(responses)
        try:
            config = _config(call)
            contents = _contents(call.messages)
        except ValueError as error:  # pydantic's among them
            raise ProviderRejected(f"google does not take these parameters: {_fields_of(error)}.") from None
        try:
            stream = await self._patiently(
                self._models().generate_content_stream(model=call.settings.model, contents=contents, config=config)
            )
            while (piece := await self._patiently(anext(stream, None))) is not None:
                for chunk in reader.read(piece):
                    yield chunk
        except sdk_errors.APIError as error:
            raise _meaning(error) from None
        except (TimeoutError, aiohttp.ServerTimeoutError):
            raise silence(NAME) from None
        except (aiohttp.ClientError, OSError):
            raise broken_connection(NAME) from None
        except ValueError:  # an answer that is no JSON, or none of Gemini's
            raise ProviderBadResponse from None
        finally:
            for response in responses:
                response.close()
        yield reader.finish()

    async def _patiently(self, awaitable: Any) -> Any:
        """Wait for the first or the next piece as long as allowed: the SDK knows a limit for the whole answer only."""
        async with asyncio.timeout(self._idle_seconds):
            return await awaitable

    async def close(self) -> None:
        """Hang up."""
        if self._session is not None:
            await self._session.close()


# The SDK's generators hold each other: closing the outermost leaves the connection open until garbage is collected.
_responses: ContextVar[list[aiohttp.ClientResponse]] = ContextVar("responses")


async def _remember(_session: object, _context: object, end: aiohttp.TraceRequestEndParams) -> None:
    """Note a response, for the call that asked to close it."""
    _responses.get().append(end.response)


class _Connector(aiohttp.TCPConnector):
    """Bounds the time to connect, which the SDK leaves open."""

    async def connect(self, req: Any, traces: Any, timeout: aiohttp.ClientTimeout) -> Any:  # noqa: ASYNC109 (aiohttp's)
        """Connect in time or fail."""
        bounded = aiohttp.ClientTimeout(
            total=timeout.total, sock_read=timeout.sock_read, sock_connect=CONNECT_TIMEOUT_SECONDS
        )
        return await super().connect(req, traces, bounded)


# --- what is sent ---


def _config(call: ModelCall) -> types.GenerateContentConfig:
    """The session's own settings go before its model_parameters, which may be written in either case."""
    settings = call.settings
    parameters = {_snake(key): value for key, value in settings.model_parameters.items()}
    asked = parameters.get("max_output_tokens")
    limit = min(call.output_tokens, asked) if type(asked) is int and asked > 0 else call.output_tokens
    own = {
        "system_instruction": settings.system_prompt or None,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "frequency_penalty": settings.frequency_penalty,
        "presence_penalty": settings.presence_penalty,
    }
    fields = {key: value for key, value in parameters.items() if key not in RESERVED_PARAMETERS}
    fields |= {key: value for key, value in own.items() if value is not None}
    return types.GenerateContentConfig(
        **fields,
        max_output_tokens=limit,
        tools=_tools(call),
        automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
        automatic_continuation=False,
    )


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])([A-Z])", lambda match: "_" + match[1].lower(), name)


def _tools(call: ModelCall) -> list[types.Tool] | None:
    if not call.tools:
        return None
    declarations = [
        types.FunctionDeclaration(
            name=tool.name, description=tool.description, parameters_json_schema=dict(tool.parameters)
        )
        for tool in call.tools
    ]
    return [types.Tool(function_declarations=declarations)]


def _contents(messages: Sequence[Message]) -> list[dict[str, Any]]:
    names = {call.id: call.name for message in messages for call in message.tool_calls}
    return [_content(message, names) for message in messages if not message.says_nothing]


def _content(message: Message, names: Mapping[str, str]) -> dict[str, Any]:
    if message.role == "tool":
        result = {"name": names.get(message.tool_call_id, "tool"), "response": {"result": message.content}}
        return {"role": "user", "parts": [{"function_response": result}]}
    parts: list[dict[str, Any]] = [{"text": message.content}] if message.content else []
    parts += [_call_part(call) for call in message.tool_calls]
    return {"role": "model" if message.role == "assistant" else "user", "parts": parts}


def _call_part(call: ToolCall) -> dict[str, Any]:
    part: dict[str, Any] = {"function_call": {"name": call.name, "args": orjson.loads(call.arguments or "{}")}}
    if call.signature:
        part["thought_signature"] = base64.b64decode(call.signature)
    return part


def _fields_of(error: ValueError) -> str:
    """The names of the parameters that did not pass, never their values."""
    listed = getattr(error, "errors", None)
    if not callable(listed):
        return "model_parameters"
    return ", ".join(sorted({str(entry["loc"][0]) for entry in listed() if entry["loc"]}))[:200] or "model_parameters"


# --- what comes back ---


class _Reader:
    """Turns responses into chunks."""

    def __init__(self) -> None:
        self._reason = ""

    def read(self, response: types.GenerateContentResponse) -> list[Chunk]:
        """What one response brings."""
        chunks: list[Chunk] = []
        if response.prompt_feedback is not None and response.prompt_feedback.block_reason is not None:
            raise ContentFiltered
        for candidate in response.candidates or ():
            if candidate.content is not None:
                chunks.extend(chunk for part in candidate.content.parts or () for chunk in _read_part(part))
            if candidate.finish_reason is not None:
                self._reason = candidate.finish_reason.value
        if response.usage_metadata is not None:
            chunks.append(_usage(response.usage_metadata))
        return chunks

    def finish(self) -> Finish:
        """The end; a stream that did not say how it ended is no answer."""
        if self._reason in FILTERED:
            return Finish("content_filter")
        if self._reason not in FINISH_REASONS:
            raise ProviderBadResponse
        return Finish(FINISH_REASONS[self._reason])


def _read_part(part: types.Part) -> list[Chunk]:
    if part.thought:
        return [Thought(len((part.text or "").encode()))]
    if part.function_call is not None:
        call = part.function_call
        return [
            ToolCall(
                id=call.id or f"call_{new_id().hex}",
                name=call.name or "",
                arguments=orjson.dumps(call.args or {}).decode(),
                signature=base64.b64encode(part.thought_signature or b"").decode(),
            )
        ]
    return [part.text] if part.text else []


def _usage(usage: types.GenerateContentResponseUsageMetadata) -> Usage:
    """Up to here. Thinking is counted apart from the answer, and paid for like it."""
    return Usage(
        (usage.prompt_token_count or 0) + (usage.tool_use_prompt_token_count or 0),
        (usage.candidates_token_count or 0) + (usage.thoughts_token_count or 0),
    )


def _meaning(error: sdk_errors.APIError) -> ProviderError:
    document = error.details if isinstance(error.details, Mapping | list) else {}
    headers = dict(getattr(error.response, "headers", {}))
    return meaning_of(NAME, read_refusal(error.code or 500, document, headers))
