"""Why a run fails, besides a provider's failure. The code is what users see; a detail holds no content and no key."""


class RunError(Exception):
    """The run can't go on."""

    code = "internal_error"
    detail = "The run failed inside."

    def __init__(self, detail: str | None = None) -> None:
        self.detail = detail or self.detail
        super().__init__(self.detail)


class OutOfCredits(RunError):
    """What is left of the hold does not buy the next step."""

    code, detail = "out_of_credits", "The credits set aside for this turn are used up."


class FrameworkNotAvailable(RunError):
    """The session's agent framework is not installed here."""

    code, detail = "framework_not_available", "The session's agent framework is not available."


class LeaseLost(Exception):
    """Another attempt runs the task, or it has ended: nothing may be written any more."""
