"""Turns per second and their latency over REST, beside a rival on the same machine, cores and provider fake.

    python -m tests.bench.turns                                  # this product
    python -m tests.bench.turns --litellm /path/to/bin/litellm   # and the LiteLLM proxy: two workers, no database
    python -m tests.bench.turns --mutual-tls --traced            # as the production overlay runs it
    python -m tests.bench.turns --tokens 300 --token-delay-ms 10 --connections 64   # answers as models write them

Everything runs on loopback and stops by itself. What is compared are figures of one run: machines differ.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import psutil
import psycopg
import uvloop

from deploy.local.postgres import Postgres
from deploy.local.server import LOOPBACK, free_port
from services.kit.postgres import migrations
from tests.fakes.collector import Collector
from tests.integration.stack import ROOT, Stack

SESSIONS, WORKSPACES, MAX_CONNECTIONS = 200, 8, 100
WARM_UP_TURNS = 200
QUESTION = "What is the capital of France?"
LITELLM_KEY = "sk-litellm-of-a-benchmark-on-loopback-0123456789"
LITELLM_START_SECONDS = 90.0

Turn = Callable[[int], Awaitable[None]]


@dataclass(frozen=True)
class Figures:
    """What one measurement found."""

    name: str
    connections: int
    per_second: float
    p50_ms: float
    p99_ms: float
    cpu_ms: Mapping[str, float]
    """CPU a turn, by part."""

    def __str__(self) -> str:
        shares = ", ".join(f"{part} {ms:.1f}" for part, ms in self.cpu_ms.items())
        return (
            f"{self.name:<10} {self.connections:>3} connections  {self.per_second:7.1f}/s  p50 {self.p50_ms:7.1f} ms  "
            f"p99 {self.p99_ms:7.1f} ms  {sum(self.cpu_ms.values()):5.1f} ms of CPU a turn ({shares})"
        )


async def measure(name: str, turn: Turn, *, connections: int, seconds: float, pids: Mapping[str, int]) -> Figures:
    """Keep so many connections busy for so long. `turn` gets the connection's number."""
    took: list[float] = []
    stop_at = time.perf_counter() + seconds

    async def keep_busy(connection: int) -> None:
        while time.perf_counter() < stop_at:
            started = time.perf_counter()
            await turn(connection)
            took.append(time.perf_counter() - started)

    before, started = _cpu_seconds(pids), time.perf_counter()
    await asyncio.gather(*(keep_busy(connection) for connection in range(connections)))
    elapsed = time.perf_counter() - started
    after = _cpu_seconds(pids)
    percentiles = statistics.quantiles(took, n=100)
    return Figures(
        name,
        connections,
        len(took) / elapsed,
        percentiles[49] * 1_000,
        percentiles[98] * 1_000,
        {part: (after[part] - before[part]) / len(took) * 1_000 for part in pids},
    )


def _cpu_seconds(pids: Mapping[str, int]) -> dict[str, float]:
    """What each part has used; its children that have ended count, too."""
    return {part: sum(_cpu_of(process) for process in _family(pid)) for part, pid in pids.items()}


