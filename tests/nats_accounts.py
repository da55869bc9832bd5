"""A NATS server whose password, limits and permissions change while it runs, as an operator changes them."""

from __future__ import annotations

import signal
import sysconfig
from pathlib import Path

from deploy.local.nats import Nats
from deploy.local.server import LOOPBACK, Command, bare_environment

USER, PASSWORD = "backendai", "p@ss:w/rd"
IN_URL = "p%40ss%3Aw%2Frd"


class NatsWithPassword(Nats):
    """It asks for USER and PASSWORD, and takes a changed configuration without a restart."""

    def __init__(self, folder: Path, *, port: int | None = None) -> None:
        super().__init__(folder, port=port)
        self._password, self._limits = PASSWORD, ""

    @property
    def url(self) -> str:
        """nats://user:password@host:port."""
        return f"nats://{USER}:{IN_URL}@{LOOPBACK}:{self.port}"

    @property
    def config(self) -> Path:
        """Its configuration."""
        return self.folder / "nats.conf"

    @property
    def command(self) -> Command:
        """nats-server in the foreground."""
        binary = str(Path(sysconfig.get_path("scripts")) / "nats-server")
        return Command((binary, "--config", str(self.config)), env=bare_environment(), folder=self.folder)

    def prepare(self) -> None:
        """Write its configuration."""
        super().prepare()
        self._write()

    def change(self, *, password: str = PASSWORD, limits: str = "") -> None:
        """Have it take another password, or other limits such as `max_connections: 1`; it ends whom they exclude."""
        self._password, self._limits = password, limits
        self._write()
        self.reload()

    def reload(self) -> None:
        """Have it read its configuration again."""
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)

    def _write(self) -> None:
        self.config.write_text(
            f'listen: "{LOOPBACK}:{self.port}"\n'
            f'jetstream {{ store_dir: "{self.store}" }}\n'
            f'authorization {{ user: "{USER}", password: "{self._password}" }}\n'
            f"{self._limits}\n"
        )
