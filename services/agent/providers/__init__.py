"""Providers behind one protocol: a call goes in, chunks come out as the provider sends them."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from services.agent.domain import Message, Settings, ToolCall
from services.agent.tools import Tool

CONNECT_TIMEOUT_SECONDS = 5.0
# Of one answer; further ones are left out.
MAX_TOOL_CALLS = 128


@dataclass(frozen=True, slots=True)
class ModelCall:
    """One call of a model."""

    settings: Settings
    messages: Sequence[Message]
    output_tokens: int
    """The longest answer to ask for, thinking included."""
    tools: Sequence[Tool] = ()


@dataclass(frozen=True, slots=True)
class Unseen:
    """The model has written something that is not shown but paid for: a thought, or a piece of a tool call."""

    size_bytes: int


@dataclass(frozen=True, slots=True)
class ReportedUsage:
    """What the provider says the call has consumed so far. None: it does not say, or says something implausible."""

    input_tokens: int | None
    output_tokens: int | None
    """Thinking included."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """A parameter of the session was left out of the request, because the model does not take it."""

    name: str


@dataclass(frozen=True, slots=True)
class Finish:
    """The answer is whole. Reasons are OpenAI's: stop, length, tool_calls, content_filter; others as they came."""

    reason: str


# A piece of text, something unseen, a whole tool call, the usage so far, a parameter left out, the end.
# Text may hold half a surrogate pair, whose other half comes with the next piece.
Chunk = str | Unseen | ToolCall | ReportedUsage | Dropped | Finish


class Provider(Protocol):
    """A vendor's API. Tries each call once; its SDK's retries are off."""

    def stream(self, call: ModelCall) -> AsyncGenerator[Chunk]:
        """The answer as it is written, ended by one Finish.

        Raises ProviderErrors. Closing the generator closes the connection, which stops the provider.
        """
        ...

    async def close(self) -> None:
        """Hang up."""
        ...


Providers = Mapping[str, Provider]
