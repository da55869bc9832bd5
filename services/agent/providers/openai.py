"""OpenAI and the servers that speak its chat completions: one SDK, one dialect each.

The SDK authenticates, builds the HTTP request and sends it. Its types are passed by, both ways: a call with a history
of 20 messages costs 8 ms of CPU through them and 0.7 ms with a body already in wire form and an answer read as JSON.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import cast

import aiohttp
import httpx2
import openai
from openai import AsyncOpenAI, AsyncStream, DefaultAioHttpClient

from services.agent.providers import CONNECT_TIMEOUT_SECONDS, Chunk, Dropped, ModelCall
from services.agent.providers.adaptation import send
from services.agent.providers.openai_reader import ChatCompletionReader
from services.agent.providers.openai_request import DIALECTS, Form, Request
from services.common.providers.errors import ProviderError, broken_connection, silence
from services.common.providers.event_stream import Answer
from services.common.providers.refusals import MAX_BODY_BYTES, Refusal, Refused, in_stream, meaning_of, read_refusal
from services.kit.http_client import proxy_for

DRAIN_SECONDS = 0.1


class OpenAICompatible:
    """One provider that is reached through the openai SDK."""

    def __init__(self, name: str, *, api_key: str, base_url: str | None = None, idle_seconds: float = 60.0) -> None:
        self._name = name
        self._dialect = DIALECTS[name]
        base_url = base_url or self._dialect.base_url
        # Absolute, since the SDK takes its time to join a relative one to its base.
        self._url = base_url.rstrip("/") + "/chat/completions"
        self._client = AsyncOpenAI(
            api_key=api_key,
            base_url=base_url,
            max_retries=0,
            http_client=DefaultAioHttpClient(
                proxy=proxy_for(base_url),
                trust_env=False,
                verify=httpx2.create_ssl_context(),
                event_hooks={"response": [_raise_refused]},
                timeout=httpx2.Timeout(idle_seconds, connect=CONNECT_TIMEOUT_SECONDS, pool=CONNECT_TIMEOUT_SECONDS),
            ),
        )
        # The SDK took them from the environment, and would send them to another vendor.
        self._client.organization = self._client.project = None

    async def stream(self, call: ModelCall) -> AsyncGenerator[Chunk]:
        """The answer as it is written. See Provider."""
        try:
            request, response = await send(Request.of(call, Form(self._dialect.limit)), self._post)
            try:
                for name in request.dropped:
                    yield Dropped(name)
                reader, answer = ChatCompletionReader(self._name), Answer(response.aiter_bytes())
                async for document in answer.objects():
                    if (refusal := in_stream(document)) is not None:
                        raise Refused(refusal)
                    for chunk in reader.read(document, is_whole=answer.is_whole):
                        yield chunk
                if answer.is_whole:
                    await _drain(answer)
                for chunk in reader.finish(is_whole=answer.is_whole):
                    yield chunk
            finally:
                await response.aclose()
        except (openai.APIError, httpx2.HTTPError, aiohttp.ClientError, Refused) as error:
            raise self._meaning(error) from None

    async def _post(self, request: Request) -> httpx2.Response:
        try:
            response = await self._client.post(
                self._url,
                content=request.body(),
                cast_to=httpx2.Response,
                stream=True,
                stream_cls=AsyncStream[object],
                options={"headers": {"Content-Type": "application/json"}},
            )
        except openai.APIConnectionError as error:
            if isinstance(error.__cause__, Refused):
                raise error.__cause__ from None
            raise
        return cast(httpx2.Response, response)

    def _meaning(self, error: Exception) -> ProviderError:
        if isinstance(error, Refused):
            return meaning_of(self._name, error.refusal)
        if isinstance(error, openai.APIStatusError):  # a status that is neither success nor error
            return meaning_of(self._name, Refusal(error.status_code))
        return silence(self._name) if _was_silence(error) else broken_connection(self._name)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()


async def _raise_refused(response: httpx2.Response) -> None:
    """Read an error's body within bounds. The SDK would read it whole, however large it is."""
    if not response.is_error:
        return
    body = b""
    with suppress(httpx2.HTTPError):  # a body that breaks off leaves the status
        async for piece in response.aiter_bytes():
            body += piece
            if len(body) > MAX_BODY_BYTES:
                break
    await response.aclose()
    raise Refused(read_refusal(response.status_code, body, response.headers))


def _was_silence(error: BaseException) -> bool:
    """True if aiohttp ran into a time-out. The SDK's transport reports every broken connection as one as well."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, aiohttp.ClientError):
            return isinstance(cause, aiohttp.ServerTimeoutError)
        cause = cause.__cause__
    return isinstance(error, openai.APITimeoutError | httpx2.TimeoutException)


async def _drain(answer: Answer) -> None:
    """Read to the end, so that the connection is used again. A server that does not come to it loses the connection."""
    with suppress(TimeoutError, httpx2.HTTPError, ProviderError):
        async with asyncio.timeout(DRAIN_SECONDS):
            await answer.drain()
