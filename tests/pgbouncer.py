"""PgBouncer, where it is installed (Debian: apt install pgbouncer): its defaults, or another pool mode."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from psycopg.conninfo import conninfo_to_dict

from deploy.local.postgres import SYSTEM_USER
from deploy.local.server import LOOPBACK, Command, Server, bare_environment

PROGRAM = shutil.which("pgbouncer", path=f"{os.defpath}:/usr/sbin:/usr/local/sbin")


class PgBouncer(Server):
    """A pooler before the server of `url`. It asks for the user's password as the server would."""

    name: ClassVar[str] = "pgbouncer"

    def __init__(self, folder: Path, url: str, settings: Mapping[str, str]) -> None:
        super().__init__(folder)
        self._given = conninfo_to_dict(url)
        self._settings = {
            "listen_addr": LOOPBACK,
            "listen_port": str(self.port),
            "unix_socket_dir": "",
            "auth_type": "plain",
            "auth_file": str(self.folder / "users.txt"),
            **settings,
        }

    @property
    def url(self) -> str:
        """For clients."""
        return self.url_of(str(self._given["dbname"]))

    def url_of(self, database: str) -> str:
        """Another database by way of it."""
        return f"postgresql://{self._given['user']}:{self._given['password']}@{LOOPBACK}:{self.port}/{database}"

    def prepare(self) -> None:
        """Write its files."""
        super().prepare()
        (self.folder / "users.txt").write_text(f'"{self._given["user"]}" "{self._given["password"]}"\n')
        lines = [f"{name} = {value}" for name, value in self._settings.items()]
        target = f"* = host={self._given['host']} port={self._given['port']}"
        (self.folder / "pgbouncer.ini").write_text("\n".join(["[databases]", target, "[pgbouncer]", *lines, ""]))
        for path in (self.folder, *self.folder.iterdir()):
            path.chmod(0o755)

    @property
    def command(self) -> Command:
        """In the foreground, and not as root, which it refuses."""
        user = SYSTEM_USER if os.geteuid() == 0 else None
        return Command(
            (str(PROGRAM), str(self.folder / "pgbouncer.ini")), env=bare_environment(), folder=self.folder, user=user
        )

    def is_ready(self) -> bool:
        """Whether it takes connections."""
        with socket.socket() as probe:
            return probe.connect_ex((LOOPBACK, self.port)) == 0
