"""Asking again in another form, where a refusal tells that the server does not take the first."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol, Self, TypeVar

import orjson

from services.agent.providers import ModelCall
from services.common.providers.refusals import Refusal

# Each changes something else of the request: its form, its limit, a parameter.
MAX_ADAPTATIONS = 6
MAX_REMEMBERED = 1_000


class Refused(Exception):
    """The server answered with an error."""

    def __init__(self, refusal: Refusal) -> None:
        self.refusal = refusal


class Request(Protocol):
    """A vendor's request."""

    @property
    def call(self) -> ModelCall:
        """The call that it is for."""
        ...

    @property
    def parameters(self) -> Mapping[str, object]:
        """What the session has set, and is sent."""
        ...

    def adapted_to(self, refusal: Refusal) -> Self | None:
        """The request as the provider may take it after this refusal; None if there is nothing to change."""
        ...

    def without(self, names: frozenset[str]) -> Self:
        """The same request without these parameters."""
        ...


R = TypeVar("R", bound=Request)
Response = TypeVar("Response")


class Adaptation:
    """Sends requests, and remembers which parameters were refused.

    The memory is by model and all parameters: what one session's values were refused for does not touch another's.
    """

    def __init__(self) -> None:
        self._refused: dict[bytes, frozenset[str]] = {}

    async def send(self, request: R, post: Callable[[R], Awaitable[Response]]) -> tuple[R, Response]:
        """The request that was taken, and its response. Raises Refused if no other form is left to try."""
        key = orjson.dumps([request.call.settings.model, request.parameters], option=orjson.OPT_SORT_KEYS)
        if (refused := self._refused.get(key)) is not None:
            request = request.without(refused)
        asked = request
        for _ in range(MAX_ADAPTATIONS):
            try:
                response = await post(request)
            except Refused as error:
                adapted = request.adapted_to(error.refusal)
                if adapted is None:
                    raise
                request = adapted
            else:
                self._remember(key, frozenset(asked.parameters) - frozenset(request.parameters))
                return request, response
        return request, await post(request)

    def _remember(self, key: bytes, refused: frozenset[str]) -> None:
        if refused:
            if len(self._refused) >= MAX_REMEMBERED:
                self._refused.clear()
            self._refused[key] = self._refused.get(key, frozenset()) | refused
