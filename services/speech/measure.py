"""How long a file sounds, as a bounded child process finds by decoding it."""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import structlog

from services.kit.errors import Unavailable
from services.kit.spool import Spool
from services.speech.errors import AudioUndecodable
from services.speech.formats import Format

log = structlog.get_logger()

PROGRAM = "services.speech.decoder"
MILLISECONDS = 1_000
# Such as the kernel, when the machine has no memory left.
ENDED_BY_OTHERS = (-signal.SIGKILL, -signal.SIGTERM)


class Decoders:
    """At most so many children at a time; the others wait."""

    def __init__(self, count: int, *, timeout_seconds: float) -> None:
        self._places = asyncio.Semaphore(count)
        self._watchers = ThreadPoolExecutor(count, "decoder")
        self._timeout_seconds = timeout_seconds

    async def measure(self, spool: Spool, format: Format, *, max_seconds: float) -> float:
        """The seconds of sound, rounded up to a millisecond; infinity for more than `max_seconds`.

        Raises AudioUndecodable, or Unavailable when this machine is too busy to tell in time.
        """
        async with self._places:
            try:
                async with asyncio.timeout(self._timeout_seconds):
                    status, said = await self._run(spool, format, max_seconds)
            except TimeoutError:
                log.warning("decoder_too_slow", size=spool.size, format=format.name)
                raise Unavailable from None
        return _seconds(status, said)

    async def _run(self, spool: Spool, format: Format, max_seconds: float) -> tuple[int, bytes]:
        """The child's exit status and what it printed. It does not outlive this call."""
        try:
            child = _spawn(spool.fileno(), format.name, str(spool.size), str(max_seconds))
        except OSError as error:  # too many processes, no memory
            log.error("decoder_not_started", errno=error.errno)
            raise Unavailable from error
        try:
            said, _ = await asyncio.get_running_loop().run_in_executor(self._watchers, child.communicate)
            return child.returncode, said
        finally:
            child.kill()


def _spawn(number: int, *arguments: str) -> subprocess.Popen[bytes]:
    """A child that inherits one file and knows nothing else.

    Not asyncio's: uvloop forks this process, and gRPC begins its threads anew in the fork, where one of them may crash
    before the decoder is even loaded. This child is made by vfork, which nobody is told of.
    """
    return subprocess.Popen(  # noqa: S603  # this very Python, and no word of a stranger's
        (sys.executable, "-m", PROGRAM, str(number), *arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        pass_fds=(number,),
        env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )


def _seconds(status: int, said: bytes) -> float:
    """What the child found. One that ended by a signal of its own making has found nothing that can be decoded."""
    if status in ENDED_BY_OTHERS:
        log.warning("decoder_killed", signal=-status)
        raise Unavailable
    if status > 0:
        raise RuntimeError(f"{PROGRAM} ended with {status}")
    fault = {"refused": "undecodable", "because": f"signal {-status}"}
    told: dict[str, Any] = json.loads(said) if status == 0 else fault
    if told.get("refused") == "too_long":
        return math.inf
    if told.get("refused") == "codec":
        log.info("audio_undecodable", because=told["because"])
        raise AudioUndecodable(f"Providers don't decode sound that is coded as {told['because']}.")
    if "refused" in told:
        log.info("audio_undecodable", because=told["because"])
        raise AudioUndecodable
    seconds: float = told["seconds"]
    return math.ceil(round(seconds * MILLISECONDS, 6)) / MILLISECONDS
