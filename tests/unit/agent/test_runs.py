"""Runs: what frameworks do with them, and the one layer that tries a provider again."""

import asyncio
import time
from typing import Any

import pytest
import structlog
from backendai.chat.v1.chat_pb2 import TaskEvent

from services.agent.domain import (
    MAX_WARNINGS,
    PARAMETER_DROPPED,
    Budget,
    Completed,
    Message,
    Settings,
    Step,
    TaskWarning,
    ToolCall,
    Turn,
    Usage,
)
from services.agent.errors import OutOfCredits
from services.agent.events import Events
from services.agent.providers import Provider
from services.agent.providers.openai import OpenAICompatible
from services.agent.runs import Run, Stop
from services.agent.tools import Tool, Tools
from services.common.providers.errors import ProviderError
from services.common.providers.retries import Retries
from services.kit.money import Tier
from tests.fakes.openai import FakeOpenAI, call_id
from tests.fakes.provider import Behaviour
from tests.unit.agent.conftest import FRAMEWORKS

QUESTION = Message("user", "What is 1 + 2?")
ADD_CALL = (("add", '{"a":1,"b":2}'),)
# 1 nano a token, in or out.
TIERS = (Tier(None, 1_000_000, 1_000_000),)
frameworks = pytest.mark.parametrize("framework", sorted(FRAMEWORKS))


class Stage:
    """A run of one turn, and all that can be seen of it."""

    def __init__(self, provider: Provider, *, retries: Retries, **turn: Any) -> None:
        self.events: list[TaskEvent] = []
        self.kept: list[Step] = []
        self.tool_calls: list[str] = []
        self.run = Run(
            a_turn(**turn),
            {"openai": provider, "google": provider},
            Tools(Tool("add", "Adds.", {"type": "object"}, self._add)),
            Events(self._publish, "task", turn.get("attempt", 1)),
            self._keep,
            retries,
        )

    async def _add(self, arguments: str) -> str:
        self.tool_calls.append(arguments)
        return "3"

    async def _publish(self, subject: str, payload: bytes) -> None:
        assert subject == "backendai.events.task"
        self.events.append(TaskEvent.FromString(payload))

    async def _keep(self, _: Turn, step: Step) -> None:
        self.kept.append(step)

    async def answer(self, framework: str = "none") -> Completed:
        await self.run.start_over()
        completed = await FRAMEWORKS[framework].answer(self.run)
        await self.run.events.flush()
        return completed

    @property
    def told(self) -> list[str]:
        """The events in short."""
        return [f"{event.WhichOneof('event')}:{event.delta}".rstrip(":") for event in self.events]


def a_turn(**fields: Any) -> Turn:
    defaults: dict[str, Any] = {
        "task_id": "task",
        "attempt": 1,
        "settings": Settings("openai", "gpt-4o-mini", "none"),
        "history": (QUESTION,),
        "steps": (),
        "budget": Budget(held_nano=10_000, tiers=TIERS, output_tokens=1_000),
        "deadline_at": time.time() + 60,
    }
    return Turn(**(defaults | fields))


def on_stage(provider: Provider, *, retries: Retries | None = None, **turn: Any) -> Stage:
    return Stage(provider, retries=retries or Retries(first_wait_seconds=0.01), **turn)


@frameworks
async def test_the_answer_of_the_model_is_the_answer(
    framework: str, openai: OpenAICompatible, openai_fake: FakeOpenAI
) -> None:
    stage = on_stage(openai)
    assert await stage.answer(framework) == Completed("The capital of France is Paris.", "stop")
    assert stage.run.usage == Usage(12, 6)
    assert "".join(event.delta for event in stage.events) == "The capital of France is Paris."


@frameworks
async def test_a_tool_is_called_and_its_result_told_to_the_model(
    framework: str, openai: OpenAICompatible, openai_fake: FakeOpenAI
) -> None:
    openai_fake.queue.append(Behaviour("Let me see.", tool_calls=ADD_CALL, output_tokens=5))
    openai_fake.default = Behaviour("It is 3.")
    stage = on_stage(openai)
    assert await stage.answer(framework) == Completed("It is 3.", "stop")
    assert stage.tool_calls == ['{"a":1,"b":2}']
    assert [message["role"] for message in openai_fake.requests[1].json["messages"]] == ["user", "assistant", "tool"]
    assert stage.told == ["delta:Let me see.", "tool_call", "tool_result", "delta:It is 3."]
    assert [event.seq for event in stage.events] == [1, 2, 3, 4]
    assert stage.run.usage == Usage(24, 8)


