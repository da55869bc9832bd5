"""Building requests for Gemini."""

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import orjson
from google.genai import types
from pydantic import ValidationError

from services.agent.domain import Message, ToolCall
from services.agent.providers import ModelCall
from services.agent.providers.openai_request import NO_OUTPUT, output_limit
from services.agent.providers.parameters import refused_by
from services.common.providers.limits import smaller_limit
from services.common.providers.refusals import Refusal

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
LIMIT = "max_output_tokens"


@dataclass(frozen=True, slots=True)
class Request:
    """One model call with the parameters that are sent now."""

    call: ModelCall
    output_tokens: int
    parameters: Mapping[str, Any]
    """The session's settings and model_parameters that may be sent, by the SDK's names."""
    dropped: tuple[str, ...] = ()
    """What the session has set and is not sent, by the session's names."""
    is_smaller: bool = False
    """True if it asks for a shorter answer than it could pay for, after a refusal."""

    @classmethod
    def of(cls, call: ModelCall) -> "Request":
        """The request, without parameters that the SDK does not know or take."""
        settings = call.settings
        given = {_snake(name): name for name in settings.model_parameters}
        parameters = {_snake(name): value for name, value in settings.model_parameters.items()}
        own = {
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "frequency_penalty": settings.frequency_penalty,
            "presence_penalty": settings.presence_penalty,
        }
        limit = output_limit(call.output_tokens, parameters, (LIMIT,))
        parameters |= {name: value for name, value in own.items() if value is not None}
        refused = {name for name in parameters if name in RESERVED_PARAMETERS}
        kept = {name: value for name, value in parameters.items() if name not in refused}
        refused |= _not_taken(kept)
        return cls(
            call,
            limit,
            {name: value for name, value in kept.items() if name not in refused},
            tuple(given.get(name, name) for name in parameters if name in refused and name != LIMIT),
        )

    def adapted_to(self, refusal: Refusal) -> "Request | None":
        """The request as the provider may take it after this refusal; None if there is nothing to change."""
        if not self.is_smaller and (smaller := smaller_limit(refusal, self.output_tokens)) is not None:
            return replace(self, output_tokens=smaller, is_smaller=True)
        names = refused_by(refusal, self.parameters.keys())
        return self.without(names) if names else None

    def without(self, names: frozenset[str]) -> "Request":
        """The same request without these parameters."""
        kept = {name: value for name, value in self.parameters.items() if name not in names}
        dropped = tuple(name for name in self.parameters if name in names)
        return replace(self, parameters=kept, dropped=(*self.dropped, *dropped))

    def config(self) -> types.GenerateContentConfig:
        """The SDK's configuration of the call."""
        prompt = self.call.settings.system_prompt
        return types.GenerateContentConfig(
            **self.parameters,
            system_instruction=prompt if prompt and prompt.strip() else None,
            max_output_tokens=self.output_tokens,
            tools=_tools(self.call),
            automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
            automatic_continuation=False,
        )

    def contents(self) -> list[dict[str, Any]]:
        """The conversation in Gemini's shape."""
        messages = self.call.messages
        names = {call.id: call.name for message in messages for call in message.tool_calls}
        return [_content(message, names) for message in messages if not message.says_nothing]


def _not_taken(parameters: Mapping[str, Any]) -> set[str]:
    """The parameters that the SDK does not know, or whose values it refuses."""
    try:
        types.GenerateContentConfig(**parameters)
    except ValidationError as error:
        names = {str(entry["loc"][0]) for entry in error.errors() if entry["loc"]}
        return {name for name in parameters if name in names or _snake(name) in map(_snake, names)}
    return set()


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


def _content(message: Message, names: Mapping[str, str]) -> dict[str, Any]:
    if message.role == "tool":
        content = message.content if message.content.strip() else NO_OUTPUT
        result = {"name": names.get(message.tool_call_id, "tool"), "response": {"result": content}}
        return {"role": "user", "parts": [{"function_response": result}]}
    parts: list[dict[str, Any]] = [{"text": message.content}] if message.content.strip() else []
    parts += [_call_part(call) for call in message.tool_calls]
    return {"role": "model" if message.role == "assistant" else "user", "parts": parts}


def _call_part(call: ToolCall) -> dict[str, Any]:
    part: dict[str, Any] = {"function_call": {"name": call.name, "args": _arguments(call.arguments)}}
    if call.signature:
        part["thought_signature"] = base64.b64decode(call.signature)
    return part


def _arguments(text: str) -> dict[str, Any]:
    """A call's arguments; none where a model of another provider wrote something else than an object."""
    try:
        arguments = orjson.loads(text or "{}")
    except orjson.JSONDecodeError:
        return {}
    return arguments if isinstance(arguments, dict) else {}
