"""Processes of a Python program, forked from one that has loaded it.

Each has its own arguments, environment, directory and streams, as if it had been started; only the
second in which Python loads the program's modules is spent once. What ``/proc`` tells of its command
line and first environment is that of the process it was forked from.
"""

import atexit
import contextlib
import json
import os
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

SERVER = """
import sys
sys.path.insert(0, sys.argv[1])
import forking
forking.serve(*sys.argv[2:])
"""

CALL = """
import _signal, array, json, os, sys
from _socket import AF_UNIX, SCM_RIGHTS, SOCK_SEQPACKET, SOL_SOCKET, socket
line = socket(AF_UNIX, SOCK_SEQPACKET)
line.connect(sys.argv[1])
told = os.memfd_create("call")
call = {"argv": sys.argv[2:], "cwd": os.getcwd(), "env": {**os.environ}, "has_session": False}
os.write(told, json.dumps(call).encode())
descriptors = array.array("i", [0, 1, 2, told])
line.sendmsg([b"!"], [(SOL_SOCKET, SCM_RIGHTS, descriptors)])
pid = int(line.recv(16))
for number in (_signal.SIGINT, _signal.SIGTERM):
    _signal.signal(number, lambda number, _: os.kill(pid, number))
code = int(line.recv(16))
os._exit(code if code >= 0 else 128 - code)
"""
"""A script to run in place of the program. It asks for a fork as :meth:`Forks.start` does. It imports little, so
that it starts fast."""


class Forked:
    """A process that was forked, with what of :class:`subprocess.Popen` does not concern its streams."""

    def __init__(self, line: socket.socket, arguments: Sequence[str]) -> None:
        self._line = line
        weakref.finalize(self, line.close)  # whoever drops it wants its process to end
        self._arguments = arguments
        self._lock = threading.Lock()
        self.returncode: int | None = None
        self.pid = int(line.recv(16))

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        with self._lock:
            if self.returncode is None:
                ready, _, _ = select.select([self._line], [], [], timeout)
                if not ready:
                    raise subprocess.TimeoutExpired(self._arguments, timeout or 0)
                self.returncode = int(self._line.recv(16))
                self._line.close()
            return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it has ended, and is being told of
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Forks:
    """A process with a program's modules, from the first use to the end of this process.

    :param name: what the program calls itself.
    :param source: Python that loads its modules, also those it loads when it needs them, and names what
        it calls ``main``. It is given a ``folder`` for what its forks share.
    """

    def __init__(self, name: str, source: str) -> None:
        self._name = name
        self._source = source
        self._lock = threading.Lock()
        self._address: str | None = None

    def start(
        self,
        arguments: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        streams: Sequence[int],
        has_session: bool = False,
    ) -> Forked:
        """Start the program.

        :param streams: the descriptors it has as standard input, output and error.
        :param has_session: whether it leads a session of processes.
        """
        call = {
            "argv": [*map(str, arguments)],
            "cwd": os.fspath(cwd),
            "env": dict(env),
            "has_session": has_session,
        }
        line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            line.connect(self._served())
            with tempfile.TemporaryFile() as told:
                told.write(json.dumps(call).encode())
                told.flush()
                socket.send_fds(line, [b"!"], [*streams, told.fileno()])
            return Forked(line, call["argv"])
        except BaseException:
            line.close()
            raise

    @contextlib.contextmanager
    def started(
        self,
        arguments: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        streams: Sequence[int],
    ) -> Iterator[Forked]:
        """Have the program inside this scope: neither it nor what it started outlives it."""
        process = self.start(arguments, cwd=cwd, env=env, streams=streams, has_session=True)
        try:
            yield process
        finally:
            process.kill()
            # What it started is in its group.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(60)

    @property
    def command(self) -> list[str]:
        """A command that runs the program with the arguments after it.

        It hands interrupts and requests to end over to the program, and ends it when it is killed.
        """
        return [sys.executable, "-I", "-S", "-c", CALL, self._served()]

    def put(self, path: Path) -> None:
        """Make a file that runs the program, for those who call it by name."""
        path.write_text(f'#!/bin/sh\nexec {shlex.join(self.command)} "$@"\n')
        path.chmod(0o755)

    def run(
        self,
        arguments: Sequence[str],
        *,
        stdin: bytes,
        cwd: Path,
        env: Mapping[str, str],
        timeout: float,
    ) -> "subprocess.CompletedProcess[bytes]":
        """Run the program to its end, as :func:`subprocess.run` would.

        :param timeout: seconds, without those in which the first program is loaded.
        """
        with tempfile.TemporaryFile() as given, contextlib.ExitStack() as open_ends:
            given.write(stdin)
            given.seek(0)
            reads, writes = zip(*(os.pipe() for _ in range(2)), strict=True)
            streams = [open_ends.enter_context(os.fdopen(end, "rb", buffering=0)) for end in reads]
            try:
                process = self.start(arguments, cwd=cwd, env=env, streams=[given.fileno(), *writes])
            finally:
                for one in writes:
                    os.close(one)
            end = time.monotonic() + timeout
            try:
                told = {one: bytearray() for one in streams}
                while streams:
                    ready, _, _ = select.select(streams, [], [], max(0.0, end - time.monotonic()))
                    if not ready:
                        raise subprocess.TimeoutExpired([*arguments], timeout)
                    for one in ready:
                        if not (chunk := one.read(1 << 16)):
                            streams.remove(one)
                        told[one] += chunk
                code = process.wait(max(0.1, end - time.monotonic()))
            except BaseException:
                process.kill()
                raise
        out, err = (bytes(one) for one in told.values())
        return subprocess.CompletedProcess([*arguments], code, out, err)

    def _served(self) -> str:
        with self._lock:
            if self._address is None:
                folder = tempfile.TemporaryDirectory(prefix="forks-")
                here, address = str(Path(__file__).parent), str(Path(folder.name, "calls"))
                process = subprocess.Popen(
                    [sys.executable, "-c", SERVER, here, address, self._name, self._source],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env=os.environ | {"PYTHONUTF8": "1"},
                )
                assert process.stdout is not None
                assert process.stdout.readline() == b"ready\n"

                def end() -> None:
                    process.communicate()  # ends as its input does
                    folder.cleanup()

                atexit.register(end)
                self._address = address
            return self._address