@frameworks
async def test_a_tool_round_is_kept_with_what_it_cost(
    framework: str, openai: OpenAICompatible, openai_fake: FakeOpenAI
) -> None:
    openai_fake.queue.append(Behaviour("Let me see.", tool_calls=ADD_CALL, output_tokens=5))
    stage = on_stage(openai)
    await stage.answer(framework)
    call = ToolCall(call_id(0), *ADD_CALL[0])
    messages = (Message("assistant", "Let me see.", (call,)), Message("tool", "3", tool_call_id=call.id))
    assert stage.kept == [Step(1, messages, Usage(12, 5))]


@frameworks
async def test_each_step_has_its_own_number_and_cost(
    framework: str, openai: OpenAICompatible, openai_fake: FakeOpenAI
) -> None:
    openai_fake.queue.append(Behaviour("", tool_calls=ADD_CALL, output_tokens=5))
    openai_fake.queue.append(Behaviour("", tool_calls=ADD_CALL, output_tokens=7))
    stage = on_stage(openai)
    await stage.answer(framework)
    assert [(step.number, step.usage) for step in stage.kept] == [(1, Usage(12, 5)), (2, Usage(12, 7))]
    assert stage.run.usage == Usage(36, 18)


@frameworks
async def test_a_later_attempt_goes_on_after_the_kept_steps(
    framework: str, openai: OpenAICompatible, openai_fake: FakeOpenAI
) -> None:
    call = ToolCall("c1", "add", '{"a":1,"b":2}')
    kept = Step(
        1, (Message("assistant", "Let me see.", (call,)), Message("tool", "3", tool_call_id="c1")), Usage(12, 5)
    )
    stage = on_stage(openai, attempt=2, steps=(kept,))
    openai_fake.default = Behaviour("It is 3.")
    assert (await stage.answer(framework)).content == "It is 3."
    assert stage.tool_calls == []
    [request] = openai_fake.requests
    assert [message["role"] for message in request.json["messages"]] == ["user", "assistant", "tool"]
    assert stage.run.usage == Usage(24, 8)
    assert stage.told == ["reset", "delta:Let me see.", "tool_call", "tool_result", "delta:It is 3."]
    assert {event.attempt for event in stage.events} == {2}


@frameworks
async def test_a_model_that_calls_tools_without_end_is_stopped(
    framework: str, openai: OpenAICompatible, openai_fake: FakeOpenAI
) -> None:
    openai_fake.default = Behaviour("", tool_calls=ADD_CALL)
    with pytest.raises(ProviderError, match="without end"):
        await on_stage(openai).answer(framework)


