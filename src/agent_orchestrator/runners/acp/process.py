"""The process of an agent, which serves one session."""

from collections.abc import Mapping
from signal import Signals
from typing import Any, Final

import anyio.to_thread
from attrs import define, field, frozen

from agent_orchestrator.domain.errors import AgentFailed
from agent_orchestrator.host import StopSequence
from agent_orchestrator.runners.acp.agent import AcpAgent
from agent_orchestrator.runners.acp.failures import failure_of
from agent_orchestrator.runners.acp.settings import Category, Setting, told_mode
from agent_orchestrator.runners.acp.usage import Totals
from agent_orchestrator.runners.acp.values import value_at
from agent_orchestrator.runners.events import JsonObject, text
from agent_orchestrator.runners.live.jsonrpc import JsonRpc
from agent_orchestrator.runners.live.messages import (
    AgentRequest,
    Dialect,
    Message,
    Notification,
    RpcError,
)
from agent_orchestrator.runners.live.process import AgentProtocol, Launch, LiveProcess
from agent_orchestrator.runners.program import NotRunnable, locate

VERSION: Final = 1
"""The version of the protocol. Some agents offer 2, which has another shape."""

START_S: Final = 60.0
"""Maximum seconds until an agent is ready. The first start of opencode 1.18 takes 16 s."""

INITIALIZE: Final = {
    "protocolVersion": VERSION,
    "clientCapabilities": {
        "fs": {"readTextFile": False, "writeTextFile": False},
        "terminal": False,
    },
    "clientInfo": {"name": "agent-orchestrator", "version": "1"},
}

REQUEST_FAILED: Final = "agent_orchestrator/request_failed"
"""The notification that a request to the model has failed, from a line of stderr."""

_OVERLAP: Final = 32 * 2**10
"""Characters of stderr that are compared to find where new output begins."""

_MAX_LINE: Final = 2_000
"""Maximum characters of a line of stderr that are searched."""

_STREAMS: Final = {
    "session/update": (
        ("update", "content", "text"),
        ("update", "_meta", "terminal_output_delta", "data"),
    )
}


@frozen
class Spec:
    """The settings for starting a process.

    :param name: the agent's name, for messages.
    """

    name: str
    agent: AcpAgent
    argv: tuple[str, ...]
    cwd: str
    is_cwd_resolved: bool
    env: frozenset[tuple[str, str]] = field(repr=False)

    @property
    def stop(self) -> StopSequence:
        stop_s = self.agent.stop_s
        return ((Signals.SIGTERM, stop_s),) if stop_s else ()


@define(eq=False)
class AcpProcess(LiveProcess):
    """A process.

    :ivar session_id: the session that it has loaded.
    :ivar has_answered: whether a run in this process has succeeded.
    :ivar address: that session's id in messages.
    :ivar token: the token with which that session reaches its tools; None without them.
    :ivar totals: its usage since its start.
    :ivar settings: the mode and the model of the session, as they were set last.
    :ivar has_left_mode: whether it has told another mode since its mode was set.
    :ivar capabilities: its ``agentCapabilities``.
    """

    spec: Spec
    session_id: str | None = field(default=None, init=False)
    has_answered: bool = field(default=False, init=False)
    address: str = field(default="", init=False)
    token: str | None = field(default=None, init=False)
    totals: Totals = field(factory=Totals, init=False)
    capabilities: JsonObject = field(factory=dict, init=False)
    version: str | None = field(default=None, init=False)
    can_steer: bool = field(default=False, init=False)
    settings: dict[Category, Setting] = field(factory=dict, init=False)
    has_left_mode: bool = field(default=False, init=False)
    _seen_stderr: str = field(default="", init=False)
    """The lines of stderr that were searched."""

    @classmethod
    def of(
        cls, spec: Spec, tag: str, idle_s: float, dialect: Dialect | None = None
    ) -> "AcpProcess":
        protocol = AgentProtocol(spec.name, dialect or JsonRpc(), streams=_STREAMS)
        return cls(protocol, tag, idle_s, spec)

    async def launch(self) -> Launch:
        env = dict(self.spec.env)
        try:
            program, _ = await anyio.to_thread.run_sync(locate, self.spec.argv[0], env.get("PATH"))
        except NotRunnable as problem:
            hint = self.spec.agent.install
            message = f"{problem}; install it with: {hint}" if hint else str(problem)
            raise AgentFailed("provider_unavailable", message) from problem
        return Launch(
            (program, *self.spec.argv[1:]),
            env,
            self.spec.cwd,
            self.spec.is_cwd_resolved,
            self.spec.stop,
            self._watch_stderr if self.spec.agent.failed_request is not None else None,
        )

    def _watch_stderr(self, tail: str) -> None:
        """Report to the run the last failed model request among the new lines."""
        end = tail.rfind("\n") + 1
        # If the beginning of the tail was cut off, the end of the earlier tail is still in it.
        known = (
            self._seen_stderr
            if tail.startswith(self._seen_stderr)
            else self._seen_stderr[-_OVERLAP:]
        )
        at = tail.find(known)
        begin = at + len(known) if at >= 0 else 0
        self._seen_stderr = tail[:end]
        pattern, mailbox = self.spec.agent.failed_request, self._mailboxes.get("")
        if pattern is None or mailbox is None:
            return
        for line in reversed(tail[begin:end].splitlines()):
            if (found := pattern.match(line[:_MAX_LINE])) is not None:
                self.deliver(Notification(REQUEST_FAILED, {"reason": found[1]}), mailbox)
                return

    async def receive(self, message: Message) -> None:
        """Deliver a message. Notifications that arrive between two runs are dropped."""
        if isinstance(message, Notification) and isinstance(
            update := message.params.get("update"), Mapping
        ):
            mode, known = told_mode(update), self.settings.get("mode")
            self.has_left_mode |= mode is not None and (known is None or known.value != mode)
        if self._mailboxes or isinstance(message, AgentRequest):
            self.route("", message)

    async def initialize(self) -> None:
        try:
            answer = await self.request("initialize", INITIALIZE, START_S)
        except RpcError as refused:
            raise failure_of(self.spec.name, self.spec.agent, refused) from refused
        version = value_at(answer, ["protocolVersion"])
        if version != VERSION:
            self.is_incompatible = True
            message = f"{self.spec.name} speaks version {version!r} of ACP instead of {VERSION}"
            raise AgentFailed("provider_unavailable", message)
        found = value_at(answer, ["agentCapabilities"])
        self.capabilities = found if isinstance(found, Mapping) else {}
        self.version = text(value_at(answer, ["agentInfo", "version"])) or None
        self.can_steer = value_at(answer, ["_meta", "steering", "supported"]) is True

    def exit_failure(self, exit_code: int | None, stderr: str) -> AgentFailed:
        lines = [line.strip() for line in stderr.splitlines() if line.strip()]
        said = f": {lines[-1][:2_000]}" if lines else ""
        ended = "closed its output" if exit_code is None else f"exited with {exit_code}"
        return AgentFailed("agent_crashed", f"{self.spec.name} {ended}{said}", exit_code=exit_code)

    def has(self, *path: str) -> bool:
        """Return whether the agent has a capability, given as true or as an object."""
        found: Any = value_at(self.capabilities, path)
        return found is True or isinstance(found, Mapping)

    def forget_session(self) -> None:
        self.session_id = self.token = None
        self.address = ""
        self.settings.clear()
