"""The client of docs/grpc.md works as pasted, where nothing of this project but its .proto files can be seen."""

import asyncio
import re
import shutil
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.integration.stack import ROOT, Stack

DOCUMENT = ROOT / "docs" / "grpc.md"
SECONDS = 90.0


def block(language: str) -> str:
    """The one block of that language in the document."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    return str(found)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader has: `proto`, the client, and a Python that has packages and not this project."""
    made = tmp_path_factory.mktemp("elsewhere")
    shutil.copytree(ROOT / "proto" / "backendai", made / "proto" / "backendai")
    (made / "client.py").write_text(block("python"))
    python = made / "bin" / "python"
    python.parent.mkdir()
    # The environment's own interpreter would read the .pth file that makes this project importable.
    base = getattr(sys, "_base_executable")  # noqa: B009  # typeshed does not know it
    python.write_text(f'#!/bin/sh\nexec {base} -P "$@"\n')
    python.chmod(0o755)
    return made


async def run(folder: Path, *argv: str, env: Mapping[str, str] | None = None) -> tuple[int, str, str]:
    """Run a command there; its status, what it said and what it complained of."""
    packages = sysconfig.get_path("purelib")
    started = await asyncio.create_subprocess_exec(
        *argv,
        cwd=folder,
        env={
            "PATH": f"{folder / 'bin'}:/usr/bin:/bin",
            "PYTHONPATH": f"{folder / 'stubs'}:{packages}",
            "PYTHONWARNINGS": "error",
            **(env or {}),
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(SECONDS):
        said, complained = await started.communicate()
    assert started.returncode is not None
    return started.returncode, said.decode(), complained.decode()


@pytest.fixture(scope="session")
def with_stubs(folder: Path) -> Path:
    """The same, once the documented command has made the stubs."""
    status, said, complained = asyncio.run(run(folder, "bash", "-euc", block("sh")))
    assert status == 0, said + complained
    return folder


async def ask(stack: Stack, folder: Path, *, certificate: str = "gateway") -> tuple[int, str, str]:
    """Run the client for a member of a workspace with credits."""
    stack.script("openai", default={"text": "Paris."})
    async with stack.user(role="member") as alice:
        await alice.credits()
        tls = ("--tls", str(stack.certificates / certificate)) if stack.certificates is not None else ()
        targets = ("--chat", stack.targets["chat"], "--billing", stack.targets["billing"])
        whom = ("--workspace", alice.workspace, "--user", alice.name)
        return await run(folder, "python", "client.py", *targets, *tls, *whom)


def check(said: str) -> None:
    """The client has been answered, refused and charged as documented."""
    assert re.fullmatch(
        r"\d+ models have a price\n"
        r"available: 10\n"
        r"refused: NOT_FOUND NOT_FOUND {}\n"
        r"refused: INVALID_ARGUMENT MODEL_UNKNOWN {'model': 'gpt-9', 'provider': 'openai'}\n"
        r"TASK_STATE_COMPLETED: Paris\.\n"
        r"charged: 0\.0000\d*[1-9]\n",
        said,
    ), said


async def test_the_client_runs_as_pasted(stack: Stack, with_stubs: Path) -> None:
    status, said, complained = await ask(stack, with_stubs)
    assert status == 0, said + complained
    check(said)


async def test_where_it_runs_nothing_of_this_project_can_be_imported(with_stubs: Path) -> None:
    for module in ("services", "gateway", "docs", "tests"):
        status, _, complained = await run(with_stubs, "python", "-c", f"import {module}")
        assert status == 1
        assert f"No module named '{module}'" in complained


async def test_it_speaks_mutual_tls_with_a_certificate_that_may_call(pair: Stack, with_stubs: Path) -> None:
    status, said, complained = await ask(pair, with_stubs)
    assert status == 0, said + complained
    check(said)


async def test_a_service_that_may_not_call_is_told_so(pair: Stack, with_stubs: Path) -> None:
    status, said, complained = await ask(pair, with_stubs, certificate="translate")
    assert (status, said) == (1, "")
    assert "StatusCode.PERMISSION_DENIED" in complained


async def test_it_is_answered_while_one_of_two_processes_of_each_service_is_gone(pair: Stack, with_stubs: Path) -> None:
    gone = [pair[name] for name in ("chat0", "billing1")]
    for process in gone:
        process.kill()
    try:
        status, said, complained = await ask(pair, with_stubs)
    finally:
        for process in gone:
            process.start()
        pair.wait_until_ready()
    assert status == 0, said + complained
    check(said)