@frameworks
async def test_a_stopped_run_closes_the_providers_connection_and_keeps_its_text(
    framework: str, openai: OpenAICompatible, openai_fake: FakeOpenAI
) -> None:
    openai_fake.default = Behaviour(tokens=1_000, token_delay_ms=20)
    stage = on_stage(openai)

    async def work() -> None:
        async with stage.run.within(60, heeding=(Stop.CANCELLED,)):
            await stage.answer(framework)

    working = asyncio.create_task(work())
    await openai_fake.until(lambda: openai_fake.requests and openai_fake.requests[0].pieces_sent >= 2)
    stage.run.stop(Stop.CANCELLED)
    with pytest.raises(TimeoutError):
        await working
    await openai_fake.until(lambda: openai_fake.requests[0].closed_early)
    assert stage.run.text.startswith("word1 ")
    # The provider has not told its usage yet: 14 bytes of question, and what has come of the answer.
    assert stage.run.usage == Usage(4, -(-len(stage.run.text) // 4), estimated=True)


async def test_a_tool_that_fails_or_is_unknown_says_so_to_the_model(
    openai: OpenAICompatible, openai_fake: FakeOpenAI
) -> None:
    async def fail(_: str) -> str:
        raise OSError("a secret path")

    stage = on_stage(openai)
    stage.run._tools = Tools(Tool("fail", "Fails.", {"type": "object"}, fail))
    openai_fake.queue.append(Behaviour("", tool_calls=(("fail", "{}"), ("nothing", "{}"))))
    await stage.answer()
    results = [message["content"] for message in openai_fake.requests[1].json["messages"] if message["role"] == "tool"]
    assert results == ["The tool failed.", "There is no such tool."]


# --- money ---


async def test_no_usage_from_the_provider_is_estimated_from_bytes(
    openai: OpenAICompatible, openai_fake: FakeOpenAI
) -> None:
    openai_fake.default = Behaviour("Vierzehn Bytes", usage=False)
    stage = on_stage(openai)
    await stage.answer()
    assert stage.run.usage == Usage(4, 4, estimated=True)


@pytest.mark.parametrize(("session", "bought", "sent"), [(None, 1_000, 1_000), (50, 1_000, 50), (5_000, 1_000, 1_000)])
async def test_the_output_limit_is_the_lower_of_the_sessions_and_what_the_hold_buys(
    session: int | None, bought: int, sent: int, openai: OpenAICompatible, openai_fake: FakeOpenAI
) -> None:
    settings = Settings("openai", "gpt-4o-mini", "none", max_tokens=session)
    await on_stage(openai, settings=settings, budget=Budget(10_000, TIERS, bought)).answer()
    assert openai_fake.requests[0].json["max_completion_tokens"] == sent


async def test_a_further_step_is_limited_to_the_rest_of_the_hold(
    openai: OpenAICompatible, openai_fake: FakeOpenAI
) -> None:
    openai_fake.queue.append(Behaviour("", tool_calls=ADD_CALL, input_tokens=100, output_tokens=300))
    await on_stage(openai, budget=Budget(1_000, TIERS, 900)).answer()
    # 1,000 held, 400 spent; the second question is 14 + 3 + 13 + 1 bytes, 8 tokens.
    assert openai_fake.requests[1].json["max_completion_tokens"] == 592


@frameworks
async def test_a_further_step_that_the_hold_does_not_buy_is_not_begun(
    framework: str, openai: OpenAICompatible, openai_fake: FakeOpenAI
) -> None:
    openai_fake.queue.append(Behaviour("", tool_calls=ADD_CALL, input_tokens=100, output_tokens=800))
    stage = on_stage(openai, budget=Budget(1_000, TIERS, 900))
    with pytest.raises(OutOfCredits):
        await stage.answer(framework)
    assert len(openai_fake.requests) == 1
    assert stage.run.usage == Usage(100, 800)


# --- the one layer that tries again ---


@pytest.mark.parametrize("error", ["rate_limit", "server_error", "overloaded"])
async def test_a_passing_error_is_tried_again(error: str, openai: OpenAICompatible, openai_fake: FakeOpenAI) -> None:
    openai_fake.queue.extend([Behaviour(error=error)] * 2)
    assert (await on_stage(openai).answer()).content == "The capital of France is Paris."
    assert len(openai_fake.requests) == 3


@pytest.mark.parametrize("fault", ["cut", "hang_up", "error_event"])
async def test_a_connection_that_breaks_before_the_first_token_is_tried_again(
    fault: str, openai: OpenAICompatible, openai_fake: FakeOpenAI
) -> None:
    openai_fake.queue.append(Behaviour(fault=fault))
    stage = on_stage(openai)
    await stage.answer()
    assert len(openai_fake.requests) == 2
    assert stage.run.usage == Usage(12, 6)


async def test_it_is_tried_twice_more_and_then_given_up(openai: OpenAICompatible, openai_fake: FakeOpenAI) -> None:
    openai_fake.default = Behaviour(error="server_error")
    with pytest.raises(ProviderError, match="openai answered 500"):
        await on_stage(openai).answer()
    assert len(openai_fake.requests) == 3


@pytest.mark.parametrize("behaviour", [Behaviour(fault="cut", fault_after=2), Behaviour(fault="hang", fault_after=2)])
async def test_what_breaks_after_the_first_token_is_not_tried_again(
    behaviour: Behaviour, openai_fake: FakeOpenAI
) -> None:
    provider = OpenAICompatible("openai", api_key="key", base_url=openai_fake.url, idle_seconds=0.2)
    openai_fake.default = behaviour
    with pytest.raises(ProviderError):
        await on_stage(provider).answer()
    assert len(openai_fake.requests) == 1
    await provider.close()


@pytest.mark.parametrize(
    "behaviour",
    [
        *(Behaviour(error=error) for error in ("invalid_key", "bad_parameter", "context_too_long", "quota")),
        Behaviour(fault="malformed"),
        Behaviour("", finish_reason="content_filter"),
    ],
)
async def test_what_will_not_get_better_is_not_tried_again(
    behaviour: Behaviour, openai: OpenAICompatible, openai_fake: FakeOpenAI
) -> None:
    openai_fake.default = behaviour
    with pytest.raises(ProviderError):
        await on_stage(openai).answer()
    assert len(openai_fake.requests) == 1


async def test_the_provider_is_given_the_time_it_asks_for(openai: OpenAICompatible, openai_fake: FakeOpenAI) -> None:
    openai_fake.queue.append(Behaviour(error="rate_limit", retry_after="0.3"))
    started_at = time.monotonic()
    await on_stage(openai).answer()
    assert time.monotonic() - started_at >= 0.3


async def test_a_provider_that_asks_for_too_much_time_is_not_asked_again(
    openai: OpenAICompatible, openai_fake: FakeOpenAI
) -> None:
    openai_fake.default = Behaviour(error="rate_limit", retry_after="21")
    with pytest.raises(ProviderError):
        await on_stage(openai).answer()
    assert len(openai_fake.requests) == 1


async def test_a_filtered_answer_is_a_failure(openai: OpenAICompatible, openai_fake: FakeOpenAI) -> None:
    openai_fake.default = Behaviour("I", finish_reason="content_filter")
    with pytest.raises(ProviderError) as caught:
        await on_stage(openai).answer()
    assert caught.value.code == "content_filtered"


async def test_an_answer_cut_at_the_limit_is_an_answer(openai: OpenAICompatible, openai_fake: FakeOpenAI) -> None:
    openai_fake.default = Behaviour("Once upon", finish_reason="length")
    assert await on_stage(openai).answer() == Completed("Once upon", "length")


# --- events ---


async def test_what_comes_in_one_packet_is_one_event(openai: OpenAICompatible, openai_fake: FakeOpenAI) -> None:
    stage = on_stage(openai)
    await stage.answer()
    assert stage.told == ["delta:The capital of France is Paris."]


async def test_tokens_that_come_apart_are_events_apart(openai: OpenAICompatible, openai_fake: FakeOpenAI) -> None:
    openai_fake.default = Behaviour("a b c", token_delay_ms=30)
    stage = on_stage(openai)
    await stage.answer()
    assert stage.told == ["delta:a ", "delta:b ", "delta:c"]


async def test_tokens_that_come_close_together_are_joined(openai: OpenAICompatible, openai_fake: FakeOpenAI) -> None:
    openai_fake.default = Behaviour(tokens=60, token_delay_ms=0.5)
    stage = on_stage(openai)
    await stage.answer()
    assert len(stage.events) < 40
    assert "".join(event.delta for event in stage.events) == openai_fake.default.answer


async def test_text_that_can_not_be_stored_is_replaced(openai: OpenAICompatible, openai_fake: FakeOpenAI) -> None:
    openai_fake.default = Behaviour("a\0b")
    assert (await on_stage(openai).answer()).content == "a\ufffdb"


# --- warnings ---


async def test_a_warning_is_kept_in_order_and_logged_once(openai: OpenAICompatible) -> None:
    run = on_stage(openai).run
    with structlog.testing.capture_logs() as logs:
        for name in ("temperature", "top_p", "temperature"):
            run.warn(TaskWarning(PARAMETER_DROPPED, name))
    assert run.warnings == (TaskWarning(PARAMETER_DROPPED, "temperature"), TaskWarning(PARAMETER_DROPPED, "top_p"))
    entry = {"event": "task_warning", "log_level": "warning", "task_id": "task", "code": PARAMETER_DROPPED}
    assert logs == [{**entry, "detail": "temperature"}, {**entry, "detail": "top_p"}]


async def test_a_warning_is_cut_to_what_chat_takes(openai: OpenAICompatible) -> None:
    run = on_stage(openai).run
    run.warn(TaskWarning("c" * 65, "a\0\ud800" + "d" * 200))
    assert run.warnings == (TaskWarning("c" * 64, "a\ufffd\ufffd" + "d" * 197),)


async def test_warnings_above_the_limit_are_left_out(openai: OpenAICompatible) -> None:
    run = on_stage(openai).run
    warnings = [TaskWarning(PARAMETER_DROPPED, f"parameter {number}") for number in range(MAX_WARNINGS + 1)]
    with structlog.testing.capture_logs() as logs:
        for warning in warnings:
            run.warn(warning)
    assert run.warnings == tuple(warnings[:MAX_WARNINGS])
    assert len(logs) == MAX_WARNINGS
