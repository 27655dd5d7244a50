"""An agent's process as a scope: when the scope is left, nothing the agent started is alive.

Each agent has a supervisor (:mod:`agent_orchestrator.runners.forkserver`), which adopts whatever comes of
it, ends all of that when this process dies, and says when there is nothing left. The pipes are
worked with :func:`anyio.wait_readable`: no thread per process, and an exit is seen although a
grandchild holds them.
"""

import errno
import fcntl
import logging
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final, Self

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from agent_orchestrator.descriptors import SHORTAGES, RateLimitedWarning
from agent_orchestrator.domain.errors import AgentFailed
from agent_orchestrator.ports import CWD_MISSING, TAG_VARIABLE
from agent_orchestrator.runners.lines import Line, LineFramer, decoded
from agent_orchestrator.runners.orphans import kill_orphans, tag_limit
from agent_orchestrator.runners.supervisor import SupervisedAgent, fork_server

_log = logging.getLogger(__name__)

StopSequence = Sequence[tuple[signal.Signals, float]]
"""How to ask an agent to stop: signals for its process group, each with the seconds it has to end
before the next. After the last, whatever is left is killed."""

DEFAULT_STOP: Final[StopSequence] = ((signal.SIGINT, 2.0),)

STDERR_TAIL: Final = 64 * 2**10
"""Bytes kept of the end of stderr."""

MAX_ARGUMENT: Final = 131_071
"""Bytes of one argument Linux starts a program with (MAX_ARG_STRLEN, less its final NUL)."""

_REPORT_S: Final = 0.1
"""Seconds between reports of stderr: each has its whole tail."""

SHORTAGE_RETRY_S: Final = 0.5
"""Seconds between tries to start an agent while this process may open no more files."""

_shortage: Final = RateLimitedWarning()

_CHUNK: Final = 2**16
_PIPE_GRACE: Final = 1.0
"""Seconds for the end of stdout once the agent has exited, before what holds it open is killed; and
again before it is given up."""

_KILL_GRACE: Final = 3.0
"""Seconds for the supervisor to end what is left, before that is looked for without it."""


