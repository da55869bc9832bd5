"""The gRPC edge: protobuf to use case to protobuf; no rule, no SQL, no try."""

import re
from typing import Any, TypeAlias

import grpc
from backendai.chat.v1 import chat_pb2 as pb
from backendai.chat.v1 import chat_pb2_grpc as rpc

from services.chat.convert import (
    STATUS_OF,
    claim_to_proto,
    message_to_proto,
    object_id,
    page_info,
    public_to_proto,
    session_to_proto,
    share_to_proto,
    task_to_proto,
    to_page_query,
    to_settings,
    to_step,
    to_usage,
    to_warnings,
)
from services.chat.domain import Ending, MessageId, Permission, SessionId, TaskId, TaskState
from services.chat.store.idempotency import Key
from services.chat.store.runs import Beat
from services.chat.usecases.keys import KeyUseCases
from services.chat.usecases.runs import RunUseCases
from services.chat.usecases.sessions import SessionUseCases
from services.chat.usecases.shares import ShareUseCases
from services.chat.usecases.turns import Turn, TurnUseCases
from services.kit.errors import InvalidArgument
from services.kit.grpc_callers import to_caller
from services.kit.text import check_key, storable

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
MAX_CLAIM = 16
ERROR_CODE = re.compile(r"[a-z][a-z0-9_]{0,63}")
MAX_EVENT = 2**53


