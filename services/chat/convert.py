"""Between chat's values and its protobuf messages."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import orjson
from backendai.billing.v1 import billing_pb2
from backendai.chat.v1 import chat_pb2 as pb
from backendai.common.v1 import common_pb2
from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from services.chat.domain import (
    MAX_WARNING_CODE_CHARACTERS,
    MAX_WARNING_DETAIL_CHARACTERS,
    MAX_WARNINGS,
    Claim,
    HistoryMessage,
    Message,
    Permission,
    PublicSession,
    Session,
    SessionSettings,
    SessionStatus,
    Share,
    Step,
    Task,
    TaskState,
    TaskWarning,
    Usage,
)
from services.kit.errors import InvalidArgument, NotFound
from services.kit.ids import parse_id
from services.kit.money import Tier
from services.kit.paging import Page, PageQuery
from services.kit.text import check_text, storable

STATUSES = {
    SessionStatus.ACTIVE: pb.SESSION_STATUS_ACTIVE,
    SessionStatus.COMPLETED: pb.SESSION_STATUS_COMPLETED,
    SessionStatus.ARCHIVED: pb.SESSION_STATUS_ARCHIVED,
}
STATUS_OF = {number: status for status, number in STATUSES.items()}
PERMISSIONS = {
    Permission.READ: pb.PERMISSION_READ,
    Permission.WRITE: pb.PERMISSION_WRITE,
    Permission.OWNER: pb.PERMISSION_OWNER,
}
STATES = {
    TaskState.COMPLETED: pb.TASK_STATE_COMPLETED,
    TaskState.FAILED: pb.TASK_STATE_FAILED,
    TaskState.CANCELLED: pb.TASK_STATE_CANCELLED,
}
MAX_SAFE_INTEGER = 2**53 - 1
MAX_PARAMETERS_BYTES = 128 * 1024
"""Of a session's model_parameters, as protobuf; see HISTORIES_BYTES for what a claim has room for."""
MAX_TOOL_CALL_LEVELS = 32
MAX_TOOL_CALL_NUMBER = 2.0**63
STEP_ROLES = ("assistant", "tool")
OPTIONAL_SETTINGS = (
    "name",
    "system_prompt",
    "temperature",
    "max_tokens",
    "top_p",
    "frequency_penalty",
    "presence_penalty",
)


def object_id(text: str) -> UUID:
    """The id of something asked for; what is no UUID names nothing."""
    found = parse_id(text)
    if found is None:
        raise NotFound
    return found


def to_page_query(page: common_pb2.PageRequest) -> PageQuery:
    """Which page is asked for."""
    return PageQuery.parse(limit=page.limit, token=page.token)


def page_info(page: Page[Any]) -> common_pb2.PageInfo:
    """The neighbours of a page."""
    return common_pb2.PageInfo(next_token=page.next_token, previous_token=page.previous_token)


def to_settings(settings: pb.SessionSettings) -> SessionSettings:
    """What the owner sets; absent fields are None, an absent status or framework the default."""
    present = {descriptor.name for descriptor, _ in settings.ListFields()}
    optional = {name: getattr(settings, name) for name in OPTIONAL_SETTINGS if name in present}
    defaults = SessionSettings()
    return SessionSettings(
        **optional,
        status=STATUS_OF.get(settings.status, defaults.status),
        ai_provider=settings.ai_provider,
        ai_model=settings.ai_model,
        model_parameters=struct_to_dict(settings.model_parameters),
        agent_framework=settings.agent_framework or defaults.agent_framework,
    )


def settings_to_proto(settings: SessionSettings) -> pb.SessionSettings:
    """What the owner has set."""
    optional = {name: getattr(settings, name) for name in OPTIONAL_SETTINGS}
    return pb.SessionSettings(
        **{name: value for name, value in optional.items() if value is not None},
        status=STATUSES[SessionStatus(settings.status)],
        ai_provider=settings.ai_provider,
        ai_model=settings.ai_model,
        model_parameters=dict_to_struct(settings.model_parameters),
        agent_framework=settings.agent_framework,
    )


