"""OpenAI, or whoever speaks its chat completions, through the openai SDK."""

import re
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import httpx2
import openai
from openai import AsyncOpenAI, omit

from services.common.providers.errors import broken_connection, silence
from services.common.providers.http import http_client
from services.common.providers.refusals import Refusal, Refused, read_refusal
from services.translate.domain import Answer, Job
from services.translate.providers.adaptation import Adaptation
from services.translate.providers.completions import Completion, read_completion
from services.translate.providers.wire import INSTRUCTIONS, Translated, answer_of, message_of

BASE_URL = "https://api.openai.com/v1"
CONNECT_TIMEOUT_SECONDS = 5.0

Shape = Literal["json_schema", "json_object", ""]
_SIMPLER: dict[Shape, Shape] = {"json_schema": "json_object", "json_object": ""}
_SHAPES: dict[Shape, Any] = {
    "json_schema": {
        "type": "json_schema",
        "json_schema": {"name": "Translated", "strict": True, "schema": Translated.model_json_schema()},
    },
    "json_object": {"type": "json_object"},
    "": omit,
}
_ABOUT_THE_SHAPE = re.compile(r"response[_ ]format|json[_ ](schema|object|mode)|structured[_ ]output|grammar", re.I)


@dataclass(frozen=True, slots=True)
class ChatForm:
    """Which of the API's names and options a request has."""

    shape: Shape = "json_schema"
    limit: Literal["max_completion_tokens", "max_tokens"] = "max_completion_tokens"

    def simpler(self, refusal: Refusal) -> Self | None:
        """See Form."""
        names = {*refusal.params, *re.findall(r"\bmax_completion_tokens\b", refusal.message)}
        if self.limit == "max_completion_tokens" and self.limit in names and not _is_about_a_size(refusal):
            return replace(self, limit="max_tokens")
        if self.shape and ("response_format" in names or _ABOUT_THE_SHAPE.search(refusal.message)):
            return replace(self, shape=_SIMPLER[self.shape])
        return None


def _is_about_a_size(refusal: Refusal) -> bool:
    return re.search(r"too (large|big|high)|at most|exceed|less than|maximum", refusal.message, re.I) is not None


class OpenAI:
    """One model of one server, asked for structured output where the server has it."""

    name = "openai"

    def __init__(self, model: str, *, api_key: str, base_url: str | None = None) -> None:
        self.model = model
        url = base_url or BASE_URL
        # The caller limits how long an answer may take, so only connecting has a limit here.
        timeout = httpx2.Timeout(None, connect=CONNECT_TIMEOUT_SECONDS)
        self._client = AsyncOpenAI(
            api_key=api_key, base_url=url, max_retries=0, http_client=http_client(url, timeout=timeout)
        )
        # The SDK took them from the environment, and would tell another vendor.
        self._client.organization = self._client.project = None
        self._adaptation = Adaptation(self.name, model, ChatForm())

    async def translate(self, job: Job, *, output_tokens: int) -> Answer:
        """See Provider."""

        async def ask(form: ChatForm, limit: int) -> Completion:
            return await self._ask(job, form, limit)

        completion = await self._adaptation.send(ask, output_tokens=output_tokens)
        return answer_of(
            job, completion.content, input_tokens=completion.input_tokens, output_tokens=completion.output_tokens
        )

    async def _ask(self, job: Job, form: ChatForm, limit: int) -> Completion:
        try:
            response = await self._client.chat.completions.with_raw_response.create(
                model=self.model,
                stream=False,
                messages=[
                    {"role": "system", "content": INSTRUCTIONS},
                    {"role": "user", "content": message_of(job)},
                ],
                response_format=_SHAPES[form.shape],
                max_completion_tokens=limit if form.limit == "max_completion_tokens" else omit,
                max_tokens=limit if form.limit == "max_tokens" else omit,
            )
        except openai.APIStatusError as error:
            raise Refused(read_refusal(error.status_code, error.response.content, error.response.headers)) from None
        except openai.APITimeoutError:
            raise silence(self.name) from None
        except openai.APIConnectionError:
            raise broken_connection(self.name) from None
        return read_completion(self.name, response.content)

    async def close(self) -> None:
        """Hang up."""
        await self._client.close()
