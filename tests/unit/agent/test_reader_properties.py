"""What holds for every answer: how it is cut and what a proxy adds never matter, and no bytes break a run."""

import asyncio
import json
import random
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.agent.events import Events
from services.agent.providers.google import Google
from services.agent.providers.openai import OpenAICompatible
from services.agent.runs import Run
from services.agent.tools import Tools
from services.common.providers.errors import ProviderError
from services.common.providers.retries import Retries
from tests.conformance.exchanges import EXCHANGES, GOOGLE, OPENAI, Exchange
from tests.fuzz.mutations import mutated, pieces_of
from tests.fuzz.reading import Reading, a_turn, read

T = TypeVar("T")

# The same examples at each run: the random ones are `make fuzz`.
SAME = settings(
    derandomize=True, database=None, deadline=None, max_examples=150, suppress_health_check=list(HealthCheck)
)
FEW = settings(SAME, max_examples=40)
STREAMS = [exchange for exchange in EXCHANGES if exchange.content_type == "text/event-stream"]
exchanges = st.sampled_from(EXCHANGES)
streams = st.sampled_from(STREAMS)
vendors = st.sampled_from((OPENAI, GOOGLE))

# What stands between two events and says nothing.
NOISE = (
    *(b":\n\n", b": keepalive\n\n", b"data:\n\n", b"data\n\n", b"data: null\n\n", b"data: : keepalive\n\n", b"\n\n\n"),
    *(b"event: message\n", b"id: 7\n", b"retry: 3000\n", b"x-unknown: 1\n", b"data: []\n\n", b"data: ping\n\n"),
    *(b'data: {"type":"ping"}\n\n', b"data: {}\n\n", b'data: {"object":"unknown","choices":null}\n\n', b"data: 1\n\n"),
)
UNKNOWN_FIELDS = {"x_unknown": [1, {"a": None}], "provider": "A proxy", "obfuscation": "aB3", "service_tier": None}


