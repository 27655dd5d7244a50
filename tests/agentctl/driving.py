"""A real agentd and the real agentctl, as processes."""

import json
import os
import pty
import shlex
import signal
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from attrs import define, field
from forking import AGENTD, Forked, Forks
from ports import free_port

CONFIG = """
[providers.demo]
runner = "demo"
[providers.echo]
runner = "command"
argv = ["cat"]
[providers.bad]
runner = "command"
argv = ["sh", "-c", "echo cannot go on >&2; exit 3"]
[providers.slow]
runner = "command"
argv = ["sh", "-c", "echo at work; exec sleep 600"]
[providers.rude]
runner = "command"
argv = ["printf", 'safe\\033]0;stolen title\\007 \\033[2Jand \\302\\233sound\\n']
[routing]
default = "echo"
"""

COMMAND = [sys.executable, "-m", "agentctl.main"]

CONFIG += f"""
# An agent that is told where the daemon is and gives its own work to a child.
[providers.delegate]
runner = "command"
argv = ["sh", "-c", 'read url; exec {shlex.join(COMMAND)} "$@" --url "$url"', "sh", "tool",
    "session-spawn", "--task", "deep down", "--provider", "echo", "--title", "Helper", "--wait"]
"""

PATIENCE_S = 60

FORKS = Forks(
    "agentctl",
    """
import importlib, pkgutil
from agentctl.main import _skip_unused_imports, main
_skip_unused_imports()
for name in (
    "agent_orchestrator.remote", "agent_orchestrator.encoding", "asyncio", "anyio.to_thread",
    "anyio._backends._asyncio", "httpcore._backends.anyio", "certifi",
):
    importlib.import_module(name)
for package in map(importlib.import_module, ("agentctl", "agentctl.commands")):
    for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        if not found.name.startswith(("agentctl.chat", "agentctl.console", "agentctl.top")):
            importlib.import_module(found.name)  # those need a terminal, and rich
""",
)


@define
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def environment(**more: str) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AGENTCTL_", "AGENTD_", "NO_COLOR", "FORCE_COLOR", "_AGENTCTL"))
        # Whoever runs the tests may have said how large a terminal is, and it is not ours.
        and name not in ("COLUMNS", "LINES")
    }
    return kept | {"TZ": "UTC", "PYTHONWARNINGS": "error", "PYTHONUTF8": "1"} | more


def named(directory: Path) -> dict[str, str]:
    """The variable that names the configuration a test has put there: one that is named is trusted."""
    return {"AGENTD_CONFIG": "agentd.toml"} if (directory / "agentd.toml").exists() else {}


@contextmanager
def started(argv: Sequence[str], **options: Any) -> Iterator["subprocess.Popen[Any]"]:
    """Have a process inside this scope: neither it nor what it started outlives it."""
    with subprocess.Popen(argv, start_new_session=True, **options) as process:
        try:
            yield process
        finally:
            # What it started is in its group; to kill it alone would leave that behind.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def finished(
    argv: Sequence[str], seconds: float, **options: Any
) -> "subprocess.CompletedProcess[Any]":
    """Run a process that starts others to its end, or fail after so many seconds and end all of them."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with started(argv, **pipes, **options) as process:
        out, err = process.communicate(timeout=seconds)
    return subprocess.CompletedProcess(argv, process.returncode, out, err)


@contextmanager
def on_terminal(
    arguments: Sequence[str], cwd: Path, env: Mapping[str, str], size: tuple[int, int] = (24, 80)
) -> Iterator[tuple[Forked, int]]:
    """Have agentctl on a terminal inside this scope. Yield it, and the side of the terminal of whoever looks at it.

    :param size: the terminal's rows and columns.
    """
    leader, follower = pty.openpty()
    try:
        termios.tcsetwinsize(follower, size)
        started = FORKS.started(arguments, cwd=cwd, env=env, streams=[follower] * 3)
        with started as process:
            os.close(follower)
            follower = -1
            yield process, leader
    finally:
        os.close(leader)
        if follower >= 0:
            os.close(follower)


def run(
    arguments: Sequence[str], cwd: Path, env: Mapping[str, str], *, stdin: bytes = b""
) -> Result:
    """Run agentctl to its end."""
    done = FORKS.run(arguments, stdin=stdin, cwd=cwd, env=env, timeout=PATIENCE_S)
    return Result(done.returncode, done.stdout.decode(), done.stderr.decode())


@define
class Ctl:
    """Calls agentctl against one daemon."""

    url: str
    cwd: Path

    def __call__(
        self, *arguments: str, stdin: str | bytes = b"", cwd: Path | None = None, **more: str
    ) -> Result:
        return run(
            arguments,
            cwd or self.cwd,
            environment(AGENTCTL_URL=self.url, **named(cwd or self.cwd) | more),
            stdin=stdin.encode() if isinstance(stdin, str) else stdin,
        )

    def script(self, text: str) -> Result:
        """Run a script of the shell that calls agentctl."""
        with tempfile.TemporaryDirectory() as folder:
            FORKS.put(Path(folder, "agentctl"))
            return self._shell(f"PATH={shlex.quote(folder)}:$PATH; {text}", None)

    def shell(self, line: str, cwd: Path | None = None) -> Result:
        """Run a line of the shell with the real command, whose streams are what the line says."""
        return self._shell(f'agentctl() {{ {shlex.join(COMMAND)} "$@"; }}; {line}', cwd)

    def _shell(self, script: str, cwd: Path | None) -> Result:
        done = finished(
            ["sh", "-c", script],
            PATIENCE_S,
            cwd=cwd or self.cwd,
            env=environment(AGENTCTL_URL=self.url, **named(self.cwd)),
        )
        return Result(done.returncode, done.stdout.decode(), done.stderr.decode())

    def field(self, path: str, *arguments: str) -> str:
        result = self(*arguments, "--field", path)
        assert result.code == 0, result.err
        return result.out.strip()

    @contextmanager
    def going(self, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
        """Let a call go on inside this scope; it does not outlive it."""
        with started(
            [*FORKS.command, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.cwd,
            env=environment(AGENTCTL_URL=self.url, **named(self.cwd)),
        ) as process:
            yield process


@define
class Daemon:
    """A daemon on a port of its own that can be killed and started again."""

    directory: Path
    port: int
    process: Forked | None = None
    ctl: Ctl = field(init=False)
    options: tuple[str, ...] = ()

    def __attrs_post_init__(self) -> None:
        self.ctl = Ctl(f"http://127.0.0.1:{self.port}", self.directory)

    def start(self) -> None:
        ready = self.directory / "ready.json"
        ready.unlink(missing_ok=True)
        own = ("--port", str(self.port), "--grace-s", "0", "--db", "agents.db")
        with (self.directory / "agentd.log").open("ab") as log, Path(os.devnull).open() as nothing:
            self.process = AGENTD.start(
                [*own, "--ready-file", str(ready), *self.options],
                cwd=self.directory,
                env=environment(**named(self.directory)),
                streams=[nothing.fileno(), log.fileno(), log.fileno()],
            )
        wait_until(lambda: ready.exists() or self.process.poll() is not None)
        assert self.process.poll() is None, (self.directory / "agentd.log").read_text()

    def end(self, signal_: int = signal.SIGTERM) -> None:
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(signal_)
        try:
            self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise


def wait_until(condition: Callable[[], Any]) -> None:
    """Wait for something another process does."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def running(directory: Path, *options: str) -> Iterator[Daemon]:
    (directory / "agentd.toml").write_text(CONFIG)
    daemon = Daemon(directory, free_port(), options=options)
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.end()
