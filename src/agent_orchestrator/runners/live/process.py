"""A process of an agent that stays alive between runs."""

import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import anyio
from anyio.abc import TaskGroup
from attrs import define, field, frozen

from agent_orchestrator.domain.errors import AgentFailed
from agent_orchestrator.host import DEFAULT_STOP, StopSequence
from agent_orchestrator.ports.runner import TAG_VARIABLE
from agent_orchestrator.runners.live.mailbox import Mailbox, Streams
from agent_orchestrator.runners.live.messages import (
    AgentRequest,
    Answer,
    Dialect,
    Message,
    RpcError,
)
from agent_orchestrator.runners.live.peer import Peer, PeerTimeout
from agent_orchestrator.runners.process import AgentProcess, agent_process

_log = logging.getLogger(__name__)

_EXIT_S: Final = 5.0
"""Seconds for a process to exit after it has closed its stdout."""

_MAX_UNDELIVERED: Final = 100
"""Maximum number of keys with undelivered messages, and of such messages for each key."""


@frozen
class AgentProtocol:
    """How to talk to an agent.

    :param agent: its name, for error messages.
    :param streams: the notifications that carry pieces of texts; see :class:`Mailbox`.
    :param never_dropped: the notifications that a run gets even if it reads too slowly.
    """

    agent: str
    dialect: Dialect
    streams: Streams = field(factory=dict)
    never_dropped: Collection[str] = ()


@frozen
class Launch:
    """How to start a process; see :class:`agent_orchestrator.host.ProcessSpec`."""

    argv: Sequence[str]
    env: Mapping[str, str] = field(repr=False)
    cwd: str = "/"
    is_cwd_resolved: bool = False
    stop: StopSequence = DEFAULT_STOP
    on_stderr: Callable[[str], None] | None = None


