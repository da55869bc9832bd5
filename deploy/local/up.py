"""`make up`: embedded servers, migrations, services, banner; then it waits for the end and stops it all in order."""

import asyncio
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

import httpx

from deploy.local.ai import LocalAI
from deploy.local.demo import banner, gateway_url
from deploy.local.nats import Nats
from deploy.local.output import say, show
from deploy.local.postgres import Postgres
from deploy.local.problem import Problem
from deploy.local.processes import CORE, EDGE, SERVERS, Backends, environment, services
from deploy.local.recogniser import Recogniser
from deploy.local.runner import Child, Runner
from deploy.local.server import Server, is_free, listens
from deploy.local.settings import ROOT, Settings
from deploy.local.state import RUNNER_VARIABLE, DataDirectory

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
MIGRATION_SECONDS = 120.0
READY_SECONDS = 60.0
POLL_SECONDS = 0.05
SAME_REQUEST_SECONDS = 0.5  # make passes on a signal that the whole process group got


async def up(settings: Settings) -> None:
    """Run until a signal says stop; every child has ended when this returns."""
    data = DataDirectory(settings.data)
    with data.held():
        data.check_space()
        if orphans := data.end_orphans():
            say(f"ended {orphans} processes that an earlier run left behind")
        check_ports(settings)
        async with Runner(verbose=settings.log_level.lower() == "debug") as runner:
            work = asyncio.create_task(_serve(settings, data, runner))
            _stop_on_signal(work, runner)
            await asyncio.wait({work})
            if work.cancelled():
                say("stopping")
        if not work.cancelled():
            work.result()
        say("stopped")


def check_ports(settings: Settings) -> None:
    """Refuse to start a gateway where another program listens."""
    for number in range(settings.gateways):
        port = settings.gateway_port + number
        if not is_free(settings.gateway_host, port):
            raise Problem(
                f"{settings.gateway_host}:{port} can't be listened on, most likely because another program does: "
                f"end that one, or choose a port: make up GATEWAY_PORT={port + 1000}."
            )


def _stop_on_signal(work: "asyncio.Task[None]", runner: Runner) -> None:
    """The first signal stops in order; a later one at once, unless it is the same request come another way."""
    loop = asyncio.get_running_loop()
    asked_at: float | None = None

    def stop() -> None:
        nonlocal asked_at
        if asked_at is None:
            asked_at = loop.time()
            work.cancel()
        elif loop.time() - asked_at > SAME_REQUEST_SECONDS:
            runner.kill()

    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, stop)


async def _serve(settings: Settings, data: DataDirectory, runner: Runner) -> None:
    began = time.monotonic()
    env = environment(settings, data, await _start_servers(settings, data, runner))
    children = list(services(settings, env))
    for child in children:
        if child.stage == EDGE:  # they need no database, and take longest to load
            await runner.add(child)
    await asyncio.gather(*(_migrate(service, env) for service in ("billing", "chat")))
    for child in children:
        if child.stage == CORE:
            await runner.add(child)
    await _wait_until_ready(settings, runner, children)
    show(await banner(settings, data))
    say(f"ready after {time.monotonic() - began:.1f} s")
    await asyncio.Event().wait()


async def _start_servers(settings: Settings, data: DataDirectory, runner: Runner) -> Backends:
    """Start the servers that no setting replaces."""
    postgres, nats, ai = Postgres(data.path / "postgres"), Nats(data.path / "nats"), LocalAI(data.path / "ai")
    recogniser = Recogniser(data.path / "recogniser")
    replaced: dict[Server, str | None] = {
        postgres: settings.database_url,
        nats: settings.nats_url,
        ai: settings.local_base_url or ("" if "local" not in settings.providers.split(",") else None),
        recogniser: settings.speech_local_base_url or ("" if settings.transcriber != "local" else None),
    }
    started = [server for server, url in replaced.items() if url is None]
    await asyncio.gather(*(_start_server(server, data, runner) for server in started))
    if postgres in started:
        await asyncio.to_thread(postgres.create_database, postgres.database)
    urls = {server: server.url if url is None else url for server, url in replaced.items()}
    return Backends(
        database_url=urls[postgres],
        nats_url=urls[nats],
        local_base_url=urls[ai],
        speech_local_base_url=urls[recogniser],
    )


async def _start_server(server: Server, data: DataDirectory, runner: Runner) -> None:
    await asyncio.to_thread(server.prepare)
    command = server.command
    marked = {**command.env, RUNNER_VARIABLE: str(data.path)}
    await runner.add(Child(server.name, replace(command, env=marked), SERVERS))
    deadline = time.monotonic() + READY_SECONDS
    while not await asyncio.to_thread(server.is_ready):
        await _pause(runner, deadline, server.name)


async def _migrate(service: str, env: dict[str, str]) -> None:
    """Bring one service's schema up to date; what it says is shown only when that fails."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        f"services.{service}.migrations",
        env=env,
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(MIGRATION_SECONDS):
            said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode != 0:
        show(said.decode(errors="replace"))
        raise Problem(f"The database could not be brought up to date for {service}; what its migration said is above.")


async def _wait_until_ready(settings: Settings, runner: Runner, children: Sequence[Child]) -> None:
    """Every process listens, and every gateway reaches what it needs."""
    deadline = time.monotonic() + READY_SECONDS
    for child in children:
        while child.port and not listens(child.port):
            await _pause(runner, deadline, child.name)
    async with httpx.AsyncClient(trust_env=False, timeout=2) as client:
        for number in range(settings.gateways):
            while not await _is_ready(client, f"{gateway_url(settings, number)}/readyz"):
                await _pause(runner, deadline, "The gateway")


async def _pause(runner: Runner, deadline: float, name: str) -> None:
    runner.check_hope()
    if time.monotonic() > deadline:
        raise Problem(f"{name} was not ready within {READY_SECONDS:g} s: what the processes said above tells why.")
    await asyncio.sleep(POLL_SECONDS)


async def _is_ready(client: httpx.AsyncClient, url: str) -> bool:
    try:
        return (await client.get(url)).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False
