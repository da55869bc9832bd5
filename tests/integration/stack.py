"""The whole system as real processes on free ports: what a platform team runs, with providers played on loopback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self
from uuid import uuid4

import httpx
import jwt

from deploy.local import certs
from deploy.local.server import LOOPBACK, Command, free_port, listens
from tests.servers import Nats, new_nats

ROOT = Path(__file__).parent.parent.parent
SECRET = "integration-tests-sign-their-tokens-with-this"
START_SECONDS = 30.0
STOP_SECONDS = 15.0
POLL_SECONDS = 0.02
# A system is one process of each service that speak plain text, as make up runs it. TEST_PRODUCTION=1 makes it two of
# each with mutual TLS between them, unless a test says otherwise.
PRODUCTION = os.environ.get("TEST_PRODUCTION", "") == "1"
OF_EACH = 2 if PRODUCTION else 1


class Process:
    """One process of the stack, which can be killed, stopped, frozen and started again on its port."""

    def __init__(self, name: str, argv: tuple[str, ...], env: Mapping[str, str], folder: Path) -> None:
        self.name, self.log = name, folder / f"{name}.log"
        self._command = Command((sys.executable, "-m", *argv), env=env, folder=ROOT)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it; it waits for the others by itself."""
        self._process = self._command.spawn(self.log)

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """End it as a crash would."""
        self.send(signal.SIGKILL)
        self._wait()

    def stop(self) -> None:
        """Ask it to end, as a rolling restart does; killed when it does not."""
        self.send(signal.SIGTERM)
        self._wait()

    def _wait(self) -> None:
        if self._process is None:
            return
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise AssertionError(f"{self.name} did not end within {STOP_SECONDS:g} s; see {self.log}") from None
        finally:
            self._process = None


class Stack:
    """Postgres is given; NATS, the provider fakes and every service are started here."""

    def __init__(
        self,
        folder: Path,
        database_url: str,
        *,
        of_each: int = OF_EACH,
        agents: int | None = None,
        mutual_tls: bool = PRODUCTION,
        env: Mapping[str, str] | None = None,
        nats: Nats | None = None,
    ) -> None:
        self.folder = folder
        self.nats = nats or new_nats(folder / "nats")
        fakes = {name: free_port() for name in ("openai", "gemini", "whisper")}
        self.fakes = {name: f"http://{LOOPBACK}:{port}" for name, port in fakes.items()}
        counts = dict.fromkeys(("gateway", "chat", "billing", "agent", "speech", "translate"), of_each)
        counts["agent"] = agents or of_each
        ports = {name: [free_port() for _ in range(count)] for name, count in counts.items()}
        self._beside = [*ports["speech"], *ports["translate"]]
        self.gateway_urls = [f"http://{LOOPBACK}:{port}" for port in ports["gateway"]]
        self.targets = {name: _target(ports[name]) for name in ("chat", "billing", "speech", "translate")}
        """Where gRPC reaches all processes of a service."""
        shared = {
            "PATH": os.defpath,
            "PYTHONPATH": f"{ROOT}:{ROOT / 'proto' / 'gen'}",
            "PYTHONUNBUFFERED": "1",
            "LOG_LEVEL": "info",
            "DATABASE_URL": database_url,
            "NATS_URL": self.nats.url,
            **{f"{name.upper()}_ADDRESS": target for name, target in self.targets.items()},
            "AI_PROVIDERS": "openai,google",
            "OPENAI_API_KEY": "sk-integration",
            "OPENAI_BASE_URL": f"{self.fakes['openai']}/v1",
            "GOOGLE_API_KEY": "google-integration",
            "GOOGLE_BASE_URL": self.fakes["gemini"],
            "DEFAULT_AI_PROVIDER": "openai",
            "DEFAULT_AI_MODEL": "gpt-4o-mini",
            "AUTH_JWT_SECRET": SECRET,
            "CURSOR_SECRET": "integration-tests-sign-their-cursors-with-this",
            "BILLING_SIGNUP_CREDITS": "10",
            **(env or {}),
        }
        self.authority = certs.Authority()
        self.certificates: Path | None = None
        if mutual_tls:
            self.certificates = folder / "certs"
            certs.write_all(self.certificates, authority=self.authority)
        self.processes: dict[str, Process] = {}
        self.ops_urls: dict[str, str] = {}
        """Where each service's process tells metrics and health."""
        self.grpc_addresses = {
            f"{name}{number}": f"{LOOPBACK}:{port}"
            for name in ("chat", "billing", "agent", "speech", "translate")
            for number, port in enumerate(ports[name])
        }
        for name, port in fakes.items():
            self._add(name, (f"tests.fakes.{name}", "--port", str(port)), shared)
        own = {"speech": {"OPENAI_BASE_URL": f"{self.fakes['whisper']}/v1"}}
        for service in ("billing", "chat", "agent", "speech", "translate"):
            for number, port in enumerate(ports[service]):
                told = {f"{service.upper()}_LISTEN": f"{LOOPBACK}:{port}", **own.get(service, {})}
                self._add_service(service, number, f"services.{service}", {**shared, **told})
        for number, port in enumerate(ports["gateway"]):
            self._add_service("gateway", number, "gateway", {**shared, "GATEWAY_PORT": str(port)})

    def _add_service(self, service: str, number: int, module: str, env: Mapping[str, str]) -> None:
        name, ops = f"{service}{number}", f"{LOOPBACK}:{free_port()}"
        self.ops_urls[name] = f"http://{ops}"
        own = {"OPS_LISTEN": ops}
        if self.certificates is not None:
            own["GRPC_TLS_DIR"] = str(self.certificates / service)
        self._add(name, (module,), {**env, **own})

    def _add(self, name: str, argv: tuple[str, ...], env: Mapping[str, str]) -> None:
        self.processes[name] = Process(name, argv, env, self.folder)

    def __getitem__(self, name: str) -> Process:
        """A process by its name: chat0, agent1, …"""
        return self.processes[name]

    def all_of(self, service: str) -> list[Process]:
        """A service's processes."""
        return [process for name, process in self.processes.items() if name.rstrip("0123456789") == service]

    def __enter__(self) -> Self:
        self.nats.start()
        for process in self.processes.values():
            process.start()
        self.wait_until_ready()
        return self

    def wait_until_ready(self) -> None:
        """Wait until every gateway says it is ready, and what its readiness does not tell of listens."""
        deadline = time.monotonic() + START_SECONDS
        while not all(map(listens, self._beside)):
            assert time.monotonic() < deadline, f"not all processes listen; the logs are in {self.folder}"
            time.sleep(POLL_SECONDS)
        for url in self.gateway_urls:
            while not _answers(f"{url}/readyz"):
                assert time.monotonic() < deadline, f"{url} is not ready; the logs are in {self.folder}"
                time.sleep(POLL_SECONDS)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self.processes.values():
            process.send(signal.SIGCONT)
        for process in reversed(self.processes.values()):
            process.send(signal.SIGTERM)
        for process in self.processes.values():
            process.stop()
        self.nats.stop()

    def user(
        self,
        name: str = "alice",
        *,
        workspace: str | None = None,
        role: str | None = "owner",
        gateway: int = 0,
        **claims: object,
    ) -> User:
        """A user of a fresh workspace, or of the one named."""
        return User(self, name, workspace or str(uuid4()), role, gateway, claims)

    def script(self, provider: str, **fields: object) -> None:
        """Tell a provider fake how to answer, by default or next."""
        # Half a surrogate pair goes in the body as an escape.
        body, headers = json.dumps(fields), {"Content-Type": "application/json"}
        httpx.post(f"{self.fakes[provider]}/_script", content=body, headers=headers).raise_for_status()

    def requests(self, provider: str) -> list[dict[str, object]]:
        """What a provider fake was sent."""
        found: list[dict[str, object]] = httpx.get(f"{self.fakes[provider]}/_requests").json()
        return found


