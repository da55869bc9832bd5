"""How values are written as JSON: times, money, absent text; and how a request's preferences are read."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import orjson
from backendai.billing.v1 import billing_pb2
from fastapi import Response
from google.protobuf.timestamp_pb2 import Timestamp
from pydantic import WithJsonSchema
from typing_extensions import TypedDict

# How ids, times and money are described in the OpenAPI document; in here they are plain text.
Id = Annotated[str, WithJsonSchema({"type": "string", "format": "uuid"})]
Moment = Annotated[str, WithJsonSchema({"type": "string", "format": "date-time"})]
Credits = Annotated[
    str, WithJsonSchema({"type": "string", "pattern": r"^-?[0-9]+(\.[0-9]{1,9})?$", "examples": ["0.0125"]})
]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
OFFSET = len("+00:00")


class TokensOut(TypedDict):
    """What an answer consumed."""

    input_tokens: int
    output_tokens: int


def answer(document: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer that nobody stores."""
    sent = {"Cache-Control": "no-store", **headers} if headers else {"Cache-Control": "no-store"}
    return Response(orjson.dumps(document), status, sent, "application/json")


def moment(value: Timestamp) -> str:
    """RFC 3339 in UTC, with microseconds: 2026-01-31T12:00:00.000000Z."""
    point = EPOCH + timedelta(seconds=value.seconds, microseconds=value.nanos // 1000)
    return point.isoformat(timespec="microseconds")[:-OFFSET] + "Z"


def tokens_out(usage: billing_pb2.Usage) -> TokensOut:
    """The tokens of a call."""
    return {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens}
