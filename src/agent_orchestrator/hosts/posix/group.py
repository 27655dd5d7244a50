"""An agent in a process group. This process is its supervisor."""

import errno
import os
from collections.abc import Sequence
from contextlib import suppress
from signal import SIGKILL, Signals

import anyio
from anyio.abc import Process as AnyioProcess
from anyio.to_thread import run_sync
from attrs import field, frozen

from agent_orchestrator.host import ProcessSpec
from agent_orchestrator.hosts.posix.processes import kill_processes
from agent_orchestrator.hosts.process import StartedAgent
from agent_orchestrator.ports.runner import TAG_VARIABLE
from agent_orchestrator.processes import portable_start_id


async def start(spec: ProcessSpec, stdio: Sequence[int]) -> "StartedAgent[Group]":
    """Start a program in a new session.

    The path is checked before the start. A directory that is replaced with a symbolic link after the check
    is not noticed.

    :raises OSError: with the working directory as ``filename`` if that is the reason.
    """
    if spec.is_cwd_resolved and await run_sync(os.path.realpath, spec.cwd) != spec.cwd:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), spec.cwd)
    stdin, stdout, stderr = stdio
    try:
        with anyio.CancelScope(shield=True):  # it may run by then
            process = await anyio.open_process(
                list(spec.argv),
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                cwd=spec.cwd,
                env=spec.env,
                start_new_session=True,
            )
    except OSError as error:
        if error.filename == spec.cwd:
            raise
        raise OSError(error.errno, error.strerror) from error
    group = Group(process, spec.env.get(TAG_VARIABLE))
    return StartedAgent(process.pid, portable_start_id(process.pid), group)


@frozen(eq=False)
class Group:
    """The :class:`~agent_orchestrator.hosts.process.Supervisor` of a process group."""

    _process: AnyioProcess
    _tag: str | None
    _killed: anyio.Event = field(factory=anyio.Event, init=False)
    _exit_received: anyio.Event = field(factory=anyio.Event, init=False)

    async def receive(self) -> list[str]:
        """See :meth:`agent_orchestrator.hosts.process.Supervisor.receive`."""
        if not self._exit_received.is_set():
            code = await self._process.wait()
            self._exit_received.set()
            return ["exit", str(code)]
        await self._killed.wait()
        return [] if await self.kill_rest() else ["gone"]

    def signal(self, number: Signals) -> None:
        """Send a signal to the group, unless the agent has exited."""
        if self._process.returncode is None:
            with suppress(OSError):
                os.killpg(self._process.pid, number)

    def kill(self) -> None:
        """Kill the agent's group, and make :meth:`receive` search for its other processes."""
        self.signal(SIGKILL)
        self._killed.set()

    async def kill_rest(self) -> Sequence[int]:
        """Kill the remaining processes of the agent. Return the pids of those that do not die."""
        tags = [self._tag] if self._tag else []
        return (await kill_processes(TAG_VARIABLE, tags, self._process.pid)).alive
