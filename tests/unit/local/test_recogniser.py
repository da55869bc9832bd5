"""The recogniser that stands in where nobody has a key: real speech, over the wire that OpenAI's SDK speaks."""

from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from deploy.local.recogniser import MAX_SECONDS, MODEL, Recogniser
from services.kit.errors import DomainError
from services.kit.spool import Spool
from services.speech.errors import AudioUndecodable, LanguageUnsupported
from services.speech.formats import find_format
from services.speech.providers import Recording
from services.speech.providers.openai import OpenAI
from services.speech.settings import DEFAULT_MODELS, POCKETSPHINX_BOUNDS
from tests.audio import SPOKEN, tone


@pytest.fixture(scope="module")
def recogniser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recogniser]:
    with Recogniser(tmp_path_factory.mktemp("recogniser")) as server:
        yield server


@pytest.fixture
async def provider(recogniser: Recogniser) -> AsyncIterator[OpenAI]:
    provider = OpenAI("local", MODEL, bounds=POCKETSPHINX_BOUNDS, api_key="none", base_url=recogniser.url)
    yield provider
    await provider.close()


async def heard(provider: OpenAI, file: bytes, language: str = "") -> tuple[str, str]:
    with Spool() as spool:
        await spool.write(file)
        await spool.flush()
        format = find_format(spool.reader())
        assert format is not None
        transcript = await provider.transcribe(Recording(spool, format, language))
    return transcript.text, transcript.language


async def test_spoken_words_are_recognised(provider: OpenAI) -> None:
    text, language = await heard(provider, SPOKEN.read_bytes())
    assert {"good", "morning", "you"} <= set(text.split())
    assert language == "en"


async def test_a_recording_is_heard_alike_each_time(provider: OpenAI) -> None:
    assert await heard(provider, SPOKEN.read_bytes()) == await heard(provider, SPOKEN.read_bytes())


@pytest.mark.parametrize("extension", ["mp3", "ogg", "webm", "m4a"])
async def test_every_format_is_decoded(provider: OpenAI, extension: str) -> None:
    assert await heard(provider, tone(extension))


@pytest.mark.parametrize(
    ("file", "language", "error"),
    [
        (tone("mp3"), "fr", LanguageUnsupported),
        (tone("ogg", MAX_SECONDS + 1.0), "", AudioUndecodable),
        (b"fLaC" + bytes(100), "", AudioUndecodable),
    ],
    ids=["language", "length", "broken"],
)
async def test_what_it_does_not_take_it_refuses(
    provider: OpenAI, file: bytes, language: str, error: type[DomainError]
) -> None:
    with pytest.raises(error):
        await heard(provider, file, language)


def test_without_a_file_it_says_so(recogniser: Recogniser) -> None:
    response = httpx.post(f"{recogniser.url}/audio/transcriptions", files={"model": (None, MODEL)})
    assert (response.status_code, response.json()["error"]["type"]) == (400, "invalid_request_error")


def test_the_service_asks_it_for_its_model_and_knows_its_bounds() -> None:
    assert DEFAULT_MODELS["local"] == MODEL
    assert POCKETSPHINX_BOUNDS.max_seconds == MAX_SECONDS
