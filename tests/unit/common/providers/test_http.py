"""The HTTP clients of speech's and translate's SDKs behind a company's proxy."""

from collections.abc import Callable

import pytest

from services.common.providers.errors import ProviderUnavailable
from services.kit.http_client import UnsupportedProxy
from services.kit.spool import Spool
from services.speech.formats import find_format
from services.speech.providers import Recording
from services.speech.providers.openai import OpenAI as SpeechOpenAI
from services.translate.providers.google import Google
from services.translate.providers.openai import OpenAI as TranslateOpenAI
from tests.audio import tone
from tests.fakes.raw import JSON, Answer, RawServer
from tests.unit.kit.test_http_client import NAMES
from tests.unit.speech.conftest import BOUNDS
from tests.unit.translate.conftest import KEY, a_job

TRANSLATED = rb"{\"source\": \"en\", \"translated_text\": \"Paris\"}"
OPENAI = b'{"choices": [{"message": {"content": "%s"}, "finish_reason": "stop"}]}' % TRANSLATED
GEMINI = b'{"candidates": [{"content": {"parts": [{"text": "%s"}]}, "finishReason": "STOP"}]}' % TRANSLATED

Made = SpeechOpenAI | TranslateOpenAI | Google
MAKERS: dict[str, Callable[[str], Made]] = {
    "speech": lambda url: SpeechOpenAI("openai", "whisper-1", bounds=BOUNDS, api_key=KEY, base_url=url),
    "translate_openai": lambda url: TranslateOpenAI("m", api_key=KEY, base_url=url),
    "translate_google": lambda url: Google("m", api_key=KEY, base_url=url),
}
ANSWERS = {"speech": b'{"text": "Paris"}', "translate_openai": OPENAI, "translate_google": GEMINI}
each_client = pytest.mark.parametrize("client", MAKERS)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No proxy to begin with."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return monkeypatch


async def text_from(provider: Made) -> str:
    try:
        if isinstance(provider, SpeechOpenAI):
            return await transcript_from(provider)
        return (await provider.translate(a_job(), output_tokens=500)).translated_text
    finally:
        await provider.close()


async def transcript_from(provider: SpeechOpenAI) -> str:
    with Spool() as spool:
        await spool.write(tone("mp3"))
        await spool.flush()
        format = find_format(spool.reader())
        assert format is not None
        return (await provider.transcribe(Recording(spool, format, ""))).text


@each_client
@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
async def test_a_real_provider_is_asked_through_the_proxy(
    client: str, variable: str, environment: pytest.MonkeyPatch
) -> None:
    async with RawServer() as proxy:
        proxy.answer(Answer([ANSWERS[client]], headers=JSON))
        environment.setenv(variable, proxy.url)
        assert await text_from(MAKERS[client]("http://provider.invalid/v1")) == "Paris"
        assert len(proxy.bodies) == 1


@each_client
@pytest.mark.parametrize("variable", ["HTTP_PROXY", "ALL_PROXY"])
@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "socks5://127.0.0.1:9"])
async def test_a_server_on_this_machine_is_never_asked_through_a_proxy(
    client: str, variable: str, proxy: str, environment: pytest.MonkeyPatch
) -> None:
    async with RawServer() as server:
        server.answer(Answer([ANSWERS[client]], headers=JSON))
        environment.setenv(variable, proxy)
        assert await text_from(MAKERS[client](server.url)) == "Paris"


@each_client
async def test_a_host_of_no_proxy_is_asked_directly(client: str, environment: pytest.MonkeyPatch) -> None:
    async with RawServer() as proxy:
        environment.setenv("HTTP_PROXY", proxy.url)
        environment.setenv("NO_PROXY", "provider.invalid")
        with pytest.raises(ProviderUnavailable):
            await text_from(MAKERS[client]("http://provider.invalid/v1"))
        assert proxy.bodies == []


@each_client
def test_a_proxy_that_is_no_http_proxy_is_refused_at_start(client: str, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    with pytest.raises(UnsupportedProxy, match="ALL_PROXY"):
        MAKERS[client]("https://provider.invalid/v1")
