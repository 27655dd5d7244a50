"""Runs turns with Claude Code: a live process for each conversation."""

import json
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import anyio.to_thread
from attrs import evolve, field, frozen

from agent_orchestrator.domain.capabilities import Capabilities, InputLimit
from agent_orchestrator.domain.errors import AgentFailed, ConfigError
from agent_orchestrator.domain.model import (
    ApprovalPolicy,
    Invocation,
    RunError,
    Sandbox,
    Session,
    Thread,
)
from agent_orchestrator.fields import runner_option
from agent_orchestrator.operations.daemon import Finding
from agent_orchestrator.operations.runs import Issue
from agent_orchestrator.ports.runner import (
    Availability,
    Conversation,
    Handover,
    Outcome,
    ProtectedPaths,
    RunContext,
)
from agent_orchestrator.runners.claude import own_files
from agent_orchestrator.runners.claude.driver import RunDriver
from agent_orchestrator.runners.claude.failures import is_conversation_in_use
from agent_orchestrator.runners.claude.findings import claude_findings, likely_issue
from agent_orchestrator.runners.claude.launch import (
    OWN_OPTIONS,
    Spec,
    decides_alone,
    environment,
    permission_mode,
)
from agent_orchestrator.runners.claude.probe import Probe
from agent_orchestrator.runners.claude.process import ClaudeProcess
from agent_orchestrator.runners.claude.protocol import PROTOCOL
from agent_orchestrator.runners.claude.record import (
    RecordReader,
    find,
    handover,
    home_in,
    is_uuid,
    record_of,
)
from agent_orchestrator.runners.claude.self_test import SelfTest, Version, supported
from agent_orchestrator.runners.claude.trust import setting_sources
from agent_orchestrator.runners.conversations import ConversationMissing, PromptNotTaken
from agent_orchestrator.runners.live.pool import NotStarted, ProcessPool
from agent_orchestrator.runners.live.runner import MAX_INPUT, LiveRunner
from agent_orchestrator.runners.record import replay