def at_once(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(coroutine)


def read_whole(exchange: Exchange) -> Reading:
    return at_once(read(exchange.vendor, [exchange.body]))


def cut(body: bytes, places: Sequence[int]) -> list[bytes]:
    cuts = sorted(place % (len(body) + 1) for place in places)
    return [body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]


def events_of(body: bytes) -> list[bytes]:
    """Each event with its blank line."""
    return [event + b"\n\n" for event in body.replace(b"\r\n", b"\n").split(b"\n\n") if event]


def changed(event: bytes, **fields: object) -> bytes:
    """The event with more fields in its object."""
    data = event.removeprefix(b"data: ")
    if data == event or not data.startswith(b"{"):
        return event
    return b"data: " + json.dumps({**fields, **json.loads(data)}).encode() + b"\n\n"


@SAME
@given(exchanges, st.lists(st.integers(0, 10_000), max_size=20))
def test_an_answer_is_the_same_however_it_is_cut(exchange: Exchange, places: list[int]) -> None:
    reading = at_once(read(exchange.vendor, cut(exchange.body, places)))
    assert reading.answer == read_whole(exchange).answer
    assert reading.unexpected is None


def test_an_answer_is_the_same_byte_by_byte() -> None:
    for exchange in EXCHANGES:
        pieces = [bytes([byte]) for byte in exchange.body]
        assert at_once(read(exchange.vendor, pieces)).answer == read_whole(exchange).answer, exchange.id


@SAME
@given(
    streams,
    st.lists(st.tuples(st.integers(0, 1_000), st.sampled_from(NOISE)), max_size=12),
    st.sampled_from((b"\n", b"\r", b"\r\n")),
    st.booleans(),
    st.booleans(),
    st.lists(st.integers(0, 10_000), max_size=8),
)
def test_noise_between_events_changes_nothing(
    exchange: Exchange,
    noise: list[tuple[int, bytes]],
    line_end: bytes,
    has_mark: bool,
    has_unknown_fields: bool,
    places: list[int],
) -> None:
    events = events_of(exchange.body)
    is_cut_off = not exchange.body.endswith(b"[DONE]\n\n")
    if has_unknown_fields:
        events = [changed(event, **UNKNOWN_FIELDS) for event in events]
    for place, piece in noise:
        events.insert(place % (len(events) + (not is_cut_off)), piece)
    body = (b"\xef\xbb\xbf" if has_mark else b"") + b"".join(events).replace(b"\n", line_end)
    reading = at_once(read(exchange.vendor, cut(body, places)))
    assert reading.answer == read_whole(exchange).answer


@SAME
@given(streams, st.data())
def test_several_objects_in_one_event_are_read_as_if_they_were_apart(exchange: Exchange, data: st.DataObject) -> None:
    events = events_of(exchange.body)
    joined: list[bytes] = []
    for event in events:
        is_object = event.startswith(b"data: {")
        if is_object and joined and joined[-1].startswith(b"data: {") and data.draw(st.booleans()):
            joined[-1] = joined[-1].removesuffix(b"\n") + event
        else:
            joined.append(event)
    assert at_once(read(exchange.vendor, [b"".join(joined)])).answer == read_whole(exchange).answer


@SAME
@given(st.text(min_size=1, max_size=30), st.data(), vendors)
def test_text_is_the_same_however_its_utf_16_units_are_spread_over_deltas(
    text: str, data: st.DataObject, vendor: str
) -> None:
    text = f"a{text}".replace("\0", "")
    units = text.encode("utf-16-be", "surrogatepass")
    places = sorted(data.draw(st.lists(st.integers(0, len(units) // 2), max_size=6)))
    bounds = zip([0, *places], [*places, len(units) // 2], strict=True)
    pieces = [units[2 * start : 2 * end].decode("utf-16-be", "surrogatepass") for start, end in bounds]
    assert at_once(read(vendor, [_stream_of(vendor, pieces)])).text == text


def _stream_of(vendor: str, pieces: Sequence[str]) -> bytes:
    if vendor == GOOGLE:
        documents: list[dict[str, Any]] = [
            {"candidates": [{"content": {"parts": [{"text": piece}]}}]} for piece in pieces
        ]
    else:
        documents = [{"choices": [{"index": 0, "delta": {"content": piece}}]} for piece in pieces]
    return b"".join(b"data: " + json.dumps(document).encode() + b"\n\n" for document in documents) + b"data: [DONE]\n\n"


numbers = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**80), 2**80), st.floats(), st.text(max_size=5), st.lists(st.integers())
)


@SAME
@given(
    st.sampled_from([exchange for exchange in STREAMS if not exchange.code and exchange.usage is not None]),
    st.dictionaries(
        st.sampled_from(
            ("prompt_tokens", "completion_tokens", "total_tokens", "promptTokenCount", "candidatesTokenCount")
        ),
        numbers,
    ),
    st.integers(0, 100),
)
def test_absurd_usage_in_any_event_costs_the_count_only(
    exchange: Exchange, counts: dict[str, object], place: int
) -> None:
    events = events_of(exchange.body)
    field = "usageMetadata" if exchange.vendor == GOOGLE else "usage"
    events.insert(place % len(events), b"data: " + json.dumps({field: counts}).encode() + b"\n\n")
    reading = at_once(read(exchange.vendor, [b"".join(events)]))
    assert reading.unexpected is None
    assert (reading.text, reading.finish) == (exchange.text, exchange.finish)
    assert reading.usage.output_tokens > 0


@SAME
@given(vendors, st.one_of(st.binary(max_size=400), st.binary(max_size=200).map(lambda body: b"data: {" + body)))
def test_any_bytes_end_in_an_answer_or_an_error_of_the_provider(vendor: str, body: bytes) -> None:
    reading = at_once(read(vendor, [body]))
    assert reading.unexpected is None
    assert reading.code or reading.finish


json_values = st.recursive(
    st.one_of(numbers, st.text(max_size=8), st.sampled_from(("\ud83d", "\ude00"))),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(("text", "name", "args", "type", "id", "index", "parts", "error")), inner, max_size=3
        )
    ),
    max_leaves=8,
)
FIELDS = (
    *("content", "refusal", "reasoning", "tool_calls", "function_call", "role", "delta", "message", "finish_reason"),
    *("index", "finishReason", "parts", "functionCall", "thoughtSignature", "text", "usage"),
)


@SAME
@given(vendors, st.lists(st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=4), max_size=4))
def test_any_value_in_any_field_ends_in_an_answer_or_an_error_of_the_provider(
    vendor: str, deltas: list[dict[str, object]]
) -> None:
    documents: list[dict[str, object]] = []
    for delta in deltas:
        content = {"content": {"parts": [delta, {"functionCall": delta}]}, "delta": {**delta, "tool_calls": [delta]}}
        documents.append({"choices": [{**delta, **content}], "candidates": [{**delta, **content}], "usage": delta})
    body = b"".join(b"data: " + json.dumps(document).encode() + b"\n\n" for document in documents) + b"data: [DONE]\n\n"
    reading = at_once(read(vendor, [body]))
    assert reading.unexpected is None
    assert reading.code or reading.finish


@SAME
@given(st.integers(0, 10**9))
def test_a_damaged_answer_ends_in_an_answer_or_an_error_of_the_provider(seed: int) -> None:
    chance = random.Random(seed)
    exchange = chance.choice(EXCHANGES)
    reading = at_once(read(exchange.vendor, pieces_of(chance, mutated(chance, exchange.body))))
    assert reading.unexpected is None
    assert reading.code or reading.finish


@FEW
@given(st.integers(0, 10**9))
def test_a_damaged_answer_over_http_ends_in_an_answer_or_an_error_of_the_provider(seed: int) -> None:
    chance = random.Random(seed)
    exchange = chance.choice(EXCHANGES)
    at_once(_ask_over_http(exchange.vendor, pieces_of(chance, mutated(chance, exchange.body))))


async def _ask_over_http(vendor: str, pieces: Sequence[bytes]) -> None:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        await request.read()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for piece in filter(None, pieces):
            await response.write(piece)
        return response

    async def publish(_subject: str, _payload: bytes) -> None:
        await asyncio.sleep(0)

    async def keep(*_: object) -> None:
        raise AssertionError("no step is kept")

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    provider = (
        Google(api_key="key", base_url=url)
        if vendor == GOOGLE
        else OpenAICompatible(OPENAI, api_key="key", base_url=url)
    )
    turn = a_turn(vendor)
    run = Run(turn, {vendor: provider}, Tools(), Events(publish, "task", 1), keep, Retries(tries=1))
    try:
        with suppress(ProviderError):
            reply = await run.ask(turn.conversation)
            assert reply.answer.finish_reason
    finally:
        await provider.close()
        await runner.cleanup()
