"""Who a call is made for, and what its role allows: the same for every service."""

from dataclasses import dataclass
from enum import IntEnum
from typing import NewType
from uuid import UUID

from services.kit.errors import InvalidArgument, NotFound, PermissionDenied
from services.kit.text import check_text

WorkspaceId = NewType("WorkspaceId", UUID)

MAX_USER_ID_CHARACTERS = 255


class Role(IntEnum):
    """A caller's role in the workspace, ordered by what it may do; GUEST is no member."""

    GUEST = 0
    VIEWER = 1
    MEMBER = 2
    ADMIN = 3
    OWNER = 4


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and in which workspace, which pays."""

    user_id: str
    workspace_id: WorkspaceId
    role: Role

    @property
    def is_member(self) -> bool:
        """Whether the token names the workspace."""
        return self.role != Role.GUEST

    @property
    def is_admin(self) -> bool:
        """Whether the caller administers the workspace."""
        return self.role >= Role.ADMIN

    @property
    def may_write(self) -> bool:
        """Whether the role allows to create and send at all."""
        return self.role != Role.VIEWER

    def must_be_member(self) -> None:
        """NotFound for a guest, as for a workspace that does not exist."""
        if not self.is_member:
            raise NotFound

    def must_administer(self) -> None:
        """NotFound for a guest; PermissionDenied for a member without the right."""
        self.must_be_member()
        if not self.is_admin:
            raise PermissionDenied

    def must_spend(self) -> None:
        """NotFound for a guest; PermissionDenied for a viewer."""
        self.must_be_member()
        if not self.may_write:
            raise PermissionDenied


def check_user_id(user_id: str, *, field: str = "user_id") -> None:
    """Refuse what can't be a user's id: blank, too long, or with NUL."""
    check_text(user_id, field=field, least=1, most=MAX_USER_ID_CHARACTERS)
    if not user_id.strip():
        raise InvalidArgument(f"{field} must not be blank.", field=field)
