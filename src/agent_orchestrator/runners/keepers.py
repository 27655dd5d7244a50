"""The owner's end of the guardian and of its keepers: :mod:`agent_orchestrator.runners.guardian`."""

import array
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final, Self

import anyio
from anyio.lowlevel import RunVar
from anyio.to_thread import run_sync
from attrs import field, frozen, mutable

from agent_orchestrator.descriptors import SHORTAGES, usual_descriptor_limit
from agent_orchestrator.domain.errors import AgentFailed
from agent_orchestrator.processes import birth
from agent_orchestrator.runners import guardian as program
from agent_orchestrator.runners import scratch

START_S: Final = 20.0
"""Seconds the keeper has to start an agent; it takes milliseconds."""

LEAVE_S: Final = 2.0
"""Seconds the guardian has to leave once it is of no more use."""

TRIES: Final = 3
"""Guardians that are asked for a keeper, where each is found dead."""

MAX_IDLE: Final = 4
"""Keepers that wait for an agent to come; each has a megabyte of its own."""

_PASSED_ON: Final = ("LD_LIBRARY_PATH",)
"""What a Python may not start without. The guardian's environment holds no secrets."""


@mutable(eq=False)
class Keeper:
    """The way to a running agent's keeper."""

    process: "_Process"
    link: socket.socket
    _rest: bytearray = field(factory=bytearray, init=False)
    was_ready: bool = field(default=False, init=False)
    """Whether it has been there to take a request; before that it has started nothing."""

    async def word(self) -> list[str]:
        """Return what the keeper says next; nothing when it is gone."""
        while (end := self._rest.find(b"\n")) < 0:
            try:
                chunk = self.link.recv(1024)
            except BlockingIOError:
                await anyio.wait_readable(self.link)
                continue
            except ConnectionError:
                return []
            if not chunk:
                return []
            self._rest.extend(chunk)
        words = self._rest[:end].decode().split()
        del self._rest[: end + 1]
        return words

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the agent's process group, unless the agent has exited."""
        self._say(number)

    def kill(self) -> None:
        """Have all that is left of the agent killed; the keeper then says that it is gone."""
        self._say(program.KILL)

    def _say(self, word: int) -> None:
        with suppress(OSError):  # it is gone, or does not listen: the caller sees what follows
            self.link.send(bytes([word]))

    def close(self) -> None:
        """Let go of it: what is then left of its agent is killed."""
        self.link.close()


@frozen
class Kept:
    """An agent that was started.

    :ivar pid: its process, process group and session.
    :ivar born: when it started: :func:`agent_orchestrator.processes.birth_of`.
    """

    pid: int
    born: str | None
    keeper: Keeper


@mutable(eq=False)
class Guardian:
    """Starts agents, each with a keeper."""

    _users: int = field(default=0, init=False)
    _process: "_Process | None" = field(default=None, init=False)
    _lock: anyio.Lock = field(factory=anyio.Lock, init=False)

    async def start(
        self,
        argv: Sequence[bytes],
        cwd: bytes,
        env: Mapping[bytes, bytes],
        *,
        stdio: Sequence[int],
        brand: int,
        is_resolved: bool,
    ) -> Kept:
        """Start a program in a session of its own. When it is cancelled, it may have started: the
        keeper then ends it, if it comes to that.

        :param stdio: what is to be its stdin, stdout and stderr.
        :param brand: what all processes are to bear that come of it; 0 for nothing.
        :param is_resolved: nothing is to be started where ``cwd`` leads through a symbolic link.
        :raises OSError: if it cannot be started, with the ``errno`` of what failed, and with ``cwd``
            as its ``filename`` if that did: ``ESTALE`` where it leads through a link.
        :raises AgentFailed: if there is nobody to start it.
        """
        variables = (name + b"=" + value for name, value in env.items())
        body = b"\0".join([cwd, *argv, *variables])
        header = program.HEADER.pack(len(body), len(argv), brand, is_resolved)
        request = bytes([program.START]) + header + body
        for _ in range(TRIES):
            keeper = await self._keeper()
            match await self._ask(keeper, request, stdio):
                case ["started", pid, ticks]:
                    return Kept(int(pid), birth(int(ticks)), keeper)
                case ["refused", number]:
                    self.take_back(keeper)
                    raise OSError(int(number), os.strerror(int(number)))
                case ["astray", number]:
                    self.take_back(keeper)
                    raise OSError(int(number), os.strerror(int(number)), cwd)
            keeper.close()
            if keeper.was_ready:  # it may have started the agent before it was killed
                raise AgentFailed("provider_unavailable", "the agent's keeper was killed")
            await self._dismiss(keeper.process)
        raise AgentFailed("provider_unavailable", "the guardian is killed again and again")

    async def _ask(self, keeper: Keeper, request: bytes, stdio: Sequence[int]) -> list[str]:
        """Return what the keeper says of the agent it is to start; nothing if it was killed."""
        said: list[str] = []
        try:
            with anyio.fail_after(START_S), suppress(ConnectionError):
                await _send(keeper.link, request, stdio)
                said = await keeper.word()
                if said == ["ready"]:
                    keeper.was_ready = True
                    said = await keeper.word()
        except anyio.get_cancelled_exc_class():
            keeper.close()
            with anyio.CancelScope(shield=True):
                await self._dismiss(keeper.process)
            raise
        except TimeoutError:
            keeper.close()
            await self._dismiss(keeper.process)
            raise AgentFailed("provider_unavailable", "the guardian does not answer") from None
        return said

    def take_back(self, keeper: Keeper) -> None:
        """Have the keeper of an agent of which nothing is left, for another agent."""
        idle = keeper.process.idle
        # Without others who hold the guardian there is no other agent to come.
        if keeper.process is self._process and self._users > 1 and len(idle) < MAX_IDLE:
            idle.append(keeper)
        else:
            keeper.close()

    async def _keeper(self) -> Keeper:
        """Return a keeper that has no agent."""
        for _ in range(TRIES):
            process = await self._opened()
            try:
                return await process.keeper()
            except ConnectionError:
                await self._dismiss(process)
        raise AgentFailed("provider_unavailable", "the guardian is killed again and again")

    async def open(self) -> None:
        """Have a keeper ready for an agent to come; it loads while others go on."""
        process = await self._opened()
        if not process.idle:
            with suppress(OSError):
                process.idle.append(await process.keeper())

    async def _opened(self) -> "_Process":
        async with self._lock:
            if self._process is not None:
                return self._process
            limiter = anyio.CapacityLimiter(1)  # its own: not to wait for others' threads
            with anyio.CancelScope(shield=True):
                process = await run_sync(_launch, limiter=limiter)
            self._process = process
            return process

    async def _dismiss(self, process: "_Process") -> None:
        """Do without the process from now on; the keepers that have an agent go on."""
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