class ChatServicer(rpc.ChatServiceServicer):
    """What the gateway calls for users."""

    def __init__(
        self, sessions: SessionUseCases, turns: TurnUseCases, shares: ShareUseCases, keys: KeyUseCases
    ) -> None:
        self._sessions, self._turns, self._shares, self._keys = sessions, turns, shares, keys

    async def CreateSession(self, request: pb.CreateSessionRequest, context: Context) -> pb.CreateSessionResponse:
        """See the proto."""
        caller = to_caller(request.caller)
        key = _key(request, f"create:{caller.workspace_id}")
        session = await self._sessions.create_session(caller, to_settings(request.settings), key)
        return pb.CreateSessionResponse(session=session_to_proto(session))

    async def GetSession(self, request: pb.GetSessionRequest, context: Context) -> pb.GetSessionResponse:
        """See the proto."""
        session = await self._sessions.get_session(to_caller(request.caller), _session(request))
        return pb.GetSessionResponse(session=session_to_proto(session))

    async def ListSessions(self, request: pb.ListSessionsRequest, context: Context) -> pb.ListSessionsResponse:
        """See the proto."""
        caller, query, status = to_caller(request.caller), to_page_query(request.page), STATUS_OF.get(request.status)
        if request.search:
            page = await self._sessions.search_sessions(
                caller, query, request.search, owned=request.scope != pb.SESSION_SCOPE_SHARED, status=status
            )
        else:
            page = await self._sessions.list_sessions(
                caller,
                query,
                owned=request.scope != pb.SESSION_SCOPE_SHARED,
                shared=request.scope != pb.SESSION_SCOPE_OWNED,
                status=status,
            )
        return pb.ListSessionsResponse(sessions=map(session_to_proto, page.entries), page=page_info(page))

    async def UpdateSession(self, request: pb.UpdateSessionRequest, context: Context) -> pb.UpdateSessionResponse:
        """See the proto."""
        fields = list(request.update_mask.paths)
        if not set(fields) <= set(pb.SessionSettings.DESCRIPTOR.fields_by_name):
            raise InvalidArgument("update_mask names a field that the settings lack.", field="update_mask")
        session = await self._sessions.update_session(
            to_caller(request.caller),
            _session(request),
            to_settings(request.settings),
            fields,
            if_version=request.if_version or None,
        )
        return pb.UpdateSessionResponse(session=session_to_proto(session))

    async def DeleteSession(self, request: pb.DeleteSessionRequest, context: Context) -> pb.DeleteSessionResponse:
        """See the proto."""
        caller = to_caller(request.caller)
        await self._sessions.delete_session(caller, _session(request), if_version=request.if_version or None)
        return pb.DeleteSessionResponse()

    async def ListMessages(self, request: pb.ListMessagesRequest, context: Context) -> pb.ListMessagesResponse:
        """See the proto."""
        page = await self._sessions.list_messages(
            to_caller(request.caller), _session(request), to_page_query(request.page), descending=request.descending
        )
        return pb.ListMessagesResponse(messages=map(message_to_proto, page.entries), page=page_info(page))

    async def GetMessage(self, request: pb.GetMessageRequest, context: Context) -> pb.GetMessageResponse:
        """See the proto."""
        message = await self._sessions.get_message(
            to_caller(request.caller), _session(request), MessageId(object_id(request.message_id))
        )
        return pb.GetMessageResponse(message=message_to_proto(message))

    async def SendMessage(self, request: pb.SendMessageRequest, context: Context) -> pb.SendMessageResponse:
        """See the proto."""
        session_id = _session(request)
        turn = await self._turns.send_message(
            to_caller(request.caller), session_id, _task(request), request.content, _key(request, f"send:{session_id}")
        )
        return pb.SendMessageResponse(**_turn(turn))

    async def RegenerateAnswer(
        self, request: pb.RegenerateAnswerRequest, context: Context
    ) -> pb.RegenerateAnswerResponse:
        """See the proto."""
        session_id = _session(request)
        key = _key(request, f"regenerate:{session_id}")
        turn = await self._turns.regenerate_answer(to_caller(request.caller), session_id, _task(request), key)
        return pb.RegenerateAnswerResponse(**_turn(turn))

    async def DeleteMessage(self, request: pb.DeleteMessageRequest, context: Context) -> pb.DeleteMessageResponse:
        """See the proto."""
        message_id = MessageId(object_id(request.message_id))
        await self._sessions.delete_message(to_caller(request.caller), _session(request), message_id)
        return pb.DeleteMessageResponse()

    async def TogglePublic(self, request: pb.TogglePublicRequest, context: Context) -> pb.TogglePublicResponse:
        """See the proto."""
        session_id = _session(request)
        key = _key(request, f"toggle-public:{session_id}")
        session = await self._shares.toggle_public(to_caller(request.caller), session_id, key)
        return pb.TogglePublicResponse(session=session_to_proto(session))

    async def ShareSession(self, request: pb.ShareSessionRequest, context: Context) -> pb.ShareSessionResponse:
        """See the proto."""
        session_id = _session(request)
        permission = Permission.WRITE if request.permission == pb.PERMISSION_WRITE else Permission.READ
        share, created = await self._shares.share_session(
            to_caller(request.caller), session_id, request.user_id, permission, _key(request, f"share:{session_id}")
        )
        return pb.ShareSessionResponse(share=share_to_proto(share), created=created)

    async def ListShares(self, request: pb.ListSharesRequest, context: Context) -> pb.ListSharesResponse:
        """See the proto."""
        page = await self._shares.list_shares(to_caller(request.caller), _session(request), to_page_query(request.page))
        return pb.ListSharesResponse(shares=map(share_to_proto, page.entries), page=page_info(page))

    async def RevokeShare(self, request: pb.RevokeShareRequest, context: Context) -> pb.RevokeShareResponse:
        """See the proto."""
        await self._shares.revoke_share(to_caller(request.caller), _session(request), request.user_id)
        return pb.RevokeShareResponse()

    async def GetPublicSession(
        self, request: pb.GetPublicSessionRequest, context: Context
    ) -> pb.GetPublicSessionResponse:
        """See the proto."""
        found = await self._shares.get_public_session(object_id(request.shareable_link_id))
        return public_to_proto(found)

    async def GetTask(self, request: pb.GetTaskRequest, context: Context) -> pb.GetTaskResponse:
        """See the proto."""
        turn = await self._turns.get_task(to_caller(request.caller), _session(request), _task(request))
        return pb.GetTaskResponse(**_turn(turn))

    async def CancelTask(self, request: pb.CancelTaskRequest, context: Context) -> pb.CancelTaskResponse:
        """See the proto."""
        task = await self._turns.cancel_task(to_caller(request.caller), _session(request), _task(request))
        return pb.CancelTaskResponse(task=task_to_proto(task))

    async def BindIdempotencyKey(
        self, request: pb.BindIdempotencyKeyRequest, context: Context
    ) -> pb.BindIdempotencyKeyResponse:
        """See the proto."""
        bound = await self._keys.bind_key(
            to_caller(request.caller),
            check_key(request.route, field="route"),
            check_key(request.idempotency_key, field="idempotency_key"),
            request.request_fingerprint,
            object_id(request.resource_id),
        )
        return pb.BindIdempotencyKeyResponse(resource_id=str(bound))


