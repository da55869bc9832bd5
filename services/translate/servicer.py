"""The gRPC edge: proto to use case to proto."""

from typing import Any, TypeAlias

import grpc
from backendai.common.v1 import common_pb2
from backendai.translate.v1 import translate_pb2 as pb
from backendai.translate.v1 import translate_pb2_grpc

from services.kit.errors import InvalidArgument
from services.kit.ids import parse_id
from services.translate.domain import Caller, Job, Role, WorkspaceId
from services.translate.usecases import Paid, Translations

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

# Of a caller's deadline this much is left for the answer to travel.
REPLY_SECONDS = 0.2
MAX_USER_ID_CHARACTERS = 255


class TranslateServicer(translate_pb2_grpc.TranslateServiceServicer):
    """backendai.translate.v1.TranslateService."""

    def __init__(self, translations: Translations) -> None:
        self._translations = translations

    async def TranslateText(self, request: pb.TranslateTextRequest, context: Context) -> pb.TranslateTextResponse:
        caller = _caller(request.caller)
        job = Job.parse(text=request.text, target=request.target, source=request.source)
        paid = await self._translations.translate(caller, job, patience_seconds=_patience_seconds(context))
        return _response(paid)


def _caller(caller: common_pb2.Caller) -> Caller:
    workspace = parse_id(caller.workspace_id)
    if workspace is None:
        raise InvalidArgument("caller.workspace_id must be a UUID.")
    if not 1 <= len(caller.user_id) <= MAX_USER_ID_CHARACTERS:
        raise InvalidArgument(f"caller.user_id must have 1 to {MAX_USER_ID_CHARACTERS} characters.")
    try:
        role = Role(caller.role)
    except ValueError:
        raise InvalidArgument("caller.role is unknown.") from None
    return Caller(caller.user_id, WorkspaceId(workspace), role)


def _patience_seconds(context: Context) -> float | None:
    remaining: float | None = context.time_remaining()
    return None if remaining is None else max(0.0, remaining - REPLY_SECONDS)


def _response(paid: Paid) -> pb.TranslateTextResponse:
    translation = paid.translation
    return pb.TranslateTextResponse(
        translated_text=translation.translated_text,
        source=translation.source,
        target=translation.target,
        provider=translation.provider,
        model=translation.model,
        charged_nano=paid.charged_nano,
    )