def struct_to_dict(struct: Struct) -> dict[str, Any]:
    """The object; numbers without a fraction are ints again, which Struct does not keep apart below 2^53."""
    if not struct.fields:
        return {}
    if struct.ByteSize() > MAX_PARAMETERS_BYTES:
        raise InvalidArgument(f"model_parameters has more than {MAX_PARAMETERS_BYTES} bytes.", field="model_parameters")
    try:
        found: dict[str, Any] = _with_ints(MessageToDict(struct))
    except ValueError:
        detail = "model_parameters must be JSON, which has no NaN and no Infinity."
        raise InvalidArgument(detail, field="model_parameters") from None
    return found


def _with_ints(value: Any) -> Any:
    match value:
        case float() if value.is_integer() and abs(value) <= MAX_SAFE_INTEGER:
            return int(value)
        case dict():
            return {name: _with_ints(inner) for name, inner in value.items()}
        case list():
            return [_with_ints(inner) for inner in value]
    return value


def dict_to_struct(document: Mapping[str, Any]) -> Struct | None:
    """The same object as protobuf; None when it is empty."""
    if not document:
        return None
    struct = Struct()
    struct.update(dict(document))
    return struct


def moment(value: datetime) -> Timestamp:
    """A point in time."""
    stamp = Timestamp()
    stamp.FromDatetime(value)
    return stamp


def session_to_proto(session: Session) -> pb.Session:
    """A session as its caller sees it."""
    return pb.Session(
        id=str(session.id),
        workspace_id=str(session.workspace_id),
        user_id=session.user_id,
        settings=settings_to_proto(session.settings),
        is_shared=session.is_shared,
        shareable_link_id=str(session.shareable_link_id or ""),
        my_permission=PERMISSIONS[session.permission],
        active_task_id=str(session.active_task_id or ""),
        message_count=session.message_count,
        created_at=moment(session.created_at),
        updated_at=moment(session.updated_at),
        version=session.version,
    )


def usage_to_proto(usage: Usage) -> billing_pb2.Usage:
    """Tokens consumed."""
    return billing_pb2.Usage(
        input_tokens=usage.input_tokens, output_tokens=usage.output_tokens, estimated=usage.estimated
    )


def to_usage(usage: billing_pb2.Usage) -> Usage:
    """Tokens consumed, none of them negative."""
    return Usage(max(0, usage.input_tokens), max(0, usage.output_tokens), usage.estimated)


def message_to_proto(message: Message) -> pb.Message:
    """A stored message."""
    return pb.Message(
        id=str(message.id),
        session_id=str(message.session_id),
        parent_message_id=str(message.parent_message_id or ""),
        sequence_number=message.sequence_number,
        role=message.role,
        content=message.content,
        tool_calls_json=_json(message.tool_calls),
        tool_call_id=message.tool_call_id or "",
        user_id=message.user_id or "",
        ai_provider=message.ai_provider or "",
        ai_model=message.ai_model or "",
        finish_reason=message.finish_reason or "",
        usage=usage_to_proto(message.usage) if message.usage is not None else None,
        created_at=moment(message.created_at),
    )


def share_to_proto(share: Share) -> pb.Share:
    """A user's access to one session."""
    return pb.Share(
        user_id=share.user_id, permission=PERMISSIONS[share.permission], created_at=moment(share.created_at)
    )


def public_to_proto(session: PublicSession) -> pb.GetPublicSessionResponse:
    """What a public link shows."""
    return pb.GetPublicSessionResponse(
        name=session.name or "",
        created_at=moment(session.created_at),
        messages=[
            pb.PublicMessage(role=message.role, content=message.content, created_at=moment(message.created_at))
            for message in session.messages
        ],
    )


def history_to_proto(message: HistoryMessage) -> pb.Message:
    """A message for a provider."""
    return pb.Message(
        role=message.role,
        content=message.content,
        tool_calls_json=_json(message.tool_calls),
        tool_call_id=message.tool_call_id or "",
    )


def _json(document: Any) -> str:
    return orjson.dumps(document).decode() if document is not None else ""


