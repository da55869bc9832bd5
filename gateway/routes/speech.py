"""Transcriptions: `/api/transcribe-audio/`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from typing import TYPE_CHECKING, Any

from backendai.billing.v1.billing_pb2 import CheckCreditsRequest
from backendai.chat.v1.chat_pb2 import BindIdempotencyKeyRequest
from backendai.speech.v1 import speech_pb2 as pb
from fastapi import APIRouter, Response
from typing_extensions import TypedDict

from gateway.answers import Credits, answer
from gateway.calls import KnownCaller, WorkspaceCall, object_id, workspace_call
from gateway.preferences import idempotency_key_of, takes
from gateway.presence import while_connected
from gateway.problems import invalid, problems
from gateway.routing import PrivateRoute
from gateway.uploads import Upload
from services.kit.ids import new_id
from services.kit.money import to_credits
from services.kit.spool import Spool

if TYPE_CHECKING:  # this class is in the stubs' types only
    from backendai.speech.v1.speech_pb2_grpc import SpeechServiceAsyncStub

router = APIRouter(prefix="/api/transcribe-audio", tags=["speech"], route_class=PrivateRoute)

# What speech's initial metadata has once the head is good.
SEND_THE_FILE = "send-the-file"
# What a transcription needs beside the provider's time: the decoder, the hold, the settlement and the way.
SPARE_SECONDS = 120.0
FILE, WORKSPACE, LANGUAGE = "audio_file", "workspace_id", "language"
ROUTE = "transcribe"
# The recogniser that stands in where no provider has a key.
LOW_QUALITY = ("local", "pocketsphinx")

FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": [FILE, WORKSPACE],
                    "properties": {
                        # Raw bytes have no type in OpenAPI 3.1; with "string" generated clients refuse a Blob.
                        FILE: {
                            "contentMediaType": "application/octet-stream",
                            "description": "flac, mp3, mp4, m4a, mpeg, mpga, oga, ogg, wav or webm, by its content; "
                            "at most 25 MiB.",
                        },
                        WORKSPACE: {"type": "string", "format": "uuid", "description": "The workspace that pays."},
                        LANGUAGE: {
                            "type": "string",
                            "description": "What is spoken, ISO 639-1; it is detected when none is given.",
                            "examples": ["en"],
                        },
                    },
                }
            }
        },
    }
}
QUALITY: dict[int | str, dict[str, Any]] = {
    200: {
        "headers": {
            "X-Speech-Provider": {"description": "Who transcribed.", "schema": {"type": "string"}},
            "X-Speech-Model": {"description": "With which model.", "schema": {"type": "string"}},
            "X-Speech-Quality": {
                "description": "`low` when no provider is configured and a small local recogniser stands in.",
                "schema": {"type": "string"},
            },
        }
    }
}


class TranscriptOut(TypedDict):
    """What was said. The length is that of the decoded sound, and what is billed."""

    text: str
    language: str | None
    duration_seconds: float
    credits_charged: Credits


@router.post(
    "/",
    operation_id="transcribe_audio",
    response_model=TranscriptOut,
    responses={**QUALITY, **problems(400, 401, 402, 403, 404, 408, 413, 415, 422, 502, 503, 504)},
    openapi_extra={**FORM, **takes("Idempotency-Key")},
)
async def transcribe_audio(call: KnownCaller) -> Response:
    """Turn speech into text, paid by the second from the workspace's credits. Who leaves pays nothing."""
    key = idempotency_key_of(call.request)
    async with call.parts.uploads.receive(call.request, file=FILE, fields=(WORKSPACE, LANGUAGE)) as upload:
        if WORKSPACE not in upload.fields:
            raise invalid(f"/{WORKSPACE}", "A workspace is required.")
        workspace = await workspace_call(call.request, object_id(upload.fields[WORKSPACE]))
        workspace.require_writer()
        head = pb.TranscribeHead(
            caller=workspace.caller,
            hold_id=await _hold_id(workspace, key, upload),
            language=upload.fields.get(LANGUAGE, ""),
            may_repeat=bool(key),
        )
        seconds = call.parts.settings.speech_timeout_s + SPARE_SECONDS
        return _told(await while_connected(call.request, _transcribe(call.parts.speech, head, upload.file, seconds)))


async def _hold_id(workspace: WorkspaceCall, key: str, upload: Upload) -> str:
    """What the work goes by. A new request must find credit first; one that comes again may have spent it itself."""
    parts, caller, fresh = workspace.parts, workspace.caller, str(new_id())
    if key:
        bound = await parts.chat.BindIdempotencyKey(
            BindIdempotencyKeyRequest(
                caller=caller,
                route=ROUTE,
                idempotency_key=key,
                request_fingerprint=upload.digest,
                resource_id=fresh,
            )
        )
        if bound.resource_id != fresh:
            return bound.resource_id
    await parts.billing.CheckCredits(CheckCreditsRequest(workspace_id=caller.workspace_id))
    return fresh


def _transcribe(
    speech: SpeechServiceAsyncStub, head: pb.TranscribeHead, file: Spool, seconds: float
) -> Awaitable[pb.TranscribeResponse]:
    """Send the head, and the file once speech has asked for it."""

    async def messages() -> AsyncIterator[pb.TranscribeRequest]:
        yield pb.TranscribeRequest(head=head)
        if SEND_THE_FILE not in dict(await asked.initial_metadata()):  # refused for its head: hear it out
            await asked.code()
            return
        async for piece in file.pieces():
            yield pb.TranscribeRequest(chunk=piece)

    asked = speech.Transcribe(messages(), timeout=seconds)
    return asked


def _told(made: pb.TranscribeResponse) -> Response:
    transcript: TranscriptOut = {
        "text": made.text,
        "language": made.language or None,
        "duration_seconds": made.duration_seconds,
        "credits_charged": to_credits(made.charged_nano),
    }
    headers = {"X-Speech-Provider": made.provider, "X-Speech-Model": made.model}
    if (made.provider, made.model) == LOW_QUALITY:
        headers["X-Speech-Quality"] = "low"
    return answer(transcript, headers=headers)
