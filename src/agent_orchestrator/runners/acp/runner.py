"""Runs agents that speak ACP, each session in its own process."""

import math
import uuid
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import anyio.to_thread
from attrs import evolve, field, frozen

from agent_orchestrator.domain.capabilities import Capabilities, InputLimit
from agent_orchestrator.domain.errors import AgentFailed, ConfigError
from agent_orchestrator.domain.model import Invocation, Thread
from agent_orchestrator.hosts import current_host
from agent_orchestrator.ports.runner import (
    CWD_MISSING,
    RUN_VARIABLES,
    Availability,
    Outcome,
    RunContext,
)
from agent_orchestrator.runners.acp.agent import AcpAgent
from agent_orchestrator.runners.acp.agents import AGENTS
from agent_orchestrator.runners.acp.first_start import first_start
from agent_orchestrator.runners.acp.permissions import Approvals
from agent_orchestrator.runners.acp.probe import Probe
from agent_orchestrator.runners.acp.process import AcpProcess, Spec
from agent_orchestrator.runners.acp.sessions import Requested, can_continue, open_session
from agent_orchestrator.runners.acp.tool_access import ToolAccess, tool_access
from agent_orchestrator.runners.acp.turn_driver import TurnDriver
from agent_orchestrator.runners.conversations import PromptNotTaken, report_undelivered
from agent_orchestrator.runners.live.pool import NotStarted, ProcessPool
from agent_orchestrator.runners.live.runner import MAX_INPUT, LiveRunner
from agent_orchestrator.runners.program import absolute_program
from agent_orchestrator.runners.proxies import without_proxy_for