class AgentProcess:
    """A running agent; see :func:`agent_process`.

    :ivar pid: its process, process group and session.
    :ivar start_id: when it started: :func:`agent_orchestrator.processes.process_start_id`.
    """

    def __init__(
        self,
        agent: SupervisedAgent,
        pipes: "_Pipes",
        stdin: bytes | None,
        tag: str | None,
        on_stderr: Callable[[str], None] | None,
        on_stdout: Callable[[], None] | None,
        tasks: TaskGroup,
    ) -> None:
        self.pid = agent.pid
        self.start_id = agent.start_id
        self._supervisor = agent.supervisor
        self._pipes = pipes
        self._stdout = pipes.stdout
        self._stderr = pipes.stderr
        self._tag = tag
        self._pending = memoryview(stdin or b"")
        self._tasks = tasks
        self._shielded_tasks: list[anyio.CancelScope] = []
        self._has_ended = False
        self._stdin_written = stdin is None
        self._returncode: int | None = None
        self._exited = anyio.Event()
        """Set, too, when the supervisor was lost and with it the exit code."""
        self._all_ended = anyio.Event()
        """Nothing is left of the agent, or nothing that would die."""
        self.is_reusable = False
        """Whether the supervisor has said that nothing is left, and waits for another agent."""
        self._stdout_ended = anyio.Event()
        self._write_descriptor = 0
        """Bytes that may still be in stdout's pipe once its end is no longer waited for."""
        self._reading: anyio.CancelScope | None = None
        self._given_up = False
        self._tail = bytearray()
        self._on_stderr = on_stderr
        self._has_spoken = anyio.Event()
        """Set while the agent has written on stderr what is not reported."""
        self._on_stdout = on_stdout
        self._run_until_end(self._drain_stderr)
        if on_stderr is not None:
            self._run_until_end(self._report_stderr)
        self._run_until_end(self._watch)

    @property
    def returncode(self) -> int | None:
        """The exit code, negative for a signal; None while the agent runs."""
        return self._returncode

    @property
    def stderr_tail(self) -> str:
        """The end of what the agent wrote on stderr so far."""
        return decoded(self._tail[-STDERR_TAIL:])

    def lines(self) -> AsyncIterator[Line]:
        """Return the lines of stdout as they come. To be iterated once, by one task.

        It ends when stdout does: with the agent, or before, when the agent closes it. Where
        something the agent left behind holds stdout open, it ends about a second after the agent.
        """
        self._feed_stdin()
        return _StdoutLines(self)

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield stdout as it comes, byte for byte, instead of its :meth:`lines`."""
        self._feed_stdin()
        while chunk := await self.read():
            yield chunk

    async def wait(self) -> int:
        """Return the exit code, negative for a signal, once the agent has exited. What it wrote on
        stderr has been read by then. Read :meth:`lines` first: an agent waits for its reader.

        :raises AgentFailed: ``agent_crashed`` if its supervisor was killed, which ends the agent.
        """
        self._feed_stdin()
        await self._exited.wait()
        if self._returncode is None:
            raise AgentFailed("agent_crashed", "the supervisor of the agent's process was killed")
        return self._returncode

    async def write(self, data: bytes) -> None:
        """Write to the stdin of an agent that was started with ``stdin=None``. By one task at a time;
        cancelled, it may have written a part.

        :raises BrokenPipeError: if the agent has closed its stdin, or is gone.
        """
        fd = self._pipes.stdin
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(fd, rest[:_CHUNK]) :]
            except BlockingIOError:
                await anyio.wait_writable(fd)

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
                self._write_descriptor -= len(chunk)
            if not chunk or (self._given_up and self._write_descriptor <= 0):
                self._stdout_ended.set()
            if chunk:
                if self._on_stdout is not None:
                    self._on_stdout()
                return chunk
        return b""

    # --- what goes on beside the reader -----------------------------------------------------

    def _run_until_end(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run it until the process is over: a cancelled scope still stops its agent with its help."""
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
        """Take what is there and return its size: 0 at the end, None when nothing is there yet."""
        try:
            chunk = os.read(self._stderr, _CHUNK)
        except BlockingIOError:
            return None
        if chunk:
            self._tail += chunk
            if len(self._tail) > 2 * STDERR_TAIL:
                del self._tail[:-STDERR_TAIL]
            self._has_spoken.set()
        return len(chunk)

    async def _report_stderr(self) -> None:
        while True:
            await self._has_spoken.wait()
            self._report_now()
            await anyio.sleep(_REPORT_S)

    def _report_now(self) -> None:
        if self._on_stderr is not None and self._has_spoken.is_set():
            self._has_spoken = anyio.Event()
            self._on_stderr(self.stderr_tail)

    async def _watch(self) -> None:
        """Hear the supervisor: the agent's exit, then that nothing is left of it."""
        while True:
            match await self._supervisor.receive():
                case ["exit", code] if self._returncode is None:
                    # All the dead agent wrote is in the pipe; who else holds it is not waited for.
                    spare = fcntl.fcntl(self._stderr, fcntl.F_GETPIPE_SZ)
                    while spare > 0 and (size := self._read_stderr()):
                        spare -= size
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
        """End what is left without the supervisor, which was killed or does not answer."""
        survivors = await kill_orphans(self._tag, self.pid, self.start_id)
        if survivors.alive:
            pids = ", ".join(map(str, survivors.alive))
            _log.warning("processes of agent %d do not die: %s", self.pid, pids)
        self._all_ended.set()

    async def _end_stdout(self) -> None:
        """See to it that stdout ends, as the agent has exited."""
        with anyio.move_on_after(_PIPE_GRACE):
            await self._stdout_ended.wait()
            return
        self._supervisor.kill()
        with anyio.move_on_after(_PIPE_GRACE):
            await self._stdout_ended.wait()
            return
        # Somebody holds it who was given it, or who does not die.
        self._write_descriptor = fcntl.fcntl(self._stdout, fcntl.F_GETPIPE_SZ)
        self._given_up = True
        if self._reading is not None:
            self._reading.cancel()

    async def _discard(self) -> None:
        while await self.read():
            pass

    async def _stop(
        self, stop_sequence: StopSequence, force_stop: Callable[[], Awaitable[None]] | None
    ) -> None:
        """End the agent and all it started; it may be gone already."""
        if not self._all_ended.is_set():
            self._run_until_end(self._discard)  # an agent that blocks on stdout cannot obey
            with anyio.CancelScope() as asking:
                if force_stop is not None:
                    self._run_until_end(partial(_cancel_on, force_stop, asking))
                await self._signal_stop(stop_sequence)
            self._supervisor.kill()
            with anyio.move_on_after(_KILL_GRACE):
                await self._all_ended.wait()
        if not self._all_ended.is_set():
            await self._kill_orphans()
        self._report_now()
        self._has_ended = True
        for shield in self._shielded_tasks:
            shield.cancel()

    async def _signal_stop(self, stop_sequence: StopSequence) -> None:
        for number, grace in stop_sequence:
            if self._exited.is_set():
                return
            self._supervisor.signal(number)
            with anyio.move_on_after(grace):
                await self._exited.wait()


