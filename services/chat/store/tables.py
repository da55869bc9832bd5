"""The tables of the Postgres schema `chat`."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

SCHEMA = "chat"
metadata = MetaData(schema=SCHEMA)

NOW = text("now()")
Moment = DateTime(timezone=True)

sessions = Table(
    "sessions",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("workspace_id", Uuid, nullable=False),
    Column("user_id", Text, nullable=False),
    Column("name", Text),
    Column("status", Text, nullable=False),
    Column("ai_provider", Text, nullable=False),
    Column("ai_model", Text, nullable=False),
    Column("system_prompt", Text),
    Column("temperature", Double),
    Column("max_tokens", BigInteger),
    Column("top_p", Double),
    Column("frequency_penalty", Double),
    Column("presence_penalty", Double),
    Column("model_parameters", JSONB, nullable=False, server_default=text("'{}'")),
    Column("agent_framework", Text, nullable=False),
    Column("shareable_link_id", Uuid),
    Column("last_sequence", BigInteger, nullable=False, server_default=text("0")),
    Column("message_count", BigInteger, nullable=False, server_default=text("0")),
    Column("version", BigInteger, nullable=False, server_default=text("1")),
    Column("created_at", Moment, nullable=False, server_default=NOW),
    Column("updated_at", Moment, nullable=False, server_default=NOW),
    Column("deleted_at", Moment),
    UniqueConstraint("shareable_link_id", name="sessions_shareable_link_id_key"),
    Index("sessions_by_activity", "workspace_id", "user_id", text("updated_at desc"), text("id desc")),
    Index("sessions_deleted", "deleted_at", postgresql_where=text("deleted_at is not null")),
)

shares = Table(
    "shares",
    metadata,
    Column("session_id", Uuid, ForeignKey(sessions.c.id, ondelete="CASCADE"), primary_key=True),
    Column("user_id", Text, primary_key=True),
    Column("permission", Text, nullable=False),
    Column("created_at", Moment, nullable=False, server_default=NOW),
    CheckConstraint("permission in ('read', 'write')", name="shares_permission_check"),
    Index("shares_by_user", "user_id"),
)

messages = Table(
    "messages",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("session_id", Uuid, ForeignKey(sessions.c.id, ondelete="CASCADE"), nullable=False),
    Column("sequence_number", BigInteger, nullable=False),
    Column("parent_message_id", Uuid, ForeignKey("chat.messages.id", ondelete="CASCADE")),
    Column("task_id", Uuid),
    Column("role", Text, nullable=False),
    Column("content", Text, nullable=False),
    Column("tool_calls", JSONB(none_as_null=True)),
    Column("tool_call_id", Text),
    Column("user_id", Text),
    Column("ai_provider", Text),
    Column("ai_model", Text),
    Column("finish_reason", Text),
    Column("input_tokens", BigInteger),
    Column("output_tokens", BigInteger),
    # A turn without an answer is listed but not sent to the provider with later ones.
    Column("unanswered", Boolean, nullable=False, server_default=text("false")),
    Column("created_at", Moment, nullable=False, server_default=NOW),
    CheckConstraint("role in ('user', 'assistant', 'tool')", name="messages_role_check"),
    UniqueConstraint("session_id", "sequence_number", name="messages_sequence_key"),
    # Words longer than this into a message are not found: a tsvector holds 1 MiB.
    Index("messages_words", text("to_tsvector('simple', left(content, 100000))"), postgresql_using="gin"),
    Index("messages_by_parent", "parent_message_id", postgresql_where=text("parent_message_id is not null")),
)

ACTIVE = "state in ('admitted', 'queued', 'running')"

tasks = Table(
    "tasks",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("session_id", Uuid, ForeignKey(sessions.c.id, ondelete="CASCADE"), nullable=False),
    Column("workspace_id", Uuid, nullable=False),
    Column("user_id", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("attempt", Integer, nullable=False, server_default=text("0")),
    Column("failures", Integer, nullable=False, server_default=text("0")),
    Column("worker", Text),
    # The session's settings as they were when the turn was admitted.
    Column("settings", JSONB, nullable=False),
    Column("user_message_id", Uuid),
    Column("held_nano", BigInteger, nullable=False, server_default=text("0")),
    Column("tiers", JSONB),
    Column("output_tokens_held", BigInteger, nullable=False, server_default=text("0")),
    Column("steps", JSONB, nullable=False, server_default=text("'[]'")),
    # What the last heartbeat brought.
    Column("text_so_far", Text, nullable=False, server_default=text("''")),
    Column("input_tokens", BigInteger, nullable=False, server_default=text("0")),
    Column("output_tokens", BigInteger, nullable=False, server_default=text("0")),
    Column("estimated", Boolean, nullable=False, server_default=text("false")),
    Column("charged_nano", BigInteger, nullable=False, server_default=text("0")),
    Column("error_code", Text),
    Column("error_detail", Text),
    Column("last_event", BigInteger, nullable=False, server_default=text("0")),
    Column("created_at", Moment, nullable=False, server_default=NOW),
    Column("updated_at", Moment, nullable=False, server_default=NOW),
    Column("deadline_at", Moment, nullable=False),
    Column("published_at", Moment),
    Column("lease_until", Moment),
    Column("cancel_requested_at", Moment),
    Column("ended_at", Moment),
    Column("settled_at", Moment),
    # Where the turn's trace goes on, as W3C Trace Context writes it; null for a turn that is not traced.
    Column("traceparent", Text),
    # What the run that ended the task had to do without: [{"code": "", "detail": ""}].
    Column("warnings", JSONB, nullable=False, server_default=text("'[]'")),
    # One run per session: the second admission meets this index.
    Index("tasks_run_slot", "session_id", unique=True, postgresql_where=text(ACTIVE)),
    Index("tasks_queued", "created_at", postgresql_where=text("state = 'queued'")),
    Index("tasks_leased", "lease_until", postgresql_where=text("state = 'running'")),
    Index("tasks_unaccepted", "created_at", postgresql_where=text("state in ('admitted', 'abandoned')")),
    Index("tasks_unsettled", "ended_at", postgresql_where=text("ended_at is not null and settled_at is null")),
    Index("tasks_by_session", "session_id"),
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("user_id", Text, primary_key=True),
    Column("route", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("fingerprint", LargeBinary, nullable=False),
    # The session or task that the first request made.
    Column("resource_id", Uuid, nullable=False),
    Column("created_at", Moment, nullable=False, server_default=NOW),
    Index("idempotency_keys_by_age", "created_at"),
)