@frozen(kw_only=True, eq=False)
class AcpRunner(LiveRunner):
    """Runs each message as a turn of the session's conversation, in a process that stays alive for it.

    :param name: the provider's name.
    :param agent: a known agent. Default: the one with the provider's name. Without one, ``argv`` is required.
    :param argv: the program and the arguments with which it speaks ACP. Default: those of the known agent.
    :param model: the model, unless the run names another.
    :param mode: the mode of its sessions. Default: that in which a known agent asks for permission.
    :param tools: whether its agents get the orchestration tools.
    """

    name: str = "acp"
    agent: str | None = None
    argv: Sequence[str] = field(default=(), converter=tuple)
    model: str | None = None
    mode: str | None = None
    tools: bool = True
    _agent: AcpAgent = field(init=False, repr=False)
    _probe: Probe = field(factory=Probe, init=False, repr=False)
    _logins: "deque[bool]" = field(factory=lambda: deque(maxlen=1), init=False, repr=False)
    """Whether the agent was logged in at the last run; empty before."""
    _versions: "deque[str | None]" = field(factory=lambda: deque(maxlen=1), init=False, repr=False)
    """The version that the agent reported at the last run; empty before."""
    _pool: "ProcessPool[AcpProcess]" = field(init=False, repr=False)

    @_agent.default
    def _known(self) -> AcpAgent:
        name = self.agent or self.name
        known = AGENTS.get(name)
        if known is None and (self.agent is not None or not self.argv):
            raise ConfigError(
                f"agent: {name!r} is not known; set argv, or choose from: {', '.join(AGENTS)}"
            )
        return known or AcpAgent(argv=())

    @_pool.default
    def _new_pool(self) -> "ProcessPool[AcpProcess]":
        return ProcessPool(self.max_idle)

    @property
    def capabilities(self) -> Capabilities:
        agent = self._agent
        return Capabilities(
            resume=agent.resumes,
            steer=agent.steers,
            ask=True,
            tools=self.tools and agent.takes_tools,
            models=True,
            images=agent.images,
            max_input=InputLimit(characters=MAX_INPUT),
        )

    async def probe(self, env: Mapping[str, str]) -> Availability:
        """Return whether the agent is installed, its version, and whether it was logged in at its last run."""
        found = await self._probe(self._agent, self._argv, self._own_env(env))
        if found.version is None and self._versions:  # it may have been too slow to print it
            found = evolve(found, version=self._versions[-1])
        if not found.available or not self._logins:
            return found
        is_logged_in = self._logins[-1]
        login = f": run {self._agent.login}" if self._agent.login else ""
        reason = None if is_logged_in else f"it was not logged in at its last run{login}"
        return evolve(found, logged_in=is_logged_in, reason=reason)

    @property
    def _argv(self) -> tuple[str, ...]:
        argv: Any = self.argv  # the type that mypy knows of a converted field is not usable
        return absolute_program(argv or self._agent.argv)

    def _own_env(self, env: Mapping[str, str]) -> dict[str, str]:
        """Return the environment of a process: without the variables of one run."""
        removed = RUN_VARIABLES - {"AGENTCTL_SESSION_ID"}
        given = {name: env[name] for name in env if name not in removed}
        own = {**self._agent.default_env, **given, **self._agent.env}
        url = own.get("AGENTCTL_URL")
        return without_proxy_for(own, url) if self.tools and url else own

    async def run(self, context: RunContext) -> Outcome:
        """Run the turn.

        :raises AgentFailed: if the agent cannot be started, fails, or ends before its turn does.
        """
        cwd = context.session.cwd
        if not await anyio.to_thread.run_sync(
            current_host().is_directory, cwd, abandon_on_cancel=True
        ):
            raise AgentFailed("invalid_config", f"{CWD_MISSING}: {cwd}")
        own = self._own_env(context.env)
        if context.session.parent_session_id is not None:
            own.update(self._agent.child_env)
        spec = Spec(
            self.agent or self.name,
            self._agent,
            self._argv,
            cwd,
            context.is_cwd_resolved,
            frozenset(own.items()),
        )
        pending: list[str] = []
        try:
            async with AsyncExitStack() as stack:
                tools = None
                if self.capabilities.tools:
                    tools = await stack.enter_async_context(tool_access(context))
                turn = partial(self._turn, context, spec, tools, pending)
                outcome = await self.deliver(context, turn)
            self._logins.append(True)
            return outcome
        except AgentFailed as failure:
            if failure.code == "auth_failed":
                self._logins.append(False)
            raise
        finally:
            await report_undelivered(context, pending)

    async def _turn(
        self,
        context: RunContext,
        spec: Spec,
        tools: ToolAccess | None,
        pending: list[str],
        thread: Thread | None,
    ) -> Outcome:
        requested = Requested(
            context.session.cwd,
            context.model or self.model,
            self.mode or self._agent.ask_mode,
            tools,
        )
        token = None if tools is None else tools.token

        def is_usable(process: AcpProcess) -> bool:
            if process.spec != spec or (thread and process.session_id not in (None, thread.id)):
                return False
            has_tools = process.session_id is None or process.token == token
            return has_tools or self._agent.renews_tools

        is_new = False

        def make() -> AcpProcess:
            nonlocal is_new
            is_new = True
            # Without its process, an agent that cannot load a session has lost it.
            idle_s = self.idle_s if self._agent.resumes else math.inf
            return AcpProcess.of(spec, f"acp.{uuid.uuid4().hex}", idle_s)

        driver: TurnDriver | None = None
        lease = self._pool.lease_by_key(context.session.id, is_usable, make)
        async with AsyncExitStack() as stack:
            try:
                async with first_start(spec.agent, dict(spec.env)):
                    process = await stack.enter_async_context(lease)
            except NotStarted as problem:
                if is_new:
                    raise
                raise PromptNotTaken(problem, thread) from problem  # the process has just ended
            try:
                self._versions.append(process.version)
                with process.open_mailbox() as mailbox:
                    session = await open_session(process, mailbox, thread, requested)
                    approvals = Approvals.of(session.state)
                    state = {**session.state, **approvals.state()}
                    await context.set_thread(session.thread_id, state)
                    driver = TurnDriver(
                        context,
                        process,
                        mailbox,
                        session,
                        Invocation(spec.argv[0], spec.argv, spec.cwd, None, ()),
                        tools,
                        self.approval_timeout_s,
                        approvals,
                        pending,
                    )
                    outcome = await driver.run()
                    process.has_answered = True
                    return outcome
            except AgentFailed as failure:
                # It may have read its login at its start. Another process must be able to continue the conversation.
                if failure.code == "auth_failed" and (
                    not process.has_answered or can_continue(process)
                ):
                    process.retire(f"the login of {spec.name} may have changed")
                has_prompt = driver is not None and driver.has_prompt
                if process.failure is None or has_prompt:
                    raise
                raise PromptNotTaken(failure, thread) from failure
