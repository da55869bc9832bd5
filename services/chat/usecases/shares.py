"""Sharing a session, with a user or by a public link."""

from uuid import UUID

from services.chat.domain import Permission, PublicSession, Session, SessionId, Share
from services.chat.errors import ShareWithOwner
from services.chat.store.idempotency import Key
from services.chat.store.sessions import SessionStore
from services.chat.store.shares import ShareStore
from services.kit.callers import Caller, check_user_id
from services.kit.errors import NotFound, PermissionDenied
from services.kit.paging import Page, PageQuery


class ShareUseCases:
    """What an owner does to let others see a session, and what the public sees of it."""

    def __init__(self, sessions: SessionStore, shares: ShareStore) -> None:
        self._sessions, self._shares = sessions, shares

    async def share_session(
        self, caller: Caller, session_id: SessionId, user_id: str, permission: Permission, key: Key | None = None
    ) -> tuple[Share, bool]:
        """Let a user reach the session; whether the share is new.

        A key that has shared before changes nothing: it brings that share as it is now, or NotFound.
        """
        await self._require_owner(caller, session_id)
        check_user_id(user_id)
        if user_id == caller.user_id:
            raise ShareWithOwner
        shared = await self._shares.share(caller, session_id, user_id, permission, key)
        if shared is None:  # deleted since it was looked at, or taken back since the same key gave it
            raise NotFound
        return shared

    async def list_shares(self, caller: Caller, session_id: SessionId, query: PageQuery) -> Page[Share]:
        """Who else can reach the session."""
        page = await self._shares.page(caller, session_id, query)
        if page is None:
            await self._require_owner(caller, session_id)
            return Page((), "", "")
        return page

    async def revoke_share(self, caller: Caller, session_id: SessionId, user_id: str) -> None:
        """Take a share back."""
        check_user_id(user_id)
        if not await self._shares.revoke(caller, session_id, user_id):
            await self._require_owner(caller, session_id)
            raise NotFound

    async def toggle_public(self, caller: Caller, session_id: SessionId, key: Key | None = None) -> Session:
        """Switch the public link on, with a new id, or off; with a key that has switched it before, not again."""
        if not await self._shares.toggle_public(caller, session_id, key):
            await self._require_owner(caller, session_id)
            raise NotFound
        return await self._sessions.get(caller, session_id)

    async def get_public_session(self, link_id: UUID) -> PublicSession:
        """What a public link shows to anyone."""
        found = await self._shares.public(link_id)
        if found is None:
            raise NotFound
        return found

    async def _require_owner(self, caller: Caller, session_id: SessionId) -> None:
        """Raise what a caller who does not own the session is told."""
        if (await self._sessions.get(caller, session_id)).permission is not Permission.OWNER:
            raise PermissionDenied
