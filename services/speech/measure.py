"""How long a file sounds, as a bounded child process finds by decoding it."""

from __future__ import annotations

import asyncio
import json
import math
import os
import sys
from typing import Any

import structlog

from services.kit.errors import Unavailable
from services.kit.spool import Spool
from services.speech.errors import AudioUndecodable
from services.speech.formats import Format

log = structlog.get_logger()

PROGRAM = "services.speech.decoder"
MILLISECONDS = 1_000


class Decoders:
    """At most so many children at a time; the others wait."""

    def __init__(self, count: int, *, timeout_seconds: float) -> None:
        self._places = asyncio.Semaphore(count)
        self._timeout_seconds = timeout_seconds

    async def measure(self, spool: Spool, format: Format, *, max_seconds: float) -> float:
        """The seconds of sound, rounded up to a millisecond; infinity for more than `max_seconds`.

        Raises AudioUndecodable, or Unavailable when this machine is too busy to tell in time.
        """
        async with self._places:
            try:
                async with asyncio.timeout(self._timeout_seconds):
                    status, said = await _run(spool, format, max_seconds)
            except TimeoutError:
                log.warning("decoder_too_slow", size=spool.size, format=format.name)
                raise Unavailable from None
        return _seconds(status, said)


async def _run(spool: Spool, format: Format, max_seconds: float) -> tuple[int, bytes]:
    """The child's exit status and what it printed. It does not outlive this call."""
    number = spool.fileno()
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", PROGRAM, str(number), format.name, str(spool.size), str(max_seconds)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        pass_fds=(number,),
        env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    try:
        said, _ = await child.communicate()
    finally:
        if child.returncode is None:
            child.kill()
            await asyncio.shield(child.wait())
    status = child.returncode
    return (status if status is not None else -1), said


def _seconds(status: int, said: bytes) -> float:
    """What the child found. One that was killed, by its bounds or by what it read, has found nothing."""
    if status > 0:
        raise RuntimeError(f"{PROGRAM} ended with {status}")
    told: dict[str, Any] = (
        json.loads(said) if status == 0 else {"refused": "undecodable", "because": f"signal {-status}"}
    )
    if told.get("refused") == "too_long":
        return math.inf
    if "refused" in told:
        log.info("audio_undecodable", because=told["because"])
        raise AudioUndecodable
    seconds: float = told["seconds"]
    return math.ceil(round(seconds * MILLISECONDS, 6)) / MILLISECONDS
