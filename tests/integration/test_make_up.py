"""`make up` as a person uses it: one command, its banner, its curl line, Ctrl-C, and what goes wrong."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest

from deploy.local.server import free_port, listens
from deploy.local.state import RUNNER_VARIABLE
from tests.audio import tone

ROOT = Path(__file__).parents[2]
READY_SECONDS = 90
STOP_SECONDS = 10
CLOSED = "http://127.0.0.1:9"
"""A proxy that is not there."""


class Up:
    """A `python -m deploy.local` in a session of its own, as a terminal would run it."""

    def __init__(self, data: Path, port: int, output: Path, **env: str) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.endswith(("_API_KEY", "_URL"))}
        self.data, self.port, self.output = data, port, output
        with output.open("wb") as screen:
            self.process = subprocess.Popen(
                (sys.executable, "-m", "deploy.local"),
                cwd=ROOT,
                env={**clean, "DATA_DIR": str(data), "GATEWAY_PORT": str(port), **env},
                stdout=screen,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        """What stands on its screen."""
        return self.output.read_text()

    def wait_until_ready(self) -> None:
        until(lambda: "ready after" in self.said or self.process.poll() is not None, READY_SECONDS)
        assert "ready after" in self.said, self.said

    @property
    def curl(self) -> list[str]:
        """The banner's line as a shell would split it."""
        line = re.search(r"^curl (.+\\\n)+.+$", self.said, re.M)
        assert line, self.said
        return shlex.split(line[0].replace("\\\n", " "))

    def children(self) -> dict[str, psutil.Process]:
        """Its processes by what they run."""
        found = {}
        for child in psutil.Process(self.process.pid).children():
            with suppress(psutil.NoSuchProcess):
                argv = child.cmdline() or ["dying"]
                found[argv[2] if argv[1:2] == ["-m"] else Path(argv[0]).name] = child
        return found

    def interrupt(self) -> float:
        """Ctrl-C: SIGINT to the whole foreground group. Returns how long the end took, in seconds."""
        began = time.monotonic()
        os.killpg(self.process.pid, signal.SIGINT)
        self.process.wait(2 * STOP_SECONDS)
        return time.monotonic() - began


def until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.05)


def processes_of(data: Path) -> list[psutil.Process]:
    """What still runs for a data directory."""
    return [p for p in psutil.process_iter() if _marked(p, data)]


def _marked(process: psutil.Process, data: Path) -> bool:
    try:
        return process.environ().get(RUNNER_VARIABLE) == str(data)
    except (psutil.Error, OSError):
        return False


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Up]]:
    """Starts make up on one data directory and port; whatever still runs at the end of the test is killed."""
    started: list[Up] = []
    port = free_port()

    def start(**env: str) -> Up:
        started.append(Up(tmp_path / "data", port, tmp_path / f"screen{len(started)}", **env))
        return started[-1]

    yield start
    for up in started:
        if up.process.poll() is None:
            up.interrupt()
    for process in processes_of(tmp_path / "data"):
        process.kill()


@pytest.fixture
def openai_fake_url() -> Iterator[str]:
    """A process that speaks OpenAI's API."""
    port = free_port()
    process = subprocess.Popen((sys.executable, "-m", "tests.fakes.openai", "--port", str(port)), cwd=ROOT)
    try:
        until(lambda: listens(port), 20)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(10)


def test_the_banners_curl_gets_paris_and_a_restart_still_has_the_chat(start: Callable[..., Up]) -> None:
    up = start()
    up.wait_until_ready()
    began = time.monotonic()
    answer = json.loads(subprocess.run((*up.curl, "-s"), capture_output=True, check=True).stdout)
    assert time.monotonic() - began < 5
    assert "Paris" in answer["ai_messages"][0]["content"]
    assert up.interrupt() < STOP_SECONDS
    assert up.process.returncode == 0
    assert processes_of(up.data) == []
    assert "Traceback" not in up.said

    again = start()
    again.wait_until_ready()
    listed = next(word for word in up.curl if word.startswith("http"))
    headers = ("-H", next(word for word in again.curl if word.startswith("Authorization")))
    kept = json.loads(subprocess.run(("curl", "-s", listed, *headers), capture_output=True, check=True).stdout)
    assert [m["content"] for m in kept["results"]][-1] == answer["ai_messages"][0]["content"]