@define(eq=False)
class LiveProcess(ABC):
    """A process that serves one run after the other, or many at once.

    :class:`~agent_orchestrator.runners.live.pool.ProcessPool` calls :meth:`run`, which lasts as long as the
    process.

    A runner's subclass defines how to start and initialize its agent, and how to route its messages.

    :param tag: identifies the processes that it starts.
    :param idle_s: seconds without a run after which it ends.
    :ivar leases: number of runs that use it.
    :ivar failure: why it has stopped serving; None while it serves.
    :ivar is_incompatible: whether it does not understand the protocol.
    :ivar ended: set when it has ended with all its processes.
    """

    protocol: AgentProtocol
    tag: str
    idle_s: float
    leases: int = field(default=0, init=False)
    failure: AgentFailed | None = field(default=None, init=False)
    is_incompatible: bool = field(default=False, init=False)
    ended: anyio.Event = field(factory=anyio.Event, init=False)
    _ready: anyio.Event = field(factory=anyio.Event, init=False)
    _stopping: anyio.Event = field(factory=anyio.Event, init=False)
    _force_stop: anyio.Event = field(factory=anyio.Event, init=False)
    _leased: anyio.Event = field(factory=anyio.Event, init=False)
    _free: anyio.Event = field(factory=anyio.Event, init=False)
    _mailboxes: dict[str, Mailbox] = field(factory=dict, init=False)
    _undelivered: dict[str, deque[Message]] = field(factory=dict, init=False)
    _tasks: TaskGroup | None = field(default=None, init=False)
    _retirement: str | None = field(default=None, init=False)
    _process: AgentProcess | None = field(default=None, init=False)
    _peer: Peer | None = field(default=None, init=False)

    # --- implemented by subclasses

    @abstractmethod
    async def launch(self) -> Launch:
        """Return how to start the process.

        :raises AgentFailed: if it cannot be started.
        """

    @abstractmethod
    async def initialize(self) -> None:
        """Exchange the messages that are needed before the first run.

        :raises RpcError: if the process does not understand the protocol.
        :raises AgentFailed: if it cannot serve.
        """

    @abstractmethod
    def exit_failure(self, exit_code: int | None, stderr: str) -> AgentFailed:
        """Return the failure for an exit that was not requested.

        :param exit_code: None if it has not exited, but closed its stdout.
        """

    async def receive(self, message: Message) -> None:
        """Pass a message of the agent to its run, without waiting for the run.

        The default is for a process that serves one run at a time.
        """
        self.route("", message)

    # --- for runs

    async def ready(self) -> None:
        """Wait until it can serve.

        :raises AgentFailed: if it does not start.
        """
        await self._ready.wait()
        self.check()

    @property
    def is_ready(self) -> bool:
        return self._ready.is_set() and self.failure is None

    def check(self) -> None:
        """Raise :class:`AgentFailed` if it has ended."""
        if self.failure is not None:
            raise AgentFailed(self.failure.code, self.failure.message)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Its exit code, negative for a signal; None if it has not exited."""
        return None if self._process is None else self._process.returncode

    @property
    def stderr_tail(self) -> str:
        """The end of its stderr, for all its runs together."""
        return "" if self._process is None else self._process.stderr_tail

    def lease(self) -> None:
        """Count one more run that uses it."""
        self.leases += 1
        self._leased.set()
        self._leased = anyio.Event()

    def release(self) -> None:
        """Count one run less. The last run of a retired process ends it."""
        self.leases -= 1
        if self.leases == 0:
            if self._retirement is not None:
                self.retire(self._retirement)
            self._free.set()
            self._free = anyio.Event()

    def retire(self, reason: str) -> None:
        """End it once no run uses it, and accept no more runs."""
        self._retirement = reason
        if self.leases == 0:
            self.fail(AgentFailed("provider_error", reason))

    @property
    def is_retired(self) -> bool:
        """Whether it accepts no more runs."""
        return self._retirement is not None

    async def request(self, method: str, params: Mapping[str, Any], timeout_s: float | None) -> Any:
        """Send a request. If the agent does not answer, end the process.

        :param timeout_s: None for no limit.
        :raises RpcError: if the answer is an error.
        :raises AgentFailed: if the process has ended, or ends meanwhile.
        """
        self.check()
        assert self._peer is not None
        try:
            with self._end_on_timeout():
                return await self._peer.request(method, params, timeout_s=timeout_s)
        except AgentFailed:
            pass
        self.check()
        raise AssertionError("a process that does not answer has failed")

    def submit(self, method: str, params: Mapping[str, Any], mailbox: Mailbox) -> int:
        """Send a request whose answer is put into the mailbox. Return its number.

        :raises AgentFailed: if the process has ended.
        """
        self.check()
        assert self._peer is not None

        def put(answer: Answer | None) -> None:
            if answer is not None:
                mailbox.put(answer)

        try:
            return self._peer.submit(method, params, put)
        except PeerTimeout as timeout:
            failure = AgentFailed("provider_error", str(timeout))
            self.fail(failure)
            raise failure from timeout

    def notify(self, method: str, params: Mapping[str, Any]) -> None:
        """Send a notification. If the agent does not read it, end the process."""
        assert self._peer is not None
        with self._end_on_timeout():
            self._peer.notify(method, params)

    def respond(self, request: AgentRequest, result: Any) -> None:
        """Answer a request of the agent. If it does not read the answer, end the process."""
        assert self._peer is not None
        with self._end_on_timeout():
            self._peer.respond(request, result)

    def refuse(self, request: AgentRequest, message: str) -> None:
        """Answer a request of the agent with an error."""
        assert self._peer is not None
        with self._end_on_timeout():
            self._peer.refuse(request, message)

    @contextmanager
    def _end_on_timeout(self) -> Iterator[None]:
        """End the process if it does not read or answer in time."""
        try:
            yield
        except PeerTimeout as timeout:
            self.fail(AgentFailed("provider_error", str(timeout)))

    def kill(self) -> None:
        """End it at once, without a request to stop."""
        self._force_stop.set()
        self.fail(AgentFailed("provider_error", f"{self.protocol.agent} was stopped"))

    def fail(self, failure: AgentFailed) -> None:
        """Stop serving, begin to end the process, and fail everything that waits for it."""
        if self.failure is None:
            self.failure = failure
            if self._peer is not None:
                self._peer.end(failure)
            for mailbox in [*self._mailboxes.values()]:
                mailbox.end()
            self._ready.set()
            self._stopping.set()

    # --- messages

    @contextmanager
    def open_mailbox(self, key: str = "") -> Iterator[Mailbox]:
        """Receive the messages with a key, beginning with those that came since the key's last run."""
        mailbox = Mailbox(self.protocol.streams, self.protocol.never_dropped)
        for message in self._undelivered.pop(key, ()):
            mailbox.put(message)
        self._mailboxes[key] = mailbox
        if self.failure is not None:
            mailbox.end()
        try:
            yield mailbox
        finally:
            for other in [name for name, one in self._mailboxes.items() if one is mailbox]:
                del self._mailboxes[other]
            mailbox.end()
            for request in mailbox.requests:
                self.refuse(request, "the run is over")

    def route(self, key: str, message: Message) -> None:
        """Deliver a message to the run with a key.

        If no run has it, a request is refused, and any other message is kept for the key's next run.
        """
        if (mailbox := self._mailboxes.get(key)) is not None:
            self.deliver(message, mailbox)
        elif isinstance(message, AgentRequest):
            _log.warning("%s sent %s without a run", self.protocol.agent, message.method)
            self.refuse(message, f"no run answers {message.method}")
        else:
            if key not in self._undelivered and len(self._undelivered) >= _MAX_UNDELIVERED:
                del self._undelivered[next(iter(self._undelivered))]
            self._undelivered.setdefault(key, deque(maxlen=_MAX_UNDELIVERED)).append(message)

    def add_key(self, key: str, mailbox: Mailbox) -> None:
        """Also give a run the messages with this key, unless another run gets them."""
        self._mailboxes.setdefault(key, mailbox)

    def deliver(self, message: Message, mailbox: Mailbox) -> None:
        """Put a message in a mailbox. Refuse the requests that its run will not get."""
        for request in mailbox.put(message):
            self.refuse(request, "the run is too far behind to answer")

    # --- the process

    async def run(self) -> None:
        """Serve until the process is idle too long, exits or is stopped.

        When this returns, it and all its child processes have ended.
        """
        agent = self.protocol.agent
        failure = AgentFailed("provider_error", f"{agent} was stopped")
        try:
            launch = await self.launch()
            async with agent_process(
                launch.argv,
                cwd=launch.cwd,
                env={**launch.env, TAG_VARIABLE: self.tag},
                is_cwd_resolved=launch.is_cwd_resolved,
                stdin=None,
                stop=launch.stop,
                on_stderr=launch.on_stderr,
                force_stop=self._force_stop.wait,
            ) as process:
                self._process = process
                self._peer = Peer(agent, self.protocol.dialect, process, self.receive)
                async with anyio.create_task_group() as tasks:
                    self._tasks = tasks
                    tasks.start_soon(self._read, process)
                    tasks.start_soon(self._write)
                    tasks.start_soon(self._start)
                    tasks.start_soon(self._watch_idle)
                    await self._stopping.wait()
                    tasks.cancel_scope.cancel()
        except AgentFailed as problem:
            failure = problem
        finally:
            self._tasks = None
            self.fail(failure)
            self.ended.set()

    async def _read(self, process: AgentProcess) -> None:
        assert self._peer is not None
        await self._peer.read()
        exit_code = None
        with anyio.move_on_after(_EXIT_S):
            exit_code = await process.wait()
        self.fail(self.exit_failure(exit_code, process.stderr_tail))

    async def _write(self) -> None:
        assert self._peer is not None
        try:
            with self._end_on_timeout():
                await self._peer.write()
        except OSError:
            pass  # it has closed its stdin, so it is ending

    async def _start(self) -> None:
        try:
            await self.initialize()
        except RpcError as refused:
            self.is_incompatible = True
            problem = f"{self.protocol.agent} refused to start: {refused.message}"
            self.fail(AgentFailed("provider_unavailable", problem))
        except AgentFailed as failure:
            self.fail(failure)
        else:
            self._ready.set()

    async def _watch_idle(self) -> None:
        while True:
            while self.leases:
                await self._free.wait()
            with anyio.move_on_after(self.idle_s) as time_limit:
                await self._leased.wait()
            if time_limit.cancelled_caught and not self.leases:
                _log.info("stopping %s, which was idle for %g s", self.protocol.agent, self.idle_s)
                self.fail(AgentFailed("provider_error", f"{self.protocol.agent} was idle"))
                return
