"""NATS as a hint: dials for ever, publishes without waiting, makes its stream and bucket whenever they are gone."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

import nats
import orjson
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription as NatsSubscription
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig, KeyValueConfig, RetentionPolicy, StorageType, StreamConfig, StreamInfo
from nats.js.errors import BucketNotFoundError, NotFoundError
from nats.js.kv import KeyValue
from prometheus_client import Gauge

from services.kit import nats_url
from services.kit.nats_url import Endpoint

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
# A request of JetStream, which a server that is just ending does not answer.
REQUEST_SECONDS = 2.0
DIAL_SECONDS = 5.0
FIRST_DIAL_WAIT_SECONDS = 0.1
LONGEST_DIAL_WAIT_SECONDS = 1.0
HANG_UP_SECONDS = 1.0
# How soon the loss of a connection is seen where nobody calls back.
LOOK_SECONDS = 0.5
MAX_ENDPOINTS = 32
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


class Subscription:
    """A plain subscription that outlives connections: each new one takes it over, until `unsubscribe`."""

    def __init__(
        self, subject: str, hear: Callable[[Msg], Awaitable[None]], forget: Callable[["Subscription"], None]
    ) -> None:
        self._subject, self._hear, self._forget = subject, hear, forget
        self.client: Client | None = None
        self._current: NatsSubscription | None = None
        self._is_over = False

    async def attach(self, client: Client) -> None:
        """Subscribe on this connection."""
        self.client = client
        current = await client.subscribe(self._subject, cb=self._hear)
        if self._is_over:
            await current.unsubscribe()
        elif self.client is client:
            self._current = current

    async def unsubscribe(self) -> None:
        """Hear no more, on this connection or a later one."""
        self._is_over = True
        self._forget(self)
        if self._current is not None:
            with suppress(nats.errors.Error):  # the connection went, and the subscription with it
                await self._current.unsubscribe()


class Bus:
    """A connection to NATS that is made again for ever, whatever ended it. Every method may be called while NATS is
    down: publishing then drops the hint.

    nats-py's own reconnection gives up for good when the server ends a connection by an error, such as a changed
    password, too many connections or a slow consumer. So it is off, and each connection is a new client.

    `url` may be several, comma separated; `replicas` is on how many servers of a cluster the streams are kept.
    """

    def __init__(self, url: str, *, name: str, replicas: int = 1) -> None:
        self.url, self._name, self._replicas = url, name, replicas
        self._endpoints = nats_url.parse(url)
        self.client = Client()
        self.js: JetStreamContext = self.client.jetstream()
        self._subscriptions: set[Subscription] = set()
        self._connecting: asyncio.Task[None] | None = None
        self._lost = asyncio.Event()
        self._listeners: list[Callable[[], None]] = []

    def on_connect(self, listener: Callable[[], None]) -> None:
        """Call this after each connection is made: the server may have been replaced by an empty one."""
        self._listeners.append(listener)

    def start(self) -> None:
        """Dial in the background; the process does not wait for NATS to start."""
        NATS_CONNECTED.set_function(lambda: float(self.connected))
        self._connecting = asyncio.create_task(self._keep_connected())

    @property
    def connected(self) -> bool:
        """Whether hints go out right now."""
        return self.client.is_connected

    async def _keep_connected(self) -> None:
        while True:
            client = await self._dial()
            # A server that ends each connection at once is not dialled without a pause, nor by all at the same moment.
            pause_seconds = FIRST_DIAL_WAIT_SECONDS * random.uniform(0.5, 1)
            try:
                while waiting := [one for one in self._subscriptions if one.client is not client]:
                    for subscription in waiting:
                        await subscription.attach(client)
            except nats.errors.Error:  # lost again already
                await _hang_up(client)
                await asyncio.sleep(pause_seconds)
                continue
            self.client, self.js = client, client.jetstream(timeout=REQUEST_SECONDS)
            log.info("nats_connected")
            for listener in self._listeners:
                listener()
            await self._until_lost(client)
            log.warning("nats_disconnected", reason=str(client.last_error or ""))
            await _hang_up(client)
            await asyncio.sleep(pause_seconds)

    async def _dial(self) -> Client:
        """A connected client, tried for ever, at one server after the other."""
        failures, told = 0, ""
        while True:
            endpoint = self._endpoints[failures % len(self._endpoints)]
            client = Client()
            try:
                async with asyncio.timeout(DIAL_SECONDS):
                    await self._connect(client, endpoint)
                if client.is_connected:
                    self._remember_cluster(client, endpoint)
                    return client
                reason = "no greeting"
            except Exception as error:
                reason = str(error) if isinstance(error, nats.errors.Error) else type(error).__name__
            except BaseException:
                await _hang_up(client)
                raise
            await _hang_up(client)
            if reason != told:
                log.warning("nats_unreachable", reason=reason)
                told = reason
            failures += 1
            longest = min(LONGEST_DIAL_WAIT_SECONDS, FIRST_DIAL_WAIT_SECONDS * 2 ** min(failures, 10))
            await asyncio.sleep(longest * random.uniform(0.5, 1))

    async def _connect(self, client: Client, endpoint: Endpoint) -> None:
        await client.connect(
            [endpoint.address],
            user=endpoint.user if endpoint.password is not None else None,
            password=endpoint.password,
            token=endpoint.user if endpoint.password is None else None,
            name=f"backendai-{self._name}",
            allow_reconnect=False,
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            connect_timeout=2,
            ping_interval=2,
            max_outstanding_pings=2,
            pending_size=8 * 1024 * 1024,
            # Of a publisher that finds the buffer full: a connection that takes nothing must not hold it up for ever.
            flush_timeout=2,
            error_cb=self._on_error,
            closed_cb=self._on_close,
        )

    def _remember_cluster(self, client: Client, endpoint: Endpoint) -> None:
        """Dial the other servers of a cluster too, once one has named them."""
        known = {one.address for one in self._endpoints}
        for server in client.discovered_servers:
            address = f"{server.scheme}://{server.netloc}"
            if address not in known and len(self._endpoints) < MAX_ENDPOINTS:
                self._endpoints.append(endpoint.beside(address))

    async def _until_lost(self, client: Client) -> None:
        """nats-py calls back late where the connection is stuck, so this looks by itself, too."""
        while client.is_connected:
            self._lost.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._lost.wait()

    async def _on_error(self, error: Exception) -> None:
        log.debug("nats_error", error=type(error).__name__)

    async def _on_close(self) -> None:
        self._lost.set()

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
        """Subscribe until it is unsubscribed; None while NATS is down."""
        if not self.connected:
            return None
        subscription = await self.listen(subject, hear)
        if self.client.is_connected:
            return subscription
        await subscription.unsubscribe()
        return None

    async def listen(self, subject: str, hear: Callable[[Msg], Awaitable[None]]) -> Subscription:
        """Subscribe now, or as soon as NATS is there."""
        subscription = Subscription(subject, hear, self._subscriptions.discard)
        self._subscriptions.add(subscription)
        if self.connected:
            with suppress(nats.errors.Error):  # lost: the next connection takes it over
                await subscription.attach(self.client)
        return subscription

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
            await subscription.unsubscribe()

    async def close(self) -> None:
        """Flush what can be flushed and hang up."""
        # asyncio.wait_for, which nats-py dials with, loses a cancellation that comes as it ends.
        while self._connecting is not None and not self._connecting.done():
            self._connecting.cancel()
            await asyncio.wait((self._connecting,), timeout=HANG_UP_SECONDS)
        if self.client.is_connected:
            await self.client.drain()


async def _hang_up(client: Client) -> None:
    """Let go of a connection that is over, or was never made."""
    with suppress(Exception):
        async with asyncio.timeout(HANG_UP_SECONDS):
            await client.close()


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
