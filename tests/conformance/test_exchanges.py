"""Each answer through the real provider, over HTTP, whole and cut; and as the vendor's SDK reads the same bytes."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest
from aiohttp import web
from google import genai
from google.genai import types
from openai import AsyncOpenAI

from services.agent.events import Events
from services.agent.providers import Provider
from services.agent.providers.google import Google
from services.agent.providers.openai import OpenAICompatible
from services.agent.runs import Run
from services.agent.tools import Tools
from services.common.providers.errors import ProviderError
from services.common.providers.retries import Retries
from tests.conformance.exchanges import EXCHANGES, GOOGLE, OPENAI, Exchange
from tests.fuzz.reading import a_turn

KEY = "sk-a-key"
CUT_SIZES = (0, 1, 7, 64)
Call = tuple[str, Any]


@dataclass(frozen=True, slots=True)
class Said:
    """What a reader makes of an answer."""

    text: str
    usage: tuple[int, int] | None
    calls: tuple[Call, ...]


class Sender:
    """Sends one answer to every request, in pieces of a size."""

    def __init__(self) -> None:
        self.exchange = EXCHANGES[0]
        self.size = 0
        self.url = ""
        self._runner = web.ServerRunner(web.Server(self._handle))

    async def start(self) -> None:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        await request.read()
        body, size = self.exchange.body, self.size or len(self.exchange.body)
        response = web.StreamResponse(status=self.exchange.status, headers={"Content-Type": self.exchange.content_type})
        await response.prepare(request)
        for start in range(0, len(body), size):
            await response.write(body[start : start + size])
        await response.write_eof()
        return response


@pytest.fixture
async def sender() -> AsyncIterator[Sender]:
    sender = Sender()
    await sender.start()
    yield sender
    await sender.stop()


def _provider(exchange: Exchange, url: str) -> Provider:
    if exchange.vendor == GOOGLE:
        return Google(api_key=KEY, base_url=url)
    return OpenAICompatible(OPENAI, api_key=KEY, base_url=url + "/v1")


def _ids(exchanges: Sequence[Exchange]) -> list[str]:
    return [exchange.id for exchange in exchanges]


@pytest.mark.parametrize("exchange", EXCHANGES, ids=_ids(EXCHANGES))
async def test_an_answer_says_what_its_vendor_documents(exchange: Exchange, sender: Sender) -> None:
    sender.exchange = exchange
    provider = _provider(exchange, sender.url)
    try:
        for sender.size in CUT_SIZES:
            await _check(exchange, provider)
    finally:
        await provider.close()


async def _check(exchange: Exchange, provider: Provider) -> None:
    turn = a_turn(exchange.vendor)
    run = Run(turn, {exchange.vendor: provider}, Tools(), Events(_publish, "task", 1), _keep, Retries(tries=1))
    if exchange.code:
        with pytest.raises(ProviderError) as failure:
            await run.ask(turn.conversation)
        assert failure.value.code == exchange.code
        return
    reply = await run.ask(turn.conversation)
    await run.events.flush()
    calls = tuple((call.name, json.loads(call.arguments)) for call in reply.message.tool_calls)
    assert (run.text, reply.answer.finish_reason, calls) == (exchange.text, exchange.finish, exchange.calls)
    if exchange.usage is None:
        assert run.usage.estimated
        assert run.usage.output_tokens > 0
    else:
        assert (run.usage.input_tokens, run.usage.output_tokens) == exchange.usage
        assert not run.usage.estimated


BY_SDK = [exchange for exchange in EXCHANGES if exchange.sdk_reads and not exchange.code]


@pytest.mark.parametrize("exchange", BY_SDK, ids=_ids(BY_SDK))
async def test_the_vendors_sdk_reads_the_same(exchange: Exchange, sender: Sender) -> None:
    sender.exchange = exchange
    read = _read_by_google if exchange.vendor == GOOGLE else _read_by_openai
    assert await read(sender.url) == Said(exchange.text, exchange.usage, exchange.calls)


async def _publish(_subject: str, _payload: bytes) -> None:
    await asyncio.sleep(0)


async def _keep(*_: object) -> None:
    raise AssertionError("no step is kept")


async def _read_by_openai(url: str) -> Said:
    text, usage = "", None
    calls: dict[int, list[str]] = {}
    async with AsyncOpenAI(api_key=KEY, base_url=url + "/v1", max_retries=0) as client:
        stream = await client.chat.completions.create(
            model="a-model", messages=[{"role": "user", "content": "Hi"}], stream=True
        )
        async for chunk in stream:
            if chunk.usage is not None:
                usage = (chunk.usage.prompt_tokens, chunk.usage.completion_tokens)
            for choice in chunk.choices:
                text += (choice.delta.content or "") + (choice.delta.refusal or "")
                for piece in choice.delta.tool_calls or ():
                    call = calls.setdefault(piece.index, ["", ""])
                    if piece.function is not None:
                        call[0] += piece.function.name or ""
                        call[1] += piece.function.arguments or ""
    return Said(text, usage, tuple((name, json.loads(arguments)) for name, arguments in calls.values()))


async def _read_by_google(url: str) -> Said:
    text, usage = "", None
    calls: list[Call] = []
    http = httpx2.AsyncClient(trust_env=False)
    options = types.HttpOptions(base_url=url, httpx_async_client=http)
    client = genai.Client(vertexai=False, api_key=KEY, http_options=options)
    async for response in await client.aio.models.generate_content_stream(model="a-model", contents="Hi"):
        if (counts := response.usage_metadata) is not None:
            output = (counts.candidates_token_count or 0) + (counts.thoughts_token_count or 0)
            usage = (counts.prompt_token_count or 0, output)
        for candidate in response.candidates or ():
            for part in (candidate.content.parts if candidate.content else None) or ():
                text += "" if part.thought else part.text or ""
                if part.function_call is not None:
                    calls.append((part.function_call.name or "", part.function_call.args))
    await http.aclose()
    return Said(text, usage, tuple(calls))
