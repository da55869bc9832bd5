"""OpenAI, or whoever speaks its chat completions with structured output, through the openai SDK."""

import httpx2
import openai
from openai import AsyncOpenAI
from openai.types.chat import ParsedChatCompletion

from services.common.providers.errors import (
    ContentFiltered,
    ProviderBadResponse,
    ProviderTimeout,
    ProviderUnavailable,
)
from services.common.providers.refusals import meaning_of, read_refusal
from services.translate.domain import Answer, Job, Usage
from services.translate.providers import CutOff
from services.translate.providers.wire import INSTRUCTIONS, Translated, answer_of, message_of

CONNECT_TIMEOUT_SECONDS = 5.0


class OpenAI:
    """`response_format` with a strict JSON schema."""

    name = "openai"

    def __init__(self, model: str, *, api_key: str, base_url: str | None = None) -> None:
        self.model = model
        # How long an answer may take is the caller's to say, so only connecting has a limit here.
        timeout = httpx2.Timeout(None, connect=CONNECT_TIMEOUT_SECONDS)
        self._client = AsyncOpenAI(
            api_key=api_key, base_url=base_url or "https://api.openai.com/v1", max_retries=0, timeout=timeout
        )
        # The SDK took them from the environment, and would tell another vendor.
        self._client.organization = self._client.project = None

    async def translate(self, job: Job, *, output_tokens: int) -> Answer:
        """See Provider."""
        try:
            completion = await self._client.chat.completions.parse(
                model=self.model,
                messages=[
                    {"role": "system", "content": INSTRUCTIONS},
                    {"role": "user", "content": message_of(job)},
                ],
                response_format=Translated,
                max_completion_tokens=output_tokens,
            )
        except openai.APIStatusError as error:
            refusal = read_refusal(error.status_code, error.response.content, error.response.headers)
            raise meaning_of(self.name, refusal) from None
        except openai.APITimeoutError:
            raise ProviderTimeout from None
        except openai.APIConnectionError:
            raise ProviderUnavailable(f"The connection to {self.name} failed.") from None
        except openai.LengthFinishReasonError:
            raise CutOff from None
        except openai.ContentFilterFinishReasonError:
            raise ContentFiltered from None
        except (openai.OpenAIError, ValueError, TypeError, AttributeError):  # no JSON, or of another shape
            raise ProviderBadResponse from None
        return answer_of(job, _translated(completion), _usage(completion))

    async def close(self) -> None:
        """Hang up."""
        await self._client.close()


def _translated(completion: ParsedChatCompletion[Translated]) -> Translated:
    if not completion.choices:
        raise ProviderBadResponse
    message = completion.choices[0].message
    if message.refusal:
        raise ContentFiltered
    if message.parsed is None:
        raise ProviderBadResponse
    return message.parsed


def _usage(completion: ParsedChatCompletion[Translated]) -> Usage | None:
    usage = completion.usage
    return Usage(usage.prompt_tokens, usage.completion_tokens) if usage is not None else None