_shared: RunVar[Guardian] = RunVar("agent_orchestrator.guardian")


def guardian() -> Guardian:
    """Return the event loop's guardian, to be held with ``async with``; its process ends when the
    last one leaves.
    """
    try:
        return _shared.get()
    except LookupError:
        _shared.set(Guardian())
        return _shared.get()


class Guarded:
    """A runner that holds the guardian while its engine is open, so that agents start at once.

    It keeps no state: one runner may serve several engines.
    """

    __slots__ = ()

    async def __aenter__(self) -> Self:
        held = await guardian().__aenter__()
        try:
            await run_sync(scratch.remove_leftovers)
            with suppress(AgentFailed):  # the runs will tell
                await held.open()
        except BaseException:
            await held.__aexit__()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await guardian().__aexit__()


# --- the guardian's process -----------------------------------------------------------------


@frozen(eq=False)
class _Process:
    popen: "subprocess.Popen[bytes]"
    control: socket.socket
    idle: list[Keeper] = field(factory=list, init=False)
    """The keepers that have no agent."""

    async def keeper(self) -> Keeper:
        """Return a keeper that has no agent.

        :raises ConnectionError: if the guardian is gone.
        """
        while self.idle and _is_open(self.control):
            keeper = self.idle.pop()
            if _is_open(keeper.link):
                return keeper
            keeper.close()
        ours, theirs = socket.socketpair()
        ours.setblocking(False)  # noqa: FBT003 - its name
        try:
            with theirs:
                await _send(self.control, b"k", [theirs.fileno()])
        except BaseException:
            ours.close()
            raise
        return Keeper(self, ours)

    async def close(self) -> None:
        """Let the process leave, and reap it."""
        self.control.close()
        for keeper in self.idle:
            keeper.close()
        with anyio.CancelScope(shield=True):
            try:
                pidfd = os.pidfd_open(self.popen.pid)
            except ProcessLookupError:  # somebody else has reaped it
                return
            try:
                with anyio.move_on_after(LEAVE_S):
                    await anyio.wait_readable(pidfd)
                    return
                self.popen.kill()
                await anyio.wait_readable(pidfd)
            finally:
                os.close(pidfd)
                self.popen.wait()


def _launch() -> _Process:
    """Start the guardian. Called in a thread: it waits until the program has been loaded."""
    control, theirs = socket.socketpair()
    try:
        with theirs:
            popen = subprocess.Popen(
                # Isolated: nothing of the user's is loaded.
                [
                    sys.executable,
                    "-I",
                    "-S",
                    program.__file__,
                    str(theirs.fileno()),
                    str(os.getpid()),
                    str(usual_descriptor_limit()),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env={name: os.environ[name] for name in _PASSED_ON if name in os.environ},
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
    except (OSError, ValueError) as error:  # an application may have no Python to start
        control.close()
        if isinstance(error, OSError) and error.errno in SHORTAGES:
            raise
        reason = f"the guardian cannot be started with {sys.executable!r}: {error}"
        raise AgentFailed("provider_unavailable", reason) from error
    control.setblocking(False)  # noqa: FBT003 - its name
    return _Process(popen, control)


def _is_open(link: socket.socket) -> bool:
    """Tell whether the other end is there."""
    try:
        return bool(link.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return True
    except ConnectionError:
        return False


async def _send(link: socket.socket, data: bytes, fds: Sequence[int]) -> None:
    """Send all of the data, and descriptors with its beginning."""
    rest = memoryview(data)
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
    while rest:
        try:
            rest = rest[link.sendmsg([rest], ancillary) :]
            ancillary = []
        except BlockingIOError:
            await anyio.wait_writable(link)
