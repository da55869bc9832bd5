"""Gemini: google-genai builds and sends the request, and its answer is read by the reader of all providers."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from typing import Any, NoReturn

import aiohttp
import httpx2
from google import genai
from google.genai import types

from services.agent.providers import CONNECT_TIMEOUT_SECONDS, Chunk, Dropped, ModelCall
from services.agent.providers.adaptation import send
from services.agent.providers.google_reader import GeminiReader
from services.agent.providers.google_request import Request
from services.common.providers.errors import broken_connection, silence
from services.common.providers.event_stream import Answer
from services.common.providers.refusals import MAX_BODY_BYTES, Refused, in_stream, meaning_of, read_refusal
from services.kit.http_client import proxy_for

NAME = "google"
# The stable one lacks what new models need.
API_VERSION = "v1beta"
DEFAULT_BASE_URL = "https://generativelanguage.googleapis.com"


class _Answered(Exception):
    """The response has begun. Raised through the SDK, so that it does not read the body: its own reader ends an answer
    at a comment, an `event:` line or [DONE], and reads an error's body whole, however large."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response


class _Transport(httpx2.AsyncBaseTransport):
    """Sends the SDK's requests with aiohttp, and raises each response as _Answered."""

    # The client of the SDK sets these for itself, aiohttp sets its own.
    HOP_BY_HOP = frozenset({"accept-encoding", "connection", "content-length", "host", "transfer-encoding"})

    def __init__(self, proxy: str | None) -> None:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_SECONDS)
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), proxy=proxy, timeout=timeout)

    async def handle_async_request(self, request: httpx2.Request) -> NoReturn:
        """Send the request."""
        headers = {name: value for name, value in request.headers.items() if name not in self.HOP_BY_HOP}
        response = await self._session.request(
            request.method, str(request.url), data=request.content, headers=headers, allow_redirects=False
        )
        raise _Answered(response)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._session.close()


class Google:
    """Gemini's API."""

    def __init__(self, *, api_key: str, base_url: str | None = None, idle_seconds: float = 60.0) -> None:
        self._api_key, self._base_url, self._idle_seconds = api_key, base_url, idle_seconds
        self._proxy = proxy_for(base_url or DEFAULT_BASE_URL)
        self._http: httpx2.AsyncClient | None = None
        self._client: genai.Client | None = None

    def _models(self) -> Any:
        """The SDK's models, made at the first call: its connections belong to the running loop."""
        if self._client is None:
            self._http = httpx2.AsyncClient(transport=_Transport(self._proxy), trust_env=False)
            options = types.HttpOptions(
                base_url=self._base_url,
                api_version=API_VERSION,
                httpx_async_client=self._http,
                # For the SDK's second, blocking client, which is not used: it would refuse a SOCKS proxy.
                client_args={"trust_env": False},
                # Without options of its own the SDK retries a broken connection by itself, after up to 10 s.
                retry_options=types.HttpRetryOptions(attempts=1),
            )
            self._client = genai.Client(vertexai=False, api_key=self._api_key, http_options=options)
        return self._client.aio.models

    async def stream(self, call: ModelCall) -> AsyncGenerator[Chunk]:
        """The answer as it is written. See Provider."""
        try:
            request, response = await send(Request.of(call), self._post)
            try:
                for name in request.dropped:
                    yield Dropped(name)
                reader, answer = GeminiReader(NAME), Answer(self._bytes(response))
                async for document in answer.objects():
                    if (refusal := in_stream(document)) is not None:
                        raise Refused(refusal)
                    for chunk in reader.read(document):
                        yield chunk
                for chunk in reader.finish(is_whole=answer.is_whole):
                    yield chunk
            finally:
                response.close()  # nothing, once the body has been read to its end
        except Refused as error:
            raise meaning_of(NAME, error.refusal) from None
        except (TimeoutError, aiohttp.ServerTimeoutError):
            raise silence(NAME) from None
        except (aiohttp.ClientError, OSError):
            raise broken_connection(NAME) from None

    async def _post(self, request: Request) -> aiohttp.ClientResponse:
        """The response, its body not read."""
        model, contents, config = request.call.settings.model, request.contents(), request.config()
        stream = await self._models().generate_content_stream(model=model, contents=contents, config=config)
        try:
            async with asyncio.timeout(self._idle_seconds):
                await anext(stream)
        except _Answered as answered:
            response = answered.response
        else:
            raise AssertionError("the SDK has read the answer")
        if response.status < 400:
            return response
        body = b""
        with suppress(aiohttp.ClientError, TimeoutError):  # a body that breaks off leaves the status
            async for piece in self._bytes(response):
                body += piece
                if len(body) > MAX_BODY_BYTES:
                    break
        response.close()
        raise Refused(read_refusal(response.status, body, response.headers))

    async def _bytes(self, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        """The body as it comes. The SDK knows a time limit for the whole answer only; this one is for each piece."""
        while True:
            async with asyncio.timeout(self._idle_seconds):
                piece = await response.content.readany()
            if not piece:
                return
            yield piece

    async def close(self) -> None:
        """Close the connections."""
        if self._http is not None:
            await self._http.aclose()
