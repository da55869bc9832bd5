"""The worker: claims what there is for its free slots, runs it, keeps the leases, reports the ends."""

import asyncio
import random
import time
from collections.abc import Mapping
from contextlib import suppress

import grpc
import structlog
from backendai.chat.v1 import chat_pb2
from nats.aio.msg import Msg

from services.agent.domain import Cancelled, End, Failed, Turn
from services.agent.errors import (
    FrameworkNotAvailable,
    LeaseLost,
    RunError,
)
from services.agent.events import Events
from services.agent.frameworks import Framework
from services.agent.metrics import LEASES_LOST, RUN_SECONDS, RUN_SLOTS, RUNS_RUNNING
from services.agent.providers import Provider
from services.agent.runs import Run, Stop
from services.agent.tasks import STATES, Progress, Tasks, status_entry
from services.agent.tools import Tools
from services.agent.wakeups import Wakeups
from services.common.providers.errors import ProviderError
from services.common.providers.retries import Retries
from services.kit import telemetry
from services.kit.bus import CANCEL_SUBJECT, JOBS_SUBJECT, Bus
from services.kit.errors import DomainError
from services.kit.logs import where
from services.kit.telemetry import TRACEPARENT, SpanKind

log = structlog.get_logger()

HEARTBEAT_SECONDS = 2.0
PROVIDER_TIMEOUT = "provider_timeout"
# Chat ends a task itself so long after its deadline; an end that could not be reported until then is dropped.
REPORT_SECONDS_AFTER_DEADLINE = 60.0
LONGEST_CLAIM_WAIT_SECONDS = 5.0
# Wake-ups of a claim that failed come again after so long, perhaps to an agent that reaches chat.
HAND_BACK_SECONDS = 1.0
# So often the agent looks whether NATS has lost what is kept there.
PREPARE_SECONDS = 10.0


