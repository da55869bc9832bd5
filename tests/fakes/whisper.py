"""OpenAI's transcriptions on the wire: its multipart, its two JSON answers, its error bodies.

Of an upload it keeps the fields, and of the file what it was called, its size and its digest; never the file.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from aiohttp import BodyPartReader, web

from tests.fakes import openai
from tests.fakes.provider import KEY_HEADERS, Behaviour, FakeProvider, Whole, run_forever

MAX_BYTES = 25 * 1024 * 1024
PIECE_BYTES = 256 * 1024
SECONDS = 8.47
"""What it says of every file: nobody is to be charged by it."""
EXTENSIONS = frozenset({"flac", "m4a", "mp3", "mp4", "mpeg", "mpga", "oga", "ogg", "wav", "webm"})
KNOWN_FIELDS = frozenset(
    {"file", "model", "language", "prompt", "response_format", "temperature", "timestamp_granularities[]", "stream"}
)

ERRORS: Mapping[str, tuple[int, dict[str, Any]]] = {
    "unsupported_language": (
        400,
        {
            "message": "Language 'mi' is not supported.",
            "type": "invalid_request_error",
            "param": "language",
            "code": "unsupported_language",
        },
    ),
    "too_short": (
        400,
        {
            "message": "Audio file is too short. Minimum audio length is 0.1 seconds.",
            "type": "invalid_request_error",
            "param": "file",
            "code": "audio_too_short",
        },
    ),
    "corrupt": (
        400,
        {
            "message": "Audio file might be corrupted or unsupported",
            "type": "invalid_request_error",
            "param": "file",
            "code": "invalid_value",
        },
    ),
}


class FakeWhisper(FakeProvider):
    """`/v1/audio/transcriptions`."""

    base_path = "/v1"

    async def read(self, request: web.BaseRequest) -> bytes:
        """The multipart as JSON; the file's bytes go by."""
        fields: dict[str, Any] = {}
        if request.content_type == "multipart/form-data":
            async for part in await request.multipart():
                assert isinstance(part, BodyPartReader)
                assert part.name is not None
                fields[part.name] = await _file(part) if part.filename else await part.text()
        return json.dumps(fields).encode()

    def refuse(self, path: str, headers: Mapping[str, str]) -> Whole | None:
        """401 without a key or with the unknown one, 404 for another path."""
        key = headers.get(KEY_HEADERS[0], "")
        if not key or key.endswith(openai.UNKNOWN_KEY):
            return openai.error("invalid_key")
        return None if path.endswith("/audio/transcriptions") else openai.error("no_access")

    def render(self, path: str, body: dict[str, Any], behaviour: Behaviour) -> Whole:
        """Text alone, or text with its language, duration and segments."""
        if behaviour.error in ERRORS:
            status, detail = ERRORS[behaviour.error]
            return Whole(json.dumps({"error": detail}, indent=4).encode(), status)
        if behaviour.error:
            return openai.error(behaviour.error, retry_after=behaviour.retry_after)
        if refusal := _refusal(body):
            return Whole(json.dumps({"error": refusal}).encode(), 400)
        usage = {"type": "duration", "seconds": 9}
        answer: dict[str, Any] = {"text": behaviour.text, "usage": usage}
        if body.get("response_format") == "verbose_json":
            language = behaviour.language or "english"
            answer = {
                "task": "transcribe",
                "language": language,
                "duration": SECONDS,
                **answer,
                "segments": [_segment(behaviour)],
            }
        elif behaviour.language:
            answer["languages"] = [{"code": behaviour.language}]
        match behaviour.fault:
            case "malformed":
                return Whole(b'{"task": "transcribe", "langu')
            case "empty":
                return Whole(b"{}")
        return Whole(json.dumps(answer).encode())


async def _file(part: BodyPartReader) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    while piece := await part.read_chunk(PIECE_BYTES):
        digest.update(piece)
        size += len(piece)
    return {
        "filename": part.filename,
        "content_type": part.headers.get("Content-Type"),
        "size": size,
        "sha256": digest.hexdigest(),
    }


def _refusal(body: dict[str, Any]) -> dict[str, Any] | None:
    """What OpenAI answers to a request that its documentation does not allow."""
    file = body.get("file")
    if not isinstance(file, dict) or not body.get("model"):
        return _invalid("you must provide a model parameter and a file", "model" if file else "file")
    if set(body) - KNOWN_FIELDS:
        return _invalid(f"Unrecognized request arguments supplied: {sorted(set(body) - KNOWN_FIELDS)}", None)
    if str(file["filename"]).rpartition(".")[2] not in EXTENSIONS:
        return _invalid(f"Invalid file format. Supported formats: {sorted(EXTENSIONS)}", None)
    if not 0 < file["size"] <= MAX_BYTES:
        return _invalid("Maximum content size limit exceeded", None)
    return None


def _invalid(message: str, param: str | None) -> dict[str, Any]:
    return {"message": message, "type": "invalid_request_error", "param": param, "code": None}


def _segment(behaviour: Behaviour) -> dict[str, Any]:
    return {
        "id": 0,
        "seek": 0,
        "start": 0.0,
        "end": SECONDS,
        "text": f" {behaviour.text}",
        "tokens": [50364, 440, 3139, 295, 6190, 307, 8380, 13, 50788],
        "temperature": 0.0,
        "avg_logprob": -0.2860786020755768,
        "compression_ratio": 1.2363636493682861,
        "no_speech_prob": 0.00985979475080967,
    }


if __name__ == "__main__":
    run_forever(FakeWhisper)
