"""Idempotency keys of requests that another service does: chat keeps the keys, whoever does the work."""

from uuid import UUID

from services.chat.store.idempotency import Key, KeyStore
from services.kit.callers import Caller


class KeyUseCases:
    """What binds a client's key to a piece of work."""

    def __init__(self, keys: KeyStore) -> None:
        self._keys = keys

    async def bind_key(self, caller: Caller, route: str, key: str, fingerprint: bytes, resource_id: UUID) -> UUID:
        """The id that the work goes by: this one, or that of the first request with the key in the workspace."""
        bound = Key(caller.user_id, f"{route}:{caller.workspace_id}", key, fingerprint)
        return await self._keys.bind(bound, resource_id)
