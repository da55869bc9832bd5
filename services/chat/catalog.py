"""The price list as chat needs it, kept for a minute and used on while billing is away."""

import asyncio
from collections.abc import Callable

from services.chat.billing import Billing
from services.chat.domain import Catalog
from services.kit.errors import Unavailable

LIFE_SECONDS = 60.0
RETRY_SECONDS = 1.0


class Catalogs:
    """Hands out the catalog, fresh enough."""

    def __init__(
        self, billing: Billing, *, configured: frozenset[str], default: tuple[str, str], clock: Callable[[], float]
    ) -> None:
        self._billing, self._configured, self._default, self._clock = billing, configured, default, clock
        self._catalog: Catalog | None = None
        self._stale_at = 0.0
        self._reading = asyncio.Lock()

    async def current(self) -> Catalog:
        """The catalog; Unavailable when billing was never reached."""
        if self._catalog is not None and self._clock() < self._stale_at:
            return self._catalog
        async with self._reading:
            if self._catalog is None or self._clock() >= self._stale_at:
                self._catalog = await self._read()
            return self._catalog

    async def _read(self) -> Catalog:
        try:
            models = await self._billing.models()
        except Unavailable:
            if self._catalog is None:
                raise
            self._stale_at = self._clock() + RETRY_SECONDS
            return self._catalog
        self._stale_at = self._clock() + LIFE_SECONDS
        provider, model = self._default
        return Catalog({(found.provider, found.name): found for found in models}, self._configured, provider, model)