async def _cancel_on(event: Callable[[], Awaitable[None]], scope: anyio.CancelScope) -> None:
    await event()
    scope.cancel()


_TURN: Final = 256
"""Lines after which others have their turn: a chunk may be nothing but line ends."""


class _StdoutLines:
    """The lines of a process's stdout: an iterator object, which unlike an async generator may be
    dropped half-way without ado.
    """

    def __init__(self, process: AgentProcess) -> None:
        self._process = process
        self._framer = LineFramer()
        self._ready: Iterator[Line] = iter(())
        self._ended = False
        self._given = 0

    def __aiter__(self) -> "_StdoutLines":
        return self

    async def __anext__(self) -> Line:
        self._given += 1
        if self._given % _TURN == 0:
            await anyio.lowlevel.checkpoint()
        while (line := next(self._ready, None)) is None:
            if self._ended:
                raise StopAsyncIteration
            if chunk := await self._process.read():
                self._ready = self._framer.feed(chunk)
            else:
                self._ended = True
                self._ready = self._framer.finish()
        return line


@asynccontextmanager
async def agent_process(
    argv: Sequence[str],
    *,
    cwd: str,
    env: Mapping[str, str],
    is_cwd_resolved: bool = False,
    stdin: bytes | None = b"",
    stop: StopSequence = DEFAULT_STOP,
    on_stderr: Callable[[str], None] | None = None,
    on_stdout: Callable[[], None] | None = None,
    force_stop: Callable[[], Awaitable[None]] | None = None,
) -> AsyncIterator[AgentProcess]:
    """Run a program in a new session. Leaving the scope ends it and all processes it started.

    On leaving, an agent that still runs is sent the signals of ``stop``; then all that is left of it
    is killed, whatever it did to get away: its supervisor is the parent of every orphan below it. The
    scope is left when the supervisor has no child any more.

    Agents start faster while somebody holds the
    :func:`~agent_orchestrator.runners.supervisor.fork_server`, as the runners of this package do.

    :param env: the whole environment.
    :param is_cwd_resolved: start nothing where ``cwd`` leads through a symbolic link: see
        :attr:`agent_orchestrator.ports.RunContext.is_cwd_resolved`.
    :param stdin: written as the agent reads it, then closed. It begins with the first call of
        :meth:`AgentProcess.lines` or :meth:`AgentProcess.wait`, so that the process can be recorded
        before it has work. With None it stays open for :meth:`AgentProcess.write`.
    :param on_stderr: called with the end of stderr when the agent has written more of it, at most
        ten times a second, and at the end.
    :param on_stdout: called when the agent has written on stdout, be it half a line.
    :param force_stop: returns when an agent that is being stopped is to be killed without waiting for
        what is left of ``stop``; called on leaving.
    Where no more files can be opened it waits until they can.

    :raises AgentFailed: ``provider_unavailable`` if the program cannot be started, or
        ``invalid_config`` if what it was to be given cannot be.
    """
    tag = env.get(TAG_VARIABLE)
    program = argv[0]
    try:
        request = _encoded(argv, cwd, env)
    except ValueError as error:
        raise AgentFailed(
            "invalid_config", f"{program!r} cannot be started with these arguments: {error}"
        ) from error
    failure: Exception | None = None
    async with fork_server() as launcher:
        start = partial(
            launcher.start,
            *request,
            tag_limit=tag_limit(tag) if tag else 0,
            is_resolved=is_cwd_resolved,
        )
        try:
            pipes, agent = await _started(start, tag)
        except OSError as error:
            code, reason = _start_problem(error, program, cwd)
            raise AgentFailed(code, reason) from error
        with pipes:
            pipes.close(*pipes.of_agent)
            process: AgentProcess | None = None
            try:
                async with anyio.create_task_group() as tasks:
                    process = AgentProcess(agent, pipes, stdin, tag, on_stderr, on_stdout, tasks)
                    try:
                        yield process
                    except Exception as error:  # noqa: BLE001 - the task group would wrap it; see below
                        failure = error
                    finally:
                        with anyio.CancelScope(shield=True):
                            await process._stop(stop, force_stop)  # noqa: SLF001 - the scope owns the process
            finally:
                if process is not None and process.is_reusable:
                    launcher.reuse(agent.supervisor)
                else:
                    agent.supervisor.close()
    if failure is not None:
        raise failure


_START_GRACE: Final = 2.0
"""Seconds that a start that is under way has to end in once it is cancelled; it takes milliseconds."""


