"""An agent's process and its pipes, for hosts of every kind.

The pipes are read and written with :func:`anyio.wait_readable`, so no process needs a thread, and an exit
is noticed even if a grandchild holds a pipe open. Each kind of host has its own :class:`Supervisor`.
"""

import errno
import fcntl
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final, Generic, Protocol, Self, TypeVar

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup
from attrs import frozen

from agent_orchestrator.descriptors import SHORTAGES, RateLimitedWarning
from agent_orchestrator.domain.errors import AgentFailed
from agent_orchestrator.host import ProcessSpec, StopSequence
from agent_orchestrator.ports.runner import CWD_MISSING

_log = logging.getLogger(__name__)

STDERR_TAIL: Final = 64 * 2**10
"""Number of last bytes of stderr to keep."""

_REPORT_S: Final = 0.1
"""Minimum seconds between two reports of stderr. Each contains the kept bytes."""

SHORTAGE_RETRY_S: Final = 0.5
"""Seconds between tries to start an agent while this process is out of file descriptors."""

_shortage: Final = RateLimitedWarning()

_CHUNK: Final = 2**16
_PIPE_GRACE: Final = 1.0
"""Seconds to wait for the end of stdout after the agent has exited. Then the processes that hold it open are
killed. After as many seconds more, the rest of stdout is not read."""

_KILL_GRACE: Final = 3.0
"""Seconds for the supervisor to end the remaining processes. After that they are searched for and killed
without it."""

_PIPE_SIZE: Final = 2**16
"""Size of a pipe in bytes, if the kernel does not report it."""


class Supervisor(Protocol):
    """The supervisor of an agent, which ends the agent's remaining processes."""

    async def receive(self) -> list[str]:
        """Wait for the next message: ``exit`` with the exit code, later ``gone`` when no process of the
        agent is left. Return an empty list if the supervisor was killed.
        """
        ...

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the agent's process group, unless the agent has exited."""
        ...

    def kill(self) -> None:
        """Kill the remaining processes of the agent."""
        ...


S = TypeVar("S", bound=Supervisor)
S_co = TypeVar("S_co", bound=Supervisor, covariant=True)


@frozen
class StartedAgent(Generic[S_co]):
    """An agent that was started.

    :ivar pid: the id of its process, process group and session.
    :ivar start_id: see :meth:`agent_orchestrator.host.Host.process_start_id`.
    """

    pid: int
    start_id: str | None
    supervisor: S_co


