"""A provider that reports absurd usage costs its own run at most: the worker's other runs go on."""

import asyncio
import json
from typing import Any

import pytest
from aiohttp import web

from services.agent.providers.openai import OpenAICompatible
from services.kit.bus import JOBS_SUBJECT, Bus
from tests.fakes.chat import FakeChat
from tests.servers import Nats
from tests.unit.agent.conftest import KEY, working

ABSURD = "absurd-model"


def event(delta: dict[str, Any], usage: object = None) -> bytes:
    choices = [{"index": 0, "delta": delta}]
    return b"data: " + json.dumps({"choices": choices, "usage": usage}).encode() + b"\n\n"


@pytest.mark.parametrize(
    "count", [2**63, 10**30, -1, float("nan"), float("inf"), "seven", [1], {"a": 1}, 1.5, True], ids=str
)
async def test_absurd_usage_stops_no_run_of_the_worker(
    count: object, chat: FakeChat, bus: Bus, nats_server: Nats
) -> None:
    go_on = asyncio.Event()

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        usage = {"prompt_tokens": count, "completion_tokens": count, "total_tokens": count}
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(event({"content": "Hello"}, usage if ABSURD.encode() in body else None))
        await go_on.wait()  # heartbeats pass meanwhile
        await response.write(b"data: [DONE]\n\n")
        return response

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    provider = OpenAICompatible("openai", api_key=KEY, base_url=f"http://127.0.0.1:{runner.addresses[0][1]}/v1")
    chat.add(model=ABSURD)
    chat.add()
    chat.add()
    async with working(chat, nats_server.url, provider):
        for _ in range(3):
            await bus.publish(JOBS_SUBJECT, b"a task")
        await chat.until(lambda: sum(len(beats) == 3 and all(b.text for b in beats) for beats in chat.heartbeats) > 1)
        go_on.set()
        await chat.until(lambda: len(chat.completed) == 3)
    await provider.close()
    await runner.cleanup()
    assert {completed.content for completed in chat.completed} == {"Hello"}
    assert all(completed.usage.estimated and completed.usage.output_tokens == 2 for completed in chat.completed)
    assert not chat.failed
