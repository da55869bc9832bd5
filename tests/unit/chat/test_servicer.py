"""What runs bring over gRPC: kept without what Postgres can't store, refused where it could not be given out again."""

from typing import Any, cast
from uuid import UUID

import pytest
from backendai.billing.v1 import billing_pb2
from backendai.chat.v1 import chat_pb2 as pb

from services.chat.convert import task_to_proto
from services.chat.domain import SessionId, Task, TaskId, TaskState, TaskWarning
from services.chat.servicer import Context, TaskServicer
from services.kit.bus import events_subject
from services.kit.errors import InvalidArgument
from tests.unit.chat.conftest import Chat

NO_CONTEXT = cast("Context", None)
WARNINGS = [pb.TaskWarning(code="parameter_dropped", detail=name) for name in ("temperature", "top_p")]
CALLS = r'[{"id": "c\u0000", "type": "function", "function": {"name": "clock", "arguments": "{\"\\u0000\": 1}"}}]'


async def claimed(chat: Chat, tasks: TaskServicer, worker: str = "worker") -> pb.ClaimedTask:
    """A task of alice's, with its lease."""
    await chat.send((await chat.session()).id)
    (task,) = (await tasks.ClaimTasks(pb.ClaimTasksRequest(worker_id=worker, limit=1), NO_CONTEXT)).tasks
    return task


def step_of(task: pb.ClaimedTask, number: int = 1, **message: str) -> pb.RecordStepRequest:
    """A step that adds one message."""
    step = pb.Step(number=number, messages=[pb.Message(**{"role": "assistant", **message})])  # type: ignore[arg-type]
    return pb.RecordStepRequest(task_id=task.task_id, attempt=task.attempt, step=step)


async def test_an_answer_with_nul_everywhere_is_stored_without_it(chat: Chat) -> None:
    tasks = TaskServicer(chat.runs)
    task = await claimed(chat, tasks, "w\0")
    step = step_of(task, content="a\0b", tool_calls_json=CALLS)
    step.step.messages.add(role="tool", content="\0", tool_call_id="c\0")
    await tasks.RecordStep(step, NO_CONTEXT)
    end = pb.CompleteTaskRequest(
        task_id=task.task_id, attempt=task.attempt, content="Done.\0", finish_reason="st\0op", usage=billing_pb2.Usage()
    )
    await tasks.CompleteTask(end, NO_CONTEXT)
    stored = await chat.sql(
        "select content, tool_calls, tool_call_id, finish_reason from chat.messages where role <> 'user'"
        " order by sequence_number"
    )
    call = {"id": "c", "type": "function", "function": {"name": "clock", "arguments": r'{"\u0000": 1}'}}
    assert stored == [("ab", [call], None, None), ("", None, "c", None), ("Done.", None, None, "stop")]
    assert await chat.sql("select worker from chat.tasks") == [("w",)]


async def test_a_failure_with_nul_is_stored_without_it(chat: Chat) -> None:
    tasks = TaskServicer(chat.runs)
    task = await claimed(chat, tasks)
    end = pb.FailTaskRequest(task_id=task.task_id, attempt=task.attempt, error_code="poi\0son", error_detail="\0Bad.")
    await tasks.FailTask(end, NO_CONTEXT)
    assert await chat.sql("select state, error_code, error_detail from chat.tasks") == [
        (TaskState.FAILED, "poison", "Bad.")
    ]


async def task_of(chat: Chat, task: pb.ClaimedTask) -> Task:
    """The task as alice sees it."""
    return (await chat.turns.get_task(chat.alice, SessionId(UUID(task.session_id)), TaskId(UUID(task.task_id)))).task


@pytest.mark.parametrize("cancelled", [False, True])
async def test_the_warnings_of_a_run_are_kept_with_its_answer(chat: Chat, cancelled: bool) -> None:
    tasks = TaskServicer(chat.runs)
    task = await claimed(chat, tasks)
    assert (await task_of(chat, task)).warnings == []
    end = pb.CompleteTaskRequest(task_id=task.task_id, attempt=task.attempt, cancelled=cancelled, warnings=WARNINGS)
    await tasks.CompleteTask(end, NO_CONTEXT)
    await chat.settle()
    assert pb.TaskEvent.FromString(chat.bus.said[-1][1]).ended.warnings == WARNINGS
    assert task_to_proto(await task_of(chat, task)).warnings == WARNINGS


async def test_the_warnings_of_a_failed_run_are_kept(chat: Chat) -> None:
    tasks = TaskServicer(chat.runs)
    task = await claimed(chat, tasks)
    end = pb.FailTaskRequest(
        task_id=task.task_id, attempt=task.attempt, error_code="provider_rejected", warnings=WARNINGS
    )
    await tasks.FailTask(end, NO_CONTEXT)
    await chat.settle()
    assert pb.TaskEvent.FromString(chat.bus.said[-1][1]).ended.warnings == WARNINGS
    assert task_to_proto(await task_of(chat, task)).warnings == WARNINGS


