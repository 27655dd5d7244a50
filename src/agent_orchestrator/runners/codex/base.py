"""The common options and methods of the codex runners."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from anyio.to_thread import run_sync
from attrs import field, frozen

from agent_orchestrator.domain.model import ApprovalPolicy, RunError, Sandbox, Session, Thread
from agent_orchestrator.fields import runner_option
from agent_orchestrator.operations.daemon import Finding
from agent_orchestrator.operations.runs import Issue
from agent_orchestrator.ports.runner import Conversation, Handover, Outcome, RunContext
from agent_orchestrator.runners.codex.attach import handover, home_in, options_of
from agent_orchestrator.runners.codex.diagnosis import likely_issue
from agent_orchestrator.runners.codex.findings import codex_findings
from agent_orchestrator.runners.codex.probe import Probe, environment
from agent_orchestrator.runners.codex.record import RolloutReader, find, rollout_of
from agent_orchestrator.runners.conversations import ConversationRunner
from agent_orchestrator.runners.record import replay
from agent_orchestrator.runners.supervisor import UsesForkServer


@frozen(kw_only=True, eq=False)
class CodexRunnerBase(ConversationRunner, UsesForkServer):
    """The base class of the codex runners.

    :param name: the provider's name.
    :param command: codex: a path, or a name on the PATH. The native binary behind the npm wrapper
        is started directly.
    :param home: the CODEX_HOME. Default: the environment's CODEX_HOME, or ``~/.codex``.
    :param profile: the ``--profile`` for codex.
    :param extra_args: arguments before the subcommand.
    :param model: the model, unless the run names another.
    :param config: overrides of codex's configuration, by dotted key.
    :param tools: whether its agents get the orchestration tools.
    """

    name: str = "codex"
    command: str = "codex"
    home: str | None = None
    profile: str | None = None
    extra_args: Sequence[str] = field(default=(), converter=tuple)
    sandbox: Sandbox | None = runner_option(
        "What commands may do. Default: as codex's configuration says.", default=None
    )
    model: str | None = None
    config: Mapping[str, Any] = field(factory=dict)
    tools: bool = True
    _probe: Probe = field(factory=Probe, init=False, repr=False)

    def findings(self, about: str, env: Mapping[str, str]) -> Iterator[Finding]:
        """Return findings about codex's home, and settings that give its agents more rights."""
        codex_env = environment(env, self.home)
        return codex_findings(
            about,
            codex_env,
            command=self.command,
            sandbox=self.sandbox,
            extra_args=self.extra_args,
            settings=self._probe.settings(codex_env, self.profile, self.config, self.extra_args)[0],
        )

    async def hand_over(self, session: Session, thread: Thread, env: Mapping[str, str]) -> Handover:
        """Release a thread, and return the program that resumes it, with the rights of the session's runs.

        :raises AgentFailed: if codex keeps the thread, or has no record of it.
        """
        await self._release_thread(thread.id)
        return await run_sync(
            handover,
            self.command,
            environment(env, self.home),
            session,
            thread,
            options_of(self.extra_args, self.profile, self.config),
            session.sandbox or self.sandbox,
            self._policy_of(session),
        )

    async def _release_thread(self, thread_id: str) -> None:
        """End the use of a thread. Default: no process has it between runs."""

    def _policy_of(self, session: Session) -> ApprovalPolicy | None:
        """Return when codex asks in a session; None means as its own configuration says."""
        return session.approval_policy

    async def find_conversation(
        self, thread_id: str | None, cwd: str, env: Mapping[str, str]
    ) -> Conversation:
        """Return a thread of codex, or the latest of a directory.

        :raises AgentFailed: if there is none.
        """
        home = await run_sync(home_in, environment(env, self.home))
        return await run_sync(find, home, thread_id, cwd)

    async def read_record(self, context: RunContext) -> Outcome:
        """Emit what codex has recorded of the run's thread since it was read last.

        :raises AgentFailed: if it cannot be read.
        """
        assert context.thread is not None
        home = await run_sync(home_in, environment(context.env, self.home))
        path = await run_sync(rollout_of, home, context.thread.id)
        before = context.thread.state.get("usage")
        known = before if isinstance(before, Mapping) else {}
        return await replay(context, home, path, RolloutReader(known, context.session.cwd))

    def diagnose(self, error: RunError) -> Issue | None:
        """Return the likely issue of a failed run of codex."""
        return likely_issue(error)
