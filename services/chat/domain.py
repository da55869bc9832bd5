"""The values and rules of a conversation: pure, no clock, no I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, NewType
from uuid import UUID

from services.chat.errors import ContextTooLong, FrameworkNotAvailable, ModelUnknown, ProviderNotConfigured
from services.kit.errors import InvalidArgument
from services.kit.money import Tier
from services.kit.text import check_text, storable
from services.kit.tokens import estimate_tokens

SessionId = NewType("SessionId", UUID)
MessageId = NewType("MessageId", UUID)
TaskId = NewType("TaskId", UUID)

LEASE = timedelta(seconds=15)
"""How long a claim lasts without a heartbeat."""
MAX_FAILURES = 3
"""Expired leases after which a task is given up as poison."""
CANCEL_GRACE = timedelta(seconds=2)
"""How long a running attempt may take to end itself once it was asked to."""
IDEMPOTENCY_KEY_LIFE = timedelta(hours=24)
OUT_OF_CREDITS = "out_of_credits"
"""The one failure that pays for what was used: the hold was too small for the run's next step."""
LEAST_OUTPUT_TOKENS = 256
"""An answer shorter than this is not worth starting."""
MAX_CONTENT_CHARACTERS = 100_000
MAX_SEARCH_CHARACTERS = 200
MAX_WARNINGS = 20
MAX_WARNING_CODE_CHARACTERS = 64
MAX_WARNING_DETAIL_CHARACTERS = 200
PROVIDERS = ("openai", "google", "anthropic", "groq", "deepseek", "local")
FRAMEWORKS = ("langgraph", "none")
"""The agent frameworks that can be chosen; `pydantic_ai` is known but not available yet."""
DEFAULT_FRAMEWORK = "langgraph"
# History is counted with fewer bytes a token than an estimate of cost uses: a prompt that overflows the window is lost.
HISTORY_BYTES_PER_TOKEN = 3
MESSAGE_OVERHEAD_TOKENS = 8


class Permission(StrEnum):
    """What a caller may do with a session."""

    READ = "read"
    WRITE = "write"
    OWNER = "owner"


class SessionStatus(StrEnum):
    """Only an active session can send."""

    ACTIVE = "active"
    COMPLETED = "completed"
    ARCHIVED = "archived"


class TaskState(StrEnum):
    """Where a task is; its row is the saga, so each state says what has to happen next."""

    ADMITTED = "admitted"  # holds the session's run slot; to be funded
    ABANDONED = "abandoned"  # was never accepted; its hold is to be released, its row removed
    QUEUED = "queued"  # accepted; to be claimed
    RUNNING = "running"  # leased by an attempt
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether the state is final."""
        return self in (TaskState.COMPLETED, TaskState.FAILED, TaskState.CANCELLED)


class TurnKind(StrEnum):
    """What a turn answers: a new message, or the last one again."""

    SEND = "send"
    REGENERATE = "regenerate"


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """What the owner of a session sets."""

    name: str | None = None
    status: SessionStatus = SessionStatus.ACTIVE
    ai_provider: str = ""
    ai_model: str = ""
    system_prompt: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    model_parameters: Mapping[str, Any] = field(default_factory=dict)
    agent_framework: str = DEFAULT_FRAMEWORK


@dataclass(frozen=True, slots=True)
class Session:
    """A session as one caller sees it."""

    id: SessionId
    workspace_id: UUID
    user_id: str
    settings: SessionSettings
    is_shared: bool
    shareable_link_id: UUID | None
    permission: Permission
    active_task_id: TaskId | None
    message_count: int
    created_at: datetime
    updated_at: datetime
    version: int


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens consumed; `estimated` when the provider did not say."""

    input_tokens: int = 0
    output_tokens: int = 0
    estimated: bool = False


