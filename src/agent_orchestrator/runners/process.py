"""An agent's process as a scope: when the scope is left, nothing the agent started is alive.

Built on ``subprocess``, pidfds and :func:`anyio.wait_readable` rather than on anyio's own
processes: no thread per process (asyncio in Python 3.11 has one), an exit is seen although a
grandchild holds the pipes, and the dead root stays a zombie until all else of it is swept, so that
its pid, process group and session cannot belong to a stranger meanwhile.
"""

import errno
import fcntl
import logging
import os
import signal
import subprocess
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import anyio
import psutil
from anyio.abc import TaskGroup
from anyio.to_thread import run_sync
from attrs import frozen

from agent_orchestrator.domain.errors import AgentFailed
from agent_orchestrator.ports import MARK_VARIABLE
from agent_orchestrator.runners.lines import Line, LineFramer, decoded
from agent_orchestrator.runners.sweep import Sweep

_log = logging.getLogger(__name__)

Ladder = Sequence[tuple[signal.Signals, float]]
"""How to ask an agent to stop: signals for its process group, each with the seconds it has to end
before the next. After the last, whatever is left is killed."""

DEFAULT_STOP: Final[Ladder] = ((signal.SIGINT, 2.0),)

STDERR_TAIL: Final = 64 * 2**10
"""Bytes kept of the end of stderr."""

MAX_ARGUMENT: Final = 131_071
"""Bytes of one argument Linux starts a program with (MAX_ARG_STRLEN, less its final NUL)."""

_CHUNK: Final = 2**16
_PIPE_GRACE: Final = 1.0
"""Seconds for the end of stdout once the agent has exited, before what holds it open is swept; and
again before it is given up."""

_KILL_GRACE: Final = 5.0


