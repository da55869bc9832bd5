"""How late a token is, from the provider's socket to the client's, and how many streams one gateway carries.

    python -m tests.bench.streams first                 # the first delta, beside the provider's own SDK called directly
    python -m tests.bench.streams load                  # 200 streams at 10 tokens a second for a minute
    python -m tests.bench.streams raise --streams 500   # more and more of them, until it breaks

One process of each service on loopback; load generator and provider take their share of the same cores. Every token
carries the time at which it was sent. Everything stops by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import orjson
import psutil
import uvloop
from openai import AsyncOpenAI

from deploy.local.postgres import Postgres
from deploy.local.server import LOOPBACK, free_port, listens
from services.kit.postgres import migrations
from tests.integration.stack import ROOT, Stack

WORKSPACES = 8
AGENT_SLOTS = 100
FIRSTS = 200
RAISE_FROM, RAISE_BY, RAISE_SECONDS = 200, 100, 30
LATE_SECONDS = 0.3
OPENING_PER_SECOND = 25


@dataclass
class Seen:
    """What a client saw of one answer."""

    delays: list[float] = field(default_factory=list)
    stamps: list[int] = field(default_factory=list)
    places: list[tuple[int, int]] = field(default_factory=list)
    problem: str = ""

    @property
    def text(self) -> str:
        """The deltas' text."""
        return "".join(f"{stamp} " for stamp in self.stamps)

    def take_delta(self, text: str, now_ns: int) -> None:
        """A piece of the answer."""
        for stamp in map(int, text.split()):
            self.stamps.append(stamp)
            self.delays.append((now_ns - stamp) / 1e9)


@contextmanager
def stamping() -> Iterator[tuple[str, int]]:
    """The provider, in a process of its own; its base URL and the process."""
    port = free_port()
    argv = (sys.executable, "-m", "tests.bench.stamping", "--port", str(port))
    process = subprocess.Popen(argv, cwd=ROOT, start_new_session=True)
    try:
        while not listens(port):
            time.sleep(0.05)
        yield f"http://{LOOPBACK}:{port}/v1", process.pid
    finally:
        process.terminate()
        process.wait(10)


@contextmanager
def product(folder: Path, provider_url: str, streams: int) -> Iterator[Stack]:
    """The product, with as many agent slots as there are streams."""
    with Postgres(folder / "postgres") as postgres:
        url = postgres.create_database("bench")
        for service in ("billing", "chat"):
            migrations.upgrade(ROOT / "services" / service / "migrations", service, url)
        env = {
            "LOG_LEVEL": "warning",
            "BILLING_SIGNUP_CREDITS": "100000",
            "OPENAI_BASE_URL": provider_url,
            "AGENT_CONCURRENCY": str(AGENT_SLOTS),
        }
        with Stack(folder, url, agents=-(-streams // AGENT_SLOTS), env=env) as stack:
            yield stack


class Load:
    """Clients of the product."""

    def __init__(self, stack: Stack, http: aiohttp.ClientSession) -> None:
        self._stack, self._http = stack, http
        self._targets: list[tuple[str, str]] = []

    async def prepare(self, sessions: int) -> None:
        """So many sessions, in a few workspaces."""
        users = [self._stack.user(f"user{number}") for number in range(WORKSPACES)]
        for number in range(sessions - len(self._targets)):
            user = users[number % WORKSPACES]
            session = await user.new_session(agent_framework="none")
            self._targets.append((self._stack.gateway_urls[0] + user.messages(session), user.token))
        for user in users:
            await user.aclose()

    async def stream(self, number: int, question: str) -> Seen:
        """One answer, read as it comes."""
        url, token = self._targets[number]
        headers = {"Authorization": f"Bearer {token}", "Accept": "text/event-stream"}
        seen = Seen(problem="no end")
        async with self._http.post(url, json={"role": "user", "content": question}, headers=headers) as response:
            if response.status != 200:
                seen.problem = f"{response.status} {await response.text()}"
                return seen
            async for kind, place, data in _events(response):
                seen.places.append(place)
                if kind == "delta":
                    seen.take_delta(orjson.loads(data)["text"], time.monotonic_ns())
                elif kind == "completed":
                    stored = "".join(message["content"] for message in orjson.loads(data)["ai_messages"])
                    seen.problem = "" if stored == seen.text else "the text is not the stored one"
                elif kind != "message":
                    seen.problem = kind
        if seen.places != sorted(set(seen.places)):
            seen.problem = "out of order"
        return seen


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, tuple[int, int], bytes]]:
    rest = b""
    async for data in response.content.iter_any():
        *blocks, rest = (rest + data).split(b"\n\n")
        for block in blocks:
            if block.startswith(b"id: "):
                first, kind, payload = block.split(b"\n", 2)
                attempt, seq = first[4:].split(b".")
                yield kind[7:].decode(), (int(attempt), int(seq)), payload[6:]


