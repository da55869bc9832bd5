"""The data directory: one runner at a time, the secrets it made, the demonstration's workspace."""

import fcntl
import json
import os
import secrets
import shutil
import signal
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from deploy.local.files import write_private
from deploy.local.problem import Problem

RUNNER_VARIABLE = "BACKENDAI_DATA_DIR"  # in the environment of every process the runner starts
NEEDED_BYTES = 300 * 1024 * 1024
ORPHAN_SECONDS = 5.0


class DataDirectory:
    """What survives a restart, apart from the servers' own files."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def held(self) -> Iterator[None]:
        """Make it and hold it, so that no second runner takes it; the kernel lets go when this process dies."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / "lock").open("a")
        except OSError as error:
            raise Problem(
                f"The data directory {self.path} can't be written ({error.strerror}): set DATA_DIR to another."
            ) from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Problem(
                    f"Another make up runs on {self.path}: "
                    "stop it first, or set DATA_DIR and GATEWAY_PORT for a second one."
                ) from error
            yield

    def check_space(self) -> None:
        """Refuse to start what would soon fail half-way."""
        free = shutil.disk_usage(self.path).free
        if free < NEEDED_BYTES:
            raise Problem(
                f"{self.path} has {free // 2**20} MB free and {NEEDED_BYTES // 2**20} MB are needed: "
                "make room, or set DATA_DIR to another disk."
            )

    def end_orphans(self) -> int:
        """End what a killed runner of this directory left behind, and return how many processes that were."""
        orphans = [process for process in psutil.process_iter() if self._is_ours(process)]
        for process in orphans:
            _signal(process, signal.SIGTERM)
        _gone, alive = psutil.wait_procs(orphans, timeout=ORPHAN_SECONDS)
        for process in alive:
            _signal(process, signal.SIGKILL)
        psutil.wait_procs(alive, timeout=ORPHAN_SECONDS)
        return len(orphans)

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            marked = process.environ().get(RUNNER_VARIABLE) == str(self.path)
        except (psutil.Error, OSError):
            return False
        return marked and process.pid != os.getpid()

    def secret(self, name: str) -> str:
        """A secret of that name: made at the first call, the same ever after."""
        file = self.path / f"{name}.secret"
        if not file.exists():
            write_private(file, secrets.token_urlsafe(48))
        return file.read_text()

    @property
    def demo_workspace(self) -> uuid.UUID:
        """The workspace of the banner and of `make token`."""
        known = self._demo().get("workspace_id")
        if known is None:
            known = str(uuid.uuid4())
            self._write_demo(workspace_id=known)
        return uuid.UUID(known)

    @property
    def demo_session(self) -> str | None:
        """The session that an earlier banner named."""
        return self._demo().get("session_id")

    @demo_session.setter
    def demo_session(self, session_id: str) -> None:
        self._write_demo(session_id=session_id)

    def _demo(self) -> dict[str, str]:
        try:
            known: dict[str, str] = json.loads((self.path / "demo.json").read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return known

    def _write_demo(self, **values: str) -> None:
        write_private(self.path / "demo.json", json.dumps({**self._demo(), **values}))


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)
