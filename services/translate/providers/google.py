"""Gemini through google-genai."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import httpx2
from google import genai
from google.genai import types

from services.common.providers import finish_reasons
from services.common.providers.errors import ContentFiltered, ProviderBadResponse, broken_connection, silence
from services.common.providers.http import http_client
from services.common.providers.json_document import parse_json
from services.common.providers.refusals import Refusal, Refused, in_stream, read_refusal
from services.common.providers.usage import count
from services.translate.domain import Answer, Job
from services.translate.providers import CutOff
from services.translate.providers.adaptation import Adaptation
from services.translate.providers.wire import INSTRUCTIONS, Translated, answer_of, message_of

BASE_URL = "https://generativelanguage.googleapis.com"
# The stable one lacks what new models need.
API_VERSION = "v1beta"
CONNECT_TIMEOUT_SECONDS = 5.0
# The fields of wire.Translated in the words of Gemini, whose schemas know no additionalProperties.
SCHEMA = types.Schema(
    type=types.Type.OBJECT,
    properties={
        name: types.Schema(type=types.Type.STRING, description=field.description)
        for name, field in Translated.model_fields.items()
    },
    required=list(Translated.model_fields),
    property_ordering=list(Translated.model_fields),
)

Shape = Literal["schema", "json", ""]
_SIMPLER: dict[Shape, Shape] = {"schema": "json", "json": ""}
_ABOUT_THE_SHAPE = re.compile(r"json mode|response_?(mime|schema|json_schema)|structured output", re.I)
_ABOUT_INSTRUCTIONS = re.compile(r"(developer|system)[ _]?instructions?", re.I)


@dataclass(frozen=True, slots=True)
class GeminiForm:
    """Which options a request has. Gemma, on the same API, has neither a JSON mode nor system instructions."""

    shape: Shape = "schema"
    has_instructions: bool = True

    def simpler(self, refusal: Refusal) -> Self | None:
        """See Form."""
        if self.has_instructions and _ABOUT_INSTRUCTIONS.search(refusal.message):
            return replace(self, has_instructions=False)
        if self.shape and _ABOUT_THE_SHAPE.search(refusal.message):
            return replace(self, shape=_SIMPLER[self.shape])
        return None


class Google:
    """One model of Gemini's API, asked with a response schema where it has that."""

    name = "google"

    def __init__(self, model: str, *, api_key: str, base_url: str | None = None) -> None:
        self.model = model
        # The caller limits how long an answer may take, so only connecting has a limit here.
        timeout = httpx2.Timeout(None, connect=CONNECT_TIMEOUT_SECONDS)
        self._http = http_client(base_url or BASE_URL, timeout=timeout)
        self._http.event_hooks = {"response": [_raise_refused]}
        options = types.HttpOptions(
            base_url=base_url,
            api_version=API_VERSION,
            httpx_async_client=self._http,
            # Never used; the SDK makes one that takes its proxy from the environment.
            client_args={"trust_env": False},
            # The use case tries again; the SDK has defaults of its own, which differ by transport.
            retry_options=types.HttpRetryOptions(attempts=1),
        )
        self._client = genai.Client(vertexai=False, api_key=api_key, http_options=options)
        self._adaptation = Adaptation(self.name, model, GeminiForm())

    async def translate(self, job: Job, *, output_tokens: int) -> Answer:
        """See Provider."""

        async def ask(form: GeminiForm, limit: int) -> Mapping[str, Any]:
            return await self._ask(job, form, limit)

        document = await self._adaptation.send(ask, output_tokens=output_tokens)
        prompt, output = _counts(document.get("usageMetadata"))
        return answer_of(job, text_of(document), input_tokens=prompt, output_tokens=output)

    async def _ask(self, job: Job, form: GeminiForm, limit: int) -> Mapping[str, Any]:
        text = message_of(job) if form.has_instructions else f"{INSTRUCTIONS}\n\n{message_of(job)}"
        try:
            response = await self._client.aio.models.generate_content(
                model=self.model,
                contents=[types.Content(role="user", parts=[types.Part(text=text)])],
                config=types.GenerateContentConfig(
                    system_instruction=INSTRUCTIONS if form.has_instructions else None,
                    response_mime_type="application/json" if form.shape else None,
                    response_schema=SCHEMA if form.shape == "schema" else None,
                    max_output_tokens=limit,
                    automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
                    # The SDK's own reading fails on half a surrogate pair and on fields of other types.
                    should_return_http_response=True,
                ),
            )
        except httpx2.TimeoutException:
            raise silence(self.name) from None
        except (httpx2.RequestError, OSError):
            raise broken_connection(self.name) from None
        return _document(response)

    async def close(self) -> None:
        """Hang up."""
        await self._http.aclose()


async def _raise_refused(response: httpx2.Response) -> None:
    """Raise Refused ahead of the SDK, whose own reading of an error fails on what is no JSON."""
    if response.is_error:
        raise Refused(read_refusal(response.status_code, await response.aread(), response.headers))


def _document(response: types.GenerateContentResponse) -> Mapping[str, Any]:
    http = response.sdk_http_response
    try:
        document = parse_json((http and http.body) or "")
    except ValueError:
        raise ProviderBadResponse from None
    # Some proxies answer as the streaming method does, with a list.
    if isinstance(document, list) and len(document) == 1:
        document = document[0]
    if not isinstance(document, Mapping):
        raise ProviderBadResponse
    if (refusal := in_stream(document)) is not None:
        raise Refused(refusal)
    text_of(document)  # raises for one that was cut off or filtered
    return document


def text_of(document: Mapping[str, Any]) -> str:
    """What the model wrote, without its thoughts. Raises ContentFiltered, CutOff or ProviderBadResponse."""
    feedback = document.get("promptFeedback")
    if isinstance(feedback, Mapping) and feedback.get("blockReason"):
        raise ContentFiltered
    candidates = document.get("candidates")
    candidate = candidates[0] if isinstance(candidates, list) and candidates else None
    if not isinstance(candidate, Mapping):
        raise ProviderBadResponse
    reason = candidate.get("finishReason")
    match finish_reasons.meaning(Google.name, reason) if isinstance(reason, str) and reason else "":
        case finish_reasons.CONTENT_FILTER:
            raise ContentFiltered
        case finish_reasons.LENGTH:
            raise CutOff
    content = candidate.get("content")
    parts = content.get("parts") if isinstance(content, Mapping) else None
    texts = [part.get("text") for part in parts if _is_text(part)] if isinstance(parts, list) else []
    return "".join(text for text in texts if isinstance(text, str))


def _is_text(part: object) -> bool:
    return isinstance(part, Mapping) and not part.get("thought")


def _counts(usage: object) -> tuple[int | None, int | None]:
    """Input and output. Thinking is counted apart from the answer, and paid for like it."""
    if not isinstance(usage, Mapping):
        return None, None
    answer, thoughts = count(usage.get("candidatesTokenCount")), count(usage.get("thoughtsTokenCount"))
    return count(usage.get("promptTokenCount")), answer + (thoughts or 0) if answer else None