class AgentProcess:
    """A running agent; see :func:`agent_process`.

    :ivar pid: its process, process group and session.
    :ivar started_at: when it started, in seconds since the epoch, as :mod:`psutil` tells it.
    """

    def __init__(
        self,
        started: "_Started",
        stdin: bytes,
        mark: str | None,
        on_stderr: Callable[[str], None] | None,
        tasks: TaskGroup,
    ) -> None:
        popen = started.popen
        assert popen.stdin
        assert popen.stdout
        assert popen.stderr
        self.pid = popen.pid
        self.started_at = started.started_at
        self._pidfd = started.pidfd
        self._stdin = popen.stdin
        self._stdout = popen.stdout.fileno()
        self._stderr = popen.stderr.fileno()
        for stream in (popen.stdin, popen.stdout, popen.stderr):
            os.set_blocking(stream.fileno(), False)
        self._pending = memoryview(stdin)
        self._tasks = tasks
        self._shields: list[anyio.CancelScope] = []
        self._over = False
        self._fed = False
        self._returncode: int | None = None
        self._exited = anyio.Event()
        self._stdout_ended = anyio.Event()
        self._spare = 0
        """Bytes that may still be in stdout's pipe once its end is no longer waited for."""
        self._reading: anyio.CancelScope | None = None
        self._given_up = False
        self._tail = b""
        self._on_stderr = on_stderr
        self._sweep = Sweep(popen.pid, mark)
        self._beside(self._drain_stderr)
        self._beside(self._watch)

    @property
    def returncode(self) -> int | None:
        """The exit code, negative for a signal; None while the agent runs."""
        return self._returncode

    @property
    def stderr_tail(self) -> str:
        """The end of what the agent wrote on stderr so far."""
        return decoded(self._tail)

    def lines(self) -> AsyncIterator[Line]:
        """Return the lines of stdout as they come. To be iterated once, by one task.

        It ends when stdout does: with the agent, or before, when the agent closes it. Where
        something the agent left behind holds stdout open, it ends about a second after the agent.
        """
        self._feed_stdin()
        return _Lines(self)

    async def wait(self) -> int:
        """Return the exit code, negative for a signal, once the agent has exited. What it wrote on
        stderr has been read by then. Read :meth:`lines` first: an agent waits for its reader.
        """
        self._feed_stdin()
        await self._exited.wait()
        assert self._returncode is not None
        return self._returncode

    async def read(self) -> bytes:
        """Return the next bytes of stdout; none at its end."""
        while not self._stdout_ended.is_set():
            if not self._given_up:
                with anyio.CancelScope() as self._reading:
                    await anyio.wait_readable(self._stdout)
                self._reading = None
            else:
                await anyio.lowlevel.checkpoint()
            try:
                chunk = os.read(self._stdout, _CHUNK)
            except BlockingIOError:
                chunk = b""
                if not self._given_up:
                    continue
            if self._given_up:
                self._spare -= len(chunk)
            if not chunk or (self._given_up and self._spare <= 0):
                self._stdout_ended.set()
            if chunk:
                return chunk
        return b""

    # --- what goes on beside the reader -----------------------------------------------------

    def _beside(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run it until the process is over: a cancelled scope still stops its agent with its help."""
        self._tasks.start_soon(self._shielded, work)

    async def _shielded(self, work: Callable[[], Awaitable[None]]) -> None:
        with anyio.CancelScope(shield=True) as shield:
            self._shields.append(shield)
            if not self._over:
                await work()

    def _feed_stdin(self) -> None:
        if not self._fed:
            self._fed = True
            self._beside(self._feed)

    async def _feed(self) -> None:
        fd = self._stdin.fileno()
        try:
            while self._pending:
                await anyio.wait_writable(fd)
                with suppress(BlockingIOError):
                    self._pending = self._pending[os.write(fd, self._pending[:_CHUNK]) :]
        except BrokenPipeError:
            pass  # an agent need not read its prompt to the end
        self._stdin.close()

    async def _drain_stderr(self) -> None:
        while True:
            await anyio.wait_readable(self._stderr)
            if self._read_stderr() == 0:
                return

    def _read_stderr(self) -> int | None:
        """Take what is there and return its size: 0 at the end, None when nothing is there yet."""
        try:
            chunk = os.read(self._stderr, _CHUNK)
        except BlockingIOError:
            return None
        if chunk:
            self._tail = (self._tail + chunk)[-STDERR_TAIL:]
            if self._on_stderr is not None:
                self._on_stderr(self.stderr_tail)
        return len(chunk)

    async def _watch(self) -> None:
        await anyio.wait_readable(self._pidfd)
        # All the dead agent wrote is in the pipe; who else holds stderr is not waited for.
        spare = fcntl.fcntl(self._stderr, fcntl.F_GETPIPE_SZ)
        while spare > 0 and (size := self._read_stderr()):
            spare -= size
        self._returncode = _exit_code(self.pid)
        self._exited.set()
        with anyio.move_on_after(_PIPE_GRACE):
            await self._stdout_ended.wait()
            return
        await self._sweep()
        with anyio.move_on_after(_PIPE_GRACE):
            await self._stdout_ended.wait()
            return
        self._spare = fcntl.fcntl(self._stdout, fcntl.F_GETPIPE_SZ)
        self._given_up = True
        if self._reading is not None:
            self._reading.cancel()

    async def _discard(self) -> None:
        while await self.read():
            pass

    async def _stop(self, ladder: Ladder) -> None:
        """End the agent and all it started; it may be gone already."""
        self._beside(self._discard)  # an agent that blocks on stdout cannot obey
        for number, grace in ladder:
            if self._exited.is_set():
                break
            await self._sweep.remember()
            with suppress(ProcessLookupError):
                os.killpg(self.pid, number)
            with anyio.move_on_after(grace):
                await self._exited.wait()
        if not self._exited.is_set():
            await self._sweep.remember()
        await self._sweep()
        with anyio.move_on_after(_KILL_GRACE):
            await self._exited.wait()
        self._over = True
        for shield in self._shields:
            shield.cancel()


class _Lines:
    """The lines of a process's stdout: an iterator object, which unlike an async generator may be
    dropped half-way without ado.
    """

    def __init__(self, process: AgentProcess) -> None:
        self._process = process
        self._framer = LineFramer()
        self._ready: deque[Line] = deque()
        self._ended = False

    def __aiter__(self) -> "_Lines":
        return self

    async def __anext__(self) -> Line:
        while not self._ready:
            if self._ended:
                raise StopAsyncIteration
            if chunk := await self._process.read():
                self._ready.extend(self._framer.feed(chunk))
            else:
                self._ended = True
                self._ready.extend(self._framer.finish())
        return self._ready.popleft()


@asynccontextmanager
async def agent_process(
    argv: Sequence[str],
    *,
    cwd: str,
    env: Mapping[str, str],
    stdin: bytes = b"",
    stop: Ladder = DEFAULT_STOP,
    on_stderr: Callable[[str], None] | None = None,
) -> AsyncIterator[AgentProcess]:
    """Run a program in a session of its own; leaving the scope, however, ends all it started.

    On leaving, an agent that still runs is sent the signals of ``stop``; then all that is left is
    killed: its process group and session, its descendants, and every process that has the value of
    ``env[MARK_VARIABLE]`` in its environment, also one that called ``setsid`` or forked twice. Out
    of reach is only a process that did so, cleaned its environment, and was orphaned before the
    stop began.

    :param env: the whole environment.
    :param stdin: written as the agent reads it, then closed. It begins with the first call of
        :meth:`AgentProcess.lines` or :meth:`AgentProcess.wait`, so that the process can be recorded
        before it has work.
    :param on_stderr: called with the end of stderr whenever the agent has written more of it.
    :raises AgentFailed: ``provider_unavailable`` if the program cannot be started, or
        ``invalid_config`` if what it was to be given cannot be.
    """
    # A limiter of its own: a start must not wait for others' work in threads.
    started = await run_sync(_start, argv, cwd, env, limiter=anyio.CapacityLimiter(1))
    failure: Exception | None = None
    try:
        async with anyio.create_task_group() as tasks:
            process = AgentProcess(started, stdin, env.get(MARK_VARIABLE), on_stderr, tasks)
            try:
                yield process
            except Exception as error:  # noqa: BLE001 - the task group would wrap it; see below
                failure = error
            finally:
                with anyio.CancelScope(shield=True):
                    await process._stop(stop)  # noqa: SLF001 - the scope owns the process
    finally:
        started.close()
    if failure is not None:
        raise failure


@frozen
class _Started:
    popen: "subprocess.Popen[bytes]"
    pidfd: int
    started_at: float

    def close(self) -> None:
        """Close what leads to the process and reap it."""
        for stream in (self.popen.stdin, self.popen.stdout, self.popen.stderr):
            if stream is not None:
                stream.close()
        os.close(self.pidfd)
        if self.popen.poll() is None:
            _log.warning("process %d could not be ended", self.popen.pid)


def _start(argv: Sequence[str], cwd: str, env: Mapping[str, str]) -> _Started:
    """Start the program. Called in a thread: it waits until the program has been loaded."""
    program = argv[0]
    try:
        popen = subprocess.Popen(
            list(argv),
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=cwd,
            env=dict(env),
            close_fds=True,
            start_new_session=True,
        )
    except ValueError as error:  # a NUL or half a surrogate pair
        raise AgentFailed("invalid_config", f"{program!r} cannot be given this: {error}") from error
    except OSError as error:
        code, reason = _start_problem(error, program, cwd)
        raise AgentFailed(code, reason) from error
    started_at = psutil.Process(popen.pid).create_time()
    return _Started(popen, os.pidfd_open(popen.pid), started_at)


def _start_problem(error: OSError, program: str, cwd: str) -> tuple[str, str]:
    if not Path(cwd).is_dir():
        return "invalid_config", f"the working directory {cwd} is not there"
    if not os.access(cwd, os.X_OK):
        return "invalid_config", f"the working directory {cwd} may not be entered"
    if error.errno == errno.E2BIG:
        return "invalid_config", f"the arguments for {program} are too long"
    if isinstance(error, FileNotFoundError):
        if "/" in program and Path(cwd, program).exists():
            return "provider_unavailable", f"{program} cannot be run: its interpreter is not there"
        return "provider_unavailable", f"{program} is not installed, or not on the PATH"
    if isinstance(error, PermissionError):
        return "provider_unavailable", f"{program} is not executable"
    return "provider_unavailable", f"{program} cannot be run: {error.strerror}"


def _exit_code(pid: int) -> int:
    """Return the exit code of a dead child that stays a zombie."""
    try:
        result = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        result = None
    if result is None:  # somebody else reaped it, as where SIGCHLD is ignored
        _log.warning("the exit code of process %d is lost", pid)
        return 255
    return result.si_status if result.si_code == os.CLD_EXITED else -result.si_status
