"""Why a call of an AI provider failed. Raised by the agent, speech and translate.

A detail never quotes the provider's own sentences: they may repeat what was sent, or the key.
"""

import math

from services.kit.errors import DomainError, Kind


class ProviderError(DomainError):
    """The provider failed. `retryable` says whether the same call may be tried again."""

    kind, retryable = Kind.UPSTREAM, False

    def __init__(
        self, detail: str | None = None, *, retry_after_seconds: float | None = None, retryable: bool | None = None
    ) -> None:
        self.retry_after_seconds = retry_after_seconds
        if retryable is not None:
            self.retryable = retryable
        metadata = {"retry_after_seconds": str(math.ceil(retry_after_seconds))} if retry_after_seconds else {}
        super().__init__(detail, **metadata)

    @property
    def code(self) -> str:
        """The code that users see, such as provider_timeout."""
        return self.reason.lower()

    @property
    def outcome(self) -> str:
        """What metrics and traces call it. Differs from the code where an operator must know more than users."""
        return self.code

    def final(self) -> "ProviderError":
        """The same error, not to be tried again."""
        self.retryable = False
        return self


class ProviderUnavailable(ProviderError):
    """The provider can't be reached, breaks off, or reports a fault of its own."""

    reason, detail, retryable = "PROVIDER_UNAVAILABLE", "The provider is not available.", True


class ProviderTimeout(ProviderError):
    """The provider did not answer in time."""

    kind, reason, detail = Kind.TIMEOUT, "PROVIDER_TIMEOUT", "The provider did not answer in time."


class ProviderRateLimited(ProviderError):
    """The provider asks for fewer calls."""

    kind, reason, retryable = Kind.UNAVAILABLE, "PROVIDER_RATE_LIMITED", True
    detail = "The provider limits the rate of calls."


class ProviderNoMoney(ProviderError):
    """The operator's account at the provider is empty. Users see it as a rate limit, operators as provider_no_money."""

    kind, reason, detail = Kind.UNAVAILABLE, "PROVIDER_RATE_LIMITED", "The provider's quota is used up."
    outcome = "provider_no_money"


class ProviderAuthFailed(ProviderError):
    """The provider refuses the key."""

    reason, detail = "PROVIDER_AUTH_FAILED", "The provider does not accept the key it was given."


class ProviderRejected(ProviderError):
    """The provider refuses the request: a model it doesn't have, a parameter it doesn't take."""

    reason, detail = "PROVIDER_REJECTED", "The provider refused the request."


class ProviderBadResponse(ProviderError):
    """The provider's answer can't be understood, or is empty."""

    reason, detail = "PROVIDER_BAD_RESPONSE", "The provider's answer could not be understood."


class ContentFiltered(ProviderError):
    """The provider's safety system refused the content."""

    reason, detail = "CONTENT_FILTERED", "The provider's safety system refused the content."


class ContextTooLong(ProviderError):
    """The text does not fit the model's context."""

    kind, reason, detail = Kind.INVALID, "CONTEXT_TOO_LONG", "The text is too long for the model."


def silence(provider: str) -> ProviderTimeout:
    """No connection, no first byte or no next byte within the time allowed."""
    return ProviderTimeout(f"{provider} kept silent for too long.", retryable=True)


def broken_connection(provider: str) -> ProviderUnavailable:
    """The connection could not be made, or broke before the end of the answer."""
    return ProviderUnavailable(f"The connection to {provider} failed.")
