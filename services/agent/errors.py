"""Why a run fails. The code is what users see; the detail never holds a word of the conversation, nor a key."""


class RunError(Exception):
    """The run can't go on. `retryable` says whether the same call may be tried again."""

    code = "internal_error"
    detail = "The run failed inside."
    retryable = False

    def __init__(self, detail: str | None = None, *, retry_after_seconds: float | None = None) -> None:
        self.detail = detail or self.detail
        self.retry_after_seconds = retry_after_seconds
        super().__init__(self.detail)

    def finally_failed(self) -> "RunError":
        """The same, not to be tried again: something of the answer has been shown."""
        self.retryable = False
        return self


class ProviderAuthFailed(RunError):
    """The provider refuses the key, or there is none."""

    code, detail = "provider_auth_failed", "The provider does not accept the key it was given."


class ProviderRateLimited(RunError):
    """The provider asks for fewer calls, or its account has no quota left."""

    code, detail, retryable = "provider_rate_limited", "The provider limits the rate of calls.", True


class ProviderUnavailable(RunError):
    """The provider can't be reached, breaks off, or says that it is in trouble."""

    code, detail, retryable = "provider_unavailable", "The provider is not available.", True


class ProviderTimeout(RunError):
    """The provider kept silent for too long, or the task's time was up."""

    code, detail, retryable = "provider_timeout", "The provider did not answer in time.", True


class ProviderBadResponse(RunError):
    """The provider's answer can't be understood."""

    code, detail = "provider_bad_response", "The provider's answer could not be understood."


class ContentFiltered(RunError):
    """The provider's safety system refused the conversation or the answer."""

    code, detail = "content_filtered", "The provider's safety system stopped the answer."


class ContextTooLong(RunError):
    """The conversation does not fit the model's context."""

    code, detail = "context_too_long", "The conversation is too long for the model."


class ProviderRejected(RunError):
    """The provider refuses the request: a model it doesn't have, a parameter it doesn't take."""

    code, detail = "provider_rejected", "The provider refused the request."


class OutOfCredits(RunError):
    """What is left of the hold does not buy the next step."""

    code, detail = "out_of_credits", "The credits set aside for this turn are used up."


class FrameworkNotAvailable(RunError):
    """The session's agent framework is not installed here."""

    code, detail = "framework_not_available", "The session's agent framework is not available."


class LeaseLost(Exception):
    """Another attempt runs the task, or it has ended: nothing may be written any more."""