class PipedProcess:
    """A :class:`~agent_orchestrator.host.Process`; see :func:`serving`."""

    def __init__(
        self,
        agent: StartedAgent[Supervisor],
        pipes: "Pipes",
        spec: ProcessSpec,
        kill_orphans: Callable[[], Awaitable[Sequence[int]]],
        tasks: TaskGroup,
    ) -> None:
        self.pid = agent.pid
        self.start_id = agent.start_id
        self._supervisor = agent.supervisor
        self._pipes = pipes
        self._stdout = pipes.stdout
        self._stderr = pipes.stderr
        self._find_and_kill = kill_orphans
        self._pending = memoryview(spec.stdin or b"")
        self._tasks = tasks
        self._shielded_tasks: list[anyio.CancelScope] = []
        self._has_ended = False
        self._stdin_written = spec.stdin is None
        self._returncode: int | None = None
        self._exited = anyio.Event()
        """Set when the agent has exited, or its supervisor was killed and the exit code is unknown."""
        self._all_ended = anyio.Event()
        """Set when no process of the agent is left, except those that cannot be killed."""
        self.is_reusable = False
        """Whether the supervisor has reported that no process is left, and waits for another agent."""
        self._stdout_ended = anyio.Event()
        self._bytes_left = 0
        """Maximum bytes to read from stdout's pipe after the wait for its end was given up."""
        self._reading: anyio.CancelScope | None = None
        self._given_up = False
        self._tail = bytearray()
        self._on_stderr = spec.on_stderr
        self._has_new_stderr = anyio.Event()
        """Set if stderr has output that is not reported yet."""
        self._on_stdout = spec.on_stdout
        self._run_until_end(self._drain_stderr)
        if spec.on_stderr is not None:
            self._run_until_end(self._report_stderr)
        self._run_until_end(self._watch)

    @property
    def returncode(self) -> int | None:
        return self._returncode

    @property
    def stderr_tail(self) -> str:
        return self._tail[-STDERR_TAIL:].decode("utf-8", "replace")

    async def wait(self) -> int:
        self._feed_stdin()
        await self._exited.wait()
        if self._returncode is None:
            raise AgentFailed("agent_crashed", "the supervisor of the agent's process was killed")
        return self._returncode

    async def write(self, data: bytes) -> None:
        fd = self._pipes.stdin
        unsent = memoryview(data)
        while unsent:
            try:
                unsent = unsent[os.write(fd, unsent[:_CHUNK]) :]
            except BlockingIOError:
                await anyio.wait_writable(fd)

    async def read(self) -> bytes:
        self._feed_stdin()
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
                self._bytes_left -= len(chunk)
            if not chunk or (self._given_up and self._bytes_left <= 0):
                self._stdout_ended.set()
            if chunk:
                if self._on_stdout is not None:
                    self._on_stdout()
                return chunk
        return b""

    # --- background tasks ----------------------------------------------------------------------

    def _run_until_end(self, work: Callable[[], Awaitable[None]]) -> None:
        """Serve the pipes until all processes are gone. This also runs while a cancelled scope stops its
        agent.
        """
        self._tasks.start_soon(self._shielded, work)

    async def _shielded(self, work: Callable[[], Awaitable[None]]) -> None:
        with anyio.CancelScope(shield=True) as shield:
            self._shielded_tasks.append(shield)
            if not self._has_ended:
                await work()

    def _feed_stdin(self) -> None:
        if not self._stdin_written:
            self._stdin_written = True
            self._run_until_end(self._feed)

    async def _feed(self) -> None:
        fd = self._pipes.stdin
        try:
            while self._pending:
                await anyio.wait_writable(fd)
                with suppress(BlockingIOError):
                    self._pending = self._pending[os.write(fd, self._pending[:_CHUNK]) :]
        except BrokenPipeError:
            pass  # an agent need not read its prompt to the end
        self._pipes.close(fd)

    async def _drain_stderr(self) -> None:
        while True:
            await anyio.wait_readable(self._stderr)
            if self._read_stderr() == 0:
                return

    def _read_stderr(self) -> int | None:
        """Read stderr. Return the number of bytes: 0 at the end, None if there are none yet."""
        try:
            chunk = os.read(self._stderr, _CHUNK)
        except BlockingIOError:
            return None
        if chunk:
            self._tail += chunk
            if len(self._tail) > 2 * STDERR_TAIL:
                del self._tail[:-STDERR_TAIL]
            self._has_new_stderr.set()
        return len(chunk)

    async def _report_stderr(self) -> None:
        while True:
            await self._has_new_stderr.wait()
            self._report_now()
            await anyio.sleep(_REPORT_S)

    def _report_now(self) -> None:
        if self._on_stderr is not None and self._has_new_stderr.is_set():
            self._has_new_stderr = anyio.Event()
            self._on_stderr(self.stderr_tail)

    async def _watch(self) -> None:
        """Receive the supervisor's messages: the agent's exit, then that all its processes are gone."""
        while True:
            match await self._supervisor.receive():
                case ["exit", code] if self._returncode is None:
                    # All output of the agent is in the pipe. Output of other processes is not awaited.
                    bytes_left = _pipe_size(self._stderr)
                    while bytes_left > 0 and (size := self._read_stderr()):
                        bytes_left -= size
                    self._report_now()
                    self._returncode = int(code)
                    self._exited.set()
                    self._run_until_end(self._end_stdout)
                case ["gone"]:
                    self.is_reusable = True
                    self._all_ended.set()
                    return
                case _:
                    await self._kill_orphans()
                    if not self._exited.is_set():
                        self._exited.set()
                        self._run_until_end(self._end_stdout)
                    return

    async def _kill_orphans(self) -> None:
        """End the remaining processes without the supervisor, if it was killed or does not answer."""
        if alive := await self._find_and_kill():
            _log.warning(
                "processes of agent %d do not die: %s", self.pid, ", ".join(map(str, alive))
            )
        self._all_ended.set()

    async def _end_stdout(self) -> None:
        """Make stdout end after the agent has exited."""
        with anyio.move_on_after(_PIPE_GRACE):
            await self._stdout_ended.wait()
            return
        self._supervisor.kill()
        with anyio.move_on_after(_PIPE_GRACE):
            await self._stdout_ended.wait()
            return
        # A process outside the agent, or one that does not die, keeps the pipe open.
        self._bytes_left = _pipe_size(self._stdout)
        self._given_up = True
        if self._reading is not None:
            self._reading.cancel()

    async def _discard(self) -> None:
        while await self.read():
            pass

    async def stop(self, spec: ProcessSpec) -> None:
        """End the agent and all processes it started. The agent may have ended already."""
        if not self._all_ended.is_set():
            self._run_until_end(self._discard)  # an agent that blocks on stdout cannot stop
            with anyio.CancelScope() as asking:
                if spec.force_stop is not None:
                    self._run_until_end(partial(_cancel_on, spec.force_stop, asking))
                await self._signal_stop(spec.stop)
            self._supervisor.kill()
            with anyio.move_on_after(_KILL_GRACE):
                await self._all_ended.wait()
        if not self._all_ended.is_set():
            await self._kill_orphans()
        self._report_now()
        self._has_ended = True
        for shield in self._shielded_tasks:
            shield.cancel()

    async def _signal_stop(self, sequence: StopSequence) -> None:
        for number, grace in sequence:
            if self._exited.is_set():
                return
            self._supervisor.signal(number)
            with anyio.move_on_after(grace):
                await self._exited.wait()


