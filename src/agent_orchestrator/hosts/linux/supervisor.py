"""The client of the fork server and of its supervisors: :mod:`agent_orchestrator.hosts.linux.forkserver`."""

import array
import errno
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final, Self

import anyio
from anyio.lowlevel import RunVar, checkpoint
from anyio.to_thread import run_sync
from attrs import field, frozen, mutable

from agent_orchestrator.descriptors import SHORTAGES, usual_descriptor_limit
from agent_orchestrator.domain.errors import AgentFailed
from agent_orchestrator.hosts.linux import forkserver as program
from agent_orchestrator.hosts.linux.expiry import expiry_table
from agent_orchestrator.hosts.process import StartedAgent
from agent_orchestrator.processes import start_id

START_S: Final = 20.0
"""Maximum seconds for a supervisor to start an agent. It usually takes milliseconds."""

EXIT_S: Final = 2.0
"""Maximum seconds for a fork server to exit when it is not used any more."""

MAX_TRIES: Final = 3
"""Maximum number of fork servers to try for a supervisor. A fork server may have been killed."""

MAX_IDLE: Final = 4
"""Maximum number of idle supervisors. Each takes a megabyte of memory."""

_MESSAGE: Final = re.compile(
    rb"ready|gone|exit -?\d{1,3}|(?:refused|astray) \d{1,4}|started \d{1,7} \d{1,20}"
)
"""The messages of a supervisor: see :class:`agent_orchestrator.hosts.linux.forkserver.Supervisor`."""

_MAX_MESSAGE: Final = 64
"""Maximum bytes of a supervisor's line. Valid lines are shorter."""

_INHERITED_VARIABLES: Final = ("LD_LIBRARY_PATH",)
"""Variables that Python may need to start. The fork server's environment contains no secrets."""


@mutable(eq=False)
class SupervisorLink:
    """The connection to a running agent's supervisor."""

    process: "_ForkServerProcess"
    link: socket.socket
    _buffer: bytearray = field(factory=bytearray, init=False)
    is_ready: bool = field(default=False, init=False)
    """Whether the supervisor was ready for a request. Before that it has started nothing."""

    async def receive(self) -> list[str]:
        """Return the words of the supervisor's next message; empty if it is gone, or the message is
        invalid.

        An agent may have obtained the supervisor's socket.
        """
        await checkpoint()  # many messages must not delay other tasks
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > _MAX_MESSAGE:
                return []
            try:
                chunk = self.link.recv(1024)
            except BlockingIOError:
                await anyio.wait_readable(self.link)
                continue
            except ConnectionError:
                return []
            if not chunk:
                return []
            self._buffer.extend(chunk)
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line.decode().split() if _MESSAGE.fullmatch(line) else []

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the agent's process group, unless the agent has exited."""
        self._send(number)

    def kill(self) -> None:
        """Make the supervisor kill all processes of the agent. It then sends ``gone``."""
        self._send(program.KILL)

    def _send(self, command: int) -> None:
        with suppress(OSError):  # it is gone, or does not read: the caller notices that
            self.link.send(bytes([command]))

    def close(self) -> None:
        """Close the connection. The supervisor then kills the remaining processes of its agent."""
        self.link.close()


SupervisedAgent = StartedAgent[SupervisorLink]


