"""Calls of agentctl by a process that has loaded it and forks for each of them.

A call has its own process, arguments, environment, directory and pipes, as if it had been started; only
the half second in which Python loads the program's modules is spent once.
"""

import atexit
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

SERVER = """
import sys
sys.path.insert(0, sys.argv[1])
import forking
forking.serve(sys.argv[2], sys.argv[3:])
"""


NAMES = (
    "agentctl.main", "agentctl", "agentctl.commands", "agent_orchestrator.remote", "agent_orchestrator.encoding",
    "asyncio", "anyio.to_thread", "anyio._backends._asyncio", "httpcore._backends.anyio", "certifi",
)  # fmt: skip
"""The module whose ``main()`` is the program, and what it loads only when it needs it."""


class Forks:
    """A process with agentctl's modules, from the first call to the end of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._address: str | None = None

    def run(
        self,
        arguments: Sequence[str],
        *,
        stdin: bytes,
        cwd: Path,
        env: Mapping[str, str],
        timeout: float,
    ) -> "subprocess.CompletedProcess[bytes]":
        """Run the program to its end, as :func:`subprocess.run` would."""
        call = {"argv": [*map(str, arguments)], "cwd": os.fspath(cwd), "env": dict(env)}
        end = time.monotonic() + timeout
        with tempfile.TemporaryFile() as given, contextlib.ExitStack() as open_ends:
            given.write(stdin)
            given.seek(0)
            reads, writes = zip(*(os.pipe() for _ in range(2)), strict=True)
            streams = [open_ends.enter_context(os.fdopen(end, "rb", buffering=0)) for end in reads]
            with socket.socket(socket.AF_UNIX) as line:
                try:
                    line.connect(self._served())
                    socket.send_fds(line, [b"!"], [given.fileno(), *writes])
                    line.sendall(json.dumps(call).encode() + b"\n")
                finally:
                    for one in writes:
                        os.close(one)
                told = {one: bytearray() for one in streams}
                while streams:
                    ready, _, _ = select.select(streams, [], [], max(0.0, end - time.monotonic()))
                    if not ready:
                        raise subprocess.TimeoutExpired(call["argv"], timeout)
                    for one in ready:
                        if not (chunk := one.read(1 << 16)):
                            streams.remove(one)
                        told[one] += chunk
                line.settimeout(max(0.1, end - time.monotonic()))
                code = int(line.recv(16))
        out, err = (bytes(one) for one in told.values())
        return subprocess.CompletedProcess(call["argv"], code, out, err)

    def _served(self) -> str:
        with self._lock:
            if self._address is None:
                folder = tempfile.TemporaryDirectory(prefix="forks-")
                address = str(Path(folder.name, "calls"))
                process = subprocess.Popen(
                    [sys.executable, "-c", SERVER, str(Path(__file__).parent), address, *NAMES],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env=os.environ | {"PYTHONWARNINGS": "error", "PYTHONUTF8": "1"},
                )
                assert process.stdout is not None
                assert process.stdout.readline() == b"ready\n"

                def end() -> None:
                    process.communicate()  # ends as its input does
                    folder.cleanup()

                atexit.register(end)
                self._address = address
            return self._address


# --- in the process that forks ------------------------------------------------------------------


def serve(address: str, names: Sequence[str]) -> None:
    """Fork for each call that arrives, until the input ends."""
    import gc
    import importlib
    import pkgutil

    program = importlib.import_module(names[0])
    program._spare_imports()
    for module in [importlib.import_module(name) for name in names[1:]]:
        if not module.__name__.startswith("agentctl"):
            continue
        for found in pkgutil.iter_modules(getattr(module, "__path__", ()), f"{module.__name__}."):
            importlib.import_module(found.name)
    gc.freeze()  # a collection in a child would touch, and so copy, all that is loaded
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for who answers
    with socket.socket(socket.AF_UNIX) as listener:
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
                _answer(line, program)
            line.close()


def _answer(line: socket.socket, program: Any) -> NoReturn:
    """Have a child make the call, and tell its status; kill it when the caller is gone."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, streams, _, _ = socket.recv_fds(line, 1, 3)
    with line.makefile("rb") as sent:
        call = json.loads(sent.readline())
    child = os.fork()
    if child == 0:
        line.close()
        _become(call, streams, program)
    for one in streams:
        os.close(one)
    ended = os.pidfd_open(child)
    ready, _, _ = select.select([ended, line], [], [])
    if ended not in ready:
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with contextlib.suppress(OSError):
        line.sendall(str(status).encode())
    os._exit(0)


def _become(call: dict[str, Any], streams: Sequence[int], program: Any) -> NoReturn:
    import traceback

    for number, one in enumerate(streams):
        os.dup2(one, number)
        os.close(one)
    os.chdir(call["cwd"])
    os.environ.clear()
    os.environ.update(call["env"])
    time.tzset()
    sys.argv = ["agentctl", *call["argv"]]
    sys.stdin = os.fdopen(0, encoding="utf-8", errors="surrogateescape", closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", errors="surrogateescape", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
    code = 1
    try:
        program.main()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException:  # noqa: BLE001 - as Python's own end of a program
        traceback.print_exc()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code & 0xFF)
