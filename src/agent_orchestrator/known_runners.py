"""The registry of the built-in runners. It is available without loading a runner.

A new runner needs an entry here and a folder in :mod:`agent_orchestrator.runners`. Other packages register
runners as entry points (:mod:`agent_orchestrator.runners.registry`).
"""

from collections.abc import Mapping
from typing import Any, Final

from attrs import field, frozen

from agent_orchestrator.configuration import daemon_setting

DEFAULT_PROVIDER: Final = "codex"
"""The default provider, and its runner, if none is configured."""


@frozen(kw_only=True)
class KnownAgent:
    """A program that can be an agent, or that may have started this process.

    :param runners: the classes of its runners as ``module:class``, by the name that a configuration gives as
        ``runner``.
    :param variables: environment variables that tie a process to one conversation of the program.
    :param defaults: by option of its runners: the setting of the daemon (:class:`AgentDefaults`) that is
        the option's default.
    """

    runners: Mapping[str, str] = field(factory=dict)
    variables: tuple[str, ...] = ()
    defaults: Mapping[str, str] = field(factory=dict)


@frozen(kw_only=True)
class KnownProvider:
    """A provider that is there without configuration, on a machine that has its program.

    :param runner: the name of its runner.
    :param program: the file to look for in the directories of ``PATH``.
    :param options: settings of its runner.
    """

    runner: str
    program: str
    options: Mapping[str, Any] = field(factory=dict)


KNOWN_PROVIDERS: Final[Mapping[str, KnownProvider]] = {
    DEFAULT_PROVIDER: KnownProvider(runner="codex", program="codex"),
    "claude": KnownProvider(runner="claude", program="claude"),
    **{
        name: KnownProvider(runner="acp", program=program)
        for name, program in {
            "opencode": "opencode",
            "gemini": "gemini",
            "qwen": "qwen",
            "copilot": "copilot",
            "kimi": "kimi",
            "cline": "cline",
            "droid": "droid",
            "auggie": "auggie",
            "claude-acp": "claude-agent-acp",
            "codex-acp": "codex-acp",
            "pi": "pi-acp",
        }.items()
    },
}
"""By their names. The first that is ready is the default."""

_RUNNERS: Final = "agent_orchestrator.runners"

KNOWN_AGENTS: Final = (
    KnownAgent(
        runners={
            "codex": f"{_RUNNERS}.codex.auto:CodexRunner",
            "codex-exec": f"{_RUNNERS}.codex:CodexExecRunner",
            "codex-app-server": f"{_RUNNERS}.codex.appserver:CodexAppServerRunner",
        },
        variables=("CODEX_CI", "CODEX_SESSION_ID", "CODEX_THREAD_ID", "CODEX_TOOL_CALL_ID"),
        defaults={"profile": "codex_profile", "extra_args": "codex_extra_args"},
    ),
    KnownAgent(
        runners={"claude": f"{_RUNNERS}.claude:ClaudeRunner"},
        variables=(
            "AI_AGENT",
            "CLAUDECODE",
            "CLAUDE_CODE_CHILD_NOTES_DIR",
            "CLAUDE_CODE_CHILD_SESSION",
            "CLAUDE_CODE_ENTRYPOINT",
            "CLAUDE_CODE_EXECPATH",
            "CLAUDE_CODE_LAUNCHED_BY_SESSION_IDS",
            "CLAUDE_CODE_MESSAGING_SOCKET",
            "CLAUDE_CODE_MESSAGING_TOKEN",
            "CLAUDE_CODE_SESSION_ID",
            "CLAUDE_CODE_SSE_PORT",
            "CLAUDE_EFFORT",
            "CLAUDE_PID",
            "CLAUDE_PROJECT_DIR",
        ),
    ),
    KnownAgent(runners={"acp": f"{_RUNNERS}.acp.runner:AcpRunner"}),
    KnownAgent(runners={"command": f"{_RUNNERS}.command:CommandRunner"}),
    KnownAgent(runners={"function": f"{_RUNNERS}.function:FunctionRunner"}),
    KnownAgent(runners={"demo": f"{_RUNNERS}.demo:DemoRunner"}),
)

BUILT_IN: Final = {
    kind: class_path for agent in KNOWN_AGENTS for kind, class_path in agent.runners.items()
}
"""The built-in runners by kind. They do not need an installed package. An entry point cannot replace them."""


@frozen(kw_only=True, slots=False)
class AgentDefaults:
    """Settings of the daemon that are defaults for options of providers."""

    codex_profile: str | None = daemon_setting(None, "codex's --profile, for every codex provider.")
    codex_extra_args: tuple[str, ...] = daemon_setting(
        (),
        "An argument for codex before its subcommand; repeatable.",
        env=(),
        flag="--codex-extra-arg",
    )


def defaults_of(kind: str, settings: AgentDefaults) -> dict[str, Any]:
    """Return the default options for a kind of runner, as TOML values."""
    return {
        option: list(value) if isinstance(value, tuple) else value
        for agent in KNOWN_AGENTS
        if kind in agent.runners
        for option, name in agent.defaults.items()
        if (value := getattr(settings, name)) not in (None, ())
    }