@dataclass(frozen=True, slots=True)
class Message:
    """A stored message."""

    id: MessageId
    session_id: SessionId
    sequence_number: int
    role: str
    content: str
    created_at: datetime
    parent_message_id: MessageId | None = None
    tool_calls: Any = None
    tool_call_id: str | None = None
    user_id: str | None = None
    ai_provider: str | None = None
    ai_model: str | None = None
    finish_reason: str | None = None
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class Share:
    """A user's access to one session."""

    user_id: str
    permission: Permission
    created_at: datetime


@dataclass(frozen=True, slots=True)
class PublicMessage:
    """What anyone may see of a message."""

    role: str
    content: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class PublicSession:
    """What anyone who has the link may see of a session."""

    name: str | None
    created_at: datetime
    messages: Sequence[PublicMessage]


@dataclass(frozen=True, slots=True)
class HistoryMessage:
    """What of a message goes to a provider."""

    role: str
    content: str
    tool_calls: Any = None
    tool_call_id: str | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """A finished step of a run: the messages it adds and what it consumed."""

    number: int
    messages: Sequence[HistoryMessage]
    usage: Usage


@dataclass(frozen=True, slots=True)
class TaskWarning:
    """What a run had to do without: a stable code, and the name of what it is about."""

    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class Task:
    """The run that answers one user message."""

    id: TaskId
    session_id: SessionId
    state: TaskState
    attempt: int
    created_at: datetime
    updated_at: datetime
    user_message_id: MessageId | None
    usage: Usage | None
    held_nano: int
    charged_nano: int
    error_code: str | None
    error_detail: str | None
    settled: bool = False
    ai_messages: Sequence[Message] = ()
    warnings: Sequence[TaskWarning] = ()

    def after_settlement(self, charged_nano: int) -> Task:
        """The same task once billing has charged it."""
        return replace(self, held_nano=0, charged_nano=charged_nano, settled=True)


@dataclass(frozen=True, slots=True)
class Admission:
    """A turn that has taken its session's run slot; what is needed to fund it."""

    task_id: TaskId
    session_id: SessionId
    provider: str
    model: str
    system_prompt_bytes: int
    history_bytes: int
    content_bytes: int
    max_tokens: int | None


@dataclass(frozen=True, slots=True)
class Hold:
    """Credits set aside for a task, and what they buy."""

    held_nano: int
    tiers: Sequence[Tier]
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Claim:
    """A leased task with all that its run needs, but for the history."""

    task_id: TaskId
    session_id: SessionId
    attempt: int
    settings: SessionSettings
    user_message_id: MessageId
    steps: Sequence[Step]
    hold: Hold
    created_at: datetime
    deadline_at: datetime
    traceparent: str = ""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A queued task that is to be announced again, and where its trace goes on; "" when it is not traced."""

    id: TaskId
    traceparent: str


@dataclass(frozen=True, slots=True)
class Ending:
    """How an attempt wants its task to end."""

    state: TaskState
    content: str = ""
    finish_reason: str = ""
    usage: Usage = Usage()
    error_code: str | None = None
    error_detail: str | None = None
    warnings: Sequence[TaskWarning] = ()


@dataclass(frozen=True, slots=True)
class Model:
    """One model of the price list."""

    provider: str
    name: str
    context_window_tokens: int
    max_output_tokens: int


@dataclass(frozen=True, slots=True)
class Catalog:
    """What can be chosen: the priced models and the providers that have a key."""

    models: Mapping[tuple[str, str], Model]
    configured: frozenset[str]
    default_provider: str
    default_model: str

    def choose(self, provider: str, model: str) -> tuple[str, str]:
        """Fill in what the caller left open: the default, or the only provider of a named model."""
        if not provider and not model:
            return self.default_provider, self.default_model
        if not provider:
            owners = [owner for owner, name in self.models if name == model]
            configured = [owner for owner in owners if owner in self.configured]
            return (configured or owners or [self.default_provider])[0], model
        if not model:
            return provider, self._default_of(provider)
        return provider, model

    def _default_of(self, provider: str) -> str:
        if provider == self.default_provider:
            return self.default_model
        return next((name for owner, name in self.models if owner == provider), "")

    def require(self, provider: str, model: str) -> Model:
        """The model, if it is priced and its provider has a key."""
        if provider in PROVIDERS and provider not in self.configured:
            raise ProviderNotConfigured(f"No key is configured for the provider {provider}.", provider=provider)
        found = self.models.get((provider, model))
        if found is None:
            raise ModelUnknown(
                f"The price list has no model {model!r} of {provider!r}.", provider=provider, model=model
            )
        return found


def require_framework(name: str) -> None:
    """Refuse an agent framework that this installation can't run."""
    if name not in FRAMEWORKS:
        raise FrameworkNotAvailable(f"The agent framework {name!r} is not available.", framework=name)


