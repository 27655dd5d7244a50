"""Start programs as a user does: agentd as a scope, and timed commands."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final

import httpx
from attrs import frozen

from benchmarks.figures import WrongResult, check

ROOT: Final = Path(__file__).resolve().parent.parent
PROGRAMS: Final = Path(sys.executable).parent
"""Where this environment's ``agentd`` and ``agentctl`` are."""

_READY_S: Final = 120.0
_STOP_S: Final = 60.0


@frozen
class Server:
    """A server in a separate process.

    :param ready_s: seconds from its start to its first answer to ``GET /health``.
    """

    url: str
    pid: int
    ready_s: float


def environment(own: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return an environment without this shell's own settings for agentd, agentctl and proxies."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AGENTD_", "AGENTCTL_", "PYTHON"))
        and not name.lower().endswith("_proxy")
    }
    # The functions used as agents are in this package.
    return {**inherited, "PYTHONPATH": str(ROOT), **(own or {})}


@contextmanager
def server(
    directory: Path, *, argv: Sequence[str], env: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """Run a server that takes ``--ready-file`` until the scope ends.

    :raises WrongResult: if it does not answer, or does not end as it should.
    """
    directory.mkdir(parents=True, exist_ok=True)
    ready, log = directory / "ready.json", directory / "log.txt"
    with log.open("wb") as stderr:
        started = time.perf_counter()
        process = subprocess.Popen(
            [*argv, "--ready-file", str(ready)],
            cwd=directory,
            env=environment(env),
            stdin=subprocess.DEVNULL,
            stdout=stderr,
            stderr=stderr,
        )
        try:
            url = _wait_until_ready(process, ready, log)
            ready_s = time.perf_counter() - started
            yield Server(url, process.pid, ready_s)
            process.terminate()
            status = process.wait(_STOP_S)
            check(status == 0, f"{argv[0]} ended with {status}:\n{log.read_text()}")
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], ready: Path, log: Path) -> str:
    deadline = time.monotonic() + _READY_S
    while not ready.exists():
        check(process.poll() is None, f"the server ended:\n{log.read_text()}")
        check(time.monotonic() < deadline, f"no answer in {_READY_S} s:\n{log.read_text()}")
        time.sleep(0.001)
    url = str(json.loads(ready.read_text())["url"])
    answer = httpx.get(f"{url}/health", trust_env=False, timeout=_READY_S)
    check(answer.json()["status"] == "ok", f"GET /health: {answer.text}")
    return url


def agentd(
    directory: Path, *, config: str = "", env: Mapping[str, str] | None = None
) -> AbstractContextManager[Server]:
    """Run agentd on a database in the directory until the scope ends.

    :param config: its configuration file.
    """
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / "agentd.toml"
    file.write_text(config)
    argv = [str(PROGRAMS / "agentd"), "--port", "0", "--db", str(directory / "db.sqlite")]
    return server(directory, argv=[*argv, "--config", str(file)], env=env)


def timed(argv: Sequence[str], expected: str, env: Mapping[str, str] | None = None) -> float:
    """Run a command and return the seconds it took.

    :param expected: text that its output must contain.
    :raises WrongResult: if it fails.
    """
    started = time.perf_counter()
    ended = subprocess.run(
        argv, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - started
    if ended.returncode != 0 or expected not in ended.stdout:
        raise WrongResult(f"{argv} gave {ended.returncode}, {ended.stdout!r}, {ended.stderr!r}")
    return seconds