async def _cancel_on(event: Callable[[], Awaitable[None]], scope: anyio.CancelScope) -> None:
    await event()
    scope.cancel()


def _pipe_size(fd: int) -> int:
    command: int | None = getattr(fcntl, "F_GETPIPE_SZ", None)
    return _PIPE_SIZE if command is None else fcntl.fcntl(fd, command)


@asynccontextmanager
async def serving(
    agent: StartedAgent[Supervisor],
    pipes: "Pipes",
    spec: ProcessSpec,
    kill_orphans: Callable[[], Awaitable[Sequence[int]]],
) -> AsyncIterator[PipedProcess]:
    """Serve the pipes of an agent while the scope is open. Leaving it ends the agent.

    :param kill_orphans: kills the remaining processes of the agent if its supervisor does not.
        Returns the ids of processes that do not die.
    """
    failure: Exception | None = None
    with pipes:
        pipes.close(*pipes.agent_ends)
        async with anyio.create_task_group() as tasks:
            process = PipedProcess(agent, pipes, spec, kill_orphans, tasks)
            try:
                yield process
            except Exception as error:  # noqa: BLE001 - the task group would wrap it; see below
                failure = error
            finally:
                with anyio.CancelScope(shield=True):
                    await process.stop(spec)
    if failure is not None:
        raise failure


async def start(
    spec: ProcessSpec, start_agent: Callable[[Sequence[int]], Awaitable[StartedAgent[S]]]
) -> "tuple[Pipes, StartedAgent[S]]":
    """Start an agent with new pipes. If this process is out of file descriptors, wait for free ones.

    :param start_agent: starts it with these descriptors as its stdin, stdout and stderr. It raises
        ``OSError``, with the working directory as ``filename`` if that is the reason, else without one.
    :raises AgentFailed: if it cannot be started.
    """
    while True:
        try:
            with ExitStack() as stack:
                pipes = stack.enter_context(Pipes())
                agent = await start_agent(pipes.agent_ends)
                stack.pop_all()
                return pipes, agent
        except OSError as error:
            if error.errno not in SHORTAGES or error.filename is not None:
                code, reason = _start_problem(error, spec.argv[0], spec.cwd)
                raise AgentFailed(code, reason) from error
            if count := _shortage.due():
                _log.warning(
                    "the start of an agent is delayed: %s (%d times)", error.strerror, count
                )
        await anyio.sleep(SHORTAGE_RETRY_S)