AGENTD = Forks(
    "agentd",
    """
from agentd.cli import main
import agentd.daemon, agentd.doctor, agentd.print_config
import agent_orchestrator.runners.codex.auto, agent_orchestrator.runners.codex.appserver.server_pool
import agent_orchestrator.runners.command, agent_orchestrator.runners.demo
import agent_orchestrator.mcp.exchange, agent_orchestrator.mcp.server, httpx
import anyio._backends._asyncio, anyio._core._signals, encodings.idna
import agent_orchestrator.runners.acp.runner, agent_orchestrator.runners.claude
import pytest, shortcuts
shortcuts.take(pytest.MonkeyPatch())
shortcuts.share_answers(pytest.MonkeyPatch(), folder)
""",
)
"""Used with ``start`` where one is to go on, with ``run`` where it ends by itself."""


# --- in the process that forks ------------------------------------------------------------------


def serve(address: str, name: str, source: str) -> None:
    """Fork for each call that arrives, until the input ends."""
    import gc

    loaded: dict[str, Any] = {"folder": Path(address).parent}
    exec(source, loaded)
    gc.freeze()  # a collection in a child would touch, and so copy, all that is loaded
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for who answers
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(address)
        listener.listen(64)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while True:
            ready, _, _ = select.select([0, listener], [], [])
            if 0 in ready:
                return
            line, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _answer(line, name, loaded["main"])
            line.close()


def _answer(line: socket.socket, name: str, main: Any) -> NoReturn:
    """Have a child be the program, and tell its status; kill it when the caller is gone."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, (*streams, told), _, _ = socket.recv_fds(line, 1, 4)
    with os.fdopen(told, "rb") as file:
        file.seek(0)
        call = json.loads(file.read())
    child = os.fork()
    if child == 0:
        line.close()
        _become(call, streams, name, main)
    for one in streams:
        os.close(one)
    with contextlib.suppress(OSError):
        line.send(str(child).encode())
    ended = os.pidfd_open(child)
    ready, _, _ = select.select([ended, line], [], [])
    if ended not in ready:
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with contextlib.suppress(OSError):
        line.send(str(status).encode())
    os._exit(0)


def _become(call: dict[str, Any], streams: Sequence[int], name: str, main: Any) -> NoReturn:
    import traceback

    if call["has_session"]:
        os.setsid()
    for number, one in enumerate(streams):
        os.dup2(one, number)
        os.close(one)
    os.chdir(call["cwd"])
    os.environ.clear()
    os.environ.update(call["env"])
    time.tzset()
    # As ``python -m`` begins.
    if call["env"].get("PYTHONWARNINGS") == "error":
        warnings.simplefilter("error")
    sys.path[:0] = [call["cwd"], *filter(None, call["env"].get("PYTHONPATH", "").split(os.pathsep))]
    sys.argv = [name, *call["argv"]]
    sys.stdin = os.fdopen(0, encoding="utf-8", errors="surrogateescape", closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", errors="surrogateescape", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
    code = 1
    try:
        main()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException:  # noqa: BLE001 - as Python's own end of a program
        traceback.print_exc()
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(cast("int", code) & 0xFF)
