"""Providers behind a company's proxy, and servers on this machine that must not be asked through it."""

from collections.abc import AsyncIterator, Callable

import pytest

from services.agent.domain import Message, Settings
from services.agent.providers import ModelCall, Provider
from services.agent.providers.google import Google
from services.agent.providers.openai import OpenAICompatible
from services.kit.http_client import UnsupportedProxy
from tests.fakes.raw import Answer, RawServer
from tests.unit.agent.test_wire import DONE, STOP, delta, gemini, usage

CALL = ModelCall(Settings("openai", "m", "none"), [Message("user", "hi")], 300)
VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
MAKERS: dict[str, Callable[[str], Provider]] = {
    "openai": lambda url: OpenAICompatible("openai", api_key="key", base_url=url),
    "google": lambda url: Google(api_key="key", base_url=url),
}
ANSWERS = {
    "openai": Answer([delta("Paris"), STOP, usage(), DONE]),
    "google": Answer([gemini("Paris", "STOP", 3)]),
}
each_vendor = pytest.mark.parametrize("vendor", MAKERS)


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RawServer]:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    async with RawServer() as server:
        yield server


async def text_from(provider: Provider) -> str:
    try:
        return "".join([chunk async for chunk in provider.stream(CALL) if isinstance(chunk, str)])
    finally:
        await provider.close()


@each_vendor
@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
async def test_a_real_provider_is_asked_through_the_proxy(
    vendor: str, variable: str, server: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, server.url)
    server.answer(ANSWERS[vendor])
    assert await text_from(MAKERS[vendor]("http://provider.invalid/v1")) == "Paris"


@each_vendor
@pytest.mark.parametrize("variable", ["HTTP_PROXY", "ALL_PROXY"])
@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "socks5://127.0.0.1:9"])
async def test_a_server_on_this_machine_is_never_asked_through_a_proxy(
    vendor: str, variable: str, proxy: str, server: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, proxy)
    server.answer(ANSWERS[vendor])
    assert await text_from(MAKERS[vendor](server.url)) == "Paris"


@each_vendor
async def test_a_host_of_no_proxy_is_asked_directly(
    vendor: str, server: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", server.url)
    monkeypatch.setenv("NO_PROXY", "provider.invalid")
    with pytest.raises(Exception, match="connection"):
        await text_from(MAKERS[vendor]("http://provider.invalid/v1"))
    assert server.bodies == []


@each_vendor
def test_a_proxy_that_is_no_http_proxy_is_refused_at_start(vendor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    with pytest.raises(UnsupportedProxy, match="ALL_PROXY"):
        MAKERS[vendor]("https://provider.invalid/v1")
