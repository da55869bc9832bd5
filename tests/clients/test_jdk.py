"""The JDK's HttpClient as it comes: over plain HTTP it offers to upgrade to HTTP/2 with every first request."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.clients.conftest import RECORD, WORKSPACE, run
from tests.clients.relay import Relay
from tests.integration.stack import Stack

SOURCE = Path(__file__).parent / "java" / "Client.java"
OFFER = b"Upgrade: h2c"


@pytest.fixture
async def client(tmp_path: Path) -> tuple[str, ...]:
    """The compiled program's command."""
    assert shutil.which("javac"), "Install a JDK, 17 or newer (Debian: apt install default-jdk-headless)."
    await run("javac", "-d", tmp_path, SOURCE, folder=tmp_path)
    return ("java", "-Dstdout.encoding=UTF-8", "-Dsun.stdout.encoding=UTF-8", "-cp", str(tmp_path), "Client")


async def test_it_creates_sends_and_uploads(
    client: tuple[str, ...], stack: Stack, recorder: Relay, recording: Path, tmp_path: Path
) -> None:
    stack.script("whisper", default={"text": "Good morning."})
    async with stack.user(workspace=WORKSPACE) as alice:
        printed = await run(*client, recorder.url, alice.token, WORKSPACE, recording, folder=tmp_path)
        answers = [(line.partition(" ")[0], json.loads(line.partition(" ")[2])) for line in printed.splitlines()]
        assert [status for status, _ in answers] == ["201", "201", "200", "200"]
        session, turn, transcript, again = (answer for _, answer in answers)
        assert session["name"] == "From Java"
        assert turn["user_message"]["content"] == "Grüße aus Java: what is the capital of France?"
        assert transcript["text"] == again["text"] == "Good morning."
    assert len(recorder.requests) == 4
    assert all(OFFER in request for request in recorder.requests)
    if RECORD:
        recorder.save("jdk-create", b"POST /api/workspaces/", alice.token, containing=b"From Java")
        recorder.save("jdk-send", b"POST /api/workspaces/", alice.token, containing=b"/messages/ ")
        recorder.save("jdk-upload", b"POST /api/transcribe", alice.token, containing=b"Content-Length")
        recorder.save("jdk-upload-in-chunks", b"POST /api/transcribe", alice.token, containing=b"chunked")
