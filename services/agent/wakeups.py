"""Wake-ups from the JetStream work queue, as many as there are free slots, whatever happens to the queue meanwhile.

One inbox takes the answers to all pull requests; a request asks for several wake-ups and waits at the server. That is
one request for several wake-ups, where nats-py's fetch makes two for each, waits for a whole batch, and stays deaf
after the server was replaced (nats.py #504). Silence, a status that ends requests, or a new connection make it begin
anew, and the stream and the consumer are made again where they are gone.
"""

import asyncio
import random
from collections.abc import Sequence

import nats.errors
import orjson
import structlog
from nats.aio.msg import Msg

from services.kit.bus import JOBS_CONSUMER, JOBS_STREAM, Bus

log = structlog.get_logger()

PULL_SUBJECT = f"$JS.API.CONSUMER.MSG.NEXT.{JOBS_STREAM}.{JOBS_CONSUMER}"
NANOSECONDS = 1_000_000_000
EXPIRES_SECONDS = 30
HEARTBEAT_SECONDS = 2
SILENCE_SECONDS = 2.5 * HEARTBEAT_SECONDS
LONGEST_WAIT_SECONDS = 2.0
MAX_CLAIM = 16  # tasks that chat gives at once

IDLE, NO_MESSAGES, EXPIRED = "100", "404", "408"


class _Broken(Exception):
    """The requests that were made are not answered any more."""


class Wakeups:
    """Pulls wake-ups while there are free slots. A wake-up takes its slot when it comes; `release` gives it back."""

    def __init__(self, bus: Bus, *, slots: int) -> None:
        self._bus, self._slots = bus, slots
        self._taken = 0
        self._asked_for = 0  # wake-ups that requests at the server still wait for
        self._arrived: list[Msg] = []
        self._news = asyncio.Event()  # something has arrived, or it is over
        self._attention = asyncio.Event()  # the puller has something to do
        self._broken = ""
        self._closed = False
        self._heard_at = 0.0
        self.is_pulling = False
        """Whether wake-ups are asked for and can come."""
        bus.on_connect(self._on_connect)

    async def next(self) -> list[Msg] | None:
        """Wake-ups that have come since the last call, one at least and a claim of them at most; None once closed."""
        while not self._arrived and not self._closed:
            self._news.clear()
            await self._news.wait()
        if self._closed:
            return None
        arrived, self._arrived = self._arrived[:MAX_CLAIM], self._arrived[MAX_CLAIM:]
        return arrived

    def release(self, slots: int) -> None:
        """So many slots are free again."""
        self._taken -= slots
        if self._should_ask():
            self._attention.set()

    async def acknowledge(self, wakeups: Sequence[Msg]) -> None:
        """Have them forgotten. Nobody waits for the server's word: a wake-up too many does no harm."""
        for wakeup in wakeups:
            await self._bus.publish(wakeup.reply, b"+ACK")

    async def hand_back(self, wakeups: Sequence[Msg], *, delay_seconds: float) -> None:
        """Have them delivered again, to whoever is free then."""
        nak = b"-NAK " + orjson.dumps({"delay": int(delay_seconds * NANOSECONDS)})
        for wakeup in wakeups:
            await self._bus.publish(wakeup.reply, nak)

    async def close(self) -> None:
        """Take no more, and hand back what has come and was not taken."""
        self._closed = True
        self._news.set()
        self._attention.set()
        await self.hand_back(self._arrived, delay_seconds=0)

    async def keep_pulling(self) -> None:
        """Pull until closed."""
        failures = 0
        loop = asyncio.get_running_loop()
        while not self._closed:
            started_at = loop.time()
            try:
                await self._pull()
            except _Broken as reason:
                log.info("wakeups_interrupted", reason=str(reason))
            except (nats.errors.Error, TimeoutError, OSError) as error:
                log.warning("wakeups_unavailable", error=type(error).__name__)
            failures = 0 if loop.time() - started_at > SILENCE_SECONDS else failures + 1
            await self._pause(min(LONGEST_WAIT_SECONDS, 0.01 * 2**failures) * random.uniform(0.5, 1))

    async def _pause(self, seconds: float) -> None:
        """Wait that long, or until NATS is connected again. Without a connection: until there is one."""
        self._attention.clear()
        if self._closed:
            return
        try:
            async with asyncio.timeout(seconds if self._bus.connected else None):
                await self._attention.wait()
        except TimeoutError:
            return

    async def _pull(self) -> None:
        """Make what is needed, listen, and ask, until closed or broken."""
        if not self._bus.connected:
            return
        self._broken = ""
        await self._bus.ensure_jobs()
        inbox = self._bus.client.new_inbox()
        subscription = await self._bus.subscribe(inbox, self._on_message)
        if subscription is None:
            raise _Broken("connection")
        self._asked_for = 0
        self.is_pulling = True
        log.info("wakeups_pulled", slots=self._slots)
        try:
            while not self._closed:
                await self._ask(inbox)
                await self._watch()
        finally:
            self.is_pulling = False
            await subscription.unsubscribe()

    def _should_ask(self) -> bool:
        """Not for every slot that comes free: for some at once, or when nothing waits at the server any more."""
        free = self._slots - self._taken - self._asked_for
        return free > 0 and (self._asked_for == 0 or free >= self._slots // 4)

    async def _ask(self, inbox: str) -> None:
        if not self._should_ask():
            return
        batch = self._slots - self._taken - self._asked_for
        if self._asked_for == 0:
            self._heard_at = asyncio.get_running_loop().time()
        self._asked_for += batch
        request = {
            "batch": batch,
            "expires": EXPIRES_SECONDS * NANOSECONDS,
            "idle_heartbeat": HEARTBEAT_SECONDS * NANOSECONDS,
        }
        await self._bus.client.publish(PULL_SUBJECT, orjson.dumps(request), inbox)

    async def _watch(self) -> None:
        """Wait until there is something to do; _Broken when the requests are not answered any more."""
        self._attention.clear()
        if not self._closed and not self._broken and not self._should_ask():
            try:
                async with asyncio.timeout(SILENCE_SECONDS):
                    await self._attention.wait()
            except TimeoutError:
                self._check_silence()
        if self._broken:
            raise _Broken(self._broken)

    def _check_silence(self) -> None:
        if self._asked_for > 0 and asyncio.get_running_loop().time() - self._heard_at > SILENCE_SECONDS:
            self._broken = "silence"

    async def _on_message(self, message: Msg) -> None:
        self._heard_at = asyncio.get_running_loop().time()
        status = message.headers.get("Status") if message.headers else None
        if status is None:
            await self._take(message)
        elif status in (EXPIRED, NO_MESSAGES):
            left = int((message.headers or {}).get("Nats-Pending-Messages", self._asked_for))
            self._asked_for = max(0, self._asked_for - left)
            self._attention.set()
        elif status != IDLE:
            # The consumer or the stream is gone, the server shuts down, nobody answers.
            self._broken = f"status {status} {(message.headers or {}).get('Description', '')}".strip()
            self._attention.set()

    async def _take(self, wakeup: Msg) -> None:
        if self._closed:
            await self.hand_back([wakeup], delay_seconds=0)
            return
        self._asked_for = max(0, self._asked_for - 1)
        self._taken += 1
        self._arrived.append(wakeup)
        self._news.set()

    def _on_connect(self) -> None:
        self._broken = "connection"
        self._attention.set()
