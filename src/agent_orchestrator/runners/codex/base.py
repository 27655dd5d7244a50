"""The common options and methods of the codex runners."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from attrs import field, frozen

from agent_orchestrator.domain.model import RunError, Sandbox
from agent_orchestrator.fields import runner_option
from agent_orchestrator.operations.daemon import Finding
from agent_orchestrator.operations.runs import Issue
from agent_orchestrator.runners.codex.diagnosis import likely_issue
from agent_orchestrator.runners.codex.findings import codex_findings
from agent_orchestrator.runners.codex.probe import Probe, environment
from agent_orchestrator.runners.conversations import ConversationRunner
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
    :param tools: whether its agents get the orchestration tools. ``codex exec`` has them with a
        daemon only.
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

    def diagnose(self, error: RunError) -> Issue | None:
        """Return the likely issue of a failed run of codex."""
        return likely_issue(error)
