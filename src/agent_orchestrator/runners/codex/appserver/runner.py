"""Runs turns with ``codex app-server``: warm processes that serve many sessions."""

from collections.abc import Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
from attrs import evolve, field, frozen

from agent_orchestrator.domain.capabilities import Capabilities
from agent_orchestrator.domain.errors import AgentFailed
from agent_orchestrator.domain.events import EventType
from agent_orchestrator.domain.model import ApprovalPolicy, Invocation, Sandbox, Session, Thread
from agent_orchestrator.fields import runner_option
from agent_orchestrator.ports.runner import RUN_VARIABLES, Availability, Outcome, RunContext
from agent_orchestrator.runners.codex.appserver.server import ANOTHER_LOGIN, Spec
from agent_orchestrator.runners.codex.appserver.server_pool import ServerPool
from agent_orchestrator.runners.codex.appserver.thread_loading import HAS_TOOLS, load_thread
from agent_orchestrator.runners.codex.appserver.threads import LoadedThread
from agent_orchestrator.runners.codex.appserver.turn_driver import ThreadNotLoaded, TurnDriver
from agent_orchestrator.runners.codex.argv import app_server_arguments, is_thread_id
from agent_orchestrator.runners.codex.base import CodexRunnerBase
from agent_orchestrator.runners.codex.capabilities import codex_capabilities
from agent_orchestrator.runners.codex.login import identity
from agent_orchestrator.runners.codex.probe import environment, home_of, profile_warning
from agent_orchestrator.runners.codex.tools import served_tools
from agent_orchestrator.runners.codex.trust import (
    untrusted_config,
    untrusted_directories,
    untrusted_environment,
)
from agent_orchestrator.runners.codex.versions import VERSIONS
from agent_orchestrator.runners.conversations import (
    ConversationMissing,
    PromptNotTaken,
    report_undelivered,
)
from agent_orchestrator.runners.live.pool import NotStarted
from agent_orchestrator.runners.live.runner import LiveRunner
from agent_orchestrator.runners.live.stopping import PARKED
from agent_orchestrator.runners.program import NotInstalled
from agent_orchestrator.runners.proxies import without_proxy_for


