"""A provider whose tokens say when they were sent: OpenAI's wire format, paced as the question asks.

The question is `<tokens> <milliseconds between them> <milliseconds before the first>`; every token of the answer is the
machine's monotonic clock in nanoseconds. `python -m tests.bench.stamping --port N` serves it on loopback.
"""

from __future__ import annotations

import argparse
import asyncio
import time

import orjson
import uvloop
from aiohttp import web

HEAD = b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":'
DONE = (
    HEAD + b'{},"finish_reason":"stop"}]}\n\n'
    b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[],'
    b'"usage":{"prompt_tokens":12,"completion_tokens":%d,"total_tokens":%d}}\n\ndata: [DONE]\n\n'
)


async def complete(request: web.BaseRequest) -> web.StreamResponse:
    """Write an answer, each token at its own time however long the others took."""
    body = orjson.loads(await request.read())
    tokens, every_ms, first_ms = map(int, body["messages"][-1]["content"].split())
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    response.enable_chunked_encoding()
    await response.prepare(request)
    loop = asyncio.get_running_loop()
    began = loop.time() + first_ms / 1_000
    for number in range(tokens):
        await asyncio.sleep(max(0.0, began + number * every_ms / 1_000 - loop.time()))
        token = b'{"content":"%d "},"finish_reason":null}]}\n\n' % time.monotonic_ns()
        await response.write(HEAD + token)
    await response.write(DONE % (tokens, tokens + 12))
    await response.write_eof()
    return response


async def serve(port: int) -> None:
    """Serve until the process is ended."""
    runner = web.ServerRunner(web.Server(complete, access_log=None))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=4_096).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    uvloop.run(serve(parser.parse_args().port))
