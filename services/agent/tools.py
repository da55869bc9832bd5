"""The tools that every framework offers to every model. There are none yet."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import structlog

from services.agent.domain import Message, ToolCall
from services.kit.text import replace_unstorable

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Tool:
    """What a model may call: its name, what it is for, its arguments as JSON Schema, and what to do."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    call: Callable[[str], Awaitable[str]]
    """Takes the arguments, a JSON object that the model wrote, and returns what the model is told."""


class Tools:
    """The registry, by name."""

    def __init__(self, *tools: Tool) -> None:
        self._tools = {tool.name: tool for tool in tools}

    @property
    def all(self) -> tuple[Tool, ...]:
        """In the order in which they were given."""
        return tuple(self._tools.values())

    async def call(self, call: ToolCall) -> Message:
        """The tool's answer. A tool that fails, or that does not exist, answers so: the model goes on from there."""
        tool = self._tools.get(call.name)
        if tool is None:
            return Message("tool", "There is no such tool.", tool_call_id=call.id)
        try:
            content = await tool.call(call.arguments)
        except Exception as error:
            log.warning("tool_failed", tool=call.name, error=type(error).__name__)
            content = "The tool failed."
        return Message("tool", replace_unstorable(content), tool_call_id=call.id)
