"""Server-sent events as the HTML standard has them, and as providers and what is in between really send them."""

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from services.common.providers import event_stream
from services.common.providers.errors import ProviderBadResponse, ProviderUnavailable
from services.common.providers.event_stream import Answer, EventStreamDecoder


async def read(body: bytes, *, step: int = 0) -> tuple[list[Mapping[str, Any]], bool]:
    """The objects of a body that comes in pieces of `step` bytes, and whether it came whole."""

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), step or len(body) or 1):
            yield body[start : start + (step or len(body))]

    answer = Answer(pieces())
    return [found async for found in answer.objects()], answer.is_whole


def events(body: bytes) -> list[bytes]:
    decoder = EventStreamDecoder()
    return [*decoder.feed(body), *decoder.end()]


in_pieces = pytest.mark.parametrize("step", [0, 1, 2, 3, 7])


@in_pieces
@pytest.mark.parametrize(
    "body",
    [
        b'data: {"a":1}\n\ndata: {"b":2}\n\ndata: [DONE]\n\n',
        b'data: {"a":1}\r\n\r\ndata: {"b":2}\r\n\r\ndata: [DONE]\r\n\r\n',
        b'data: {"a":1}\r\rdata: {"b":2}\r\rdata: [DONE]\r\r',
        b'\xef\xbb\xbfdata: {"a":1}\n\ndata:{"b":2}\n\ndata:[DONE]\n\n',
        b': hello\n\n:\n\ndata: {"a":1}\n\n: keepalive\n\ndata: {"b":2}\n\ndata: [DONE]\n\n',
        b'event: message\nid: 1\nretry: 500\ndata: {"a":1}\n\nevent: ping\n\nid\ndata: {"b":2}\n\ndata: [DONE]\n\n',
        b'data: {"a":1}\n\ndata:\n\ndata\n\ndata: \n\ndata: null\n\ndata: 7\n\ndata: {"b":2}\n\ndata: [DONE]\n\n',
        b'data: {"a":1}\n\ndata: : keepalive\n\ndata: ping\n\ndata: {"b":2}\n\ndata: [DONE]\n\n',
        b'data: {"a":\ndata: 1}\n\ndata: {"b":2}\n\ndata: [DONE]\n\n',
        b'data: {"a":1}\ndata: {"b":2}\n\ndata: [DONE]\n\n',
        b'data: {"a":1}\n\nunknown: field\ndata: {"b":2}\n\ndata:  [DONE] \n\n',
        b'data: {"a":1}\n\ndata: {"b":2}\n\ndata: [DONE]',
        b'data: [{"a":1},{"b":2}]\n\ndata: [DONE]\n\n',
        b'data: {"a":1}\ndata: {"b":2}\ndata: [DONE]\n',
    ],
)
async def test_the_objects_of_a_stream_are_read_however_it_is_framed_and_cut(body: bytes, step: int) -> None:
    assert await read(body, step=step) == ([{"a": 1}, {"b": 2}], True)


@in_pieces
@pytest.mark.parametrize(
    "body",
    [
        b'{"a":1}',
        b' \r\n\xef\xbb\xbf\n{"a":1}\n',
        b'[{"a":1}]',
        b'{\n  "a": 1\n}\n',
    ],
)
async def test_one_document_where_a_stream_was_asked_for_is_the_answer(body: bytes, step: int) -> None:
    assert await read(body, step=step) == ([{"a": 1}], True)


@in_pieces
async def test_a_stream_that_ends_without_done_is_not_whole(step: int) -> None:
    assert await read(b'data: {"a":1}\n\n', step=step) == ([{"a": 1}], False)


@in_pieces
async def test_a_last_event_without_its_blank_line_counts_if_it_is_whole(step: int) -> None:
    assert await read(b'data: {"a":1}\n\ndata: {"b":2}', step=step) == ([{"a": 1}, {"b": 2}], False)
    assert await read(b'data: {"a":1}\n\ndata: {"b":', step=step) == ([{"a": 1}], False)


async def test_nothing_after_done_is_read() -> None:
    assert await read(b'data: {"a":1}\n\ndata: [DONE]\n\ndata: {"b":2}\n\n') == ([{"a": 1}], True)


@pytest.mark.parametrize("body", [b'data: {"a":\n\ndata: [DONE]\n\n', b'{"a":', b'data: {"a":1}}\n\n', b"[" * 100_000])
async def test_broken_json_is_no_answer(body: bytes) -> None:
    with pytest.raises(ProviderBadResponse):
        await read(body)


@pytest.mark.parametrize("body", [b"", b"\n\n", b"hello", b": nothing\n\n", b"data: hello\n\n"])
async def test_a_body_without_objects_is_read_as_none(body: bytes) -> None:
    assert await read(body) == ([], False)


async def test_a_web_page_is_no_answer() -> None:
    with pytest.raises(ProviderUnavailable):
        await read(b"<!DOCTYPE html><html><body>Sign in to the network</body></html>")


@in_pieces
async def test_what_json_readers_refuse_is_read(step: int) -> None:
    body = b'data: {"half":"\\ud83d","bytes":"\xff","tab":"\t","nan":NaN}\n\ndata: [DONE]\n\n'
    [found], _ = await read(body, step=step)
    assert (found["half"], found["bytes"], found["tab"]) == ("\ud83d", "\ufffd", "\t")


@pytest.mark.parametrize("piece", [b"x" * 1_000, b"data: " + b"x" * 994 + b"\n", b'data: {"a":1}\n'])
async def test_an_event_that_does_not_end_is_bounded(piece: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "MAX_EVENT_BYTES", 10_000)
    with pytest.raises(ProviderBadResponse, match="too large"):
        await read(b"data: " + piece * (20_000 // len(piece)), step=500)


async def test_an_answer_that_does_not_end_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "MAX_ANSWER_BYTES", 10_000)
    with pytest.raises(ProviderBadResponse, match="too large"):
        await read(b": keepalive\n\n" * 10_000, step=500)


async def test_a_document_that_does_not_end_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "MAX_EVENT_BYTES", 10_000)
    with pytest.raises(ProviderBadResponse, match="too large"):
        await read(b"{" + b" " * 20_000, step=500)


def test_a_large_event_in_one_byte_pieces_costs_no_more_than_its_size() -> None:
    decoder, size = EventStreamDecoder(), 300_000
    text = json.dumps({"text": "x" * size}).encode()
    found = [data for byte in b"data: " + text + b"\n\n" for data in decoder.feed(bytes([byte]))]
    assert found == [text]


def test_several_data_lines_are_joined_with_line_feeds() -> None:
    assert events(b"data: a\ndata:b\ndata:  c\n\n") == [b"a\nb\n c"]


def test_a_carriage_return_ends_a_line_before_the_next_piece_comes() -> None:
    decoder = EventStreamDecoder()
    assert list(decoder.feed(b"data: a\r")) == []
    assert list(decoder.feed(b"\r")) == [b"a"]
    assert list(decoder.feed(b"\ndata: b\r\n")) == []
    assert list(decoder.feed(b"\r\n")) == [b"b"]
