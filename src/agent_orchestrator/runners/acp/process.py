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
from agent_orchestrator.runners.acp.settings import Category, Setting
from agent_orchestrator.runners.acp.usage import Totals
from agent_orchestrator.runners.acp.values import value_at
from agent_orchestrator.runners.events import JsonObject, text
from agent_orchestrator.runners.live.jsonrpc import JsonRpc
from agent_orchestrator.runners.live.messages import RpcError
from agent_orchestrator.runners.live.process import AgentProtocol, Launch, LiveProcess
from agent_orchestrator.runners.program import NotRunnable, locate

VERSION: Final = 1
"""The version of the protocol. Some agents offer 2, which has another shape."""

START_S: Final = 60.0
"""Seconds that an agent has to become ready. The first start of opencode 1.18 takes 16 s."""

INITIALIZE: Final = {
    "protocolVersion": VERSION,
    "clientCapabilities": {
        "fs": {"readTextFile": False, "writeTextFile": False},
        "terminal": False,
    },
    "clientInfo": {"name": "agent-orchestrator", "version": "1"},
}

_STREAMS: Final = {
    "session/update": (
        ("update", "content", "text"),
        ("update", "_meta", "terminal_output_delta", "data"),
    )
}


@frozen
class Spec:
    """What a process is started with.

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
    :ivar token: the token with which that session reaches the orchestration tools; None without them.
    :ivar totals: what it has used since its start.
    :ivar settings: the mode and the model of the session, as they are now.
    :ivar capabilities: its ``agentCapabilities``.
    """

    spec: Spec
    session_id: str | None = field(default=None, init=False)
    token: str | None = field(default=None, init=False)
    totals: Totals = field(factory=Totals, init=False)
    capabilities: JsonObject = field(factory=dict, init=False)
    version: str | None = field(default=None, init=False)
    can_steer: bool = field(default=False, init=False)
    settings: dict[Category, Setting] = field(factory=dict, init=False)

    @classmethod
    def of(cls, spec: Spec, tag: str, idle_s: float) -> "AcpProcess":
        return cls(AgentProtocol(spec.name, JsonRpc(), streams=_STREAMS), tag, idle_s, spec)

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
        )

    async def greet(self) -> None:
        try:
            answer = await self.request("initialize", INITIALIZE, START_S)
        except RpcError as refused:
            raise failure_of(self.spec.name, self.spec.agent, refused) from refused
        version = value_at(answer, ["protocolVersion"])
        if version != VERSION:
            self.is_unknown = True
            message = f"{self.spec.name} speaks version {version!r} of ACP, and not {VERSION}"
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
        self.settings.clear()