@frozen(kw_only=True, eq=False)
class CodexAppServerRunner(LiveRunner, CodexRunnerBase):
    """Runs each message as a turn of the session's thread, in a process that stays warm.

    :param remember_approvals: whether to offer approvals that codex keeps for good in its home
        (``rules``), for every directory. Otherwise they are not offered, and approve nothing.
    """

    sandbox: Sandbox = runner_option(
        "What commands may do without approval.",
        default="workspace-write",
    )
    approval_policy: ApprovalPolicy = runner_option(
        "When codex asks for approval. `untrusted`: before every command that is not known to be "
        "harmless. `on-request`: when it wants more than the sandbox allows. `never`: not at all.",
        default="on-request",
    )
    remember_approvals: bool = False
    max_threads_per_process: int = runner_option(
        "Maximum number of threads of one process.", default=100, minimum=1
    )
    thread_idle_s: float = runner_option(
        "Seconds after which a thread without a run is unloaded, so that you can use `codex resume` on it. "
        "The next run loads it again, which takes about 0.04 s.",
        default=30.0,
        minimum=0,
    )
    _last_availability: dict[frozenset[tuple[str, str]], Availability] = field(
        factory=dict, init=False, repr=False
    )
    """The last result of the probe, by environment."""
    _refusals: dict[str | None, str] = field(factory=dict, init=False, repr=False)
    """The versions whose app-server did not start, with their messages."""
    _pool: ServerPool = field(init=False, repr=False)

    @_pool.default
    def _new_pool(self) -> ServerPool:
        return ServerPool(
            self.max_idle,
            max_threads=self.max_threads_per_process,
            idle_s=self.idle_s,
            thread_idle_s=self.thread_idle_s,
        )

    @property
    def capabilities(self) -> Capabilities:
        return codex_capabilities(
            self.sandbox, self.approval_policy, tools=self.tools, is_exec=False
        )

    async def probe(self, env: Mapping[str, str]) -> Availability:
        """Return whether codex is installed, logged in, and of a supported version.

        A running process proves that, so its last result is returned.
        """
        own = self._own_env(env)
        key = frozenset(own.items())
        if key in self._last_availability and self._pool.serves(key):
            return self._last_availability[key]
        found = await anyio.to_thread.run_sync(self._probe_now, own)
        self._last_availability.clear()
        if found.available:
            self._last_availability[key] = found
        return found

    def _probe_now(self, env: Mapping[str, str]) -> Availability:
        found = self._probe(
            self.command,
            env,
            profile=self.profile,
            config=self.config,
            extra_args=self.extra_args,
            is_exec=False,
        )
        return self._with_findings(found)

    def _with_findings(self, found: Availability) -> Availability:
        """Return the availability of a codex, with a note about its age."""
        if not found.available:
            return found
        if (refusal := self._refusals.get(found.version)) is not None:
            return evolve(found, available=False, reason=refusal)
        return VERSIONS.judged(found)

    def _own_env(self, env: Mapping[str, str]) -> dict[str, str]:
        """Return the environment of a process for the runs of this provider."""
        own = environment(_shared_env(env), self.home)
        url = own.get("AGENTCTL_URL")
        return without_proxy_for(own, url) if self.tools and url else own

    async def _release_thread(self, thread_id: str) -> None:
        await self._pool.release_thread(thread_id)

    def _policy_of(self, session: Session) -> ApprovalPolicy | None:
        return session.approval_policy or self.approval_policy

    async def run(self, context: RunContext) -> Outcome:
        """Run the turn.

        :raises AgentFailed: if codex cannot be started, fails, or ends before its turn does.
        """
        requested = await self._requested_turn(context)
        env = untrusted_environment(self._own_env(context.env), requested.untrusted_directories)
        arguments = app_server_arguments(
            extra_args=self.extra_args, profile=self.profile, config=self.config
        )
        try:
            login = identity(home_of(env), self.profile)
        except NotInstalled as problem:
            raise AgentFailed("provider_unavailable", str(problem)) from problem
        spec = Spec(self.command, arguments, frozenset(env.items()), login)
        thread_id = None if context.thread is None else context.thread.id
        if not self._pool.has(spec, thread_id):
            await self._warn_of_profile(context, env)
        steered: list[str] = []
        try:
            return await self.deliver(
                context, partial(self._turn, context, spec, requested, steered)
            )
        except NotStarted as problem:
            availability = self._last_availability.get(spec.env)
            if problem.is_incompatible and availability is not None:
                self._refusals[availability.version] = problem.message
            raise
        finally:
            await report_undelivered(context, steered)

    async def _warn_of_profile(self, context: RunContext, env: Mapping[str, str]) -> None:
        """Record a warning if codex has no such profile."""
        warning = await anyio.to_thread.run_sync(profile_warning, self.profile, env)
        if warning is not None:
            await context.emit(EventType.RUN_ERROR, {"message": warning, "code": "invalid_config"})

    async def _turn(
        self,
        context: RunContext,
        spec: Spec,
        requested: LoadedThread,
        steered: list[str],
        thread: Thread | None,
    ) -> Outcome:
        thread_id = None if thread is None else thread.id
        if thread_id is not None and not is_thread_id(thread_id):
            raise ConversationMissing(f"{thread_id!r} is not a thread id")
        tools = context.tools if self.tools else None
        async with AsyncExitStack() as stack:
            later: Mapping[str, Any] = {}
            if tools is not None and thread is not None and not thread.state.get(HAS_TOOLS):
                served = served_tools(context, is_private=True)
                later = (await stack.enter_async_context(served)).config
            lease = await stack.enter_async_context(self._pool.lease_for(spec, thread_id))
            server = lease.server
            invocation = Invocation(
                self.command,
                server.argv,
                context.session.cwd,
                self.profile,
                tuple(self.extra_args),
            )
            conversation: TurnDriver | None = None
            try:
                thread_id, overrides = await load_thread(
                    context,
                    lease,
                    thread_id,
                    requested,
                    untrusted_config(requested.untrusted_directories, self.config, self.extra_args),
                    tools,
                    later,
                )
                has_tools = server.threads[thread_id].has_tools
                with server.open_mailbox(thread_id) as mailbox:
                    conversation = TurnDriver(
                        context,
                        server,
                        thread_id,
                        mailbox,
                        thread,
                        overrides,
                        {HAS_TOOLS: True} if has_tools else {},
                        invocation,
                        tools,
                        self.approval_timeout_s,
                        self.remember_approvals,
                        steered,
                    )
                    return await conversation.run()
            except ThreadNotLoaded as problem:
                failure = AgentFailed("thread_missing", str(problem))
                raise PromptNotTaken(failure, thread) from problem
            except AgentFailed as failure:
                if failure.code == "auth_failed":
                    server.retire(
                        ANOTHER_LOGIN
                    )  # the login may have been repaired where no file shows it
                has_prompt = conversation is not None and conversation.has_prompt
                if server.failure is None or has_prompt:
                    raise
                raise PromptNotTaken(failure, thread) from failure
            finally:
                if thread_id in server.threads and (
                    context.is_parking or server.threads[thread_id].is_single_run
                ):
                    with anyio.CancelScope(shield=True):
                        await server.unload(thread_id)
                    if context.is_parking and server.serves_only(thread_id):
                        server.retire(PARKED)
                elif thread_id is not None:
                    server.unload_when_idle(thread_id)

    async def _requested_turn(self, context: RunContext) -> LoadedThread:
        """Return the requested settings for the turns of a run."""
        cwd, shared = context.session.cwd, context.shared_cwd
        untrusted: tuple[str, ...] = ()
        if cwd != shared:
            # A directory may not answer, and a canceled run must not wait for it.
            untrusted = await anyio.to_thread.run_sync(
                untrusted_directories, cwd, shared, abandon_on_cancel=True
            )
        return LoadedThread(
            cwd,
            untrusted,
            context.model or self.model,
            context.run.approval_policy or self.approval_policy,
            context.run.sandbox or self.sandbox,
            effort=context.run.effort,
        )


def _shared_env(env: Mapping[str, str]) -> Mapping[str, str]:
    """Return the variables that are equal for all runs of a provider."""
    return {name: value for name, value in env.items() if name not in RUN_VARIABLES}
