"""Starting and stopping agentd on this machine."""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from itertools import takewhile
from pathlib import Path
from typing import Any, Final

import psutil
from attrs import frozen

from agent_orchestrator.data_directory import is_data_directory, make_data_directory
from agent_orchestrator.operations.daemon import DaemonStatus
from agent_orchestrator.processes import process_start_id
from agent_orchestrator.user_state import make_private_directory, user_state
from agentctl.call import here
from agentctl.failures import FAILED, TIMED_OUT, Failure
from agentctl.settings import DEFAULT_URL, CallSettings

_DEFAULT_DB: Final = ".data/agent-orchestrator.db"
_POLL_S: Final = 0.02
"""Seconds between two checks of a starting daemon, which writes a file when it is ready."""
_LOOK_S: Final = 0.5
"""Seconds between two checks whether an ended daemon is a zombie."""
_DOCTOR_TIMEOUT_S: Final = 60.0
"""Maximum seconds of ``agentd --doctor``. It asks each agent for its version, up to 10 s each."""


@frozen
class Started:
    """A started daemon.

    :param url: its address; None if not known yet.
    """

    url: str | None
    pid: int
    log: str


LOG_OPTIONS: Final = ("--log-max-mb", "10")
"""Default limit of the log file. The user's options come later and override it."""


def start(settings: CallSettings, options: Sequence[str], timeout_s: float | None) -> Started:
    """Start agentd in a new session and return when it answers.

    :param options: options for agentd. Without an address among them, agentd listens at the
        configured URL.
    :param timeout_s: maximum seconds to wait; None to return at once.
    :raises Failure: if agentd ends, or does not answer in time.
    """
    log = _log_file(options)
    with tempfile.TemporaryDirectory(prefix="agentctl-") as directory:
        ready = Path(directory) / "ready.json"
        environ = _environment(settings, options)
        arguments = [*_address(settings, options), *LOG_OPTIONS, *_without_store(options)]
        command = [*installed_program("agentd", "agentd"), *arguments, "--ready-file", str(ready)]
        # The log is private regardless of the umask. The umask is inherited by agents, so it is not changed.
        with open(log, "ab", opener=_open_private) as stream:
            size_before = stream.tell()
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                env=environ,
                start_new_session=True,
                close_fds=True,
            )
        if timeout_s is None:
            return Started(None, process.pid, str(log))
        ready_info = _wait_ready(process, ready, log, size_before, timeout_s)
    return Started(str(ready_info["url"]), int(ready_info["pid"]), str(log))


def _open_private(path: str, flags: int) -> int:
    # O_NOFOLLOW: a link in a repository could point to any file of the user.
    descriptor = os.open(path, flags | os.O_NOFOLLOW, 0o600)
    os.fchmod(descriptor, 0o600)
    return descriptor