@mutable(eq=False)
class ForkServerClient:
    """Starts agents, each with a supervisor."""

    _users: int = field(default=0, init=False)
    _process: "_ForkServerProcess | None" = field(default=None, init=False)
    _lock: anyio.Lock = field(factory=anyio.Lock, init=False)

    async def start(
        self,
        argv: Sequence[bytes],
        cwd: bytes,
        env: Mapping[bytes, bytes],
        *,
        stdio: Sequence[int],
        tag_limit: int,
        is_resolved: bool,
        expiry: int,
    ) -> SupervisedAgent:
        """Start a program in a new session. If this call is canceled, the supervisor ends the
        program.

        :param stdio: the descriptors for its stdin, stdout and stderr.
        :param tag_limit: the tag limit of all its processes; 0 for none.
        :param is_resolved: refuse a ``cwd`` that leads through a symbolic link.
        :param expiry: the number of the time until which it may work; 0 for ever.
        :raises OSError: if it cannot be started. ``E2BIG`` means more than 8 MiB of arguments and
            variables. ``filename`` is ``cwd`` if the directory is the reason (``ESTALE``: through a
            symbolic link).
        :raises AgentFailed: if no supervisor can be started.
        """
        variables = (name + b"=" + value for name, value in env.items())
        body = b"\0".join([cwd, *argv, *variables])
        if len(body) > program.MAX_REQUEST:
            raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))
        header = program.HEADER.pack(len(body), len(argv), tag_limit, is_resolved, expiry)
        request = bytes([program.START]) + header + body
        for _ in range(MAX_TRIES):
            supervisor = await self._idle_supervisor()
            match await self._request_start(supervisor, request, stdio):
                case ["started", pid, ticks]:
                    return SupervisedAgent(int(pid), start_id(int(ticks)), supervisor)
                case ["refused", number]:
                    self.reuse(supervisor)
                    raise OSError(int(number), os.strerror(int(number)))
                case ["astray", number]:
                    self.reuse(supervisor)
                    raise OSError(int(number), os.strerror(int(number)), cwd)
            supervisor.close()
            if supervisor.is_ready:  # it may have started the agent before it was killed
                raise AgentFailed("provider_unavailable", "the agent's supervisor was killed")
            await self._discard(supervisor.process)
        raise AgentFailed("provider_unavailable", "the fork server was killed repeatedly")

    async def _request_start(
        self, supervisor: SupervisorLink, request: bytes, stdio: Sequence[int]
    ) -> list[str]:
        """Return the supervisor's answer to a start; empty if it was killed."""
        answer: list[str] = []
        try:
            with anyio.fail_after(START_S), suppress(ConnectionError):
                await _send(supervisor.link, request, stdio)
                answer = await supervisor.receive()
                if answer == ["ready"]:
                    supervisor.is_ready = True
                    answer = await supervisor.receive()
        except anyio.get_cancelled_exc_class():
            supervisor.close()
            with anyio.CancelScope(shield=True):
                await self._discard(supervisor.process)
            raise
        except TimeoutError:
            supervisor.close()
            await self._discard(supervisor.process)
            raise AgentFailed("provider_unavailable", "the fork server does not answer") from None
        return answer

    def reuse(self, supervisor: SupervisorLink) -> None:
        """Keep the supervisor of an agent that is gone, for another agent."""
        idle = supervisor.process.idle
        # Keep it only while other agents use the fork server.
        if supervisor.process is self._process and self._users > 1 and len(idle) < MAX_IDLE:
            idle.append(supervisor)
        else:
            supervisor.close()

    async def _idle_supervisor(self) -> SupervisorLink:
        """Return a supervisor that has no agent."""
        for _ in range(MAX_TRIES):
            process = await self._running_process()
            try:
                return await process.new_supervisor()
            except ConnectionError:
                await self._discard(process)
        raise AgentFailed("provider_unavailable", "the fork server was killed repeatedly")

    async def prepare(self) -> None:
        """Start a supervisor for the next agent in advance."""
        process = await self._running_process()
        if not process.idle:
            with suppress(OSError):
                process.idle.append(await process.new_supervisor())

    async def _running_process(self) -> "_ForkServerProcess":
        async with self._lock:
            if self._process is not None:
                return self._process
            limiter = anyio.CapacityLimiter(1)  # the default limiter's threads may all be busy
            with anyio.CancelScope(shield=True):
                process = await run_sync(_launch, limiter=limiter)
            self._process = process
            return process

    async def _discard(self, process: "_ForkServerProcess") -> None:
        """Stop using a fork server. Supervisors with an agent continue."""
        if process is self._process:
            self._process = None
        process.popen.kill()
        await process.close()

    async def __aenter__(self) -> Self:
        self._users += 1
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._users -= 1
        if not self._users and self._process is not None:
            process, self._process = self._process, None
            await process.close()


