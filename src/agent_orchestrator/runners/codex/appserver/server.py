"""One warm ``codex app-server``: a process that serves the threads of many sessions at once."""

import logging
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from signal import Signals
from typing import Any, Final

import anyio
from anyio.abc import TaskGroup
from anyio.to_thread import run_sync
from attrs import define, evolve, field, frozen

from agent_orchestrator.domain.errors import AgentFailed
from agent_orchestrator.fields import shown
from agent_orchestrator.ports.runner import TAG_VARIABLE
from agent_orchestrator.runners.codex.appserver.requirements import Requirements
from agent_orchestrator.runners.codex.appserver.threads import LoadedThread
from agent_orchestrator.runners.codex.appserver.turns import (
    DELTA_METHODS,
    IGNORED_METHODS,
    STREAMS,
    TURNS,
)
from agent_orchestrator.runners.codex.failures import startup_failure
from agent_orchestrator.runners.codex.items import text
from agent_orchestrator.runners.codex.locate import NotInstalled, locate
from agent_orchestrator.runners.live.jsonrpc import JsonRpc
from agent_orchestrator.runners.live.mailbox import Mailbox
from agent_orchestrator.runners.live.messages import (
    AgentRequest,
    Malformed,
    Message,
    Notification,
    RpcError,
)
from agent_orchestrator.runners.live.peer import Peer, PeerTimeout
from agent_orchestrator.runners.process import AgentProcess, agent_process

_log = logging.getLogger(__name__)

STOP: Final = ((Signals.SIGTERM, 2.0),)
"""On SIGTERM, codex 0.169's app-server ends the process groups of its commands and exits within 60
ms. On SIGINT it leaves them running, unlike exec."""

START_S: Final = 30.0
"""Seconds that codex has to become ready. It usually takes 0.1 s."""

_EXIT_S: Final = 5.0

_CLOSE_S: Final = 10.0
"""Seconds that codex has to unload a thread. It usually takes 0.02 s."""

_MAX_LOGGED: Final = 2_000
"""Maximum bytes to log of a message that belongs to no thread."""

_MAX_UNROUTED: Final = 100

_THREAD: Final = re.compile(r'"threadId"\s*:\s*"([^"]+)"')


@frozen
class Spec:
    """The command and environment of a process. Threads with the same may share a process."""

    command: str
    arguments: tuple[str, ...]
    env: frozenset[tuple[str, str]] = field(repr=False)
    login: str = ""
    """The login: see :func:`~agent_orchestrator.runners.codex.login.identity`."""

    def matches(self, other: "Spec") -> bool:
        """Return whether two are equal except for the login."""
        return evolve(self, login=other.login) == other


@define(eq=False)
class Lease:
    """A run's use of a process."""

    server: "Server"
    _is_opening: bool
    """Whether it will load one more thread."""

    def loaded(self, thread_id: str, opened: LoadedThread) -> None:
        """Record that the process has the thread, or is loading it."""
        self.server.threads[thread_id] = opened
        self._settle()

    def end(self) -> None:
        self._settle()
        self.server.release()

    def _settle(self) -> None:
        if self._is_opening:
            self._is_opening = False
            self.server.opening -= 1


