"""One request's call: who asks, in which workspace, and the services to ask."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from backendai.common.v1 import common_pb2
from fastapi import Depends, Path, Query, Request
from pydantic import AfterValidator, BeforeValidator

from gateway.auth import Principal
from gateway.cursors import MAX_CURSOR_CHARACTERS
from gateway.parts import Parts, parts_of
from gateway.problems import forbidden, not_found
from services.kit.ids import parse_id

GUEST = common_pb2.ROLE_UNSPECIFIED
DIGITS = re.compile("[0-9]{1,18}")


def object_id(text: str) -> str:
    """A path's id in its canonical form; what is no UUID names nothing."""
    found = parse_id(text)
    if found is None:
        raise not_found()
    return str(found)


def digits(text: str) -> str:
    """Text of ASCII digits as it is; anything else is a ValueError."""
    if DIGITS.fullmatch(text) is None:
        raise ValueError("must be a whole number, written in digits")
    return text


UUID_SCHEMA = {"format": "uuid"}
WorkspaceId = Annotated[
    str, Path(description="The workspace.", json_schema_extra=UUID_SCHEMA), AfterValidator(object_id)
]
SessionId = Annotated[
    str, Path(description="The chat session.", json_schema_extra=UUID_SCHEMA), AfterValidator(object_id)
]
MessageId = Annotated[str, Path(description="The message.", json_schema_extra=UUID_SCHEMA), AfterValidator(object_id)]
TaskId = Annotated[str, Path(description="The task.", json_schema_extra=UUID_SCHEMA), AfterValidator(object_id)]
# For each integer in a query: pydantic alone also reads `1_0`, `+5`, `1.0`, blanks and the digits of other scripts.
AsDigits = BeforeValidator(digits)
Limit = Annotated[int, Query(ge=1, le=200, description="At most this many entries."), AsDigits]
Cursor = Annotated[
    str | None, Query(description=f"From `next` or `previous`, at most {MAX_CURSOR_CHARACTERS} characters.")
]


@dataclass(frozen=True, slots=True)
class Call:
    """A request of a known caller."""

    request: Request
    principal: Principal
    parts: Parts


@dataclass(frozen=True, slots=True)
class WorkspaceCall(Call):
    """A request of a known caller that names a workspace; the caller may be a guest in it."""

    caller: common_pb2.Caller

    def require_member(self) -> None:
        """404 for guests: they are to learn nothing of the workspace."""
        if self.caller.role == GUEST:
            raise not_found()

    def require_writer(self) -> None:
        """403 for viewers too."""
        self.require_member()
        if self.caller.role == common_pb2.ROLE_VIEWER:
            raise forbidden()


async def _call(request: Request) -> Call:
    return Call(request, request.scope["principal"], parts_of(request))


async def workspace_call(request: Request, workspace_id: WorkspaceId) -> WorkspaceCall:
    """The first one of a member opens the workspace's account."""
    principal: Principal = request.scope["principal"]
    parts, role = parts_of(request), principal.roles.get(workspace_id, GUEST)
    if role != GUEST:
        await parts.accounts.open(workspace_id)
    caller = common_pb2.Caller(user_id=principal.user_id, workspace_id=workspace_id, role=role)
    return WorkspaceCall(request, principal, parts, caller)


KnownCaller = Annotated[Call, Depends(_call)]
InWorkspace = Annotated[WorkspaceCall, Depends(workspace_call)]
