"""What the provider fakes share: the script, the record of requests, and a server that is cheap enough for benchmarks.

A server answers every request as its default behaviour says, or as the next one of its queue. Both are set in process
(`fake.default`, `fake.queue`) or over HTTP: `POST /_script {"default": {...}, "next": [{...}, ...]}`.
`GET /_requests` lists what was received, `DELETE /_requests` forgets it.
"""

import argparse
import asyncio
import json
import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

import orjson
import uvloop
from aiohttp import web

KEPT_REQUESTS = 5_000
WAIT_SECONDS = 10.0
KEY_HEADERS = ("authorization", "x-goog-api-key")

# A fault that was asked for is no news.
_quiet = logging.getLogger("tests.fakes")
_quiet.disabled = True

Frames = Sequence[bytes]
Provider = TypeVar("Provider", bound="FakeProvider")


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How one request is answered. The default is a fixed answer at once."""

    text: str = "The capital of France is Paris."
    tokens: int = 0
    """Instead of the text: an answer of that many numbered words."""
    first_token_delay_ms: float = 0
    token_delay_ms: float = 0
    end_delay_ms: float = 0
    """Between the last event and the end of the body."""
    input_tokens: int = 12
    output_tokens: int = 0
    """0: as many as there are pieces."""
    thinking_tokens: int = 0
    usage: bool = True
    """False: no usage is sent, as some compatible servers do."""
    finish_reason: str = "stop"
    """In OpenAI's words: stop, length, content_filter."""
    tool_calls: tuple[tuple[str, str], ...] = ()
    """Tools to call, as name and JSON arguments, after the text."""
    refusal: str = ""
    """OpenAI's word for an answer that the model won't give; sent whole, instead of the text."""
    language: str = ""
    """What the answer to a recording says was spoken."""
    error: str = ""
    """The name of one of the provider's errors, sent instead of an answer. See ERRORS of each fake."""
    retry_after: str = ""
    """The Retry-After header of the error."""
    fault: str = ""
    """cut: the connection breaks; malformed: no JSON; empty: no choices; unfinished: ends without a finish reason;
    cut_short: ends in the middle, without a word;
    error_event: an error inside the stream; hang: silence; hang_up: closes without an answer."""
    fault_after: int = 0
    """So many pieces are sent before the fault."""

    @property
    def is_slow(self) -> bool:
        """Whether anything of the answer is waited for."""
        return bool(self.first_token_delay_ms or self.token_delay_ms or self.end_delay_ms)

    @property
    def pieces(self) -> list[str]:
        """The text as it is streamed."""
        if self.tokens:
            return [f"word{number} " for number in range(1, self.tokens + 1)]
        words = self.text.split(" ")
        return [word + " " for word in words[:-1]] + words[-1:] if self.text else []

    @property
    def answer(self) -> str:
        """The whole text."""
        return "".join(self.pieces)

    @property
    def counted_output(self) -> int:
        """Output tokens without thinking, as the usage tells them."""
        return self.output_tokens or len(self.pieces)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """A behaviour out of a script."""
        calls = tuple((name, arguments) for name, arguments in fields.get("tool_calls", ()))
        return cls(**{**fields, "tool_calls": calls})


@dataclass(frozen=True, slots=True)
class Stream:
    """A streamed answer: the frame of each piece between what comes before and after; a broken one ends in a fault."""

    head: bytes
    pieces: Frames
    tail: bytes
    content_type: str = "text/event-stream; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Whole:
    """An answer in one body."""

    body: bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Received:
    """A request as it came in."""

    path: str
    headers: Mapping[str, str]
    body: bytes
    peer: object = None
    """The client's address: the same one for two requests means one connection."""
    closed_early: bool = False
    """Whether the client hung up before the answer's end."""
    finished: bool = False
    pieces_sent: int = 0

    @property
    def json(self) -> Any:
        """The body, parsed."""
        return orjson.loads(self.body)

    def to_json(self) -> dict[str, Any]:
        """As `GET /_requests` shows it."""
        return {
            "path": self.path,
            "headers": {name.lower(): value for name, value in self.headers.items()},
            "body": json.loads(self.body or b"null"),
            "closed_early": self.closed_early,
            "finished": self.finished,
        }


