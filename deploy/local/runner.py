"""Circus, told what this project wants of it: a dead child starts again with backoff, and children stop in an order.

Circus runs inside this process's event loop. Its control sockets stay inside the process too: nobody else can use them.
"""

import asyncio
import logging
import os
import shlex
import signal
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from circus.arbiter import Arbiter
from circus.watcher import Watcher
from tornado.ioloop import IOLoop

from deploy.local.output import Screen, say
from deploy.local.problem import Problem
from deploy.local.server import Command

CHECK_SECONDS = 0.25
FIRST_DELAY_SECONDS = 0.25
LONGEST_DELAY_SECONDS = 10.0
HEALTHY_SECONDS = 10.0  # who lived that long starts again without delay
HOPELESS_DEATHS = 5  # before the whole was ready


@dataclass(frozen=True)
class Child:
    """A process that is kept running. Children of a lower stage are stopped first.

    `port` is where it listens on loopback, if that tells that it is up.
    """

    name: str
    command: Command
    stage: int
    port: int | None = None
    grace_seconds: float = 2.8


class _Watcher(Watcher):  # type: ignore[misc]  # circus has no types
    """Keeps one child running: Circus itself would start a dying child again and again at once."""

    def __init__(self, child: Child, screen: Screen, deaths: Counter[str]) -> None:
        command = child.command
        super().__init__(
            child.name,
            shlex.quote(command.argv[0]),
            args=list(command.argv[1:]),
            env=dict(command.env),
            working_dir=str(command.folder),
            uid=command.user,
            stop_signal=command.stop_signal,
            graceful_timeout=child.grace_seconds,
            stdout_stream={"stream": screen},
            stderr_stream={"stream": screen},
        )
        self.stage = child.stage
        self._deaths = deaths
        self._started_at: float | None = None
        self._due_at: float | None = None
        self._delay_seconds = FIRST_DELAY_SECONDS

    def spawn_process(self, recovery_wid: int | None = None) -> Any:
        """Start the child, or put it off: Circus asks again at its next check."""
        now = time.monotonic()
        if self._started_at is not None and self._due_at is None:
            self._due_at = now + self._next_delay(lived_seconds=now - self._started_at)
        if self._due_at is not None and now < self._due_at:
            return True
        self._started_at, self._due_at = now, None
        return super().spawn_process(recovery_wid)

    def _next_delay(self, *, lived_seconds: float) -> float:
        self._deaths[self.name] += 1
        if lived_seconds >= HEALTHY_SECONDS:
            self._delay_seconds = FIRST_DELAY_SECONDS
        delay = self._delay_seconds
        self._delay_seconds = min(2 * delay, LONGEST_DELAY_SECONDS)
        return delay

    def reap_process(self, pid: int, status: int | None = None) -> None:
        """Print its last words and, unless it was asked to end, how it did."""
        process = self.processes.get(pid)
        if process is not None:
            self._drain(process)
            if not self.is_stopping():
                say(f"{self.name} ended {_how(process.returncode())} and is started again")
        super().reap_process(pid, status)

    def _drain(self, process: Any) -> None:
        """Circus closes the pipes of a dead child, unread, with its own readers still on them."""
        self.stream_redirector.remove_redirections(process)
        for name, pipe in (("stdout", process.stdout), ("stderr", process.stderr)):
            if not pipe.closed:
                os.set_blocking(pipe.fileno(), False)
                self.stdout_stream({"pid": process.pid, "name": name, "data": pipe.read() or b""})
        self.stdout_stream.close()


def _how(code: int) -> str:
    return f"by {signal.Signals(-code).name}" if code < 0 else f"with code {code}"


class _Arbiter(Arbiter):  # type: ignore[misc]  # circus has no types
    def reap_processes(self) -> None:
        """Collect the watchers' own dead: Circus would take the exit codes of every other child of this process too."""
        for watcher in self.watchers:
            for process in [] if watcher.is_stopped() else list(watcher.processes.values()):
                if not process.is_alive():
                    watcher.reap_process(process.pid)


class Runner:
    """Keeps children running from `add` to the end of its block, where it stops them stage by stage."""

    def __init__(self, *, verbose: bool = False) -> None:
        logging.getLogger("circus").setLevel(logging.CRITICAL if not verbose else logging.INFO)
        self._verbose = verbose
        self._deaths: Counter[str] = Counter()
        self._arbiter = _Arbiter(
            [], "inproc://control", "inproc://events", loop=IOLoop.current(), check_delay=CHECK_SECONDS, proc_name=None
        )
        self._arbiter.ctrl.sys_hdl.stop()  # the signals are ours

    async def add(self, child: Child) -> None:
        """Start a child."""
        watcher = _Watcher(child, Screen(child.name, verbose=self._verbose), self._deaths)
        watcher.initialize(self._arbiter.evpub_socket, self._arbiter.sockets, self._arbiter)
        await watcher._start()
        self._arbiter.watchers.append(watcher)

    def check_hope(self) -> None:
        """Raise a Problem when a child does nothing but die."""
        for name, deaths in self._deaths.items():
            if deaths >= HOPELESS_DEATHS:
                raise Problem(f"{name} keeps ending right after its start: what it said above tells why.")

    def kill(self) -> None:
        """End every child at once, for people who press Ctrl-C twice."""
        for watcher in self._arbiter.watchers:
            for process in list(watcher.processes.values()):
                process.send_signal(signal.SIGKILL)

    async def __aenter__(self) -> Self:
        await self._arbiter.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._arbiter.ctrl.caller.stop()
        for stage in sorted({watcher.stage for watcher in self._arbiter.watchers}):
            await self._stop(watcher for watcher in self._arbiter.watchers if watcher.stage == stage)
        self._arbiter.watchers.clear()
        self._arbiter.stop_controller_and_close_sockets()

    async def _stop(self, watchers: Iterable[_Watcher]) -> None:
        await asyncio.gather(*(watcher._stop(close_output_streams=True) for watcher in watchers))