async def _started(
    start: Callable[..., Awaitable[SupervisedAgent]], tag: str | None
) -> "tuple[_Pipes, SupervisedAgent]":
    """Start an agent with new pipes; where descriptors are short, wait until there are some.

    When it is cancelled, nothing of the agent is left.

    :raises OSError: if it cannot be started.
    """
    while True:
        try:
            with ExitStack() as stack:
                pipes = stack.enter_context(_Pipes())
                agent = await _Start(partial(start, stdio=pipes.of_agent), tag).finish()
                stack.pop_all()
                return pipes, agent
        except OSError as error:
            if error.errno not in SHORTAGES or error.filename is not None:
                raise
            if count := _shortage.due():
                _log.warning(
                    "the start of an agent is delayed: %s (%d times)", error.strerror, count
                )
        await anyio.sleep(SHORTAGE_RETRY_S)


class _Start:
    """A start that is under way. It must not be cancelled in the middle: the agent may run by then."""

    def __init__(self, step: Callable[[], Awaitable[SupervisedAgent]], tag: str | None) -> None:
        self._step = step
        self._tag = tag
        self._agent: SupervisedAgent | None = None
        self._failure: Exception | None = None
        self._finished = anyio.Event()
        self._shield = anyio.CancelScope(shield=True)

    async def finish(self) -> SupervisedAgent:
        """Return the agent; when cancelled, end what was started."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._run)
                try:
                    await self._finished.wait()
                finally:
                    self._shield.deadline = anyio.current_time() + _START_GRACE
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._undo()
            raise
        if self._failure is not None:
            raise self._failure
        assert self._agent is not None
        return self._agent

    async def _run(self) -> None:
        with self._shield:
            try:
                self._agent = await self._step()
            except Exception as failure:  # noqa: BLE001 - the task group would wrap it
                self._failure = failure
        self._finished.set()

    async def _undo(self) -> None:
        if self._failure is not None:
            return
        if self._agent is None:
            await kill_orphans(self._tag)
        else:
            self._agent.supervisor.close()  # which has all of the agent killed
            await kill_orphans(self._tag, self._agent.pid, self._agent.start_id)


class _Pipes:
    """The agent's stdin, stdout and stderr: a pipe each."""

    def __init__(self) -> None:
        self._open: set[int] = set()
        try:
            its_stdin, self.stdin = self._pipe()
            self.stdout, its_stdout = self._pipe()
            self.stderr, its_stderr = self._pipe()
        except OSError:
            self.close(*self._open)
            raise
        self.of_agent = its_stdin, its_stdout, its_stderr
        for fd in (self.stdin, self.stdout, self.stderr):
            os.set_blocking(fd, False)

    def _pipe(self) -> tuple[int, int]:
        ends = os.pipe()
        self._open |= {*ends}
        return ends

    def close(self, *fds: int) -> None:
        """Close these, if they are open."""
        for fd in self._open.intersection(fds):
            self._open.remove(fd)
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close(*self._open)


def _encoded(
    argv: Sequence[str], cwd: str, env: Mapping[str, str]
) -> tuple[list[bytes], bytes, dict[bytes, bytes]]:
    """Return what a program is started with as the kernel takes it.

    :raises ValueError: if it cannot be.
    """
    arguments = [os.fsencode(part) for part in argv]
    directory = os.fsencode(cwd)
    variables = {os.fsencode(name): os.fsencode(value) for name, value in env.items()}
    if any(b"\0" in part for part in (*arguments, directory, *variables, *variables.values())):
        raise ValueError("embedded null byte")
    if any(not name or b"=" in name for name in variables):
        raise ValueError("illegal environment variable name")
    return arguments, directory, variables


_DIRECTORY_REPLACED: Final = {
    errno.ESTALE: "now leads elsewhere, through a symbolic link",
    errno.ELOOP: "contains a loop of symbolic links",
    errno.EACCES: "is not accessible",
}


_EXEC_BOUNDS: Final = (
    "Linux takes 128 KiB in each of them, and a quarter of the stack's limit in all (usually 2 MiB, "
    "never more than 6)"
)


def _start_problem(error: OSError, program: str, cwd: str) -> tuple[str, str]:
    if error.filename is not None:  # the directory, and not the program
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return "invalid_config", f"{CWD_MISSING}: {cwd}"
        found = _DIRECTORY_REPLACED.get(error.errno or 0, f"cannot be entered: {error.strerror}")
        return "invalid_config", f"the working directory {cwd} {found}"
    if error.errno == errno.E2BIG:
        problem = f"the arguments and variables for {program} are too long"
        return "invalid_config", f"{problem}: {_EXEC_BOUNDS}"
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
