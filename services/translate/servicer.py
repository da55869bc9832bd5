"""The gRPC edge: proto to use case to proto."""

from typing import Any, TypeAlias

import grpc
from backendai.translate.v1 import translate_pb2 as pb
from backendai.translate.v1 import translate_pb2_grpc

from services.kit.grpc_callers import to_caller
from services.translate.domain import Job
from services.translate.usecases import Paid, Translations

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

# Of a caller's deadline this much is left for the answer to travel.
REPLY_SECONDS = 0.2


class TranslateServicer(translate_pb2_grpc.TranslateServiceServicer):
    """backendai.translate.v1.TranslateService."""

    def __init__(self, translations: Translations) -> None:
        self._translations = translations

    async def TranslateText(self, request: pb.TranslateTextRequest, context: Context) -> pb.TranslateTextResponse:
        caller = to_caller(request.caller)
        job = Job.parse(text=request.text, target=request.target, source=request.source)
        paid = await self._translations.translate(caller, job, patience_seconds=_patience_seconds(context))
        return _response(paid)


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