@frozen(kw_only=True, eq=False)
class ClaudeRunner(LiveRunner):
    """Runs each message as a turn of the session's conversation.

    :param name: the provider's name.
    :param command: Claude Code: a path, or a name on the PATH.
    :param home: the CLAUDE_CONFIG_DIR. Default: the environment's, or ``~/.claude``.
    :param extra_args: further arguments, such as ``--add-dir``. Not those that the runner sets.
    :param model: the model, unless the run names another.
    :param effort: the reasoning effort, unless the run names another: ``low``, ``medium``, ``high``, ``xhigh`` or
        ``max``.
    :param tools: whether its agents get the orchestration tools.
    """

    name: str = "claude"
    command: str = "claude"
    home: str | None = None
    extra_args: Sequence[str] = field(default=(), converter=tuple)
    model: str | None = None
    effort: str | None = None
    sandbox: Sandbox = runner_option(
        "What agents may do without approval. `workspace-write`: change files in the working directory. "
        "`read-only`: look at it. `danger-full-access`: anything.",
        default="workspace-write",
    )
    approval_policy: ApprovalPolicy = runner_option(
        "When its agents ask for approval. `untrusted`: before everything that is not known to be harmless. "
        "`on-request`: before what the sandbox does not allow. `never`: not at all, so that the rest is denied.",
        default="on-request",
    )
    tools: bool = True
    _probe: Probe = field(factory=Probe, init=False, repr=False)
    _self_test: SelfTest = field(factory=SelfTest, init=False, repr=False)
    _pool: ProcessPool[ClaudeProcess] = field(init=False, repr=False)

    @_pool.default
    def _new_pool(self) -> ProcessPool[ClaudeProcess]:
        return ProcessPool(self.max_idle)

    def __attrs_post_init__(self) -> None:
        """Refuse arguments that the runner sets itself.

        :raises ConfigError: naming the option.
        """
        for index, argument in enumerate(self.extra_args):
            if (option := argument.partition("=")[0]) in OWN_OPTIONS:
                raise ConfigError(f"extra_args[{index}]: {option} is set by this runner")

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            resume=True,
            steer=True,
            ask=True,
            tools=self.tools,
            confine=True,  # by permission modes, and by asking
            sandbox=self.sandbox,
            approval_policy=self.approval_policy,
            models=True,
            effort=True,
            output_schema=True,
            images=True,
            max_input=InputLimit(characters=MAX_INPUT),
            vendor="anthropic",
        )

    async def probe(self, env: Mapping[str, str]) -> Availability:
        """Return whether Claude Code is installed, logged in, and of a version that asks before it uses tools."""
        own = environment(env, self.home)
        found = await anyio.to_thread.run_sync(self._probe, self.command, own)
        refusal = self._self_test.refusal(found.version)
        return found if refusal is None else evolve(found, available=False, reason=refusal)

    def findings(self, about: str, env: Mapping[str, str]) -> Iterator[Finding]:
        """Return findings about its directory, and settings that give its agents more rights."""
        return claude_findings(
            about,
            environment(env, self.home),
            command=self.command,
            sandbox=self.sandbox,
            policy=self.approval_policy,
        )

    def diagnose(self, error: RunError) -> Issue | None:
        """Return the likely issue of a failed run."""
        return likely_issue(error)

    async def hand_over(self, session: Session, thread: Thread, env: Mapping[str, str]) -> Handover:
        """Release a conversation, and return the program that resumes it, with the rights of the session's runs.

        :raises AgentFailed: if it has no record of the conversation.
        """
        await self._pool.end(thread.id, "its conversation was handed over")
        sandbox = session.sandbox or self.sandbox
        policy = session.approval_policy or self.approval_policy
        model = session.model or self.model
        options = (
            *("--permission-mode", permission_mode(sandbox, policy)),
            *(("--model", model) if model else ()),
            *self.extra_args,
        )
        own = environment(env, self.home)
        return await anyio.to_thread.run_sync(handover, self.command, own, session, thread, options)

    async def find_conversation(
        self, thread_id: str | None, cwd: str, env: Mapping[str, str]
    ) -> Conversation:
        """Return a conversation of Claude Code, or the latest of a directory.

        :raises AgentFailed: if there is none.
        """
        home = await anyio.to_thread.run_sync(home_in, environment(env, self.home))
        return await anyio.to_thread.run_sync(find, home, thread_id, cwd)

    async def read_record(self, context: RunContext) -> Outcome:
        """Emit what Claude Code has recorded of the run's conversation since it was read last.

        :raises AgentFailed: if it cannot be read.
        """
        assert context.thread is not None
        home = await anyio.to_thread.run_sync(home_in, environment(context.env, self.home))
        path = await anyio.to_thread.run_sync(record_of, home, context.thread.id)
        return await replay(context, home, path, RecordReader())

    async def run(self, context: RunContext) -> Outcome:
        """Run the turn.

        :raises AgentFailed: if Claude Code cannot be started, fails, or ends before its turn does.
        """
        env = environment(context.env, self.home)
        # In one thread, as each change of the thread delays a turn.
        spec, version = await anyio.to_thread.run_sync(self._prepared, context, env)
        await self._self_test.require(spec, version)
        return await self.deliver(context, partial(self._turn, context, spec))

    def _prepared(self, context: RunContext, env: Mapping[str, str]) -> tuple[Spec, Version]:
        """Return the settings of a run's process, and the version of its program. Blocks.

        :raises AgentFailed: ``provider_unavailable``, if it is not a supported version.
        """
        version = supported(self.command, env, self._probe)
        session, run = context.session, context.run
        sandbox, policy = run.sandbox or self.sandbox, run.approval_policy or self.approval_policy
        # Without questions, an agent is not kept from anything.
        protected = ProtectedPaths() if decides_alone(sandbox, policy) else context.protected
        spec = Spec(
            self.command,
            session.cwd,
            context.is_cwd_resolved,
            frozenset(env.items()),
            setting_sources(env, session.cwd, context.shared_cwd),
            permission_mode(sandbox, policy),
            context.model or self.model,
            run.effort or self.effort,
            tuple(self.extra_args),
            self.tools,
            None if run.output_schema is None else json.dumps(dict(run.output_schema)),
            own_files.deny_rules(protected),
            tuple(own_files.ask_rules(protected, os.path.realpath(session.cwd))),
        )
        return spec, version

    async def _turn(self, context: RunContext, spec: Spec, thread: Thread | None) -> Outcome:
        if thread is None or not is_uuid(thread.id):
            if thread is not None:
                raise ConversationMissing(f"{thread.id!r} is not the id of a conversation")
            thread = Thread(str(uuid.uuid4()), {})
        state = dict(thread.state)
        begun = bool(state.get("has_begun"))
        try:
            return await self._in_process(context, spec, thread.id, state, resumes=begun)
        except NotStarted as problem:
            if problem.code == "thread_missing":
                raise ConversationMissing(problem.message) from problem
            if begun or not is_conversation_in_use(problem.message):
                raise
        # The conversation was begun before its id could be recorded.
        return await self._in_process(context, spec, thread.id, state, resumes=True)

    async def _in_process(
        self,
        context: RunContext,
        spec: Spec,
        thread_id: str,
        state: dict[str, Any],
        *,
        resumes: bool,
    ) -> Outcome:
        rules = [rule for rule in state.get("rules", ()) if isinstance(rule, str)]

        def make() -> ClaudeProcess:
            tag = f"claude.{uuid.uuid4().hex}"
            tools = context.tools.list() if self.tools else ()
            return ClaudeProcess(PROTOCOL, tag, self.idle_s, spec, thread_id, resumes, tools, rules)

        leasing = self._pool.lease_by_key(thread_id, lambda one: one.spec == spec, make)
        async with leasing as process:
            with process.open_mailbox() as mailbox:
                invocation = Invocation(
                    self.command, process.argv, spec.cwd, extra_args=tuple(self.extra_args)
                )
                run = context.run
                driver = RunDriver(
                    context,
                    process,
                    mailbox,
                    invocation,
                    state,
                    context.tools,
                    spec.model,
                    decides_alone(
                        run.sandbox or self.sandbox, run.approval_policy or self.approval_policy
                    ),
                    self.approval_timeout_s,
                )
                try:
                    return await driver.run()
                except AgentFailed as failure:
                    if failure.code == "auth_failed":
                        self._probe.forget_login()
                        process.retire("Claude Code's login may have changed")
                    if process.failure is None or driver.has_prompt:
                        raise
                    raise PromptNotTaken(failure, context.thread) from failure