class TaskServicer(rpc.TaskServiceServicer):
    """What agents call."""

    def __init__(self, runs: RunUseCases) -> None:
        self._runs = runs

    async def ClaimTasks(self, request: pb.ClaimTasksRequest, context: Context) -> pb.ClaimTasksResponse:
        """See the proto."""
        if request.limit < 1:
            raise InvalidArgument("limit must be at least 1.", field="limit")
        work = await self._runs.claim_tasks(request.worker_id, min(request.limit, MAX_CLAIM))
        return pb.ClaimTasksResponse(tasks=[claim_to_proto(found.claim, found.history) for found in work])

    async def HeartbeatTasks(self, request: pb.HeartbeatTasksRequest, context: Context) -> pb.HeartbeatTasksResponse:
        """See the proto."""
        beats = [Beat(_task(beat), beat.attempt, beat.text, to_usage(beat.usage)) for beat in request.heartbeats]
        lost, cancelled = await self._runs.heartbeat_tasks(beats)
        return pb.HeartbeatTasksResponse(lost_task_ids=map(str, lost), cancelled_task_ids=map(str, cancelled))

    async def RecordStep(self, request: pb.RecordStepRequest, context: Context) -> pb.RecordStepResponse:
        """See the proto."""
        await self._runs.record_step(_task(request), request.attempt, to_step(request.step))
        return pb.RecordStepResponse()

    async def CompleteTask(self, request: pb.CompleteTaskRequest, context: Context) -> pb.CompleteTaskResponse:
        """See the proto."""
        ending = Ending(
            TaskState.CANCELLED if request.cancelled else TaskState.COMPLETED,
            content=request.content,
            finish_reason="cancelled" if request.cancelled else request.finish_reason,
            usage=to_usage(request.usage),
            warnings=to_warnings(request.warnings),
        )
        await self._runs.end_task(_task(request), request.attempt, ending, last_event=_last_event(request.last_event))
        return pb.CompleteTaskResponse()

    async def FailTask(self, request: pb.FailTaskRequest, context: Context) -> pb.FailTaskResponse:
        """See the proto."""
        ending = Ending(
            TaskState.FAILED,
            usage=to_usage(request.usage),
            warnings=to_warnings(request.warnings),
            error_code=_error_code(request.error_code),
            error_detail=request.error_detail,
        )
        await self._runs.end_task(_task(request), request.attempt, ending, last_event=_last_event(request.last_event))
        return pb.FailTaskResponse()


def _session(request: Any) -> SessionId:
    return SessionId(object_id(request.session_id))


def _task(request: Any) -> TaskId:
    return TaskId(object_id(request.task_id))


def _error_code(code: str) -> str:
    """What metrics and logs may name: a word, whatever an agent says."""
    cleaned = storable(code)
    return cleaned if ERROR_CODE.fullmatch(cleaned) else "internal_error"


def _last_event(number: int) -> int:
    """What chat's own event follows: a number without a next one must not stop the settler, which tells of the end."""
    return min(max(0, number), MAX_EVENT)


def _key(request: Any, route: str) -> Key | None:
    if not request.idempotency_key:
        return None
    key = check_key(request.idempotency_key, field="idempotency_key")
    return Key(request.caller.user_id, route, key, request.request_fingerprint)


def _turn(turn: Turn) -> dict[str, Any]:
    message = message_to_proto(turn.user_message) if turn.user_message is not None else None
    return {"task": task_to_proto(turn.task), "user_message": message}
