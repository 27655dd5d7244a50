"""One warm ``codex app-server``: a process that serves the threads of many sessions at once."""

import logging
import re
from signal import Signals
from typing import Final

import anyio
from anyio.to_thread import run_sync
from attrs import define, evolve, field, frozen

from agent_orchestrator.domain.errors import AgentFailed
from agent_orchestrator.fields import shown
from agent_orchestrator.runners.codex.appserver.requirements import Requirements
from agent_orchestrator.runners.codex.appserver.threads import LoadedThread
from agent_orchestrator.runners.codex.appserver.turns import (
    DELTA_METHODS,
    IGNORED_METHODS,
    STREAMS,
    TURNS,
)
from agent_orchestrator.runners.codex.failures import startup_failure
from agent_orchestrator.runners.codex.locate import locate
from agent_orchestrator.runners.events import text
from agent_orchestrator.runners.live.jsonrpc import JsonRpc
from agent_orchestrator.runners.live.mailbox import Mailbox
from agent_orchestrator.runners.live.messages import (
    AgentRequest,
    Malformed,
    Message,
    Notification,
    RpcError,
)
from agent_orchestrator.runners.live.process import AgentProtocol, Launch, LiveProcess
from agent_orchestrator.runners.program import NotInstalled

_log = logging.getLogger(__name__)

PROTOCOL: Final = AgentProtocol(
    "codex's app-server", JsonRpc(has_version=False), streams=STREAMS, never_dropped=TURNS
)

STOP: Final = ((Signals.SIGTERM, 2.0),)
"""On SIGTERM, codex 0.169's app-server ends the process groups of its commands and exits within 60
ms. On SIGINT it leaves them running, unlike exec."""

START_S: Final = 30.0
"""Maximum seconds until codex is ready. It usually takes 0.1 s."""

_CLOSE_S: Final = 10.0
"""Maximum seconds to unload a thread. It usually takes 0.02 s."""

_MAX_LOGGED: Final = 2_000
"""Maximum bytes to log of a message that belongs to no thread."""

_TURN: Final = "turn "
"""The beginning of the key of a turn's mailbox, beside those of threads."""

ANOTHER_LOGIN: Final = f"{PROTOCOL.agent} had another login"

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
        """Return whether another is equal except for the login."""
        return evolve(self, login=other.login) == other


@define(eq=False)
class Lease:
    """A run's use of a process.

    :param is_opening: whether it will load one more thread.
    """

    server: "Server"
    _is_opening: bool

    def __attrs_post_init__(self) -> None:
        self.server.opening += self._is_opening

    def loaded(self, thread_id: str, opened: LoadedThread) -> None:
        """Record that the process has the thread, or is loading it."""
        self.server.threads[thread_id] = opened
        self.end()

    def end(self) -> None:
        """Stop counting a thread that will not be loaded."""
        if self._is_opening:
            self._is_opening = False
            self.server.opening -= 1


@define(eq=False)
class Server(LiveProcess):
    """A process.

    :ivar opening: number of its runs that will load one more thread.
    :ivar threads: the threads that it has loaded.
    :ivar requirements: the administrator's limits, once codex has reported them.
    """

    spec: Spec
    _thread_idle_s: float
    opening: int = field(default=0, init=False)
    threads: dict[str, LoadedThread] = field(factory=dict, init=False)
    requirements: Requirements | None = field(default=None, init=False)
    version: str | None = field(default=None, init=False)
    _closing: dict[str, anyio.Event] = field(factory=dict, init=False)
    _idle: dict[str, anyio.CancelScope] = field(factory=dict, init=False)
    """The idle timers of loaded threads without a run, after which they are unloaded."""

    # --- for runs

    @property
    def thread_count(self) -> int:
        """The number of threads that it has or is loading."""
        return len(self.threads) + self.opening

    def serves_only(self, thread_id: str) -> bool:
        """Return whether it has no other thread and no other run than one of this thread."""
        return self.leases == 1 and not self.opening and self.threads.keys() <= {thread_id}

    @property
    def argv(self) -> tuple[str, ...]:
        return (self.spec.command, *self.spec.arguments)

    def route_turn(self, turn_id: str, mailbox: Mailbox) -> None:
        """Route the threads of this turn's sub-agents to its mailbox."""
        self.add_key(_TURN + turn_id, mailbox)

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

    def fail(self, failure: AgentFailed) -> None:
        super().fail(failure)
        for closed in self._closing.values():
            closed.set()

    # --- the process

    async def launch(self) -> Launch:
        return Launch(
            (await run_sync(self._located), *self.spec.arguments), dict(self.spec.env), stop=STOP
        )

    def _located(self) -> str:
        try:
            return str(locate(self.spec.command, dict(self.spec.env)))
        except NotInstalled as problem:
            raise AgentFailed("provider_unavailable", str(problem)) from problem

    def exit_failure(self, exit_code: int | None, stderr: str) -> AgentFailed:
        return AgentFailed(*startup_failure(exit_code, stderr))

    async def initialize(self) -> None:
        info = {"name": "agent_orchestrator", "title": None, "version": "1"}
        capabilities = {
            "experimentalApi": True,
            "requestAttestation": False,
            "optOutNotificationMethods": [*IGNORED_METHODS],
        }
        params = {"clientInfo": info, "capabilities": capabilities}
        answer = await self.request("initialize", params, START_S)
        user_agent = answer.get("userAgent") if isinstance(answer, dict) else None
        self.version = text(user_agent).partition("/")[2].partition(" ")[0] or None
        self.notify("initialized", {})

    # --- messages from codex

    async def receive(self, message: Message) -> None:
        if isinstance(message, Malformed):
            self._report_malformed(message)
            return
        self._route_subagent(message)
        thread_id = text(message.params.get("threadId"))
        if isinstance(message, Notification) and thread_id not in self._mailboxes:
            if message.method == "thread/closed":
                self.threads.pop(thread_id, None)
                if thread_id in self._closing:
                    self._closing[thread_id].set()
                return
            if message.method in DELTA_METHODS:
                return
            if not thread_id:
                self._log_unrouted(message)
                return
        self.route(thread_id, message)

    def _log_unrouted(self, message: Notification) -> None:
        description = (
            shown(repr(message.params)) if message.size < _MAX_LOGGED else f"{message.size:,} bytes"
        )
        _log.info("codex app-server %d sent %s: %s", self.pid, shown(message.method), description)

    def _route_subagent(self, incoming: AgentRequest | Notification) -> None:
        """Route a sub-agent's thread to the turn that it works for."""
        if incoming.method == "turn/started":
            turn = incoming.params.get("turn")
            root = turn.get("rootTurnId") if isinstance(turn, dict) else None
            child, mailbox = (
                incoming.params.get("threadId"),
                self._mailboxes.get(_TURN + text(root)),
            )
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
            self.add_key(child, mailbox)

    def _report_malformed(self, incoming: Malformed) -> None:
        """Report an unreadable line to the runs that it may concern."""
        line = incoming.text
        if line.truncation is None:
            _log.warning("codex app-server %d wrote an invalid message", self.pid)
        else:
            _log.error("codex app-server wrote a line of %d bytes", line.truncation.size)
            found = _THREAD.search(line.text)
            if found is not None and (mailbox := self._mailboxes.get(found[1])) is not None:
                self.deliver(incoming, mailbox)
                return
        for mailbox in {id(mailbox): mailbox for mailbox in self._mailboxes.values()}.values():
            self.deliver(incoming, mailbox)