@define(eq=False)
class Server:
    """A process. :meth:`run` serves it from start to end.

    :ivar leases: number of runs that use it.
    :ivar opening: number of these that will load one more thread.
    :ivar threads: the threads that it has loaded.
    :ivar requirements: the administrator's limits, once codex has reported them.
    :ivar failure: why it has stopped serving; None while it serves.
    :ivar is_unknown: whether it does not understand the protocol.
    :ivar ended: set when it has ended with all its processes.
    """

    spec: Spec
    tag: str
    _idle_s: float
    _thread_idle_s: float
    _on_end: Callable[["Server"], None]
    leases: int = field(default=0, init=False)
    opening: int = field(default=0, init=False)
    threads: dict[str, LoadedThread] = field(factory=dict, init=False)
    requirements: Requirements | None = field(default=None, init=False)
    failure: AgentFailed | None = field(default=None, init=False)
    version: str | None = field(default=None, init=False)
    is_unknown: bool = field(default=False, init=False)
    ended: anyio.Event = field(factory=anyio.Event, init=False)
    _ready: anyio.Event = field(factory=anyio.Event, init=False)
    _stopping: anyio.Event = field(factory=anyio.Event, init=False)
    _force_stop: anyio.Event = field(factory=anyio.Event, init=False)
    _leased: anyio.Event = field(factory=anyio.Event, init=False)
    _free: anyio.Event = field(factory=anyio.Event, init=False)
    _mailboxes: dict[str, Mailbox] = field(factory=dict, init=False)
    _turn_mailboxes: dict[str, Mailbox] = field(factory=dict, init=False)
    _unrouted: dict[str, deque[Notification]] = field(factory=dict, init=False)
    _closing: dict[str, anyio.Event] = field(factory=dict, init=False)
    _idle: dict[str, anyio.CancelScope] = field(factory=dict, init=False)
    """The idle timers of loaded threads without a run, after which they are unloaded."""
    _tasks: TaskGroup | None = field(default=None, init=False)
    _is_retired: bool = field(default=False, init=False)
    _process: AgentProcess | None = field(default=None, init=False)
    _peer: Peer | None = field(default=None, init=False)

    # --- for runs

    async def ready(self) -> None:
        """Wait until it serves.

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
    def thread_count(self) -> int:
        """The number of threads that it has or is loading."""
        return len(self.threads) + self.opening

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def argv(self) -> tuple[str, ...]:
        return (self.spec.command, *self.spec.arguments)

    @property
    def stderr_tail(self) -> str:
        """The end of its stderr, for all threads together."""
        return "" if self._process is None else self._process.stderr_tail

    def lease(self, *, is_opening: bool) -> Lease:
        """Count a further run that uses it."""
        self.leases += 1
        self.opening += is_opening
        self._leased.set()
        self._leased = anyio.Event()
        return Lease(self, is_opening)

    def release(self) -> None:
        """Count one run less."""
        self.leases -= 1
        if self.leases == 0 and self._is_retired:
            self.fail(AgentFailed("provider_error", "the codex app-server had another login"))
        if self.leases == 0:
            self._free.set()
            self._free = anyio.Event()

    def retire(self) -> None:
        """End it when no run uses it, because its login may have changed."""
        self._is_retired = True
        if self.leases == 0:
            self.fail(AgentFailed("provider_error", "the codex app-server had another login"))

    @property
    def is_retired(self) -> bool:
        """Whether it accepts no more threads."""
        return self._is_retired

    async def request(self, method: str, params: Mapping[str, Any], timeout_s: float) -> Any:
        """Send a request to codex. If codex does not answer, end it.

        :raises RpcError: if it refuses.
        :raises AgentFailed: if it has ended, or ends meanwhile.
        """
        self.check()
        assert self._peer is not None
        try:
            with self._end_on_timeout():
                return await self._peer.request(method, params, timeout_s=timeout_s)
        except AgentFailed:
            pass
        self.check()
        raise AssertionError("it has failed")

    def respond(self, request: AgentRequest, result: Mapping[str, Any]) -> None:
        """Answer a request of codex. If codex does not read the answer, end it."""
        assert self._peer is not None
        with self._end_on_timeout():
            self._peer.respond(request, result)

    def refuse(self, request: AgentRequest, message: str) -> None:
        """Answer a request of codex with an error."""
        assert self._peer is not None
        with self._end_on_timeout():
            self._peer.refuse(request, message)

    @contextmanager
    def _end_on_timeout(self) -> Iterator[None]:
        """End the process if it does not read or answer in time."""
        try:
            yield
        except PeerTimeout as stuck:
            self.fail(AgentFailed("provider_error", str(stuck)))

    @contextmanager
    def open_mailbox(self, thread_id: str) -> Iterator[Mailbox]:
        """Receive the messages about a thread, and about the sub-agents of its turns."""
        mailbox = Mailbox(STREAMS, TURNS)
        for stray in self._unrouted.pop(thread_id, ()):
            mailbox.put(stray)
        self._mailboxes[thread_id] = mailbox
        if self.failure is not None:
            mailbox.end()
        try:
            yield mailbox
        finally:
            for routes in (self._mailboxes, self._turn_mailboxes):
                for key in [key for key, value in routes.items() if value is mailbox]:
                    del routes[key]
            mailbox.end()

    def route_turn(self, turn_id: str, mailbox: Mailbox) -> None:
        """Route the threads of this turn's sub-agents to its mailbox."""
        self._turn_mailboxes[turn_id] = mailbox

    def invalidate(self, thread_id: str) -> None:
        """Mark the settings of a thread as unconfirmed, so that they are sent again."""
        if (opened := self.threads.get(thread_id)) is not None:
            self.threads[thread_id] = evolve(opened, is_confirmed=False)

    async def unload(self, thread_id: str) -> None:
        """Unload a thread, so that codex accepts a new configuration for it.

        Codex 0.169 unloads it ``thread_unload_delay_secs`` after the last subscriber has left.
        """
        closed = self._closing[thread_id] = anyio.Event()
        try:
            with anyio.move_on_after(_CLOSE_S):
                await self.request("thread/unsubscribe", {"threadId": thread_id}, _CLOSE_S)
                await closed.wait()
        except (RpcError, AgentFailed) as problem:
            _log.info("codex did not unload a thread: %s", problem)
        finally:
            self._closing.pop(thread_id, None)
            closed.set()
            self.invalidate(thread_id)  # if codex keeps it, there is no subscriber
        if self.failure is None and thread_id in self.threads:
            # Its configuration is out of date, and no other process can load it.
            _log.warning(
                "codex keeps thread %s loaded with the settings of its last run", thread_id
            )

    def unload_when_idle(self, thread_id: str) -> None:
        """Unload a thread that no run uses for ``thread_idle_s``.

        Until then no other process may write it, such as a manual ``codex resume``.
        """
        if self._tasks is not None and self.failure is None and thread_id in self.threads:
            scope = self._idle[thread_id] = anyio.CancelScope()
            self._tasks.start_soon(self._unload_idle, thread_id, scope)

    async def _unload_idle(self, thread_id: str, scope: anyio.CancelScope) -> None:
        with scope:
            await anyio.sleep(self._thread_idle_s)
        if self._idle.get(thread_id) is scope:
            del self._idle[thread_id]
            await self.unload(thread_id)

    async def keep_loaded(self, thread_id: str) -> None:
        """Use a thread again. If codex is unloading it, wait for that."""
        if (scope := self._idle.pop(thread_id, None)) is not None:
            scope.cancel()
        if (closed := self._closing.get(thread_id)) is not None:
            await closed.wait()

    def kill(self) -> None:
        """End it at once, without a request to stop."""
        self._force_stop.set()
        self.fail(AgentFailed("provider_error", "the codex app-server was stopped"))

    def fail(self, failure: AgentFailed) -> None:
        """End it, and fail everything that waits for it."""
        if self.failure is None:
            self.failure = failure
            self._on_end(self)
            if self._peer is not None:
                self._peer.end(failure)
            for mailbox in [*self._mailboxes.values()]:
                mailbox.end()
            for closed in self._closing.values():
                closed.set()
            self._ready.set()
            self._stopping.set()

    # --- the process

    async def run(self) -> None:
        """Serve until it is idle too long, dies, or is ended. At the return, all its processes have
        ended.
        """
        env = {**dict(self.spec.env), TAG_VARIABLE: self.tag}
        failure = AgentFailed("provider_error", "the codex app-server was stopped")
        try:
            program = await run_sync(self._located)
            argv = (program, *self.spec.arguments)
            async with agent_process(
                argv, cwd="/", env=env, stdin=None, stop=STOP, force_stop=self._force_stop.wait
            ) as process:
                self._process = process
                self._peer = Peer("codex", JsonRpc(has_version=False), process, self._receive)
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

    def _located(self) -> str:
        try:
            return str(locate(self.spec.command, dict(self.spec.env)))
        except NotInstalled as problem:
            raise AgentFailed("provider_unavailable", str(problem)) from problem

    async def _read(self, process: AgentProcess) -> None:
        assert self._peer is not None
        await self._peer.read()
        exit_code = None
        with anyio.move_on_after(_EXIT_S):
            exit_code = await process.wait()
        self.fail(AgentFailed(*startup_failure(exit_code, process.stderr_tail)))

    async def _write(self) -> None:
        assert self._peer is not None
        try:
            with self._end_on_timeout():
                await self._peer.write()
        except OSError:
            pass  # it has closed its stdin, so it is ending

    async def _start(self) -> None:
        info = {"name": "agent_orchestrator", "title": None, "version": "1"}
        capabilities = {"experimentalApi": True, "requestAttestation": False}
        try:
            answer = await self.request(
                "initialize",
                {
                    "clientInfo": info,
                    "capabilities": {
                        **capabilities,
                        "optOutNotificationMethods": [*IGNORED_METHODS],
                    },
                },
                START_S,
            )
        except RpcError as refused:
            self.is_unknown = True
            problem = f"codex's app-server refused to start: {refused.message}"
            self.fail(AgentFailed("provider_unavailable", problem))
            return
        except AgentFailed:
            return
        user_agent = answer.get("userAgent") if isinstance(answer, dict) else None
        self.version = text(user_agent).partition("/")[2].partition(" ")[0] or None
        assert self._peer is not None
        self._peer.notify("initialized", {})
        self._ready.set()

    async def _watch_idle(self) -> None:
        while True:
            while self.leases:
                await self._free.wait()
            with anyio.move_on_after(self._idle_s) as time_limit:
                await self._leased.wait()
            if time_limit.cancelled_caught and not self.leases:
                _log.info("stopping a codex app-server that was idle for %g s", self._idle_s)
                self.fail(AgentFailed("provider_error", "the codex app-server was idle"))
                return

    # --- messages from codex

    async def _receive(self, incoming: Message) -> None:
        if isinstance(incoming, Malformed):
            self._report_malformed(incoming)
            return
        self._route_subagent(incoming)
        thread_id = text(incoming.params.get("threadId"))
        mailbox = self._mailboxes.get(thread_id)
        if mailbox is not None:
            self._deliver(incoming, mailbox)
        elif isinstance(incoming, AgentRequest):
            _log.warning("codex sent %s for a thread without a run", incoming.method)
            self.refuse(incoming, f"no run answers {incoming.method} for thread {thread_id!r}")
        elif incoming.method == "thread/closed":
            self.threads.pop(thread_id, None)
            if thread_id in self._closing:
                self._closing[thread_id].set()
        elif thread_id:
            self._hold_unrouted(thread_id, incoming)
        elif incoming.method not in DELTA_METHODS:
            description = (
                shown(repr(incoming.params))
                if incoming.size < _MAX_LOGGED
                else f"{incoming.size:,} bytes"
            )
            _log.info(
                "codex app-server %d sent %s: %s", self.pid, shown(incoming.method), description
            )

    def _deliver(self, incoming: Message, mailbox: Mailbox) -> None:
        for request in mailbox.put(incoming):
            self.refuse(request, "the run is too far behind to answer")

    def _route_subagent(self, incoming: AgentRequest | Notification) -> None:
        """Route a sub-agent's thread to the turn that it works for."""
        if incoming.method == "turn/started":
            turn = incoming.params.get("turn")
            root = turn.get("rootTurnId") if isinstance(turn, dict) else None
            child, mailbox = incoming.params.get("threadId"), self._turn_mailboxes.get(text(root))
        elif incoming.method == "thread/started":
            thread = incoming.params.get("thread")
            thread = thread if isinstance(thread, dict) else {}
            child, mailbox = (
                thread.get("id"),
                self._mailboxes.get(text(thread.get("parentThreadId"))),
            )
        else:
            return
        if isinstance(child, str) and mailbox is not None:
            self._mailboxes.setdefault(child, mailbox)

    def _hold_unrouted(self, thread_id: str, notification: Notification) -> None:
        """Keep a message about a thread that has no run, for its next run."""
        if notification.method in DELTA_METHODS:
            return
        if thread_id not in self._unrouted and len(self._unrouted) >= _MAX_UNROUTED:
            del self._unrouted[next(iter(self._unrouted))]
        self._unrouted.setdefault(thread_id, deque(maxlen=_MAX_UNROUTED)).append(notification)

    def _report_malformed(self, incoming: Malformed) -> None:
        """Report an unreadable line to the runs that it may concern."""
        line = incoming.text
        if line.truncation is None:
            _log.warning("codex app-server %d wrote an invalid message", self.pid)
        else:
            _log.error("codex app-server wrote a line of %d bytes", line.truncation.size)
            found = _THREAD.search(line.text)
            if found is not None and (mailbox := self._mailboxes.get(found[1])) is not None:
                self._deliver(incoming, mailbox)
                return
        for mailbox in {id(mailbox): mailbox for mailbox in self._mailboxes.values()}.values():
            self._deliver(incoming, mailbox)