class User(httpx.AsyncClient):
    """A REST client of one user in one workspace."""

    def __init__(
        self,
        stack: Stack,
        name: str,
        workspace: str,
        role: str | None,
        gateway: int,
        claims: Mapping[str, object],
    ) -> None:
        self.stack, self.name, self.workspace = stack, name, workspace
        payload = {
            "sub": name,
            "exp": int(time.time()) + 3_600,
            "workspaces": {workspace: role} if role is not None else {},
            **claims,
        }
        self.token = jwt.encode(payload, SECRET, algorithm="HS256")
        super().__init__(
            base_url=stack.gateway_urls[gateway],
            headers={"Authorization": f"Bearer {self.token}"},
            timeout=90,
            limits=httpx.Limits(max_connections=400),
        )

    @property
    def chats(self) -> str:
        """The path of the workspace's sessions."""
        return f"/api/workspaces/{self.workspace}/chats/"

    def messages(self, session: str) -> str:
        """The path of a session's messages."""
        return f"{self.chats}{session}/messages/"

    async def new_session(self, **fields: object) -> str:
        """Open a session; its id."""
        response = await self.post(self.chats, json=fields)
        assert response.status_code == 201, response.text
        return str(response.json()["id"])

    async def say(self, session: str, content: str = "Hello?", **headers: str) -> httpx.Response:
        """Send a message."""
        return await self.post(
            self.messages(session),
            json={"role": "user", "content": content},
            headers={name.replace("_", "-"): value for name, value in headers.items()},
        )

    async def task(self, session: str, task_id: str) -> httpx.Response:
        """Poll a task."""
        return await self.get(f"{self.messages(session)}agent-task-status/{task_id}/")

    async def credits(self) -> dict[str, str]:
        """The workspace's balance."""
        response = await self.get(f"/api/workspaces/{self.workspace}/credits/")
        assert response.status_code == 200, response.text
        found: dict[str, str] = response.json()
        return found


def _target(ports: list[int]) -> str:
    return "ipv4:" + ",".join(f"{LOOPBACK}:{port}" for port in ports)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code == 200
    except httpx.HTTPError:
        return False
