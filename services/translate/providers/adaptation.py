"""Asking again in a simpler form, where a refusal says that the server does not take the first."""

from collections.abc import Awaitable, Callable
from typing import Generic, Protocol, Self, TypeVar

import structlog

from services.common.providers.errors import ProviderRateLimited, ProviderRejected
from services.common.providers.limits import smaller_limit
from services.common.providers.refusals import Refusal, Refused, meaning_of
from services.translate.providers import CutOff

# Statuses that servers give to a request whose form they don't know.
STATUSES = (400, 404, 405, 415, 422, 500, 501)
MAX_TRIES = 6

log = structlog.get_logger()

T = TypeVar("T")


class Form(Protocol):
    """How a request is put."""

    def simpler(self, refusal: Refusal) -> Self | None:
        """The form to try after this refusal. None if the refusal is not about the form."""
        ...


F = TypeVar("F", bound=Form)


class Adaptation(Generic[F]):
    """Sends a request to one model of one server, and remembers the form that it takes."""

    def __init__(self, provider: str, model: str, form: F) -> None:
        self._provider, self._model, self._form = provider, model, form

    async def send(self, ask: Callable[[F, int], Awaitable[T]], *, output_tokens: int) -> T:
        """The answer to a request in the best form that the server takes. `ask` raises Refused.

        Raises the ProviderError of a refusal that no other form would change. A request that is too large for the
        account's rate, or for the model, is sent once more with a smaller output limit; that is not remembered.
        """
        form, limit = self._form, output_tokens
        for _ in range(MAX_TRIES):
            try:
                answer = await ask(form, limit)
            except CutOff:
                if limit == output_tokens:
                    raise
                raise ProviderRateLimited(retryable=False) from None
            except Refused as error:
                refusal = error.refusal
            else:
                self._form = form
                return answer
            simpler = form.simpler(refusal) if refusal.status in STATUSES else None
            smaller = smaller_limit(refusal, limit) if limit == output_tokens and simpler is None else None
            if simpler is None and smaller is None:
                raise meaning_of(self._provider, refusal)
            form, limit = simpler or form, smaller or limit
            log.info("asked_in_another_form", provider=self._provider, model=self._model, output_limit=limit)
        raise ProviderRejected(f"{self._provider} takes no form of the request.")
