"""NATS as a hint: dials for ever, publishes without waiting, makes its stream and bucket whenever they are gone."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

import nats
import orjson
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig, KeyValueConfig, RetentionPolicy, StorageType, StreamConfig, StreamInfo
from nats.js.errors import BucketNotFoundError, NotFoundError
from nats.js.kv import KeyValue
from prometheus_client import Gauge

log = structlog.get_logger()

JOBS_STREAM = "JOBS"
JOBS_SUBJECT = "backendai.jobs"
JOBS_CONSUMER = "agents"
STATUS_BUCKET = "backendai_tasks"
STATUS_TTL_SECONDS = 3_600
EVENTS_STREAM = "EVENTS"
EVENTS_SUBJECT = "backendai.events"
EVENTS_AGE_SECONDS = 3_600
EVENTS_BYTES = 128 * 1024 * 1024
# One page of a replay: what it may take of a reader's memory.
PAGE_EVENTS = 128
PAGE_BYTES = 64 * 1024
END_OF_PAGE, NOTHING_THERE = "204", "404"
CANCEL_SUBJECT = "backendai.cancel"
RECONNECT_WAIT_SECONDS = 0.5
MAX_PAYLOAD_BYTES = 900_000

# Here, and so told by those processes alone that have a bus.
NATS_CONNECTED = Gauge("backendai_nats_connected", "1 while the process is connected to NATS.")


def events_subject(task_id: str) -> str:
    """Where one task's events are published."""
    return f"{EVENTS_SUBJECT}.{task_id}"


@dataclass(frozen=True, slots=True)
class EventsPage:
    """Some of a task's stored events, oldest first; `next_start` is where the next page begins."""

    payloads: list[bytes]
    next_start: int
    is_last: bool


