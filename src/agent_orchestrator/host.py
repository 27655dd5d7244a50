"""The engine's interface to the machine that its agents work on.

The engine imports no module that accesses processes or files. It uses its :class:`Host` instead. So do
runners, with :func:`agent_orchestrator.hosts.current_host`.
"""

from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from contextvars import ContextVar
from datetime import datetime
from pathlib import Path
from signal import Signals
from typing import Final, Literal, Protocol, Self

from attrs import field, frozen

from agent_orchestrator.domain.model import Attempt
from agent_orchestrator.operations.daemon import Finding
from agent_orchestrator.operations.runs import ProcessView
from agent_orchestrator.operations.sessions import FileChange

ProcessState = Literal["gone", "alive", "unknown"]


@frozen
class ReapResult:
    """The state of the processes of an attempt whose engine has ended.

    :param state: ``gone`` if certainly all have ended, ``alive`` if some could not be ended, ``unknown``
        if this host cannot find out.
    :param ended: ids of the processes that were ended now.
    :param alive: ids of the processes that could not be ended.
    :param reason: why the state is unknown, for people.
    """

    state: ProcessState = "gone"
    ended: tuple[int, ...] = ()
    alive: tuple[int, ...] = ()
    reason: str = ""


@frozen
class DirectoryChanges:
    """What was changed in a directory of a checkout.

    :param base: the commit that the files are compared with; None if there was none yet.
    :param is_truncated: whether something was left out, because it is too much.
    """

    base: str | None
    changes: tuple[FileChange, ...]
    is_truncated: bool = False


StopSequence = Sequence[tuple[Signals, float]]
"""How to ask an agent to stop: signals for its process group, each with the seconds to wait before the next
one. After the last wait, all its remaining processes are killed."""

DEFAULT_STOP: Final[StopSequence] = ((Signals.SIGINT, 2.0),)


@frozen
class ProcessSpec:
    """The settings for starting an agent's process.

    :param argv: the program, a path or a name on the PATH of ``env``, and its arguments.
    :param cwd: its working directory.
    :param env: its complete environment. The tag in it (``ports.TAG_VARIABLE``) identifies the processes
        that it starts.
    :param is_cwd_resolved: start nothing if ``cwd`` leads through a symbolic link: see
        :attr:`agent_orchestrator.ports.runner.RunContext.is_cwd_resolved`.
    :param stdin: written while the agent reads it, then closed. Writing begins with the first read or
        :meth:`Process.wait`, so that the process can be recorded before it gets any input. With None, stdin
        stays open for :meth:`Process.write`.
    :param stop: how to ask it to stop.
    :param on_stderr: called with the end of stderr when the agent has written to it, at most ten times per
        second, and once more at the end.
    :param on_stdout: called when the agent has written to stdout, even an incomplete line.
    :param force_stop: waits until an agent that is being stopped must be killed at once, without the
        remaining steps of ``stop``. Called when the process's scope is left.
    """

    argv: Sequence[str]
    cwd: str = field(kw_only=True)
    env: Mapping[str, str] = field(kw_only=True, repr=False)
    is_cwd_resolved: bool = field(default=False, kw_only=True)
    stdin: bytes | None = field(default=b"", kw_only=True, repr=False)
    stop: StopSequence = field(default=DEFAULT_STOP, kw_only=True)
    on_stderr: Callable[[str], None] | None = field(default=None, kw_only=True)
    on_stdout: Callable[[], None] | None = field(default=None, kw_only=True)
    force_stop: Callable[[], Awaitable[None]] | None = field(default=None, kw_only=True)


class Process(Protocol):
    """A running agent, from :meth:`Host.open_process`."""

    @property
    def pid(self) -> int:
        """The id of its process, process group and session."""
        ...

    @property
    def start_id(self) -> str | None:
        """See :meth:`Host.process_start_id`."""
        ...

    @property
    def returncode(self) -> int | None:
        """The exit code, negative for a signal; None while the agent runs."""
        ...

    @property
    def stderr_tail(self) -> str:
        """The last 64 KiB that the agent has written to stderr so far."""
        ...

    async def read(self) -> bytes:
        """Return the next bytes of stdout; empty at its end. Stdout ends with the agent, or earlier if the
        agent closes it. If a process that the agent started still holds it open, it ends about a second
        after the agent.
        """
        ...

    async def write(self, data: bytes) -> None:
        """Write to the stdin of an agent that was started with ``stdin=None``. Call it from one task at a
        time. If it is cancelled, a part may have been written.

        :raises BrokenPipeError: if the agent has closed its stdin, or has ended.
        """
        ...

    async def wait(self) -> int:
        """Wait until the agent has exited and its stderr was read. Return its exit code, negative for a
        signal.

        Read stdout first: the agent blocks while its pipe is full.

        :raises AgentFailed: ``agent_crashed`` if its supervisor was killed, which ends the agent.
        """
        ...


