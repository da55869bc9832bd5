"""OpenAI, or whoever speaks its `/v1/audio/transcriptions`, through the openai SDK."""

import re

import httpx2
import openai
import structlog
from openai import AsyncOpenAI, omit

from services.common.providers.errors import broken_connection, silence
from services.common.providers.http import http_client
from services.common.providers.refusals import Refusal, meaning_of, read_refusal
from services.kit.errors import DomainError
from services.speech.domain import Bounds, Transcript
from services.speech.errors import AudioTooLarge, AudioTooShort, AudioUndecodable, LanguageUnsupported
from services.speech.providers import Recording
from services.speech.providers.answers import read_transcript

CONNECT_TIMEOUT_SECONDS = 5.0
# These tell the languages, if at all, in their plain answer; they have no verbose one.
PLAIN_MODELS = "transcribe"
FORMS = ("verbose_json", "json", "text", None)
"""Values of `response_format`, each simpler than the one before; None sends none."""
REFUSALS = (400, 415, 422)

_FORMAT = re.compile(r"response[_ ]format|verbose_json", re.IGNORECASE)
_TOO_SHORT = re.compile(r"audio.{0,40}too short|shorter than the minimum|minimum audio length", re.IGNORECASE)
_UNDECODABLE = re.compile(
    r"invalid file format|unsupported (audio|file|media)|invalid or unsupported audio|format is not supported"
    r"|corrupted|(could not|couldn't|can't|cannot|failed to|unable to|error) (decod|process|read|load|open)\w* "
    r"(the |your |this )?(\w+ )?(audio|file|media|wav)|not a valid (audio|media)|could not be decoded",
    re.IGNORECASE,
)

log = structlog.get_logger()


class OpenAI:
    """One server of the API."""

    def __init__(self, name: str, model: str, *, bounds: Bounds, api_key: str, base_url: str) -> None:
        self.name, self.model, self.bounds = name, model, bounds
        # The caller limits how long an answer may take, so only connecting has a limit here.
        timeout = httpx2.Timeout(None, connect=CONNECT_TIMEOUT_SECONDS)
        self._client = AsyncOpenAI(
            api_key=api_key, base_url=base_url, max_retries=0, http_client=http_client(base_url, timeout=timeout)
        )
        # The SDK took them from the environment, and would tell another vendor.
        self._client.organization = self._client.project = None
        self._form = FORMS.index("json" if PLAIN_MODELS in model else "verbose_json")
        """The first form that the server has not refused."""

    async def transcribe(self, recording: Recording) -> Transcript:
        """See Provider."""
        form = self._form
        while isinstance(answer := await self._ask(recording, FORMS[form]), Refusal):
            if form == len(FORMS) - 1 or not _refuses_the_form(answer):
                raise self._meaning(answer)
            log.info("asked_in_another_form", provider=self.name, model=self.model, refused=FORMS[form])
            form += 1
        self._form = max(self._form, form)
        return Transcript(answer.text, recording.language or answer.language)

    async def _ask(self, recording: Recording, form: str | None) -> Transcript | Refusal:
        kind = recording.format.value
        try:
            response = await self._client.audio.transcriptions.with_raw_response.create(
                # The name tells OpenAI what it is; the caller's own may be anything.
                file=(f"audio.{kind.extension}", recording.spool.reader(), kind.media_type),
                model=self.model,
                language=recording.language or omit,
                response_format=form or omit,  # type: ignore[arg-type]  # overloads for each value
            )
        except openai.APIStatusError as error:
            return read_refusal(error.status_code, error.response.content, error.response.headers)
        except openai.APITimeoutError:
            raise silence(self.name) from None
        except openai.APIConnectionError:
            raise broken_connection(self.name) from None
        return read_transcript(response.content, is_text=form == "text")

    def _meaning(self, refusal: Refusal) -> DomainError:
        """The error that a refusal stands for. What is about the recording is the caller's to change."""
        if refusal.status in REFUSALS:
            if "audio_too_short" in refusal.codes or _TOO_SHORT.search(refusal.message):
                return AudioTooShort()
            if "language" in refusal.params or "unsupported_language" in refusal.codes:
                return LanguageUnsupported(field="language")
        if refusal.status == 413:
            return AudioTooLarge(f"The audio file is larger than {self.name} takes.")
        if refusal.status in (*REFUSALS, 500) and ("file" in refusal.params or _UNDECODABLE.search(refusal.message)):
            return AudioUndecodable(f"{self.name} can't decode the audio file.")
        return meaning_of(self.name, refusal)

    async def close(self) -> None:
        """Hang up."""
        await self._client.close()


def _refuses_the_form(refusal: Refusal) -> bool:
    return refusal.status in (*REFUSALS, 404, 500, 501) and bool(
        "response_format" in refusal.params or _FORMAT.search(refusal.message)
    )
