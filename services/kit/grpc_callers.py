"""The caller that a gRPC request names."""

from backendai.common.v1 import common_pb2

from services.kit.callers import Caller, Role, WorkspaceId, check_user_id
from services.kit.errors import InvalidArgument
from services.kit.ids import parse_id


def to_caller(caller: common_pb2.Caller) -> Caller:
    """The caller that a request names."""
    check_user_id(caller.user_id, field="caller.user_id")
    workspace = parse_id(caller.workspace_id)
    if workspace is None:
        raise InvalidArgument("caller.workspace_id must be a UUID.", field="caller.workspace_id")
    try:
        return Caller(caller.user_id, WorkspaceId(workspace), Role(caller.role))
    except ValueError:
        raise InvalidArgument("caller.role is unknown.", field="caller.role") from None