class Pipes:
    """The pipes for the agent's stdin, stdout and stderr."""

    def __init__(self) -> None:
        self._open: set[int] = set()
        try:
            agent_stdin, self.stdin = self._pipe()
            self.stdout, agent_stdout = self._pipe()
            self.stderr, agent_stderr = self._pipe()
        except OSError:
            self.close(*self._open)
            raise
        self.agent_ends = agent_stdin, agent_stdout, agent_stderr
        for fd in (self.stdin, self.stdout, self.stderr):
            os.set_blocking(fd, False)

    def _pipe(self) -> tuple[int, int]:
        ends = os.pipe()
        self._open |= {*ends}
        return ends

    def close(self, *fds: int) -> None:
        """Close these ends, if they are open."""
        for fd in self._open.intersection(fds):
            self._open.remove(fd)
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close(*self._open)


def encoded(spec: ProcessSpec) -> tuple[list[bytes], bytes, dict[bytes, bytes]]:
    """Return arguments, directory and variables as bytes for the kernel.

    :raises AgentFailed: if the kernel would not accept them.
    """
    try:
        arguments = [os.fsencode(part) for part in spec.argv]
        directory = os.fsencode(spec.cwd)
        variables = {os.fsencode(name): os.fsencode(value) for name, value in spec.env.items()}
    except ValueError as error:
        raise _invalid_arguments(spec, error) from error
    if any(b"\0" in part for part in (*arguments, directory, *variables, *variables.values())):
        raise _invalid_arguments(spec, "embedded null byte")
    if any(not name or b"=" in name for name in variables):
        raise _invalid_arguments(spec, "illegal environment variable name")
    return arguments, directory, variables


def _invalid_arguments(spec: ProcessSpec, problem: object) -> AgentFailed:
    return AgentFailed(
        "invalid_config", f"{spec.argv[0]!r} cannot be started with these arguments: {problem}"
    )


_DIRECTORY_PROBLEMS: Final = {
    errno.ESTALE: "now leads elsewhere, through a symbolic link",
    errno.ELOOP: "contains a loop of symbolic links",
    errno.EACCES: "is not accessible",
}


def _exec_bounds() -> str:
    if sys.platform != "linux":
        return f"this system allows {os.sysconf('SC_ARG_MAX') // 2**10} KiB in total"
    return (
        "Linux allows 128 KiB for each of them, and a quarter of the stack limit in total (usually 2 MiB, "
        "at most 6 MiB)"
    )


def _start_problem(error: OSError, program: str, cwd: str) -> tuple[str, str]:
    if error.filename is not None:  # the directory, and not the program
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return "invalid_config", f"{CWD_MISSING}: {cwd}"
        reason = _DIRECTORY_PROBLEMS.get(error.errno or 0, f"cannot be entered: {error.strerror}")
        return "invalid_config", f"the working directory {cwd} {reason}"
    if error.errno == errno.E2BIG:
        problem = f"the arguments and variables for {program} are too long"
        return "invalid_config", f"{problem}: {_exec_bounds()}"
    if isinstance(error, FileNotFoundError):
        if "/" in program and Path(cwd, program).exists():
            return (
                "provider_unavailable",
                f"{program} cannot be run: its interpreter does not exist",
            )
        return "provider_unavailable", f"{program} is not installed, or not on the PATH"
    if isinstance(error, PermissionError):
        return "provider_unavailable", f"{program} is not executable"
    return "provider_unavailable", f"{program} cannot be run: {error.strerror}"