class Host(Protocol):
    """One machine. Methods that are not coroutines may block: call them in a thread.

    As a context manager, it keeps helper processes ready, so that agents start faster. It may be entered
    several times. All methods also work without entering it.
    """

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *exc: object) -> None: ...

    @property
    def id(self) -> str:
        """The machine's name in the records of sessions and attempts. It stays the same after a restart."""
        ...

    def named(self, name: str) -> "Host":
        """Return this host with another :attr:`id`."""
        ...

    def machine_name(self) -> str:
        """Return a name of the machine that no other one has, and that stays the same after a restart. It is
        the name of a host in a store that several machines share, unless the settings have one.
        """
        ...

    def process_id(self) -> int:
        """Return the id of the calling process. Never blocks."""
        ...

    def process_start_id(self, pid: int) -> str | None:
        """Return a string that identifies a process together with its pid; None if the process does not
        exist. Never blocks.
        """
        ...

    def hostname(self) -> str:
        """Return what people call the machine. It need not be unique, and may change. Never blocks."""
        ...

    def user(self) -> str:
        """Return the name of the user as which the calling process and its agents run, `user ID` if the user has no name."""
        ...

    def environment(self) -> dict[str, str]:
        """Return the environment of the calling process."""
        ...

    def current_directory(self) -> str:
        """Return the directory of the calling process."""
        ...

    def configured_directory(self, path: str) -> str:
        """Return a directory from the settings as an absolute path, with ``~`` and symbolic links resolved.

        :raises OSError: or ``RuntimeError``, if it does not exist.
        """
        ...

    def is_directory(self, path: str) -> bool:
        """Return True if the path is a directory that this process can access. Never raises."""
        ...

    def resolve(self, path: str) -> str:
        """Return a path with its symbolic links resolved. It need not exist.

        :raises OSError: or ``RuntimeError``, if its links form a loop.
        """
        ...

    def common_directory(self, paths: Collection[str]) -> str:
        """Return the deepest common directory of the paths, with symbolic links resolved."""
        ...

    async def directory_changes(
        self, directory: str, since: datetime, *, hidden: Collection[str] = ()
    ) -> DirectoryChanges | None:
        """Return the files of a directory that were written since a time and differ from the commit that
        was checked out then. No program that the checkout names is run.

        :param hidden: paths of files and directories to leave out, without symbolic links.
        :return: at most 1,000 files with 4 MiB of diffs; None if the directory is in no checkout, or if it
            cannot be compared in 20 s.
        """
        ...

    async def process_end(self, pid: int, start_id: str) -> None:
        """Wait until a process has ended, which need not be a child. Return at once if the pid now belongs to
        another process.
        """
        ...

    def process_tree(self, pid: int, start_id: str | None, limit: int) -> Sequence[ProcessView]:
        """Return a process and its descendants, the process first. The list is empty if the process has
        ended, or if the pid now belongs to another process.

        :param limit: maximum number of processes.
        """
        ...

    def findings(self) -> Sequence[Finding]:
        """Return the doctor's findings about this machine. May block."""
        ...

    def output(self, argv: Sequence[str], *, env: Mapping[str, str], timeout_s: float) -> bytes:
        """Run a program that ends soon, and return its output, such as its version. Blocks.

        :param argv: the absolute path of the program, and its arguments.
        :param timeout_s: seconds until the program and its process group are killed.
        :raises OSError: if it cannot be started.
        :raises TimeoutError: if it did not end in time.
        """
        ...

    def open_process(self, spec: ProcessSpec) -> AbstractAsyncContextManager[Process]:
        """Start a program in a new session. Leaving the scope ends the agent.

        On leaving, an agent that is still running gets the signals of ``spec.stop``. Then its remaining
        processes are killed, as far as this kind of host can find them. If this process is out of file
        descriptors, entering waits until some are free.

        :raises AgentFailed: on entering: ``provider_unavailable`` if the program cannot be started, or
            ``invalid_config`` if it cannot be given these arguments.
        """
        ...

    def private_files(self, files: Mapping[str, bytes]) -> AbstractAsyncContextManager[Path]:
        """Write files that only this user may read into a new directory, and yield the directory.

        Leaving the scope removes the directory with its contents. If this process is killed, the next host
        that the same user enters removes it.

        :param files: contents by file name.
        :raises OSError: on entering, if they cannot be written.
        """
        ...

    def limited(self, ends_at: Callable[[], float]) -> "Host":
        """Return this host for an engine whose agents must have ended at a time that moves.

        At that time their supervisors kill them, even if this process is stopped. Only hosts on Linux do
        that; others return themselves.

        :param ends_at: returns the time, by :func:`time.monotonic`. It is called when an agent is started,
            and by :meth:`extend`.
        """
        ...

    def extend(self) -> bool:
        """Ask again until when the agents may work. Never blocks.

        :return: False if an earlier time has passed since the last call: then all agents were killed.
        """
        ...

    async def kill_by_variable(self, name: str, values: Collection[str]) -> Sequence[int]:
        """Kill the processes whose environment has a variable with one of these values, and their descendants.

        :return: the ids of the processes that were killed and are gone.
        """
        ...

    async def reap(self, attempts: Sequence[Attempt]) -> Mapping[tuple[str, int], ReapResult]:
        """End all processes of attempts whose engine has ended, and wait for that.

        The engine passes only attempts that this host started.

        :return: the results by run id and number of the attempt. A missing result means ``unknown``.
        """
        ...


_current: ContextVar[Host | None] = ContextVar("agent_orchestrator.host", default=None)


@contextmanager
def use_host(host: Host) -> Iterator[None]:
    """Set the host that runners use in this scope, and in tasks that are started in it."""
    token = _current.set(host)
    try:
        yield
    finally:
        _current.reset(token)


def used_host() -> Host | None:
    """Return the host of the innermost :func:`use_host`; None if there is none."""
    return _current.get()