@pytest.mark.parametrize(
    "proxies",
    [
        {"HTTP_PROXY": CLOSED, "HTTPS_PROXY": CLOSED, "http_proxy": CLOSED, "https_proxy": CLOSED},
        {"ALL_PROXY": "socks5://127.0.0.1:9", "all_proxy": "socks5://127.0.0.1:9"},
    ],
    ids=["http", "socks"],
)
def test_behind_a_company_s_proxy_everything_here_is_asked_directly(
    start: Callable[..., Up], monkeypatch: pytest.MonkeyPatch, proxies: dict[str, str]
) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name, value in proxies.items():
        monkeypatch.setenv(name, value)
    up = start()
    up.wait_until_ready()
    answer = json.loads(subprocess.run((*up.curl, "-s"), capture_output=True, check=True).stdout)
    assert "Paris" in answer["ai_messages"][0]["content"]
    gateway = f"http://127.0.0.1:{up.port}/api"
    headers = {"Authorization": next(word for word in up.curl if word.startswith("Authorization")).partition(": ")[2]}
    workspace = next(word for word in up.curl if word.startswith("http")).split("/")[5]
    with httpx.Client(headers=headers, trust_env=False, timeout=60) as client:
        said = client.post(
            f"{gateway}/transcribe-audio/",
            files={"audio_file": ("recording", tone("mp3"))},
            data={"workspace_id": workspace},
        )
        assert said.status_code == 200, said.text
        translated = client.get(
            f"{gateway}/workspaces/{workspace}/translate/", params={"text": "Hello", "target": "de"}
        )
        assert translated.status_code == 200, translated.text


def test_a_key_with_a_line_end_is_used_without_it(start: Callable[..., Up], openai_fake_url: str) -> None:
    up = start(OPENAI_API_KEY="sk-a-secret-key\r\n", OPENAI_BASE_URL=f"{openai_fake_url}\r", LOG_LEVEL="info\r")
    up.wait_until_ready()
    answer = json.loads(subprocess.run((*up.curl, "-s"), capture_output=True, check=True).stdout)
    assert answer["ai_messages"][0]["ai_provider"] == "openai"
    assert "sk-a-secret-key" not in up.said


def test_a_key_that_no_header_can_carry_is_a_sentence(start: Callable[..., Up]) -> None:
    up = start(OPENAI_API_KEY="sk\u2013a-secret-key")
    assert up.process.wait(30) == 1
    assert re.fullmatch("A setting is wrong. OPENAI_API_KEY: .*\n", up.said)
    assert "secret" not in up.said


def test_whatever_is_killed_is_started_again_and_answers(start: Callable[..., Up]) -> None:
    up = start()
    up.wait_until_ready()
    before = up.children()
    for child in before.values():
        child.kill()
    until(lambda: before.keys() == up.children().keys(), 30)

    def answered() -> bool:
        sent = subprocess.run((*up.curl, "-s"), capture_output=True, check=False)
        return b"Paris" in sent.stdout

    until(answered, 60)


def test_after_the_runner_is_killed_the_next_start_ends_what_it_left(start: Callable[..., Up]) -> None:
    up = start()
    up.wait_until_ready()
    orphans = list(up.children().values())
    up.process.kill()
    up.process.wait()
    again = start()
    again.wait_until_ready()
    assert not any(orphan.is_running() for orphan in orphans)


def test_a_second_runner_on_the_same_data_says_so(start: Callable[..., Up]) -> None:
    start().wait_until_ready()
    second = start()
    assert second.process.wait(30) == 1
    assert re.fullmatch("Another make up runs on .*\n", second.said)


def test_a_port_in_use_is_a_sentence(start: Callable[..., Up], tmp_path: Path) -> None:
    first = start()
    first.wait_until_ready()
    second = Up(tmp_path / "other", first.port, tmp_path / "screen")
    assert second.process.wait(30) == 1
    assert re.fullmatch(f".*:{first.port} can't be listened on.*\n", second.said)


def test_two_of_each_answer_as_one(start: Callable[..., Up]) -> None:
    up = start(GATEWAYS="2", CHATS="2", BILLINGS="2", AGENTS="2")
    up.wait_until_ready()
    at_the_second = [word.replace(f":{up.port}/", f":{up.port + 1}/") for word in up.curl]
    assert b"Paris" in subprocess.run((*at_the_second, "-s"), capture_output=True, check=True).stdout
