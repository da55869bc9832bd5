"""A server that runs from a wheel: it starts in a folder on a free port, tells its URL, and stops."""

import os
import random
import signal
import socket
import subprocess
import time
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from deploy.local.problem import Problem

LOOPBACK = "127.0.0.1"
# Below the ephemeral ranges of Linux and macOS: no outgoing connection takes the port while its server restarts.
PORTS = range(20_000, 32_000)
POLL_SECONDS = 0.02

_handed_out: set[int] = set()


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def listens(port: int) -> bool:
    """Whether somebody takes connections on a loopback port."""
    with socket.socket() as probe:
        return probe.connect_ex((LOOPBACK, port)) == 0


def is_healthy(port: int) -> bool:
    """Whether the HTTP server on a loopback port answers /health with 200. Asks it directly, whatever proxy is set."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"http://{LOOPBACK}:{port}/health", timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def free_port() -> int:
    """A loopback port that nobody listens on, another one at each call."""
    for port in random.sample(PORTS, k=200):
        if port not in _handed_out and is_free(LOOPBACK, port):
            _handed_out.add(port)
            return port
    raise Problem(
        f"No port between {PORTS.start} and {PORTS.stop} is free on {LOOPBACK}: end the programs that hold them."
    )


@dataclass(frozen=True)
class Command:
    """How a process is started and asked to end."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    folder: Path = Path()
    user: str | None = None
    stop_signal: signal.Signals = signal.SIGTERM

    def spawn(self, log: Path) -> "subprocess.Popen[bytes]":
        """Start it with its output in `log`, in a session of its own, where the terminal's Ctrl-C does not reach it."""
        with log.open("ab") as output:
            return subprocess.Popen(
                self.argv,
                env=dict(self.env),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                user=self.user,
                group=self.user,
                extra_groups=[] if self.user else None,
            )


class Server(ABC):
    """One embedded server. Used as a context manager it runs for the length of the block."""

    name: ClassVar[str]

    def __init__(self, folder: Path, *, port: int | None = None) -> None:
        self.folder = folder.resolve()
        self.port = port or free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    @abstractmethod
    def url(self) -> str:
        """Where its clients find it."""

    @property
    @abstractmethod
    def command(self) -> Command:
        """How it is started, once prepared."""

    @abstractmethod
    def is_ready(self) -> bool:
        """Whether it answers now."""

    def prepare(self) -> None:
        """Make what it needs on disk. Repeatable; ends what an earlier run of this folder left behind."""
        self.folder.mkdir(parents=True, exist_ok=True)

    def start(self, within_seconds: float = 30.0) -> str:
        """Run it, wait until it answers and return its URL."""
        self.prepare()
        deadline = time.monotonic() + within_seconds
        self._process = self.command.spawn(self.log)
        while not self.is_ready():
            if time.monotonic() > deadline:
                self.kill()
                raise Problem(f"{self.name} did not start within {within_seconds:g} s; {self.log} says why.")
            if self._process.poll() is not None:  # its crashed predecessor may still hold the folder: ask again
                time.sleep(5 * POLL_SECONDS)
                self._process = self.command.spawn(self.log)
            time.sleep(POLL_SECONDS)
        return self.url

    def stop(self, within_seconds: float = 10.0) -> None:
        """Ask it to end and wait; kill it past the time."""
        if self._process is None:
            return
        self._process.send_signal(self.command.stop_signal)
        try:
            self._process.wait(within_seconds)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None

    def kill(self) -> None:
        """End it as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @property
    def pid(self) -> int:
        """Of the running process."""
        if self._process is None:
            raise Problem(f"{self.name} does not run.")
        return self._process.pid

    @property
    def log(self) -> Path:
        """Where its output goes while `start` runs it."""
        return self.folder / "log"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def bare_environment() -> dict[str, str]:
    """What a server is told that takes its settings from its command line: nothing of the caller's own."""
    return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}
