"""A small recogniser of English behind OpenAI's wire protocol, so that there is a transcript without anybody's key."""

import sys
from pathlib import Path
from typing import ClassVar

from deploy.local.server import LOOPBACK, Command, Server, bare_environment, is_healthy

MODEL = "pocketsphinx"
MAX_SECONDS = 60
PROGRAM = "deploy.local.hearing"


class Recogniser(Server):
    """The local recogniser's server."""

    name: ClassVar[str] = "recogniser"

    @property
    def url(self) -> str:
        """The base URL that an OpenAI client takes."""
        return f"http://{LOOPBACK}:{self.port}/v1"

    @property
    def command(self) -> Command:
        """The program, which alone loads the model and what decodes."""
        root = Path(__file__).parents[2]
        env = {**bare_environment(), "PYTHONPATH": str(root), "PYTHONUNBUFFERED": "1"}
        return Command((sys.executable, "-m", PROGRAM, str(self.port)), env=env, folder=self.folder)

    def is_ready(self) -> bool:
        """Whether it answers; its first transcript waits for the model."""
        return is_healthy(self.port)