class FakeProvider(ABC):
    """An HTTP server on loopback that behaves as its script says."""

    base_path = ""

    def __init__(self, default: Behaviour | None = None, *, port: int = 0) -> None:
        self.default = default or Behaviour()
        self.queue: deque[Behaviour] = deque()
        self.requests: deque[Received] = deque(maxlen=KEPT_REQUESTS)
        self.port = port
        self._changed = asyncio.Event()
        self._server: web.ServerRunner | None = None

    @abstractmethod
    def render(self, path: str, body: dict[str, Any], behaviour: Behaviour) -> Stream | Whole:
        """The answer in the provider's wire format."""

    @abstractmethod
    def refuse(self, path: str, headers: Mapping[str, str]) -> Whole | None:
        """The provider's answer to a wrong path or a missing key; None when there is nothing wrong."""

    async def read(self, request: web.BaseRequest) -> bytes:
        """The request's body, as it is kept and rendered from: JSON."""
        return await request.read()

    @property
    def url(self) -> str:
        """What an SDK takes as its base URL."""
        return f"http://127.0.0.1:{self.port}{self.base_path}"

    async def __aenter__(self) -> Self:
        self._server = web.ServerRunner(
            web.Server(self._handle, handler_cancellation=True, access_log=None, logger=_quiet), shutdown_timeout=0.1
        )
        await self._server.setup()
        site = web.TCPSite(self._server, "127.0.0.1", self.port)
        await site.start()
        self.port = self._server.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        await self._server.cleanup()

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until something the fake has seen makes the condition true; an assertion fails after 10 s."""
        async with asyncio.timeout(WAIT_SECONDS):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path.startswith("/_"):
            return self._administer(request, await request.read())
        body = await self.read(request)
        received = Received(
            request.path_qs, request.headers, body, request.transport and request.transport.get_extra_info("peername")
        )
        self.requests.append(received)
        self._changed.set()
        try:
            response = await self._answer(request, received)
            received.finished = True
        except (asyncio.CancelledError, ConnectionResetError):
            received.closed_early = True
            raise
        finally:
            self._changed.set()
        return response

    async def _answer(self, request: web.BaseRequest, received: Received) -> web.StreamResponse:
        refused = self.refuse(request.path, request.headers)
        if refused is not None:
            return _whole(refused)
        behaviour = self.queue.popleft() if self.queue else self.default
        if behaviour.fault == "hang_up":
            return await _hang_up(request)
        answer = self.render(request.path_qs, orjson.loads(received.body), behaviour)
        if isinstance(answer, Whole):
            if behaviour.fault == "hang":
                await asyncio.Event().wait()
            if behaviour.fault == "cut":
                return await _cut(request, answer)
            await _pause(behaviour.first_token_delay_ms + behaviour.token_delay_ms * len(behaviour.pieces))
            return _whole(answer)
        if not (behaviour.is_slow or behaviour.fault):
            return _at_once(answer)
        return await self._stream(request, received, answer, behaviour)

    async def _stream(
        self, request: web.BaseRequest, received: Received, answer: Stream, behaviour: Behaviour
    ) -> web.StreamResponse:
        if behaviour.fault == "hang" and not behaviour.fault_after:
            await asyncio.Event().wait()
        response = web.StreamResponse(headers={"Content-Type": answer.content_type})
        response.enable_chunked_encoding()
        await response.prepare(request)
        await response.write(answer.head)
        await _pause(behaviour.first_token_delay_ms)
        pieces = answer.pieces[: behaviour.fault_after] if behaviour.fault else answer.pieces
        for number, piece in enumerate(pieces):
            if number:
                await _pause(behaviour.token_delay_ms)
            await response.write(piece)
            received.pieces_sent += 1
            self._changed.set()
        if behaviour.fault == "hang":
            await asyncio.Event().wait()
        if behaviour.fault == "cut":
            return await _hang_up(request)
        await response.write(answer.tail)
        await _pause(behaviour.end_delay_ms)
        await response.write_eof()
        return response

    def _administer(self, request: web.BaseRequest, body: bytes) -> web.Response:
        match request.method, request.path:
            case "POST", "/_script":
                self._take_script(json.loads(body))  # takes half a surrogate pair
                return web.Response(status=204)
            case "GET", "/_requests":
                return web.json_response([received.to_json() for received in self.requests])
            case "DELETE", "/_requests":
                self.requests.clear()
                return web.Response(status=204)
            case _:
                return web.Response(status=404)

    def _take_script(self, script: Mapping[str, Any]) -> None:
        if "default" in script:
            self.default = Behaviour.from_json(script["default"])
        self.queue.extend(Behaviour.from_json(fields) for fields in script.get("next", ()))


async def _pause(milliseconds: float) -> None:
    if milliseconds > 0:
        await asyncio.sleep(milliseconds / 1_000)


def _whole(answer: Whole) -> web.Response:
    headers = {"Content-Type": "application/json; charset=utf-8", **answer.headers}
    return web.Response(body=answer.body, status=answer.status, headers=headers)


def _at_once(answer: Stream) -> web.Response:
    response = web.Response(
        body=b"".join((answer.head, *answer.pieces, answer.tail)), headers={"Content-Type": answer.content_type}
    )
    response.enable_chunked_encoding()
    return response


async def _cut(request: web.BaseRequest, answer: Whole) -> web.StreamResponse:
    """Send the first half and break the connection off."""
    response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": str(len(answer.body))})
    await response.prepare(request)
    await response.write(answer.body[: len(answer.body) // 2])
    return await _hang_up(request)


async def _hang_up(request: web.BaseRequest) -> web.StreamResponse:
    """Break the connection off in the middle."""
    assert request.transport is not None
    request.transport.abort()
    raise ConnectionResetError


def run_forever(make: Callable[..., FakeProvider]) -> None:
    """Serve as a process until it is told to end."""
    parser = argparse.ArgumentParser(description="A provider fake on loopback.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--script", default="{}", help="The default behaviour, as JSON.")
    arguments = parser.parse_args()

    async def serve() -> None:
        async with make(Behaviour.from_json(json.loads(arguments.script)), port=arguments.port) as fake:
            print(f"listening on {fake.url}", flush=True)
            await asyncio.Event().wait()

    uvloop.run(_quietly(serve))


async def _quietly(serve: Callable[[], Awaitable[None]]) -> None:
    import signal

    task = asyncio.ensure_future(serve())
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        return