def percentile(values: Sequence[float], percent: int) -> float:
    """In milliseconds."""
    return statistics.quantiles(values, n=100)[percent - 1] * 1_000


async def direct(client: AsyncOpenAI, question: str) -> float:
    """How late the first token is for a program that calls the SDK itself."""
    stream = await client.chat.completions.create(
        model="gpt-4o-mini", messages=[{"role": "user", "content": question}], stream=True
    )
    first = 0.0
    async for chunk in stream:
        if not first and chunk.choices and chunk.choices[0].delta.content:
            first = (time.monotonic_ns() - int(chunk.choices[0].delta.content)) / 1e9
    return first


async def measure_first(load: Load, provider_url: str) -> None:
    """One after the other, the two ways in turn."""
    question = "5 20 100"
    await load.prepare(8)
    client = AsyncOpenAI(api_key="sk-bench", base_url=provider_url, max_retries=0)
    ours, theirs = [], []
    for number in range(FIRSTS + 20):
        seen = await load.stream(number % 8, question)
        assert not seen.problem, seen.problem
        ours.append(seen.delays[0])
        theirs.append(await direct(client, question))
    await client.close()
    ours, theirs = ours[20:], theirs[20:]
    for name, values in (("product", ours), ("SDK", theirs)):
        print(f"{name:<8} first delta p50 {percentile(values, 50):6.2f} ms  p99 {percentile(values, 99):6.2f} ms")
    print(f"added at p50: {percentile(ours, 50) - percentile(theirs, 50):.2f} ms")


def involved(stack: Stack, provider_pid: int) -> dict[str, psutil.Process]:
    """Whoever takes a share of the cores, Postgres apart."""
    ours = {name: psutil.Process(process.pid) for name, process in stack.processes.items()}
    nats = next(child for child in psutil.Process().children() if child.name().startswith("nats"))
    return {**ours, "nats": nats, "provider": psutil.Process(provider_pid), "load generator": psutil.Process()}


async def measure_load(
    load: Load, processes: Mapping[str, psutil.Process], streams: int, per_second: float, seconds: float
) -> bool:
    """So many streams at once; whether all went well."""
    await load.prepare(streams)
    gateway = processes["gateway0"]
    idle, before = gateway.memory_info().rss, {name: sum(p.cpu_times()[:2]) for name, p in processes.items()}
    question = f"{round(seconds * per_second)} {round(1_000 / per_second)} 100"
    tasks = []
    for number in range(streams):
        tasks.append(asyncio.create_task(load.stream(number, question)))
        await asyncio.sleep(1 / OPENING_PER_SECOND)
    most = idle
    while not all(task.done() for task in tasks):
        most = max(most, gateway.memory_info().rss)
        await asyncio.sleep(0.5)
    seen = [task.result() for task in tasks]
    delays = [delay for one in seen for delay in one.delays]
    problems = [one.problem for one in seen if one.problem]
    p99 = percentile(delays, 99)
    print(
        f"{streams} streams, {per_second:g} tokens/s, {seconds:g} s: {len(delays)} tokens, {len(problems)} went wrong, "
        f"delay p50 {percentile(delays, 50):.1f} ms p99 {p99:.1f} ms max {max(delays) * 1_000:.0f} ms, "
        f"gateway {(most - idle) / streams / 1_024:.0f} KiB a stream ({idle >> 20} -> {most >> 20} MiB)"
    )
    elapsed = streams / OPENING_PER_SECOND + seconds
    shares = {name: (sum(p.cpu_times()[:2]) - before[name]) / elapsed for name, p in processes.items()}
    print("  % of a core: " + ", ".join(f"{name} {share:.0%}" for name, share in shares.items() if share > 0.01))
    for problem in sorted(set(problems)):
        print(f"  {problems.count(problem)} x {problem}")
    return not problems and p99 < LATE_SECONDS * 1_000


async def run(arguments: argparse.Namespace, folder: Path) -> None:
    """Measure what was asked for."""
    with stamping() as (provider_url, pid), product(folder, provider_url, arguments.streams) as stack:
        processes = involved(stack, pid)
        connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=None, sock_read=60)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as http:
            load = Load(stack, http)
            if arguments.what == "first":
                await measure_first(load, provider_url)
            elif arguments.what == "load":
                await measure_load(load, processes, arguments.streams, arguments.rate, arguments.seconds)
            else:
                for streams in range(RAISE_FROM, arguments.streams + 1, RAISE_BY):
                    if not await measure_load(load, processes, streams, arguments.rate, RAISE_SECONDS):
                        break


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("first", "load", "raise"))
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--rate", type=float, default=10.0, help="tokens a second of each stream")
    parser.add_argument("--seconds", type=float, default=60.0, help="of a load, at most 300")
    arguments = parser.parse_args()
    arguments.seconds = min(arguments.seconds, 300.0)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        uvloop.run(run(arguments, Path(folder)))


if __name__ == "__main__":
    main()
