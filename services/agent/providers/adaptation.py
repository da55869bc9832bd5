"""Asking again in another form, where a refusal tells that the server does not take the first.

Nothing is remembered: a refused request costs nothing, and one session must not change what another sends.
"""

from collections.abc import Awaitable, Callable
from typing import Protocol, Self, TypeVar

from services.common.providers.refusals import Refusal, Refused

# Each changes something else of the request: its form, its limit, a parameter.
MAX_ADAPTATIONS = 6


class Request(Protocol):
    """A vendor's request."""

    def adapted_to(self, refusal: Refusal) -> Self | None:
        """The request as the provider may take it after this refusal; None if there is nothing to change."""
        ...


R = TypeVar("R", bound=Request)
Response = TypeVar("Response")


async def send(request: R, post: Callable[[R], Awaitable[Response]]) -> tuple[R, Response]:
    """The request that was taken, and its response. Raises Refused if no other form is left to try."""
    for _ in range(MAX_ADAPTATIONS):
        try:
            return request, await post(request)
        except Refused as error:
            adapted = request.adapted_to(error.refusal)
            if adapted is None:
                raise
            request = adapted
    return request, await post(request)