def _family(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def _cpu_of(process: psutil.Process) -> float:
    try:
        return float(sum(process.cpu_times()[:4]))
    except psutil.NoSuchProcess:
        return 0.0


@dataclass(frozen=True)
class Product:
    """The running product."""

    stack: Stack
    postgres: Postgres
    database_url: str

    @property
    def pids(self) -> dict[str, int]:
        """Its parts, the servers it leans on included; speech and translate have nothing to do."""
        own = {name: self.stack[f"{name}0"].pid for name in ("gateway", "chat", "billing", "agent")}
        return {**own, "postgres": self.postgres.pid, "nats": self.stack.nats.pid}

    def stored_bytes(self) -> int:
        """The size of the database, indexes included."""
        with psycopg.connect(self.database_url) as connection:
            (size,) = connection.execute("select pg_database_size(current_database())").fetchone() or (0,)
            return int(size)

    def print_memory(self) -> None:
        """What each process takes now."""
        sizes = {part: psutil.Process(pid).memory_info().rss / 2**20 for part, pid in self.pids.items()}
        print("memory     " + ", ".join(f"{part} {size:.0f} MiB" for part, size in sizes.items()))


@contextmanager
def product(folder: Path, *, mutual_tls: bool, traced: float | None) -> Iterator[Product]:
    """The product on a durable Postgres, one process of each service."""
    with Postgres(folder / "postgres") as postgres, Collector() as collector:
        url = postgres.create_database("bench")
        for service in ("billing", "chat"):
            migrations.upgrade(ROOT / "services" / service / "migrations", service, url)
        env = {"LOG_LEVEL": "warning", "BILLING_SIGNUP_CREDITS": "1000"}
        if traced is not None:
            env |= {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_TRACES_SAMPLER_ARG": str(traced)}
        with Stack(folder, url, mutual_tls=mutual_tls, env=env) as stack:
            yield Product(stack, postgres, url)


async def product_turn(stack: Stack, http: aiohttp.ClientSession, workspaces: int) -> Turn:
    """A sync send; each connection walks its own sessions."""
    users = [stack.user(f"user{number}") for number in range(workspaces)]
    targets = []
    for number in range(SESSIONS):
        user = users[number % workspaces]
        targets.append((stack.gateway_urls[0] + user.messages(await user.new_session()), user.token))
    for user in users:
        await user.aclose()
    walks = [itertools.cycle(targets[start::MAX_CONNECTIONS]) for start in range(MAX_CONNECTIONS)]

    async def turn(connection: int) -> None:
        url, token = next(walks[connection])
        body = {"role": "user", "content": QUESTION}
        async with http.post(url, json=body, headers={"Authorization": f"Bearer {token}"}) as response:
            assert response.status == 201, await response.text()
            await response.read()

    return turn


@contextmanager
def litellm(binary: str, openai_url: str, folder: Path) -> Iterator[tuple[str, int]]:
    """LiteLLM's proxy with two workers in front of the same fake; its URL and process."""
    config = folder / "litellm.yaml"
    config.write_text(
        "model_list:\n"
        "  - model_name: fake\n"
        f"    litellm_params: {{model: openai/gpt-4o-mini, api_base: '{openai_url}/v1', api_key: sk-bench}}\n"
        f"general_settings: {{master_key: '{LITELLM_KEY}'}}\n"
    )
    port = free_port()
    argv = [binary, "--config", str(config), "--host", LOOPBACK, "--port", str(port), "--num_workers", "2"]
    env = {"PATH": f"{Path(binary).parent}:{os.defpath}", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "HOME": str(folder)}
    with (folder / "litellm.log").open("wb") as log:
        process = subprocess.Popen(argv, env=env, stdout=log, stderr=log, start_new_session=True)
        try:
            yield f"http://{LOOPBACK}:{port}", process.pid
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(20)


async def litellm_turn(url: str, http: aiohttp.ClientSession) -> Turn:
    """A chat completion, once the proxy answers."""
    headers = {"Authorization": f"Bearer {LITELLM_KEY}"}
    body = {"model": "fake", "messages": [{"role": "user", "content": QUESTION}]}

    async def turn(_connection: int) -> None:
        async with http.post(f"{url}/v1/chat/completions", json=body, headers=headers) as response:
            assert response.status == 200, await response.text()
            await response.read()

    deadline = time.monotonic() + LITELLM_START_SECONDS
    while True:
        try:
            await turn(0)
            return turn
        except (aiohttp.ClientError, AssertionError):
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.5)


async def run(arguments: argparse.Namespace, folder: Path) -> None:
    """Measure one after the other, at each number of connections."""
    with product(folder, mutual_tls=arguments.mutual_tls, traced=arguments.traced) as running:
        stack = running.stack
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
            turn = await product_turn(stack, http, arguments.workspaces)
            stack.script("openai", default={"tokens": arguments.tokens, "token_delay_ms": arguments.token_delay_ms})
            for number in range(arguments.warm_up):
                await turn(number % 32)
            stored, turns = running.stored_bytes(), 0.0
            for connections in arguments.connections:
                seconds = arguments.seconds
                found = await measure("product", turn, connections=connections, seconds=seconds, pids=running.pids)
                turns += found.per_second * seconds
                print(found)
            running.print_memory()
            print(f"storage    {(running.stored_bytes() - stored) / turns / 1_024:.1f} KiB a turn, indexes included")
            if not arguments.litellm:
                return
            with litellm(arguments.litellm, stack.fakes["openai"], folder) as (url, pid):
                rival = await litellm_turn(url, http)
                for _ in range(WARM_UP_TURNS):
                    await rival(0)
                for connections in arguments.connections:
                    seconds = arguments.seconds
                    print(
                        await measure("litellm", rival, connections=connections, seconds=seconds, pids={"litellm": pid})
                    )


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--seconds", type=float, default=10.0, help="per measurement, at most 60")
    parser.add_argument("--workspaces", type=int, default=WORKSPACES, help="accounts that the turns are charged to")
    parser.add_argument("--tokens", type=int, default=0, help="an answer's length; 0: a short sentence")
    parser.add_argument("--token-delay-ms", type=float, default=0)
    parser.add_argument("--mutual-tls", action="store_true", help="certificates between the services")
    parser.add_argument("--traced", type=float, nargs="?", const=1.0, help="trace this share of the turns, or all")
    parser.add_argument("--warm-up", type=int, default=WARM_UP_TURNS, help="turns before the measurement")
    parser.add_argument("--litellm", help="the litellm executable of an environment with litellm[proxy]")
    arguments = parser.parse_args()
    arguments.seconds = min(arguments.seconds, 60.0)
    arguments.connections = [min(connections, MAX_CONNECTIONS) for connections in arguments.connections]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        uvloop.run(run(arguments, Path(folder)))


if __name__ == "__main__":
    main()
