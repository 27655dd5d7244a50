"""The arguments and the environment of Claude Code. All names are those of 2.1.332."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from signal import Signals
from typing import Any, Final

from attrs import field, frozen

from agent_orchestrator.domain.model import ApprovalPolicy, Sandbox
from agent_orchestrator.known_runners import KNOWN_AGENTS
from agent_orchestrator.ports.runner import RUN_VARIABLES, TAG_VARIABLE
from agent_orchestrator.runners.mcp_messages import TOOL_SERVER

_HOLD_MS: Final = 90_000_000
"""Maximum milliseconds of a tool call. A child may work for hours."""

STOP: Final = ((Signals.SIGINT, 2.0), (Signals.SIGTERM, 2.0))
"""On both, Claude Code ends its commands and exits within two seconds."""

_OFF: Final = (
    "ListAgents",
    "SendMessage",
    "ScheduleWakeup",
    "CronCreate",
    "CronDelete",
    "CronList",
    "Monitor",
    "Workflow",
    "EnterWorktree",
    "ExitWorktree",
)
"""Disabled tools. They reach other conversations of the machine, start turns without a prompt, or change the directory."""

_BEFORE_COMMANDS: Final = Path(__file__).with_name("before_commands.sh")
"""A script that runs before each command of an agent. It removes Claude Code's keys and the access to the messages of
other conversations from the command's environment."""

KEYS: Final = frozenset(
    name for name in _BEFORE_COMMANDS.read_text().split()[1:] if "MESSAGING" not in name
)

ENV_FILE: Final = "CLAUDE_ENV_FILE"

_DEFAULTS: Final = {
    ENV_FILE: str(_BEFORE_COMMANDS),
    "SHELL": "/bin/bash",
    "CLAUDE_CODE_MAX_RETRIES": "4",
    "DISABLE_AUTOUPDATER": "1",
}
"""Default variables, which a provider may override."""

_FIXED: Final = {
    "CLAUDE_CODE_DISABLE_BACKGROUND_TASKS": "1",
    "CLAUDE_CODE_DISABLE_CRON": "1",
    "CLAUDE_CODE_DISABLE_FILE_MENTIONS": "1",
    "MCP_TOOL_TIMEOUT": str(_HOLD_MS),
}
"""Required variables. Without them a command outlives its run, a turn starts without a prompt, ``@path`` in a prompt
reads a file without asking, or a tool call times out."""

_SETTINGS: Final = {"crossSessionInbound": "refuse", "env": _FIXED}
"""Settings that prevent other conversations of the user from starting turns in this one, and other settings from
changing the variables."""

_OF_A_CONVERSATION: Final = next(one for one in KNOWN_AGENTS if "claude" in one.runners).variables
"""Variables that Claude Code sets for its commands. They are removed, so that an agent does not look like one."""


OWN_OPTIONS: Final = frozenset(
    {
        *("-p", "--print", "--input-format", "--output-format", "--verbose"),
        *("--session-id", "--resume", "-r", "--continue", "-c", "--fork-session"),
        *("--permission-mode", "--permission-prompt-tool", "--permission-prompts"),
        *("--dangerously-skip-permissions", "--allow-dangerously-skip-permissions"),
        *("--settings", "--setting-sources", "--model", "--effort", "--json-schema"),
    }
)
"""Options that the runner sets itself. A second one would override them."""


@frozen
class Spec:
    """The settings of a process. A run needs a process with its own."""

    command: str
    cwd: str
    is_cwd_resolved: bool
    env: frozenset[tuple[str, str]] = field(repr=False)
    sources: str
    mode: str
    model: str | None
    effort: str | None
    extra_args: tuple[str, ...] = ()
    has_tools: bool = True
    schema: str | None = None
    """The JSON Schema of answers."""
    denied: tuple[str, ...] = ()
    """Rules for what is denied without a question."""
    asked: tuple[str, ...] = ()
    """Rules for what is asked although it would not be by default."""

    def arguments(
        self, thread_id: str, rules: Sequence[str] = (), *, resumes: bool
    ) -> tuple[str, ...]:
        """Return the arguments for a conversation.

        :param rules: the approvals for the session.
        :param resumes: whether the conversation exists. Otherwise it begins with this id.
        """
        return (
            "-p",
            *("--input-format", "stream-json", "--output-format", "stream-json", "--verbose"),
            *("--include-partial-messages", "--forward-subagent-text"),
            *("--permission-prompt-tool", "stdio"),
            *("--resume" if resumes else "--session-id", thread_id),
            *("--setting-sources", self.sources),
            *("--settings", _json(self._settings(rules))),
            *("--permission-mode", self.mode),
            f"--disallowedTools={','.join(_OFF)}",
            *self._tools(),
            *(("--model", self.model) if self.model else ()),
            *(("--effort", self.effort) if self.effort else ()),
            *(("--json-schema", self.schema) if self.schema else ()),
            *self.extra_args,
        )

    def _tools(self) -> Sequence[str]:
        if not self.has_tools:
            return ()
        servers = {"mcpServers": {TOOL_SERVER: {"type": "sdk", "name": TOOL_SERVER}}}
        return (f"--mcp-config={_json(servers)}", f"--allowedTools=mcp__{TOOL_SERVER}")

    def _settings(self, rules: Sequence[str]) -> Mapping[str, Any]:
        permissions = {"allow": [*rules], "deny": self.denied, "ask": self.asked}
        given = {kind: found for kind, found in permissions.items() if found}
        return {**_SETTINGS, "permissions": given} if given else _SETTINGS


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def environment(env: Mapping[str, str], home: str | None) -> dict[str, str]:
    """Return the environment of the processes of a provider, without what belongs to one run."""
    left_out = {*RUN_VARIABLES, *_OF_A_CONVERSATION, TAG_VARIABLE}
    own = {name: value for name, value in env.items() if name not in left_out}
    if home := home or own.get("CLAUDE_CONFIG_DIR"):
        # Unchanged if `~` cannot be resolved: Claude Code then makes the directory.
        own["CLAUDE_CONFIG_DIR"] = os.path.abspath(os.path.expanduser(home))  # noqa: PTH100, PTH111
    return {**_DEFAULTS, **own, **_FIXED}


def hides_keys(env: Mapping[str, str]) -> bool:
    """Return whether Claude Code's keys are hidden from the commands of agents."""
    return env.get(ENV_FILE) == _DEFAULTS[ENV_FILE]


def permission_mode(sandbox: Sandbox, policy: ApprovalPolicy) -> str:
    """Return the permission mode of a run.

    ``acceptEdits`` changes files of the working directory without asking, and asks before any other action that is not
    known to be harmless. ``default`` asks before these changes too.
    """
    return "default" if sandbox == "read-only" or policy == "untrusted" else "acceptEdits"


def decides_alone(sandbox: Sandbox, policy: ApprovalPolicy) -> bool | None:
    """Return the fixed answer to all permission questions; None to ask a parent or a person."""
    if sandbox == "danger-full-access" and policy != "untrusted":
        return True
    return False if policy == "never" else None
