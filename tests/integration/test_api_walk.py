"""docs/api.md works as pasted."""

import asyncio
import os
import re
from pathlib import Path

from tests.integration.stack import ROOT, Stack

BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EXPECTED = re.compile(r"# (\d{3})$", re.MULTILINE)
STATUS = re.compile(r"^(\d{3})$", re.MULTILINE)
SHELL = "set -euo pipefail\nset -o errtrace\ntrap 'echo \"failed: $BASH_COMMAND\" >&2' ERR\n"


async def test_every_block_of_the_walk_works_as_pasted(stack: Stack, tmp_path: Path) -> None:
    blocks = BLOCK.findall((ROOT / "docs" / "api.md").read_text())
    assert len(blocks) > 20
    script = tmp_path / "walk.sh"
    script.write_text(SHELL + "".join(blocks))
    stack.script("openai", default={"text": '{"source": "en", "translated_text": "Guten Morgen"}'})
    async with stack.user() as alice, stack.user("bob") as bob:
        shell = await asyncio.create_subprocess_exec(
            *("bash", str(script)),
            cwd=ROOT,
            env={
                "PATH": os.environ["PATH"],
                "URL": stack.gateway_urls[0],
                "WORKSPACE": alice.workspace,
                "TOKEN": alice.token,
                "BOB": bob.token,
            },
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        said, complained = await shell.communicate()
    assert shell.returncode == 0, said.decode()[-3_000:] + complained.decode()
    assert STATUS.findall(said.decode()) == [code for block in blocks for code in EXPECTED.findall(block)]
