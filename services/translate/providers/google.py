"""Gemini through google-genai."""

from collections.abc import Mapping

import httpx2
from google import genai
from google.genai import errors as sdk_errors
from google.genai import types

from services.common.providers.errors import (
    ContentFiltered,
    ProviderBadResponse,
    ProviderError,
    ProviderTimeout,
    ProviderUnavailable,
)
from services.common.providers.refusals import meaning_of, read_refusal
from services.translate.domain import Answer, Job, Usage
from services.translate.providers import CutOff
from services.translate.providers.wire import INSTRUCTIONS, Translated, answer_of, message_of, read

# The stable one lacks what new models need.
API_VERSION = "v1beta"
FILTERED = frozenset({"SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "LANGUAGE"})
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


class Google:
    """Gemini's API with a response schema."""

    name = "google"

    def __init__(self, model: str, *, api_key: str, base_url: str | None = None) -> None:
        self.model = model
        self._http = httpx2.AsyncClient()
        options = types.HttpOptions(
            base_url=base_url,
            api_version=API_VERSION,
            httpx_async_client=self._http,
            # The use case tries again; the SDK has defaults of its own, which differ by transport.
            retry_options=types.HttpRetryOptions(attempts=1),
        )
        self._client = genai.Client(vertexai=False, api_key=api_key, http_options=options)

    async def translate(self, job: Job, *, output_tokens: int) -> Answer:
        """See Provider."""
        try:
            response = await self._client.aio.models.generate_content(
                model=self.model,
                contents=[types.Content(role="user", parts=[types.Part(text=message_of(job))])],
                config=types.GenerateContentConfig(
                    system_instruction=INSTRUCTIONS,
                    response_mime_type="application/json",
                    response_schema=SCHEMA,
                    max_output_tokens=output_tokens,
                    automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
                ),
            )
        except sdk_errors.APIError as error:
            raise _meaning(error) from None
        except httpx2.TimeoutException:
            raise ProviderTimeout from None
        except (httpx2.RequestError, OSError):
            raise ProviderUnavailable(f"The connection to {self.name} failed.") from None
        except (ValueError, TypeError, AttributeError):  # no JSON, or of another shape
            raise ProviderBadResponse from None
        return answer_of(job, read(text_of(response)), _usage(response))

    async def close(self) -> None:
        """Hang up."""
        await self._http.aclose()


def text_of(response: types.GenerateContentResponse) -> str:
    """What the model wrote, without its thoughts."""
    feedback = response.prompt_feedback
    if feedback is not None and feedback.block_reason is not None:
        raise ContentFiltered
    if not response.candidates:
        raise ProviderBadResponse
    candidate = response.candidates[0]
    reason = candidate.finish_reason.value if candidate.finish_reason is not None else ""
    if reason in FILTERED:
        raise ContentFiltered
    if reason == "MAX_TOKENS":
        raise CutOff
    parts = candidate.content.parts if candidate.content is not None else None
    return "".join(part.text or "" for part in parts or () if not part.thought)


def _usage(response: types.GenerateContentResponse) -> Usage | None:
    """Thinking is counted apart from the answer, and paid for like it."""
    usage = response.usage_metadata
    if usage is None:
        return None
    return Usage(usage.prompt_token_count or 0, (usage.candidates_token_count or 0) + (usage.thoughts_token_count or 0))


def _meaning(error: sdk_errors.APIError) -> ProviderError:
    document = error.details if isinstance(error.details, Mapping | list) else {}
    headers = dict(getattr(error.response, "headers", {}))
    return meaning_of(Google.name, read_refusal(error.code or 500, document, headers))