def task_to_proto(task: Task) -> pb.Task:
    """A task as users see it."""
    return pb.Task(
        id=str(task.id),
        session_id=str(task.session_id),
        state=STATES.get(task.state, pb.TASK_STATE_PROCESSING),
        attempt=task.attempt,
        created_at=moment(task.created_at),
        updated_at=moment(task.updated_at),
        user_message_id=str(task.user_message_id or ""),
        ai_messages=[message_to_proto(message) for message in task.ai_messages],
        usage=usage_to_proto(task.usage) if task.usage is not None else None,
        held_nano=task.held_nano,
        charged_nano=task.charged_nano,
        error_code=task.error_code or "",
        error_detail=task.error_detail or "",
        warnings=[pb.TaskWarning(code=warning.code, detail=warning.detail) for warning in task.warnings],
    )


def to_warnings(warnings: Sequence[pb.TaskWarning]) -> Sequence[TaskWarning]:
    """The warnings of a run, without NUL. InvalidArgument for too many, an empty code or one that is too long."""
    if len(warnings) > MAX_WARNINGS:
        raise InvalidArgument(f"warnings must have at most {MAX_WARNINGS} entries.", field="warnings")
    return [
        TaskWarning(
            check_text(storable(warning.code), field="warnings.code", least=1, most=MAX_WARNING_CODE_CHARACTERS),
            check_text(storable(warning.detail), field="warnings.detail", most=MAX_WARNING_DETAIL_CHARACTERS),
        )
        for warning in warnings
    ]


def claim_to_proto(claim: Claim, history: Sequence[HistoryMessage]) -> pb.ClaimedTask:
    """A leased task."""
    return pb.ClaimedTask(
        task_id=str(claim.task_id),
        session_id=str(claim.session_id),
        attempt=claim.attempt,
        settings=settings_to_proto(claim.settings),
        history=[history_to_proto(message) for message in history],
        steps=[step_to_proto(step) for step in claim.steps],
        held_nano=claim.hold.held_nano,
        rates=billing_pb2.Rates(tiers=[_tier_to_proto(tier) for tier in claim.hold.tiers]),
        output_tokens=claim.hold.output_tokens,
        created_at=moment(claim.created_at),
        deadline_at=moment(claim.deadline_at),
        user_message_id=str(claim.user_message_id),
        traceparent=claim.traceparent,
    )


def _tier_to_proto(tier: Tier) -> billing_pb2.RateTier:
    return billing_pb2.RateTier(
        up_to_input_tokens=tier.up_to_input_tokens or 0,
        input_nano_per_million=tier.input_nano_per_million,
        output_nano_per_million=tier.output_nano_per_million,
    )


def step_to_proto(step: Step) -> pb.Step:
    """A kept step."""
    return pb.Step(
        number=step.number,
        messages=[history_to_proto(message) for message in step.messages],
        usage=usage_to_proto(step.usage),
    )


def to_step(step: pb.Step) -> Step:
    """A step to keep. InvalidArgument for what could not be stored with the answer, or not be given out again."""
    if step.number < 1:
        raise InvalidArgument("step.number must be at least 1.", field="step.number")
    return Step(number=step.number, messages=list(map(_to_history, step.messages)), usage=to_usage(step.usage))


def _to_history(message: pb.Message) -> HistoryMessage:
    if message.role not in STEP_ROLES:
        raise InvalidArgument("step.messages.role must be assistant or tool.", field="step.messages.role")
    calls = _to_tool_calls(message.tool_calls_json) if message.tool_calls_json else None
    return HistoryMessage(message.role, message.content, calls, message.tool_call_id or None)


def _to_tool_calls(text: str) -> list[dict[str, Any]]:
    try:
        calls = orjson.loads(text)
    except orjson.JSONDecodeError:
        calls = None
    are_objects = isinstance(calls, list) and all(isinstance(call, dict) for call in calls)
    if not are_objects or not _comes_back(calls, MAX_TOOL_CALL_LEVELS):
        raise InvalidArgument(
            "tool_calls_json must be a JSON array of objects, of at most 32 levels and with numbers of 64 bits.",
            field="step.messages.tool_calls_json",
        )
    return calls  # type: ignore[no-any-return]  # as was just looked at


def _comes_back(document: Any, levels: int) -> bool:
    """Whether the document can be read back from Postgres, which writes 1e300 as an integer, and be written again."""
    match document:
        case dict():
            return levels > 0 and all(_comes_back(value, levels - 1) for value in document.values())
        case list():
            return levels > 0 and all(_comes_back(value, levels - 1) for value in document)
        case float():
            return abs(document) < MAX_TOOL_CALL_NUMBER
    return True
