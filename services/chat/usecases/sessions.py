"""Sessions and messages as users keep them."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from services.chat.announcer import Announcer
from services.chat.billing import Billing
from services.chat.catalog import Catalogs
from services.chat.domain import (
    Message,
    MessageId,
    Permission,
    Session,
    SessionId,
    SessionSettings,
    SessionStatus,
    TaskId,
    check_search,
    check_settings,
    require_framework,
)
from services.chat.store.idempotency import Key
from services.chat.store.search import SearchStore
from services.chat.store.sessions import SessionStore
from services.kit.callers import Caller
from services.kit.errors import NotFound, PermissionDenied
from services.kit.ids import new_id
from services.kit.paging import Page, PageQuery


class SessionUseCases:
    """What users do with sessions, apart from sending."""

    def __init__(
        self,
        store: SessionStore,
        search: SearchStore,
        *,
        catalogs: Catalogs,
        billing: Billing,
        announcer: Announcer,
    ) -> None:
        self._store, self._search = store, search
        self._catalogs, self._billing, self._announcer = catalogs, billing, announcer

    async def create_session(self, caller: Caller, settings: SessionSettings, key: Key | None) -> Session:
        """Open a session, if the workspace can pay for a first answer. Nothing is held.

        With a key that has opened one before, it is that one as it is now, whatever could be opened now.
        """
        if not caller.is_member:
            raise NotFound
        if not caller.may_write:
            raise PermissionDenied
        if key is not None and (twin := await self._store.find_twin(key)) is not None:
            return await self._store.get(caller, twin)
        settings = await self._complete(settings)
        await self._billing.check(caller.workspace_id)
        session_id = await self._store.add(caller, SessionId(new_id()), settings, key)
        return await self._store.get(caller, session_id)

    async def _complete(self, settings: SessionSettings) -> SessionSettings:
        """The settings with provider and model chosen, if all of it can be run."""
        catalog = await self._catalogs.current()
        provider, model = catalog.choose(settings.ai_provider, settings.ai_model)
        chosen = replace(settings, ai_provider=provider, ai_model=model)
        check_settings(chosen)
        require_framework(chosen.agent_framework)
        catalog.require(provider, model)
        return chosen

    async def get_session(self, caller: Caller, session_id: SessionId) -> Session:
        """One session the caller can see."""
        return await self._store.get(caller, session_id)

    async def list_sessions(
        self, caller: Caller, query: PageQuery, *, owned: bool, shared: bool, status: SessionStatus | None
    ) -> Page[Session]:
        """Sessions by activity. A guest to whom nothing is shared learns nothing of the workspace."""
        page = await self._store.page(caller, query, owned=owned, shared=shared, status=status)
        if not page.entries and not caller.is_member and not await self._store.sees_any(caller):
            raise NotFound
        return page

    async def search_sessions(
        self, caller: Caller, query: PageQuery, words: str, *, owned: bool = True, status: SessionStatus | None
    ) -> Page[Session]:
        """The caller's own sessions with the words in name or messages, best first; nothing of what others own."""
        if not caller.is_member:
            raise NotFound
        check_search(words)
        if not owned:
            return Page((), "", "")
        return await self._search.page(caller, query, words, status=status)

    async def update_session(
        self,
        caller: Caller,
        session_id: SessionId,
        settings: SessionSettings,
        fields: Collection[str],
        *,
        if_version: int | None,
    ) -> Session:
        """Change the named settings; what a session could not be opened with, it can't be changed to."""
        current = await self._store.get(caller, session_id)
        if current.permission is not Permission.OWNER:
            raise PermissionDenied
        changed = replace(current.settings, **{name: getattr(settings, name) for name in fields})
        if {"ai_provider", "ai_model", "agent_framework"} & set(fields):
            changed = await self._complete(changed)
        check_settings(changed)
        return await self._store.update(
            caller, session_id, _differences(current.settings, changed), if_version=if_version
        )

    async def delete_session(self, caller: Caller, session_id: SessionId, *, if_version: int | None) -> None:
        """Delete a session; its task is cancelled and paid for what it has used."""
        for task_id in await self._store.delete(caller, session_id, if_version=if_version):
            await self._announcer.cancel(TaskId(task_id))

    async def list_messages(
        self, caller: Caller, session_id: SessionId, query: PageQuery, *, descending: bool
    ) -> Page[Message]:
        """Messages of a session the caller can see."""
        return await self._store.message_page(caller, session_id, query, descending=descending)

    async def delete_message(self, caller: Caller, session_id: SessionId, message_id: MessageId) -> None:
        """Delete an answer, or a user message with its whole turn."""
        await self._store.delete_message(caller, session_id, message_id)

    async def get_message(self, caller: Caller, session_id: SessionId, message_id: MessageId) -> Message:
        """One message of a session the caller can see."""
        return await self._store.get_message(caller, session_id, message_id)


def _differences(before: SessionSettings, after: SessionSettings) -> Mapping[str, Any]:
    names = SessionSettings.__dataclass_fields__
    return {name: getattr(after, name) for name in names if getattr(after, name) != getattr(before, name)}