def offline_doctor(settings: CallSettings, options: Sequence[str]) -> str:
    """Return the JSON report of ``agentd --doctor`` with these options.

    :raises Failure: if agentd fails.
    """
    done = subprocess.run(
        [
            *installed_program("agentd", "agentd"),
            *_address(settings, options),
            *_without_store(options),
            "--doctor",
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=_environment(settings, options),
        timeout=_DOCTOR_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        reason = lines[-1].removeprefix("agentd: ") if lines else "it printed nothing"
        raise Failure("not_examined", f"agentd ended with {done.returncode}: {reason}")
    return done.stdout.decode()


def _wait_ready(
    process: "subprocess.Popen[bytes]", ready: Path, log: Path, size_before: int, timeout_s: float
) -> dict[str, Any]:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            ready_info: dict[str, Any] = json.loads(ready.read_text())
            return ready_info
        except (FileNotFoundError, ValueError):  # missing or incomplete
            pass
        if (status := process.poll()) is not None:
            raise Failure(
                "not_started",
                f"agentd ended with {status}: {_log_tail(log, size_before)}",
                hint=f"see its log, {log}",
                details={"exit_code": status, "log": str(log)},
            )
        if time.monotonic() > deadline:
            process.terminate()
            raise Failure(
                "timeout",
                f"agentd did not answer within {timeout_s:g} s and was stopped",
                exit_code=TIMED_OUT,
                hint=f"see its log, {log}",
            )
        time.sleep(_POLL_S)


def _log_tail(log: Path, size_before: int) -> str:
    with log.open("rb") as stream:
        if os.fstat(stream.fileno()).st_size >= size_before:  # otherwise it was rotated
            stream.seek(size_before)
        text = stream.read()[-4000:].decode(errors="replace").strip()
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return "it printed nothing"
    # Another agentd may write to the same log. Its entries are JSON.
    newest = [line for line in reversed(lines) if not line.startswith("{")] or lines[-1:]
    after = list(takewhile(lambda line: not line.startswith("agentd: "), newest))
    # agentd reports each invalid setting on a separate line.
    errors = list(takewhile(lambda line: line.startswith("agentd: "), newest[len(after) :]))
    if not errors or any(line.startswith("Traceback (") for line in after):
        errors = newest[:1]
    return "; ".join(dict.fromkeys(line.removeprefix("agentd: ") for line in reversed(errors)))


def installed_program(name: str, module: str) -> list[str]:
    """Return the command of a program that is installed with this agentctl.

    A module of that name in the current directory is not it.
    """
    installed = Path(sys.executable).with_name(name)
    if installed.is_file():
        return [str(installed)]
    return [sys.executable, "-P", "-m", module]


def _address(settings: CallSettings, options: Sequence[str]) -> list[str]:
    """Return agentd's address options; none if the URL is the default or the options have them."""
    if settings.url == DEFAULT_URL or names_address(options):
        return []
    return ["--host", settings.host, "--port", str(settings.port)]


def names_address(options: Sequence[str]) -> bool:
    """Return whether agentd's options contain an address."""
    return any(option.partition("=")[0] in ("--host", "--port") for option in options)


def _environment(settings: CallSettings, options: Sequence[str]) -> dict[str, str]:
    """Return agentd's environment.

    The token and the store's URL are passed there, because arguments show up in ``ps``.
    """
    environ = dict(os.environ)
    for flag, variable in _STORE_FLAGS.items():
        if (url := _value_of(flag, options)) is not None:
            environ[variable] = url
    if settings.token and not environ.get("AGENTD_AUTH_TOKEN"):
        environ["AGENTD_AUTH_TOKEN"] = settings.token
    return environ


def _log_file(options: Sequence[str]) -> Path:
    """Return the path of a daemon's log, and create its directory.

    The log is put beside the database if that has a data directory. In a user's directory it would
    be among the user's files, so it goes to the state directory.

    :raises OSError: if the directory cannot be created.
    """
    state = user_state()
    store = _value_of("--store", options) or os.environ.get("AGENTD_STORE")
    if store is not None and state is not None and _value_of("--db", options) is None:
        make_private_directory(state.logs)
        key = hashlib.sha256(os.fsencode(store)).hexdigest()[:8]
        return state.logs / f"store-{key}.log"
    database = here() / _database(options)
    make_data_directory(database.parent)
    if is_data_directory(database.parent) or state is None:
        return database.parent / "agentd.log"
    make_private_directory(state.logs)
    key = hashlib.sha256(os.fsencode(database)).hexdigest()[:8]
    return state.logs / f"{database.stem[:50]}-{key}.log"


def _database(options: Sequence[str]) -> Path:
    """Return the path of agentd's database according to its options and the environment."""
    return Path(_value_of("--db", options) or os.environ.get("AGENTD_DB") or _DEFAULT_DB)


def _value_of(flag: str, options: Sequence[str]) -> str | None:
    """Return the last value of an option of agentd; None if it is not given."""
    found = None
    for index, option in enumerate(options):
        name, separator, value = option.partition("=")
        if name == flag:
            found = value if separator else "".join(options[index + 1 : index + 2]) or found
    return found


_STORE_FLAGS: Final = {"--store": "AGENTD_STORE", "--store-listen": "AGENTD_STORE_LISTEN"}
"""The options of agentd with URLs that may have a password, and the variables in their place."""


def _without_store(options: Sequence[str]) -> list[str]:
    """Return the options without the store's URLs, which may have a password."""
    kept = list(options)
    for flag in _STORE_FLAGS:
        while flag in kept:
            index = kept.index(flag)
            del kept[index : index + 2]
        kept = [option for option in kept if not option.startswith(f"{flag}=")]
    return kept


def process_of(status: DaemonStatus) -> psutil.Process:
    """Return the daemon's process.

    :raises Failure: if the process is not on this machine, or belongs to another user.
    """
    pid = status.pid
    try:
        process: psutil.Process | None = psutil.Process(pid)
        if status.process_start_id is None or process_start_id(pid) != status.process_start_id:
            process = None
    except psutil.NoSuchProcess:
        process = None
    except psutil.AccessDenied:
        raise Failure("forbidden", f"process {pid} belongs to another user") from None
    if process is None:
        raise Failure(
            "not_local",
            f"agentd reports the process {pid}, which does not exist on this machine",
            exit_code=FAILED,
            hint="stop it on the machine where it runs",
        )
    return process


def stop_report(status: DaemonStatus) -> dict[str, Any] | None:
    """Return a stopped daemon's report of its drain; None if there is none or it cannot be read.

    :param status: the status before the stop.
    """
    if status.store.path is None:
        return None
    pid, started_at = status.pid, status.started_at
    if "://" not in status.store.path:
        file = Path(f"{status.store.path}-stopped")
    elif (state := user_state()) is not None:
        file = state.last_stop
    else:
        return None
    try:
        report: Any = json.loads(file.read_text())
        if (report["pid"], datetime.fromisoformat(report["started_at"])) != (pid, started_at):
            return None  # written by an earlier daemon
        return {name: report[name] for name in ("finished", "released", "parked")}
    except (OSError, ValueError, LookupError, TypeError):
        return None


def terminate(process: psutil.Process, *, now: bool) -> None:
    """Terminate a daemon. With ``now``, it does not wait for running agents.

    :raises Failure: if the process belongs to another user.
    """
    try:
        process.terminate()
        if now:
            # agentd counts signals. Two at once would be delivered as one.
            time.sleep(0.2)
            process.terminate()
    except psutil.NoSuchProcess:
        return
    except psutil.AccessDenied:
        raise Failure("forbidden", f"process {process.pid} belongs to another user") from None


def await_end(process: psutil.Process, timeout_s: float) -> bool:
    """Wait for a process to end. Return False if it has not ended after ``timeout_s`` seconds.

    A zombie has ended too. In some containers nobody reads its exit status, so it never disappears.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        left_s = deadline - time.monotonic()
        try:
            process.wait(max(0.0, min(left_s, _LOOK_S)))
        except psutil.TimeoutExpired:
            if _is_zombie(process):
                return True
            if left_s <= 0:
                return False
        else:
            return True


def _is_zombie(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
