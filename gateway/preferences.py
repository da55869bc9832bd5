"""What a request's headers ask for beside its body: Prefer, If-Match, Idempotency-Key."""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass
from typing import Any

import orjson
from fastapi import Request

from gateway.problems import Problem

WAIT = re.compile(r"wait=\"?([0-9]{1,9})\"?")
IDEMPOTENCY_KEY = re.compile(r"[\x20-\x7e]{1,255}")
ENTITY_TAG = re.compile(r'"([0-9]{1,18})"')
NO_VERSION = -1

DESCRIPTIONS = {
    "Prefer": "`respond-async` or `wait=N` (seconds), RFC 7240.",
    "Idempotency-Key": "1 to 255 printable ASCII characters: a repeated request is done once.",
    "Last-Event-ID": "With `Accept: text/event-stream`: the id of the last event that arrived, to resume after it.",
    "If-Match": "The `ETag` that the change is based on, or `*`.",
}
SCHEMAS: dict[str, Any] = {
    # A blank at either end is no part of a header's value.
    "Idempotency-Key": {"minLength": 1, "maxLength": 255, "pattern": r"^[!-~]([ -~]*[!-~])?$"},
}


def takes(*headers: str) -> dict[str, Any]:
    """For the OpenAPI document: the headers a route reads. It reads them itself, so one that came twice is seen."""
    return {
        "parameters": [
            {
                "name": name,
                "in": "header",
                "required": False,
                "description": DESCRIPTIONS[name],
                "schema": {"type": "string", **SCHEMAS.get(name, {})},
            }
            for name in headers
        ]
    }


@dataclass(frozen=True, slots=True)
class Wait:
    """How long a caller waits for an answer, and what to say was applied of its Prefer header."""

    seconds: float
    applied: str | None = None


def wait_of(request: Request, *, is_async: bool, limit_seconds: float) -> Wait:
    """The process's habit, unless the request prefers otherwise; never longer than the limit."""
    sent = ",".join(request.headers.getlist("prefer")).lower()
    if not sent:
        return Wait(0.0 if is_async else limit_seconds)
    preferred = [part.split(";")[0].strip() for part in sent.split(",")]
    seconds = min((int(found[1]) for part in preferred if (found := WAIT.fullmatch(part))), default=math.inf)
    if seconds is not math.inf:
        return Wait(min(float(seconds), limit_seconds), f"wait={seconds}")
    if "respond-async" in preferred:
        return Wait(0.0, "respond-async")
    return Wait(0.0 if is_async else limit_seconds)


def idempotency_key_of(request: Request) -> str:
    """The key, "" when none was sent."""
    sent = request.headers.getlist("idempotency-key")
    if not sent:
        return ""
    if len(sent) > 1 or not IDEMPOTENCY_KEY.fullmatch(sent[0]):
        raise Problem(400, "invalid_idempotency_key", "Idempotency-Key is 1 to 255 printable ASCII characters.")
    return sent[0]


def fingerprint(body: Any) -> bytes:
    """Equal for equal bodies, however they were written."""
    return hashlib.sha256(orjson.dumps(body, option=orjson.OPT_SORT_KEYS)).digest()


def if_match_of(request: Request) -> list[int]:
    """The versions that If-Match names; [] for any, and a version that no session has for tags we never gave out."""
    sent = ",".join(request.headers.getlist("if-match"))
    if not sent or sent.strip() == "*":
        return []
    tags = [ENTITY_TAG.fullmatch(tag.strip()) for tag in sent.split(",")]
    return [int(tag[1]) or NO_VERSION for tag in tags if tag] or [NO_VERSION]


def etag(version: int) -> dict[str, str]:
    """The header that names a version of a session's settings."""
    return {"ETag": f'"{version}"'}
