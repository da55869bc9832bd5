"""The plain install's Traefik as a real process."""

from __future__ import annotations

import sysconfig
from pathlib import Path
from typing import ClassVar

import httpx
import yaml

from deploy.local.server import LOOPBACK, Command, Server, bare_environment, free_port
from deploy.manifests import K8S

TRAEFIK = K8S.parents[1] / "deploy" / "traefik"
HOST = "chat.example.com"
# A request to the loopback address that is meant for our host, which the handshake has to say as well.
TO_HOST, SNI = {"Host": HOST}, {"sni_hostname": HOST}
BINARY = Path(sysconfig.get_path("scripts")) / "traefik"


class Traefik(Server):
    """Traefik as static.yaml and dynamic/ have it, on other ports, and in a hurry to end."""

    name: ClassVar[str] = "traefik"

    def __init__(self, folder: Path, gateway: str, *, origins: str = "") -> None:
        super().__init__(folder)
        self.http_port, self._gateway, self._origins = free_port(), gateway, origins

    @property
    def url(self) -> str:
        """The entry point for clients."""
        return f"https://{LOOPBACK}:{self.port}"

    @property
    def command(self) -> Command:
        """traefik in the foreground."""
        told = {"PUBLIC_HOST": HOST, "GATEWAY_URL": self._gateway, "CORS_ALLOWED_ORIGINS": self._origins}
        argv = (str(BINARY), f"--configFile={self.folder / 'static.yaml'}")
        return Command(argv, env={**bare_environment(), **told}, folder=self.folder)

    def prepare(self) -> None:
        """Write its static file."""
        super().prepare()
        document = yaml.safe_load((TRAEFIK / "static.yaml").read_text())
        points = document["entryPoints"]
        for name, port in (("web", self.http_port), ("websecure", self.port), ("internal", free_port())):
            points[name]["address"] = f"{LOOPBACK}:{port}"
        points["websecure"]["transport"]["lifeCycle"]["requestAcceptGraceTimeOut"] = "0s"
        # Shorter than the streams below, which it must not cut.
        points["websecure"]["transport"]["respondingTimeouts"]["readTimeout"] = "1s"
        document["providers"]["file"] = {"directory": str(TRAEFIK / "dynamic")}
        (self.folder / "static.yaml").write_text(yaml.safe_dump(document))

    def is_ready(self) -> bool:
        """Whether it knows its routes. Asked without TLS: a handshake that is cut leaves a socket behind."""
        try:
            return httpx.get(f"http://{LOOPBACK}:{self.http_port}/", headers=TO_HOST).status_code == 301
        except httpx.HTTPError:
            return False
