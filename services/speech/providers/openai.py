"""OpenAI, or whoever speaks its `/v1/audio/transcriptions`, through the openai SDK."""

from typing import Literal

import httpx2
import openai
from openai import AsyncOpenAI, omit

from services.common.providers.errors import ProviderBadResponse, ProviderTimeout, ProviderUnavailable
from services.common.providers.refusals import meaning_of, read_refusal
from services.kit.errors import DomainError
from services.speech.domain import Bounds, Transcript
from services.speech.errors import AudioTooShort, AudioUndecodable, LanguageUnsupported
from services.speech.languages import heard_language
from services.speech.providers import Recording

CONNECT_TIMEOUT_SECONDS = 5.0
# These tell the languages, if at all, in their plain answer; they have no verbose one.
PLAIN_MODELS = "transcribe"
REFUSALS = (400, 415, 422)


class OpenAI:
    """One server of the API."""

    def __init__(self, name: str, model: str, *, bounds: Bounds, api_key: str, base_url: str) -> None:
        self.name, self.model, self.bounds = name, model, bounds
        # How long an answer may take is the caller's to say, so only connecting has a limit here.
        timeout = httpx2.Timeout(None, connect=CONNECT_TIMEOUT_SECONDS)
        self._client = AsyncOpenAI(api_key=api_key, base_url=base_url, max_retries=0, timeout=timeout)
        # The SDK took them from the environment, and would tell another vendor.
        self._client.organization = self._client.project = None
        self._form: Literal["json", "verbose_json"] = "json" if PLAIN_MODELS in model else "verbose_json"

    async def transcribe(self, recording: Recording) -> Transcript:
        """See Provider."""
        kind = recording.format.value
        try:
            answer = await self._client.audio.transcriptions.create(
                # The name tells OpenAI what it is; the caller's own may be anything.
                file=(f"audio.{kind.extension}", recording.spool.reader(), kind.media_type),
                model=self.model,
                language=recording.language or omit,
                response_format=self._form,
            )
        except openai.APIStatusError as error:
            raise self._meaning(error) from None
        except openai.APITimeoutError:
            raise ProviderTimeout from None
        except openai.APIConnectionError:
            raise ProviderUnavailable(f"The connection to {self.name} failed.") from None
        except (openai.OpenAIError, ValueError, TypeError, AttributeError):  # no JSON, or of another shape
            raise ProviderBadResponse from None
        return _transcript(answer, recording.language)

    def _meaning(self, error: openai.APIStatusError) -> DomainError:
        if error.status_code in REFUSALS:
            if error.code == "audio_too_short":
                return AudioTooShort()
            if error.param == "language" or error.code == "unsupported_language":
                return LanguageUnsupported(field="language")
            if error.param == "file":
                return AudioUndecodable(f"{self.name} can't decode the audio file.")
        refusal = read_refusal(error.status_code, error.response.content, error.response.headers)
        return meaning_of(self.name, refusal)

    async def close(self) -> None:
        """Hang up."""
        await self._client.close()


def _transcript(answer: object, asked: str) -> Transcript:
    """The SDK checks nothing: an answer of another shape is found here."""
    text = getattr(answer, "text", None)
    if not isinstance(text, str):
        raise ProviderBadResponse
    return Transcript(text.strip(), asked or _heard(answer))


def _heard(answer: object) -> str:
    """The language that the provider tells: `language` in a verbose answer, the first of `languages` in a plain one."""
    said = getattr(answer, "language", None)
    for language in getattr(answer, "languages", None) or ():
        said = said or getattr(language, "code", None)
    return heard_language(said) if isinstance(said, str) else ""
