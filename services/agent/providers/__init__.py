"""Providers behind one protocol: a call goes in, chunks come out as the provider sends them."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from services.agent.domain import Message, Settings, ToolCall, Usage
from services.agent.tools import Tool

CONNECT_TIMEOUT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class ModelCall:
    """One call of a model."""

    settings: Settings
    messages: Sequence[Message]
    output_tokens: int
    """The longest answer to ask for, thinking included."""
    tools: Sequence[Tool] = ()


@dataclass(frozen=True, slots=True)
class Thought:
    """The model has thought; nobody is shown what, but it is paid for."""

    size_bytes: int


@dataclass(frozen=True, slots=True)
class Finish:
    """The answer is whole. Reasons are OpenAI's: stop, length, tool_calls, content_filter."""

    reason: str


# A piece of text, a thought, a whole tool call, the usage up to here, the end.
Chunk = str | Thought | ToolCall | Usage | Finish


class Provider(Protocol):
    """A vendor's API. Tries each call once; its SDK's retries are off."""

    def stream(self, call: ModelCall) -> AsyncGenerator[Chunk]:
        """The answer as it is written, ended by one Finish.

        Raises RunErrors. Closing the generator closes the connection, which stops the provider.
        """
        ...

    async def close(self) -> None:
        """Hang up."""
        ...


Providers = Mapping[str, Provider]
