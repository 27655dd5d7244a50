"""A real agentd that is killed and started again, and the processes it leaves."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import httpx
from attrs import define, field
from tests.chaos.network import Place
from tests.chaos.outcome import until
from tests.support.ports import free_port

ROOT: Final = Path(__file__).resolve().parents[2]
SOURCE: Final = ROOT / "src"

ORPHAN_S: Final = 2.0
"""Seconds after a kill by which nothing of the daemon may be alive."""

PROBES: Final = (b"\0--version\0", b"\0auth\0status\0")
"""The ends of the command lines of probes."""

_READY_S: Final = 90.0

CONFIG: Final = f"""\
[providers.inside]
runner = "function"
target = "tests.chaos.agent:play"

[providers.program]
runner = "command"
argv = ["{sys.executable}", "-I", "-S", "{ROOT}/tests/chaos/agent.py"]

[routing]
default = "inside"
"""


class NotReady(Exception):
    """The daemon ended, or did not answer, where it was to be ready; the text holds its log."""


@define
class Daemon:
    """An agentd on one database and one port, over any number of processes.

    :param db: its database.
    :param store: the URL of its database, instead of ``db``.
    :param config: its configuration file's text.
    :param source: the code it runs: the product's, or a changed copy of it.
    """

    directory: Path
    db: Path
    config: str = CONFIG
    source: Path = SOURCE
    store: str | None = None
    arguments: tuple[str, ...] = ()
    env: dict[str, str] = field(factory=dict)
    place: Place = field(factory=Place)
    """Where it runs. Away from loopback, ``arguments`` or ``env`` must let clients in."""
    port: int = field(factory=free_port)
    token: str = field(factory=lambda: os.urandom(8).hex())
    """In the environment of the daemon and all it starts, and of nothing else."""
    process: "subprocess.Popen[bytes] | None" = None

    def __attrs_post_init__(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / "agentd.toml").write_text(self.config)

    @property
    def url(self) -> str:
        return f"http://{self.place.address}:{self.port}"

    @property
    def trace(self) -> Path:
        return self.directory / "trace.jsonl"

    @property
    def log(self) -> Path:
        return self.directory / "log.txt"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def launch(self, tracer: Sequence[str] = ()) -> None:
        """Start it, and do not wait.

        :param tracer: a program that starts it, and becomes it or traces it from beside.
        """
        assert not self.alive
        (self.directory / "ready.json").unlink(missing_ok=True)
        own = {
            "CHAOS_TOKEN": self.token,
            "CHAOS_TRACE": str(self.trace),
            # The agent that is a function is in this package; the source comes first.
            "PYTHONPATH": f"{self.source}{os.pathsep}{ROOT}",
            **self.env,
        }
        environ = {k: v for k, v in os.environ.items() if not k.startswith(("AGENT", "PYTHON"))}
        setting = [f"{name}={value}" for name, value in own.items()]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    # The tracer must not bear the token itself.
                    *tracer,
                    *self.place.entry,
                    "/usr/bin/env",
                    *setting,
                    sys.executable,
                    "-m",
                    "agentd",
                    "--host",
                    self.place.address,
                    "--port",
                    str(self.port),
                    *(("--db", str(self.db)) if self.store is None else ("--store", self.store)),
                    "--config",
                    "agentd.toml",
                    "--ready-file",
                    "ready.json",
                    *self.arguments,
                ],
                cwd=self.directory,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def ready(self, seconds: float = _READY_S) -> float:
        """Wait until it answers ``GET /health``; return the seconds that took.

        :raises NotReady: if it does not.
        """
        assert self.process is not None
        started = time.perf_counter()
        file = self.directory / "ready.json"
        for _ in until(seconds, 0.002):
            if self.process.poll() is not None:
                raise NotReady(f"ended with {self.process.returncode}: {self.said()}")
            if file.exists():
                with suppress(OSError, ValueError):
                    json.loads(file.read_text())
                    # Answers while it is being killed under our hands are no answers.
                    with suppress(httpx.TransportError):
                        answer = httpx.get(f"{self.url}/health", trust_env=False, timeout=10)
                        if answer.status_code == 200:
                            return time.perf_counter() - started
        raise NotReady(f"no answer in {seconds} s: {self.said()}")

    def start(self, tracer: Sequence[str] = ()) -> float:
        """Start it and return the seconds until it was ready."""
        self.launch(tracer)
        return self.ready()

    def kill(self) -> None:
        """End it as a crash does."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                self.process.kill()
            self.process.wait(60)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def stand_still(self) -> None:
        """Have it say nothing from now on; return once it does not."""
        self.signal(signal.SIGSTOP)
        assert self.process is not None
        stat = Path(f"/proc/{self.process.pid}/stat")
        while stat.read_text().rpartition(")")[2].split()[0] not in "TZX":
            time.sleep(0.001)

    def stop(self) -> int:
        """End it in good order and return its status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def said(self) -> str:
        """Return the end of its log."""
        return self.log.read_bytes()[-3000:].decode("utf-8", "replace")

    def family(self) -> list[int]:
        """Return the live processes that bear the token, the daemon itself and its probes aside."""
        entry = f"\0CHAOS_TOKEN={self.token}\0".encode()
        own = self.process.pid if self.process is not None else None
        found = [pid for pid, environ in _environments() if entry in environ and pid != own]
        return [pid for pid in found if not _is_probe(pid)]

    def orphans(self, seconds: float = ORPHAN_S) -> list[str]:
        """Say what is alive so many seconds after the end; it is killed then."""
        found = self.family()
        for _ in until(seconds, 0.02):
            if not found:
                return []
            found = self.family()
        told = [_described(pid) for pid in found]
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return told


def _is_probe(pid: int) -> bool:
    """Return whether a process prints whether its agent can be run. It is no part of a run, and soon ends."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().endswith(PROBES)
    return False


def _described(pid: int) -> str:
    with suppress(OSError):
        line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
        return f"{pid} {line[-60:].decode('utf-8', 'replace').strip()}"
    return f"{pid}, gone since"


def _environments() -> Iterator[tuple[int, bytes]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                yield int(entry.name), b"\0" + (entry / "environ").read_bytes()


@contextmanager
def daemon(directory: Path, **more: object) -> Iterator[Daemon]:
    """Have a daemon, not started; whatever happens, nothing of it is left."""
    place = directory / "daemon"
    one = Daemon(place, **{"db": place / "data.db", **more})  # type: ignore[arg-type]
    try:
        yield one
    finally:
        one.kill()
        one.orphans(0)