def check_settings(settings: SessionSettings) -> None:
    """Refuse values out of range; the REST edge says it with pointers, this guards the service itself."""
    ranges = (
        ("temperature", settings.temperature, 0.0, 2.0),
        ("top_p", settings.top_p, 0.0, 1.0),
        ("frequency_penalty", settings.frequency_penalty, -2.0, 2.0),
        ("presence_penalty", settings.presence_penalty, -2.0, 2.0),
        ("max_tokens", settings.max_tokens, 1, 2**31 - 1),
    )
    texts = (
        ("name", settings.name, 0, 255),
        ("ai_provider", settings.ai_provider, 0, 100),
        ("ai_model", settings.ai_model, 1, 100),
        ("system_prompt", settings.system_prompt, 0, MAX_CONTENT_CHARACTERS),
        ("agent_framework", settings.agent_framework, 0, 100),
    )
    for field_name, value, least, most in ranges:
        if value is not None and not least <= value <= most:
            raise InvalidArgument(f"{field_name} must be between {least} and {most}.", field=field_name)
    for field_name, text, shortest, longest in texts:
        check_text(text or "", field=field_name, least=shortest, most=longest)
    if storable(settings.model_parameters) != settings.model_parameters:
        raise InvalidArgument("model_parameters must not contain NUL.", field="model_parameters")


def check_search(search: str) -> None:
    """Refuse what is no search."""
    check_text(search, field="search", most=MAX_SEARCH_CHARACTERS)


def check_content(content: str) -> None:
    """Refuse a message that is blank or too long."""
    check_text(content, field="content", least=1, most=MAX_CONTENT_CHARACTERS)
    if not content.strip():
        raise InvalidArgument("content must not be blank.", field="content")


def input_tokens(admission: Admission, model: Model) -> int:
    """The estimated size of the prompt; ContextTooLong when system prompt and message alone can't fit."""
    fixed = estimate_tokens(admission.system_prompt_bytes) + estimate_tokens(admission.content_bytes)
    room = model.context_window_tokens - min(LEAST_OUTPUT_TOKENS, model.max_output_tokens)
    if fixed + MESSAGE_OVERHEAD_TOKENS > room:
        raise ContextTooLong(
            f"The message has about {fixed} tokens; {model.name} takes {room} besides its answer.",
            context_window_tokens=str(model.context_window_tokens),
        )
    return min(fixed + MESSAGE_OVERHEAD_TOKENS + estimate_tokens(admission.history_bytes), room)


def cut_history(
    history: Sequence[HistoryMessage], model: Model, *, system_prompt: str | None, output_tokens: int
) -> Sequence[HistoryMessage]:
    """The newest whole turns that fit the window beside system prompt and answer; the last message always stays.

    `history` is oldest first and ends with the message to answer. A turn starts with a user message.
    """
    reserve = min(output_tokens, max(LEAST_OUTPUT_TOKENS, model.context_window_tokens // 4))
    room = model.context_window_tokens - reserve - _history_tokens(system_prompt or "")
    start, first = len(history) - 1, len(history) - 1
    for index in range(len(history) - 1, -1, -1):
        room -= _history_tokens(history[index].content)
        if room < 0 and index < len(history) - 1:
            break
        start = index
        if history[start].role == "user":
            first = start
    return history[first:]


def _history_tokens(text: str) -> int:
    return MESSAGE_OVERHEAD_TOKENS + -(-len(text.encode()) // HISTORY_BYTES_PER_TOKEN)
