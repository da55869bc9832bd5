"""Request bodies: JSON, strictly, within bounds of size, time and depth, and parsed once."""

from __future__ import annotations

import asyncio
import math
from email.message import Message as MediaType
from typing import Any

import jiter
from fastapi import Request
from pydantic import ConfigDict, JsonValue, with_config
from starlette.requests import ClientDisconnect
from typing_extensions import TypedDict

from gateway.problems import Problem

MAX_BYTES = 1024 * 1024
RECEIVE_SECONDS = 30.0
MAX_FIELDS = 100
MAX_PARAMETERS_BYTES = 16 * 1024
MAX_PARAMETERS_DEPTH = 16
MAX_SAFE_INTEGER = 2**53 - 1
# What `storable` and `not_blank` let pass, for the OpenAPI document.
STORABLE: dict[str, JsonValue] = {"pattern": r"^[^\u0000]*$"}
NOT_BLANK: dict[str, JsonValue] = {"pattern": r"^[^\u0000]*[^\u0000\s][^\u0000]*$"}
JSON = "application/json"


@with_config(ConfigDict(extra="forbid", strict=True))
class Nothing(TypedDict):
    """The body of a request that has nothing to say: none, or an empty object."""


class JsonRequest(Request):
    """A request whose body has been read and parsed before the framework looks for it."""

    def __init__(self, request: Request, body: bytes, document: Any) -> None:
        super().__init__(request.scope, request.receive)
        self._read, self._document = body, document

    async def body(self) -> bytes:
        """What was sent."""
        return self._read

    async def json(self) -> Any:
        """What it says."""
        return self._document


async def read_json(request: Request) -> JsonRequest:
    """The request with its body. 400 bad JSON, 408 too slow, 413 too large, 415 not JSON; no body is no fault here."""
    body = await _read(request)
    if not body:
        return JsonRequest(request, b"", None)
    _require_json(request)
    try:
        # Also refused: NaN, Infinity, duplicate keys, more than 200 levels, bad UTF-8, lone surrogates, huge integers.
        document = jiter.from_json(body, allow_inf_nan=False, catch_duplicate_keys=True)
    except ValueError as error:
        raise Problem(400, "malformed_json", "The body is not valid JSON.") from error
    if isinstance(document, dict) and len(document) > MAX_FIELDS:
        raise Problem(422, "validation_error", "The request is not valid: it has too many fields.")
    return JsonRequest(request, body, document)


async def _read(request: Request) -> bytes:
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared[:20]) > MAX_BYTES:
        raise _too_large()
    try:
        async with asyncio.timeout(RECEIVE_SECONDS):
            return await _receive(request)
    except TimeoutError as error:
        raise Problem(408, "request_timeout", "The body did not arrive in time.") from error


async def _receive(request: Request) -> bytes:
    body: bytes = b""
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        if len(body) > MAX_BYTES:
            raise _too_large()
        if not message.get("more_body", False):
            return body


def _too_large() -> Problem:
    return Problem(413, "payload_too_large", "The body is larger than 1 MiB.")


def _require_json(request: Request) -> None:
    """Refuse what is not JSON in plain UTF-8."""
    sent = request.headers.get("content-type", "")
    if sent != JSON and not _is_json(sent):
        raise Problem(415, "unsupported_media_type", "Send the body as application/json in UTF-8.")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Problem(415, "unsupported_media_type", "Send the body without a content encoding.")


def _is_json(sent: str) -> bool:
    header = MediaType()
    header["content-type"] = sent
    kind, charset = header.get_content_type(), header.get_content_charset("utf-8")
    is_json = kind == JSON or (kind.startswith("application/") and kind.endswith("+json"))
    return is_json and charset in ("utf-8", "utf8")


def storable(text: str) -> str:
    """Text as it is; NUL, which no database stores, is a ValueError."""
    if "\0" in text:
        raise ValueError("must not contain the character U+0000")
    return text


def not_blank(text: str) -> str:
    """Storable text as it is; nothing but white space is a ValueError."""
    if not text.strip():
        raise ValueError("must not be blank")
    return storable(text)


def storable_object(document: dict[str, Any]) -> dict[str, Any]:
    """A small object as it is; ValueError for what is too deep, too large or no number that JSON can carry safely."""
    _check(document, MAX_PARAMETERS_DEPTH)
    return document


def _check(value: Any, levels: int) -> None:
    if levels < 0:
        raise ValueError(f"must not be nested deeper than {MAX_PARAMETERS_DEPTH} levels")
    if isinstance(value, str):
        storable(value)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError("must not contain numbers that are out of range")
    elif isinstance(value, int) and abs(value) > MAX_SAFE_INTEGER:
        raise ValueError("must not contain integers beyond 2^53")
    elif isinstance(value, dict):
        for name, inner in value.items():
            storable(name)
            _check(inner, levels - 1)
    elif isinstance(value, list):
        for inner in value:
            _check(inner, levels - 1)
