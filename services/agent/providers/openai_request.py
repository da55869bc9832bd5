"""Building chat completion requests, and building them again in the form that a server or model takes."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from services.agent.domain import Message
from services.agent.providers import ModelCall
from services.agent.providers.parameters import refused_by, refused_by_family
from services.agent.tools import Tool
from services.common.providers.limits import smaller_limit
from services.common.providers.refusals import Refusal

# What would change what is asked for, what is paid for or how the answer comes.
RESERVED_PARAMETERS = frozenset(
    {
        *("model", "messages", "stream", "stream_options", "n", "best_of", "store", "background"),
        *("max_tokens", "max_completion_tokens", "n_predict", "prediction"),
        *("tools", "tool_choice", "parallel_tool_calls", "functions", "function_call", "web_search_options"),
        *("modalities", "audio", "service_tier"),
    }
)
LIMIT_PARAMETERS = ("max_completion_tokens", "max_tokens", "n_predict")
_OTHER_LIMIT = {"max_completion_tokens": "max_tokens", "max_tokens": "max_completion_tokens"}
_NOT_STREAMED = re.compile(r"verified to stream|stream(ing)? (is )?not supported|not support stream(ing)?\b", re.I)
_KEPT = frozenset({"model", "messages", "stream", "stream_options", "tools", *_OTHER_LIMIT})
# What an assistant's tool call that gave nothing is answered with: some providers refuse blank text.
NO_OUTPUT = "(no output)"


@dataclass(frozen=True, slots=True)
class Dialect:
    """Where a provider listens, and what it calls the output limit."""

    base_url: str
    limit: str = "max_tokens"


DIALECTS: Mapping[str, Dialect] = {
    "openai": Dialect("https://api.openai.com/v1", limit="max_completion_tokens"),
    "anthropic": Dialect("https://api.anthropic.com/v1/"),
    "groq": Dialect("https://api.groq.com/openai/v1"),
    "deepseek": Dialect("https://api.deepseek.com"),
    "local": Dialect("http://127.0.0.1:8000/v1"),
}


@dataclass(frozen=True, slots=True)
class Form:
    """How a server wants to be asked."""

    limit: str
    streams: bool = True
    reports_usage: bool = True
    """Whether it takes `stream_options`."""


@dataclass(frozen=True, slots=True)
class Request:
    """One model call in the form and with the parameters that are sent now."""

    call: ModelCall
    form: Form
    output_tokens: int
    parameters: Mapping[str, Any]
    """The session's settings and model_parameters that the model may take, by their name on the wire."""
    dropped: tuple[str, ...] = ()
    """What the session has set and is not sent."""
    tried_limits: frozenset[str] = field(default=frozenset())
    is_smaller: bool = False
    """True if it asks for a shorter answer than it could pay for, after a refusal."""

    @classmethod
    def of(cls, call: ModelCall, form: Form) -> "Request":
        """The request as the model is known to take it."""
        settings = call.settings
        parameters = dict(settings.model_parameters)
        own = {
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "frequency_penalty": settings.frequency_penalty,
            "presence_penalty": settings.presence_penalty,
        }
        parameters |= {name: value for name, value in own.items() if value is not None}
        refused = {name for name in parameters if name in RESERVED_PARAMETERS}
        refused |= refused_by_family(settings.provider, settings.model, parameters)
        return cls(
            call,
            form,
            output_limit(call.output_tokens, settings.model_parameters, LIMIT_PARAMETERS),
            {name: value for name, value in parameters.items() if name not in refused},
            # A limit among the parameters is not left out: the lower one counts.
            tuple(name for name in parameters if name in refused and name not in LIMIT_PARAMETERS),
        )

    def without(self, names: frozenset[str]) -> "Request":
        """The same request without these parameters."""
        kept = {name: value for name, value in self.parameters.items() if name not in names}
        dropped = tuple(name for name in self.parameters if name in names)
        return replace(self, parameters=kept, dropped=(*self.dropped, *dropped))

    def adapted_to(self, refusal: Refusal) -> "Request | None":
        """The request as the provider may take it after this refusal; None if there is nothing to change."""
        form, limit = self.form, self.form.limit
        if not self.is_smaller and (smaller := smaller_limit(refusal, self.output_tokens)) is not None:
            return replace(self, output_tokens=smaller, is_smaller=True)
        if form.streams and ("stream" in refusal.params or _NOT_STREAMED.search(refusal.message)):
            return replace(self, form=replace(form, streams=False))
        if form.streams and form.reports_usage and _names(refusal, "stream_options"):
            return replace(self, form=replace(form, reports_usage=False))
        if _OTHER_LIMIT[limit] not in self.tried_limits and refused_by(refusal, {limit}):
            return replace(self, form=replace(form, limit=_OTHER_LIMIT[limit]), tried_limits=frozenset({limit}))
        names = refused_by(refusal, self.parameters.keys())
        return self.without(names) if names else None

    def body(self) -> bytes:
        """The request on the wire."""
        body: dict[str, Any] = dict(self.parameters)
        body["model"] = self.call.settings.model
        body["messages"] = _messages(self.call)
        body["stream"] = self.form.streams
        if self.form.streams and self.form.reports_usage:
            body["stream_options"] = {"include_usage": True}
        body[self.form.limit] = self.output_tokens
        if self.call.tools:
            body["tools"] = [_tool(tool) for tool in self.call.tools]
        return orjson.dumps(body)


def _names(refusal: Refusal, name: str) -> bool:
    return name in refusal.params or (400 <= refusal.status < 500 and name in refusal.message)


def output_limit(output_tokens: int, parameters: Mapping[str, Any], names: tuple[str, ...]) -> int:
    """The output limit: a lower one among the model_parameters counts, a higher one buys nothing."""
    asked = (parameters.get(name) for name in names)
    return min([output_tokens, *(value for value in asked if type(value) is int and value > 0)])


def _messages(call: ModelCall) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if call.settings.system_prompt and call.settings.system_prompt.strip():
        messages.append({"role": "system", "content": call.settings.system_prompt})
    messages.extend(_message(message) for message in call.messages if not message.says_nothing)
    return messages


def _message(message: Message) -> dict[str, Any]:
    is_blank = not message.content.strip()
    wire: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        wire["content"] = None if is_blank else message.content
        wire["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments or "{}"}}
            for call in message.tool_calls
        ]
    if message.tool_call_id:
        wire["content"] = NO_OUTPUT if is_blank else message.content
        wire["tool_call_id"] = message.tool_call_id
    return wire


def _tool(tool: Tool) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": function}