_shared: RunVar[ForkServerClient] = RunVar("agent_orchestrator.fork_server")


def fork_server() -> ForkServerClient:
    """Return the fork server of this event loop. Enter it with ``async with``: its process ends when the
    last user leaves it.
    """
    try:
        return _shared.get()
    except LookupError:
        _shared.set(ForkServerClient())
        return _shared.get()


# --- the fork server's process -----------------------------------------------------------------


@frozen(eq=False)
class _ForkServerProcess:
    popen: "subprocess.Popen[bytes]"
    control: socket.socket
    idle: list[SupervisorLink] = field(factory=list, init=False)
    """The supervisors that have no agent."""

    async def new_supervisor(self) -> SupervisorLink:
        """Return a supervisor that has no agent.

        :raises ConnectionError: if the fork server is gone.
        """
        while self.idle and _is_open(self.control):
            supervisor = self.idle.pop()
            if _is_open(supervisor.link):
                return supervisor
            supervisor.close()
        ours, theirs = socket.socketpair()
        ours.setblocking(False)  # noqa: FBT003 - takes no keyword
        try:
            with theirs:
                await _send(self.control, b"k", [theirs.fileno()])
        except BaseException:
            ours.close()
            raise
        return SupervisorLink(self, ours)

    async def close(self) -> None:
        """Wait for the process to exit, and reap it."""
        self.control.close()
        for supervisor in self.idle:
            supervisor.close()
        with anyio.CancelScope(shield=True):
            try:
                pidfd = os.pidfd_open(self.popen.pid)
            except ProcessLookupError:  # reaped elsewhere
                return
            try:
                with anyio.move_on_after(EXIT_S):
                    await anyio.wait_readable(pidfd)
                    return
                self.popen.kill()
                await anyio.wait_readable(pidfd)
            finally:
                os.close(pidfd)
                self.popen.wait()


def _launch() -> _ForkServerProcess:
    """Start the fork server. Call this in a thread: it blocks until the program has been loaded."""
    control, theirs = socket.socketpair()
    try:
        expiries = expiry_table().descriptor
        with theirs:
            popen = subprocess.Popen(
                # Isolated: without site-packages and PYTHON* variables.
                [
                    sys.executable,
                    "-I",
                    "-S",
                    program.__file__,
                    str(theirs.fileno()),
                    str(os.getpid()),
                    str(usual_descriptor_limit()),
                    str(expiries),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env={name: os.environ[name] for name in _INHERITED_VARIABLES if name in os.environ},
                pass_fds=[theirs.fileno(), expiries],
                start_new_session=True,
            )
    except (OSError, ValueError) as error:  # an application may have no Python to start
        control.close()
        if isinstance(error, OSError) and error.errno in SHORTAGES:
            raise
        reason = f"the fork server cannot be started with {sys.executable!r}: {error}"
        raise AgentFailed("provider_unavailable", reason) from error
    control.setblocking(False)  # noqa: FBT003 - takes no keyword
    return _ForkServerProcess(popen, control)


def _is_open(link: socket.socket) -> bool:
    """Return whether the other side has the socket open."""
    try:
        return bool(link.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return True
    except ConnectionError:
        return False


async def _send(link: socket.socket, data: bytes, fds: Sequence[int]) -> None:
    """Send all of the data, with descriptors in its first part."""
    unsent = memoryview(data)
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
    while unsent:
        try:
            unsent = unsent[link.sendmsg([unsent], ancillary) :]
            ancillary = []
        except BlockingIOError:
            await anyio.wait_writable(link)