class Worker:
    """Runs up to `slots` tasks at once."""

    def __init__(
        self,
        tasks: Tasks,
        bus: Bus,
        *,
        providers: Mapping[str, Provider],
        frameworks: Mapping[str, Framework],
        tools: Tools,
        slots: int,
        retries: Retries,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
    ) -> None:
        self._tasks, self._bus = tasks, bus
        self._providers, self._frameworks, self._tools, self._retries = providers, frameworks, tools, retries
        self._heartbeat_seconds = heartbeat_seconds
        self._wakeups = Wakeups(bus, slots=slots)
        self._running: set[asyncio.Task[None]] = set()
        RUN_SLOTS.set(slots)
        RUNS_RUNNING.set_function(lambda: len(self._running))
        self._runs: dict[str, Run] = {}
        self._connected = asyncio.Event()
        bus.on_connect(self._connected.set)
        self.leases_lost = 0
        """How many runs found out that another attempt had taken their place."""

    @property
    def is_ready(self) -> bool:
        """Whether work can come: wake-ups are asked for on a connection to NATS that stands."""
        return self._bus.connected and self._wakeups.is_pulling

    async def work(self, stop: asyncio.Event, *, drain_seconds: float) -> None:
        """Work until `stop`; then take nothing more and let the runs finish for that long.

        What is not finished then is left: its lease expires, and another agent goes on after the last kept step.
        """
        async with asyncio.TaskGroup() as group:
            pulling = group.create_task(self._wakeups.keep_pulling())
            claiming = group.create_task(self._keep_claiming(stop))
            beating = group.create_task(self._keep_beating())
            listening = group.create_task(self._keep_listening())
            await stop.wait()
            await self._wakeups.close()
            await claiming
            await self._drain(drain_seconds)
            for task in (pulling, beating, listening):
                task.cancel()

    async def _drain(self, seconds: float) -> None:
        if not self._running:
            return
        log.info("draining", runs=len(self._running))
        _, left = await asyncio.wait(self._running, timeout=seconds)
        for task in left:
            task.cancel()
        if left:
            log.warning("runs_left", runs=len(left))
            await asyncio.wait(left)

    # --- claim ---

    async def _keep_claiming(self, stop: asyncio.Event) -> None:
        failures = 0
        while (wakeups := await self._wakeups.next()) is not None:
            if await self._claim(wakeups):
                failures = 0
                continue
            failures += 1
            longest = min(LONGEST_CLAIM_WAIT_SECONDS, 0.1 * 2**failures)
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), random.uniform(longest / 2, longest))

    async def _claim(self, wakeups: list[Msg]) -> bool:
        """One claim for all that has come. A wake-up is forgotten as soon as chat has answered, whatever it said."""
        try:
            with telemetry.batch(f"receive {JOBS_SUBJECT}", list(map(_traceparent, wakeups)), SpanKind.CONSUMER):
                turns = await self._tasks.claim(len(wakeups))
        except (DomainError, grpc.aio.AioRpcError) as error:
            log.warning("claim_failed", error=_name(error))
            await self._wakeups.hand_back(wakeups, delay_seconds=HAND_BACK_SECONDS)
            self._wakeups.release(len(wakeups))
            return False
        for turn in turns:
            self._start(turn)
        await self._wakeups.acknowledge(wakeups)
        self._wakeups.release(len(wakeups) - len(turns))
        return True

    def _start(self, turn: Turn) -> None:
        task = asyncio.create_task(self._run(turn))
        self._running.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._wakeups.release(1)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("run_broke", **where(error))

    # --- run ---

    async def _run(self, turn: Turn) -> None:
        events = Events(self._bus.publish, turn.task_id, turn.attempt)
        run = Run(turn, self._providers, self._tools, events, self._tasks.keep_step, self._retries)
        if (older := self._runs.get(turn.task_id)) is not None:
            older.stop(Stop.LOST)
        self._runs[turn.task_id] = run
        started_at = time.monotonic()
        try:
            with telemetry.span("run", parent=turn.traceparent, attributes=_attributes(turn)) as span:
                await self._put_status(turn, chat_pb2.TASK_STATE_PROCESSING)
                end = await self._carry_out(run)
                if isinstance(end, Failed):
                    telemetry.fail(span, end.code)
                await events.flush()
                await self._report(run, end)
                _note_end(run, end, time.monotonic() - started_at)
        except LeaseLost:
            LEASES_LOST.inc()
            self.leases_lost += 1
            log.info("lease_lost", task_id=turn.task_id, attempt=turn.attempt)
        finally:
            if self._runs.get(turn.task_id) is run:
                del self._runs[turn.task_id]

    async def _carry_out(self, run: Run) -> End:
        """How the run ends. LeaseLost when nobody may know."""
        try:
            async with run.within(run.turn.deadline_at - time.time(), heeding=(Stop.CANCELLED, Stop.LOST)):
                await run.start_over()
                return await self._framework_of(run.turn).answer(run)
        except TimeoutError:
            return self._stopped(run)
        except (RunError, ProviderError) as error:
            return Failed(error.code, error.detail)
        except LeaseLost:
            raise
        except Exception as error:
            log.error("run_failed_inside", task_id=run.turn.task_id, **where(error))
            return Failed(RunError.code, RunError.detail)

    def _framework_of(self, turn: Turn) -> Framework:
        framework = self._frameworks.get(turn.settings.framework)
        if framework is None:
            raise FrameworkNotAvailable
        return framework

    def _stopped(self, run: Run) -> End:
        if run.stopped is Stop.LOST:
            raise LeaseLost
        if run.stopped is Stop.CANCELLED:
            return Cancelled(run.text)
        return Failed(PROVIDER_TIMEOUT, "The time for this turn was up.")

    async def _report(self, run: Run, end: End) -> None:
        """Tell chat, for as long as it takes chat to come back; it is chat that ends tasks nobody could report."""
        turn = run.turn
        patience_seconds = turn.deadline_at + REPORT_SECONDS_AFTER_DEADLINE - time.time()
        try:
            async with run.within(patience_seconds, heeding=(Stop.LOST,)):
                await self._tasks.end(turn, end, run.usage, last_event=run.events.last, warnings=run.warnings)
        except TimeoutError:
            if run.stopped is Stop.LOST:
                raise LeaseLost from None
            log.error("end_not_reported", task_id=turn.task_id, attempt=turn.attempt)
        except (DomainError, grpc.aio.AioRpcError) as error:
            log.error("end_refused", task_id=turn.task_id, attempt=turn.attempt, error=_name(error))
        else:
            await self._put_status(turn, STATES[type(end)])

    async def _put_status(self, turn: Turn, state: chat_pb2.TaskState.ValueType) -> None:
        await self._bus.put_status(turn.task_id, status_entry(turn, state))

    # --- heartbeats and cancels ---

    async def _keep_beating(self) -> None:
        while True:
            await asyncio.sleep(self._heartbeat_seconds)
            if self._runs:
                await self._beat(dict(self._runs))

    async def _beat(self, runs: Mapping[str, Run]) -> None:
        try:
            to_stop = await self._tasks.heartbeat([Progress(run.turn, run.text, run.usage) for run in runs.values()])
        except (DomainError, grpc.aio.AioRpcError) as error:
            log.warning("heartbeat_failed", runs=len(runs), error=_name(error))
            return
        for task_id in to_stop.lost:
            runs[task_id].stop(Stop.LOST)
        for task_id in to_stop.cancelled:
            runs[task_id].stop(Stop.CANCELLED)
        for task_id, run in runs.items():
            if self._runs.get(task_id) is run and task_id not in to_stop.lost:
                await self._put_status(run.turn, chat_pb2.TASK_STATE_PROCESSING)

    async def _keep_listening(self) -> None:
        """Listen for cancels, which heartbeats bring as well. After NATS was away, tell again what runs have told."""
        await self._bus.listen(CANCEL_SUBJECT, self._on_cancel)
        while True:
            if self._connected.is_set():
                self._connected.clear()
                await self._prepare_nats()
                for run in list(self._runs.values()):
                    await run.events.tell_again()
            elif self._bus.connected:
                await self._prepare_nats()
            with suppress(TimeoutError):
                async with asyncio.timeout(PREPARE_SECONDS):
                    await self._connected.wait()

    async def _prepare_nats(self) -> None:
        """Have the status bucket and the stream of events made where they are gone."""
        for prepare in (self._bus.ensure_status, self._bus.ensure_events):
            try:
                await prepare()
            except Exception as error:
                log.warning("nats_not_prepared", error=type(error).__name__)

    async def _on_cancel(self, message: Msg) -> None:
        run = self._runs.get(message.data.decode(errors="replace"))
        if run is not None:
            run.stop(Stop.CANCELLED)


def _name(error: DomainError | grpc.aio.AioRpcError) -> str:
    """What chat has answered, in a word."""
    return error.reason if isinstance(error, DomainError) else str(error.code().name)


def _traceparent(wakeup: Msg) -> str:
    return (wakeup.headers or {}).get(TRACEPARENT, "")


def _attributes(turn: Turn) -> dict[str, str | int]:
    return {
        "backendai.task_id": turn.task_id,
        "backendai.attempt": turn.attempt,
        "backendai.framework": turn.settings.framework,
    }


def _note_end(run: Run, end: End, seconds: float) -> None:
    turn, usage = run.turn, run.usage
    word = end.code if isinstance(end, Failed) else type(end).__name__.lower()
    RUN_SECONDS.labels(turn.settings.provider, turn.settings.framework, word).observe(seconds)
    log.info(
        "run_ended",
        task_id=turn.task_id,
        attempt=turn.attempt,
        end=word,
        provider=turn.settings.provider,
        model=turn.settings.model,
        framework=turn.settings.framework,
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        seconds=round(seconds, 3),
    )