class Bus:
    """One connection. Every method may be called while NATS is down: publishing then drops the hint.

    `url` may be several, comma separated; `replicas` is on how many servers of a cluster the streams are kept.
    """

    def __init__(self, url: str, *, name: str, replicas: int = 1) -> None:
        self._url, self._name, self._replicas = url, name, replicas
        self.client = Client()
        self.js: JetStreamContext = self.client.jetstream()
        self._dialling: asyncio.Task[None] | None = None
        self._listeners: list[Callable[[], None]] = []
        self._closing = False

    def on_connect(self, listener: Callable[[], None]) -> None:
        """Call this after every connect and reconnect: the server may have been replaced by an empty one."""
        self._listeners.append(listener)

    def _tell_listeners(self) -> None:
        for listener in self._listeners:
            listener()

    def start(self) -> None:
        """Dial in the background; the process does not wait for NATS to start."""
        NATS_CONNECTED.set_function(lambda: float(self.connected))
        self._dialling = asyncio.create_task(self._dial())

    @property
    def connected(self) -> bool:
        """Whether hints go out right now."""
        return self.client.is_connected

    async def _dial(self) -> None:
        while True:
            try:
                await self.client.connect(
                    self._url.split(","),
                    name=f"backendai-{self._name}",
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=RECONNECT_WAIT_SECONDS,  # type: ignore[arg-type]  # a float works, and is wanted
                    connect_timeout=2,
                    ping_interval=5,
                    max_outstanding_pings=2,
                    # What is published between the loss of the connection and its notice; later hints are dropped.
                    pending_size=8 * 1024 * 1024,
                    error_cb=self._on_error,
                    disconnected_cb=self._on_disconnect,
                    reconnected_cb=self._on_reconnect,
                )
                log.info("nats_connected")
                self._tell_listeners()
                return
            except (TimeoutError, OSError, nats.errors.Error) as error:
                log.warning("nats_unreachable", error=type(error).__name__)
                await asyncio.sleep(RECONNECT_WAIT_SECONDS)

    async def _on_error(self, error: Exception) -> None:
        log.debug("nats_error", error=type(error).__name__)

    async def _on_disconnect(self) -> None:
        if not self._closing:
            log.warning("nats_disconnected")

    async def _on_reconnect(self) -> None:
        log.info("nats_reconnected")
        self._tell_listeners()

    async def publish(self, subject: str, payload: bytes = b"", *, headers: dict[str, str] | None = None) -> None:
        """Publish without waiting for any acknowledgement; dropped while NATS is down."""
        if not self.connected:
            return
        try:
            await self.client.publish(subject, payload, headers=headers or None)
        except nats.errors.Error as error:
            log.debug("nats_publish_failed", subject=subject, error=type(error).__name__)

    async def put_status(self, task_id: str, payload: bytes) -> None:
        """Write a task's entry of the status bucket, as a hint."""
        await self.publish(f"$KV.{STATUS_BUCKET}.{task_id}", payload)

    async def find_status(self, task_id: str, *, timeout_seconds: float) -> bytes | None:
        """A task's entry of the status bucket; None when there is none, or NATS does not tell it in time."""
        if not self.connected:
            return None
        subject = f"$JS.API.DIRECT.GET.KV_{STATUS_BUCKET}.$KV.{STATUS_BUCKET}.{task_id}"
        try:
            entry = await self.client.request(subject, timeout=timeout_seconds)
        except nats.errors.Error:
            return None
        return entry.data or None

    async def ensure_jobs(self) -> None:
        """Make the work queue and its consumer if they are missing."""
        await self._ensure_stream(
            StreamConfig(
                name=JOBS_STREAM,
                subjects=[JOBS_SUBJECT],
                retention=RetentionPolicy.WORK_QUEUE,
                storage=StorageType.FILE,
                max_age=3_600,
            )
        )
        try:
            await self.js.consumer_info(JOBS_STREAM, JOBS_CONSUMER)
        except NotFoundError:
            await self.js.add_consumer(
                JOBS_STREAM, ConsumerConfig(durable_name=JOBS_CONSUMER, ack_wait=10, max_ack_pending=10_000)
            )

    async def jobs_waiting(self) -> int:
        """Wake-ups that no agent has taken yet; 0 where there is no queue, or nobody tells."""
        if not self.connected:
            return 0
        try:
            return (await self.js.consumer_info(JOBS_STREAM, JOBS_CONSUMER)).num_pending or 0
        except (TimeoutError, nats.errors.Error):
            return 0

    async def ensure_status(self) -> KeyValue:
        """The status bucket, made if it is missing."""
        try:
            bucket = await self.js.key_value(STATUS_BUCKET)
        except (NotFoundError, BucketNotFoundError):
            bucket = await self.js.create_key_value(
                KeyValueConfig(bucket=STATUS_BUCKET, ttl=STATUS_TTL_SECONDS, storage=StorageType.MEMORY, direct=True)
            )
        await self._replicate(await self.js.stream_info(f"KV_{STATUS_BUCKET}"))
        return bucket

    async def subscribe(self, subject: str, hear: Callable[[Msg], Awaitable[None]]) -> Subscription | None:
        """A plain subscription, which survives reconnects; None while NATS is down."""
        if not self.connected:
            return None
        try:
            return await self.client.subscribe(subject, cb=hear)
        except nats.errors.Error:
            return None

    async def ensure_events(self) -> None:
        """Make the stream that keeps the tasks' events for a while, if it is missing: nobody acknowledges anything."""
        await self._ensure_stream(
            StreamConfig(
                name=EVENTS_STREAM,
                subjects=[f"{EVENTS_SUBJECT}.*"],
                storage=StorageType.MEMORY,
                max_age=EVENTS_AGE_SECONDS,
                max_bytes=EVENTS_BYTES,
                no_ack=True,
                allow_direct=True,
            )
        )

    async def _ensure_stream(self, config: StreamConfig) -> None:
        try:
            stream = await self.js.stream_info(str(config.name))
        except NotFoundError:
            stream = await self.js.add_stream(config)
        await self._replicate(stream)

    async def _replicate(self, stream: StreamInfo) -> None:
        """Have a stream kept as often as was asked for. Where that can't be, because the cluster is not as large or not
        all there, it works with what it has; the next look tries again.
        """
        if stream.config.num_replicas == self._replicas:
            return
        try:
            await self.js.update_stream(stream.config.evolve(num_replicas=self._replicas))
        except (TimeoutError, nats.errors.Error) as error:
            log.warning("stream_not_replicated", stream=stream.config.name, replicas=self._replicas, error=str(error))

    async def read_events(self, task_id: str, start: int | datetime, *, timeout_seconds: float) -> EventsPage | None:
        """Stored events of a task, from a place in the stream (the first is 1) or a moment on.

        One request and no consumer. None when NATS does not tell in time, or has no stream of events.
        """
        if not self.connected:
            return None
        page = _Page()
        where: dict[str, object] = {"seq": start} if isinstance(start, int) else {"start_time": _rfc3339(start)}
        request = {**where, "next_by_subj": events_subject(task_id), "batch": PAGE_EVENTS, "max_bytes": PAGE_BYTES}
        inbox = self.client.new_inbox()
        subscription = await self.subscribe(inbox, page.hear)
        if subscription is None:
            return None
        try:
            await self.client.publish(f"$JS.API.DIRECT.GET.{EVENTS_STREAM}", orjson.dumps(request), inbox)
            async with asyncio.timeout(timeout_seconds):
                return await page.whole
        except (TimeoutError, nats.errors.Error):
            return None
        finally:
            with suppress(nats.errors.Error):
                await subscription.unsubscribe()

    async def close(self) -> None:
        """Flush what can be flushed and hang up."""
        self._closing = True
        if self._dialling is not None:
            self._dialling.cancel()
        if self.client.is_connected:
            await self.client.drain()


class _Page:
    """Puts the answers to one request for stored messages together."""

    def __init__(self) -> None:
        self.whole: asyncio.Future[EventsPage | None] = asyncio.get_running_loop().create_future()
        self._payloads: list[bytes] = []
        self._last = 0

    async def hear(self, message: Msg) -> None:
        """Take an answer; the last one is a status."""
        headers = message.headers or {}
        status = headers.get("Status")
        if status is None:
            self._payloads.append(message.data)
            self._last = int(headers["Nats-Sequence"])
        elif not self.whole.done():
            self.whole.set_result(self._page(status, headers))

    def _page(self, status: str, headers: dict[str, str]) -> EventsPage | None:
        if status not in (END_OF_PAGE, NOTHING_THERE):
            return None
        return EventsPage(self._payloads, self._last + 1, is_last=int(headers.get("Nats-Num-Pending", 0)) == 0)


def _rfc3339(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat()
