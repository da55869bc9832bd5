"""What can go wrong with sessions and turns; the reasons are those of chat.proto's ChatReason."""

from services.kit.errors import DomainError, Kind


class TaskInProgress(DomainError):
    """The session runs another task; one run per session at a time."""

    kind, reason, detail = Kind.CONFLICT, "TASK_IN_PROGRESS", "The session is answering another message."


class SessionNotActive(DomainError):
    """The session is completed or archived and can't send."""

    kind, reason, detail = Kind.PRECONDITION, "SESSION_NOT_ACTIVE", "Only an active session can send."


class ModelUnknown(DomainError):
    """The price list has no such provider and model; unknown is never free."""

    kind, reason, detail = Kind.INVALID, "MODEL_UNKNOWN", "The price list has no such model."


class ProviderNotConfigured(DomainError):
    """No key is configured for the provider."""

    kind, reason, detail = Kind.INVALID, "PROVIDER_NOT_CONFIGURED", "No key is configured for the provider."


class FrameworkNotAvailable(DomainError):
    """The agent framework is not installed here."""

    kind, reason, detail = Kind.INVALID, "FRAMEWORK_NOT_AVAILABLE", "The agent framework is not available."


class ContextTooLong(DomainError):
    """System prompt and message alone can't fit the model's context."""

    kind, reason, detail = Kind.INVALID, "CONTEXT_TOO_LONG", "The message can't fit the model's context."


class IdempotencyKeyReused(DomainError):
    """The idempotency key was used with another body."""

    kind, reason, detail = Kind.INVALID, "IDEMPOTENCY_KEY_REUSED", "The idempotency key was used with another request."


class VersionMismatch(DomainError):
    """The session's settings were changed since the version the caller saw."""

    kind, reason, detail = Kind.PRECONDITION, "VERSION_MISMATCH", "The session was changed meanwhile."


class LeaseLost(DomainError):
    """The attempt is over: another one runs the task, or it has ended."""

    kind, reason, detail = Kind.CONFLICT, "LEASE_LOST", "The attempt does not hold the task any more."


class NothingToRegenerate(DomainError):
    """The session has no user message to answer again."""

    kind, reason, detail = Kind.PRECONDITION, "NOTHING_TO_REGENERATE", "The session has no message to answer again."


class ShareWithOwner(DomainError):
    """The owner of a session needs no share of it."""

    kind, reason, detail = Kind.INVALID, "SHARE_WITH_OWNER", "The session is its owner's already."
