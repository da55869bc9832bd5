"""What a run is made of, and the rules of what it may spend. Pure: no clock, no wire."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from services.agent.errors import OutOfCredits
from services.kit.money import Tier, output_tokens_for
from services.kit.text import replace_unstorable

# A step that could not write this much (or as much as the session allows, if that is less) is not begun.
WORTHWHILE_OUTPUT_TOKENS = 256
# The limits of chat's proto.
MAX_WARNINGS = 20
MAX_WARNING_CODE_CHARACTERS = 64
MAX_WARNING_DETAIL_CHARACTERS = 200
PARAMETER_DROPPED = "parameter_dropped"
"""The code of a warning about a parameter that was left out of the provider's request."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool the model wants called; `arguments` is a JSON object."""

    id: str
    name: str
    arguments: str
    signature: str = ""
    """Opaque, base64; goes back to the provider that gave it."""


@dataclass(frozen=True, slots=True)
class Message:
    """A message of the conversation: user, assistant or tool."""

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""

    @property
    def says_nothing(self) -> bool:
        """An answer without words, such as one that was cancelled early: some providers refuse a blank message."""
        return self.role == "assistant" and not self.tool_calls and not self.content.strip()

    @property
    def size_bytes(self) -> int:
        """What the provider is sent of it, about."""
        return len(self.content.encode()) + sum(len(call.name) + len(call.arguments) for call in self.tool_calls)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens consumed; thinking is output."""

    input_tokens: int = 0
    output_tokens: int = 0
    estimated: bool = False

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.estimated or other.estimated,
        )


@dataclass(frozen=True, slots=True)
class Settings:
    """What the session's owner has set; None where nothing was."""

    provider: str
    model: str
    framework: str
    system_prompt: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    model_parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Step:
    """A tool round that is kept: the assistant's call, the results, and what it consumed."""

    number: int
    messages: tuple[Message, ...]
    usage: Usage


@dataclass(frozen=True, slots=True)
class Budget:
    """What the run may spend."""

    held_nano: int
    tiers: Sequence[Tier]
    output_tokens: int
    """The longest first answer that the hold buys."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One claimed task with all that its run needs. Times are Unix seconds."""

    task_id: str
    attempt: int
    settings: Settings
    history: tuple[Message, ...]
    steps: tuple[Step, ...]
    budget: Budget
    deadline_at: float
    user_message_id: str = ""
    created_at: float = 0
    traceparent: str = ""

    @property
    def conversation(self) -> list[Message]:
        """What the model is shown first: the history and the steps that are kept."""
        return [*self.history, *(message for step in self.steps for message in step.messages)]

    @property
    def spent(self) -> Usage:
        """What earlier attempts have consumed for the steps that are kept."""
        return sum((step.usage for step in self.steps), Usage())


@dataclass(frozen=True, slots=True)
class TaskWarning:
    """What the run had to do without; `detail` is a name, never text of the conversation."""

    code: str
    detail: str

    def within_limits(self) -> "TaskWarning":
        """Return the same warning, cut to what chat accepts: chat refuses an end with a longer one."""
        return TaskWarning(
            replace_unstorable(self.code)[:MAX_WARNING_CODE_CHARACTERS],
            replace_unstorable(self.detail)[:MAX_WARNING_DETAIL_CHARACTERS],
        )


@dataclass(frozen=True, slots=True)
class Completed:
    """The run has an answer."""

    content: str
    finish_reason: str


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The run was stopped at the user's wish; what was written until then stays."""

    content: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The run has no answer."""

    code: str
    detail: str


End = Completed | Cancelled | Failed


def output_limit(turn: Turn, spent: Usage, *, next_input_tokens: int) -> int:
    """The longest answer to ask for; OutOfCredits when the rest of the hold buys none worth asking for.

    The first call takes chat's own figure. A later one is checked against the rest of the hold, priced as the
    settlement will price the whole run, so that the charge can't pass the hold.
    """
    wanted = turn.settings.max_tokens
    affordable = turn.budget.output_tokens
    if spent.input_tokens:
        total_input = spent.input_tokens + next_input_tokens
        bought = output_tokens_for(turn.budget.tiers, input_tokens=total_input, nano=turn.budget.held_nano)
        # What a step may write is bounded by the model too, which chat's figure knows.
        affordable = min(affordable, bought - spent.output_tokens)
        if affordable < min(WORTHWHILE_OUTPUT_TOKENS, wanted or WORTHWHILE_OUTPUT_TOKENS):
            raise OutOfCredits
    return affordable if wanted is None else min(wanted, affordable)


def input_bytes(settings: Settings, messages: Sequence[Message]) -> int:
    """The size of what a call sends, for estimates."""
    return len((settings.system_prompt or "").encode()) + sum(message.size_bytes for message in messages)
