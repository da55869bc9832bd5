"""Translations: `/api/workspaces/{workspace_id}/translate/`."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import unquote_to_bytes

from backendai.translate.v1 import translate_pb2 as pb
from fastapi import APIRouter, Query, Request, Response
from pydantic import AfterValidator
from typing_extensions import TypedDict

from gateway.answers import Credits, answer
from gateway.bodies import not_blank, storable
from gateway.calls import InWorkspace
from gateway.presence import while_connected
from gateway.problems import Problem, problems
from gateway.routing import PrivateRoute
from services.kit.money import to_credits


class PaidRoute(PrivateRoute):
    """A route whose GET spends credits. HEAD is 405: clients expect it to cost nothing."""

    answers_head = False


router = APIRouter(prefix="/api/workspaces/{workspace_id}/translate", tags=["translate"], route_class=PaidRoute)

# What a translation needs beside the provider's time: the hold, the settlement and the way.
SPARE_SECONDS = 15.0

Text = Annotated[
    str,
    Query(min_length=1, max_length=5_000, description="What to translate.", examples=["Good morning"]),
    AfterValidator(not_blank),
]
Target = Annotated[
    str,
    Query(min_length=1, max_length=35, description="The language to translate into, a BCP 47 tag.", examples=["pt-BR"]),
    AfterValidator(storable),
]
Source = Annotated[
    str | None,
    Query(max_length=35, description="The text's language, a BCP 47 tag; it is detected when none is given."),
]


class TranslationOut(TypedDict):
    """A translation. `source` is the language as given or detected; `credits_charged` is 0 for one that was kept."""

    text: str
    translated_text: str
    source: str
    target: str
    provider: str
    model: str
    credits_charged: Credits


def _require_utf8(request: Request) -> None:
    """400 for percent-encoded bytes that are no UTF-8: the framework would put U+FFFD for them, to be paid for."""
    try:
        unquote_to_bytes(request.scope["query_string"]).decode()
    except UnicodeDecodeError as error:
        raise Problem(400, "malformed_query", "The query is not valid UTF-8.") from error


@router.get(
    "/",
    operation_id="translate_text",
    response_model=TranslationOut,
    responses=problems(400, 401, 402, 403, 404, 414, 422, 502, 503, 504),
)
async def translate_text(call: InWorkspace, text: Text, target: Target, source: Source = None) -> Response:
    """Translate a text, paid from the workspace's credits. The same request again costs nothing for a while."""
    call.require_writer()
    _require_utf8(call.request)
    request = pb.TranslateTextRequest(caller=call.caller, text=text, target=target, source=source or "")
    seconds = call.parts.settings.translate_timeout_s + SPARE_SECONDS
    made = await while_connected(call.request, call.parts.translate.TranslateText(request, timeout=seconds))
    translation: TranslationOut = {
        "text": text,
        "translated_text": made.translated_text,
        "source": made.source,
        "target": made.target,
        "provider": made.provider,
        "model": made.model,
        "credits_charged": to_credits(made.charged_nano),
    }
    return answer(translation)