async def test_a_run_that_reports_no_warnings_has_none(chat: Chat) -> None:
    tasks = TaskServicer(chat.runs)
    task = await claimed(chat, tasks)
    await tasks.CompleteTask(pb.CompleteTaskRequest(task_id=task.task_id, attempt=task.attempt), NO_CONTEXT)
    assert (await task_of(chat, task)).warnings == []


async def test_a_warning_with_nul_is_stored_without_it(chat: Chat) -> None:
    tasks = TaskServicer(chat.runs)
    task = await claimed(chat, tasks)
    warning = pb.TaskWarning(code="parameter\0_dropped", detail="top\0_p")
    end = pb.CompleteTaskRequest(task_id=task.task_id, attempt=task.attempt, warnings=[warning])
    await tasks.CompleteTask(end, NO_CONTEXT)
    assert (await task_of(chat, task)).warnings == [TaskWarning("parameter_dropped", "top_p")]


@pytest.mark.parametrize(
    ("field", "warnings"),
    [
        ("warnings", [pb.TaskWarning(code="parameter_dropped", detail=str(number)) for number in range(21)]),
        ("warnings.code", [pb.TaskWarning(detail="temperature")]),
        ("warnings.code", [pb.TaskWarning(code="\0")]),
        ("warnings.code", [pb.TaskWarning(code="c" * 65)]),
        ("warnings.detail", [pb.TaskWarning(code="parameter_dropped", detail="d" * 201)]),
    ],
    ids=["too many", "no code", "only NUL", "long code", "long detail"],
)
async def test_warnings_beyond_their_limits_are_refused_and_the_run_goes_on(
    chat: Chat, field: str, warnings: list[pb.TaskWarning]
) -> None:
    tasks = TaskServicer(chat.runs)
    task = await claimed(chat, tasks)
    ends = (
        tasks.CompleteTask(
            pb.CompleteTaskRequest(task_id=task.task_id, attempt=task.attempt, warnings=warnings), NO_CONTEXT
        ),
        tasks.FailTask(pb.FailTaskRequest(task_id=task.task_id, attempt=task.attempt, warnings=warnings), NO_CONTEXT),
    )
    for end in ends:
        with pytest.raises(InvalidArgument) as refusal:
            await end
        assert refusal.value.metadata["field"] == field
    assert (await task_of(chat, task)).state is TaskState.RUNNING


async def test_warnings_at_their_limits_are_kept(chat: Chat) -> None:
    tasks = TaskServicer(chat.runs)
    task = await claimed(chat, tasks)
    warnings = [pb.TaskWarning(code="c" * 64, detail="𝄞" * 200) for _ in range(20)]
    await tasks.CompleteTask(
        pb.CompleteTaskRequest(task_id=task.task_id, attempt=task.attempt, warnings=warnings), NO_CONTEXT
    )
    assert task_to_proto(await task_of(chat, task)).warnings == warnings


@pytest.mark.parametrize("last_event", [-1, -(2**63), 2**63 - 1])
async def test_a_run_that_miscounts_its_events_ends_and_is_told_and_paid(chat: Chat, last_event: int) -> None:
    tasks = TaskServicer(chat.runs)
    task = await claimed(chat, tasks)
    end = pb.CompleteTaskRequest(task_id=task.task_id, attempt=task.attempt, content="Done.", last_event=last_event)
    await tasks.CompleteTask(end, NO_CONTEXT)
    await chat.settle()
    subject, said = chat.bus.said[-1]
    assert subject == events_subject(task.task_id)
    assert pb.TaskEvent.FromString(said).seq > 0
    assert chat.billing.settled.keys() == {task.task_id}


@pytest.mark.parametrize(
    ("field", "message"),
    [
        *(
            ("step.messages.tool_calls_json", {"tool_calls_json": document})
            for document in (
                "{",
                "1",
                "{}",
                "[1]",
                "[NaN]",
                r'[{"a": "\ud800"}]',
                '[{"a": 1e300}]',
                "[" * 600 + "]" * 600,
            )
        ),
        ("step.messages.role", {"role": ""}),
        ("step.messages.role", {"role": "user"}),
        ("step.number", {"number": 0}),
    ],
)
async def test_a_step_that_could_not_be_stored_or_given_out_is_refused(
    chat: Chat, field: str, message: dict[str, Any]
) -> None:
    tasks = TaskServicer(chat.runs)
    task = await claimed(chat, tasks)
    with pytest.raises(InvalidArgument) as refusal:
        await tasks.RecordStep(step_of(task, **message), NO_CONTEXT)
    assert refusal.value.metadata["field"] == field
    assert await chat.sql("select steps from chat.tasks") == [([],)]
