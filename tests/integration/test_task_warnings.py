"""What a run had to do without is shown wherever its task is."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from services.agent.domain import PARAMETER_DROPPED, Completed, TaskWarning
from services.agent.frameworks.none import Plain
from services.agent.providers.openai import OpenAICompatible
from services.agent.runs import Run
from services.agent.tasks import Tasks
from services.agent.tools import Tools
from services.agent.worker import Worker
from services.common.providers.errors import ProviderRejected
from services.common.providers.retries import Retries
from services.kit.bus import Bus
from services.kit.grpc_client import dial
from services.kit.tls import Tls
from tests.integration.following import follow
from tests.integration.stack import Stack

NO_TEMPERATURE = {"code": "parameter_dropped", "detail": "temperature"}


class Warns(Plain):
    """A framework whose runs have a warning and fail when they are asked to."""

    async def answer(self, run: Run) -> Completed:
        """See Framework."""
        run.warn(TaskWarning(PARAMETER_DROPPED, "temperature"))
        if run.turn.history[-1].content == "Fail.":
            raise ProviderRejected
        return await super().answer(run)


@pytest.fixture(scope="module")
def without_agents(pair: Stack) -> Iterator[Stack]:
    """The pair while its own agents are down."""
    agents = pair.all_of("agent")
    for agent in agents:
        agent.stop()
    yield pair
    for agent in agents:
        agent.start()


@asynccontextmanager
async def agent_that_warns(stack: Stack) -> AsyncIterator[None]:
    """An agent in this process."""
    bus = Bus(stack.nats.url, name="agent")
    tls = Tls(stack.certificates / "agent") if stack.certificates is not None else None
    channel = dial(stack.targets["chat"], "chat", tls)
    provider = OpenAICompatible("openai", api_key="sk-integration", base_url=f"{stack.fakes['openai']}/v1")
    worker = Worker(
        Tasks(channel, "warns"),
        bus,
        providers={"openai": provider},
        frameworks={"none": Warns()},
        tools=Tools(),
        slots=4,
        retries=Retries(),
    )
    stop = asyncio.Event()
    bus.start()
    working = asyncio.create_task(worker.work(stop, drain_seconds=5))
    try:
        yield
    finally:
        stop.set()
        await working
        await bus.close()
        await channel.close(None)
        await provider.close()


async def test_the_warnings_of_a_run_are_in_its_answer_its_task_and_its_stream(without_agents: Stack) -> None:
    async with without_agents.user() as alice, agent_that_warns(without_agents):
        session = await alice.new_session(agent_framework="none")
        sent = await alice.say(session, "Hello?", Idempotency_Key="once")
        assert sent.status_code == 201, sent.text
        assert sent.json()["warnings"] == [NO_TEMPERATURE]
        repeated = await alice.say(session, "Hello?", Idempotency_Key="once")
        assert (repeated.status_code, repeated.json()) == (201, sent.json())
        assert (await alice.task(session, sent.json()["task_id"])).json()["warnings"] == [NO_TEMPERATURE]
        reader = await follow(alice, f"{alice.messages(session)}agent-task-status/{sent.json()['task_id']}/")
        assert reader.end is not None
        assert (reader.end.kind, reader.end.data["warnings"]) == ("completed", [NO_TEMPERATURE])


async def test_the_task_of_a_failed_run_has_its_warnings(without_agents: Stack) -> None:
    async with without_agents.user() as alice, agent_that_warns(without_agents):
        session = await alice.new_session(agent_framework="none")
        sent = await alice.say(session, "Fail.")
        assert (sent.status_code, sent.json()["code"]) == (502, "provider_rejected")
        task = (await alice.task(session, sent.json()["task_id"])).json()
        assert (task["status"], task["warnings"]) == ("failed", [NO_TEMPERATURE])
