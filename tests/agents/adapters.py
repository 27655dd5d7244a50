"""The real agents of the suite, and what each of them cannot."""

import json
from collections.abc import Callable, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any, Final

import attrs
import pytest
from chat_model import ChatModel
from gemini_server import GeminiServer, gemini_env
from messages_server import MessagesServer, claude_env
from model_server import ModelServer, ScriptedServer, codex_env, write_codex_home
from opencode_home import completed_answers, opencode_env

STATES: Final = ("starting", "thinking", "answering", "commanding", "asking", "answered")
"""The states of a turn.

Its agent is started; waits for the model; has the beginning of the answer; runs a command; asks; has answered, which
the daemon does not know yet.
"""


@attrs.frozen
class Agent:
    """How the suite runs an agent.

    :param program: the name of its program.
    :param version: the version that the suite runs.
    :param prepare: makes its home with the model at a port, and returns its variables. It is told how often the agent
        may repeat a request that failed.
    :param texts: what the user's side has sent in the conversation of a request to the model.
    :param tool: how a script calls one of our tools.
    :param asking: the step of a script that runs a command for which the agent asks.
    :param by_hand: how a person goes on with a conversation, with ``{thread}`` and ``{text}``.
    :param completed_answers: counts the answers of a conversation in its home, where the program of a person does not end by itself.
    :param settings: the settings of its provider, with ``{program}``.
    :param open: settings with which agents in a sandbox may spawn its agents.
    :param unasked: the options of a session whose agent works without asking.
    :param errors: scripts that its model server refuses, each with our code.
    :param retried: the same, for what it tries again by default.
    :param too_long: the script that the model server refuses because the conversation is too long.
    :param shares_processes: whether a process serves several sessions.
    :param confirms_late: whether only its first output shows that it has a prompt.
    :param states: the states of a turn in which the suite kills and stops it; all with ``EACH_STATE=1``.
    :param cannot: the behaviours that it does not have, each with the reason.
    :param but: the exceptions of the behaviours that it has.
    """

    name: str
    program: str
    runner: str
    version: str
    mark: pytest.MarkDecorator
    server: type[ScriptedServer[Any]]
    prepare: Callable[..., Mapping[str, str]]
    texts: Callable[[Any], list[str]]
    tool: str
    asking: str
    errors: Mapping[str, str]
    retried: Mapping[str, str]
    too_long: str
    by_hand: tuple[str, ...]
    completed_answers: Callable[[Path, str], int] | None = None
    settings: str = "command = {program}"
    open: str = ""
    unasked: Mapping[str, str] = attrs.field(
        factory=lambda: {"sandbox": "danger-full-access"}, converter=dict
    )
    shares_processes: bool = False
    confirms_late: bool = False
    states: tuple[str, ...] = STATES
    cannot: Mapping[str, str] = attrs.field(factory=dict[str, str])
    but: Mapping[str, str] = attrs.field(factory=dict[str, str])

    def configuration(self, program: str, variables: Mapping[str, str]) -> str:
        """Return its provider, and one that waits for decisions only for a moment."""
        own = self._table(self.name, program, variables) + self.open
        hurried = self._table(self.hurried, program, variables) + "approval_timeout_s = 0.3\n"
        return f"{own}\n{hurried if self.can('expiry') else ''}"

    def unreachable_configuration(self, program: str, directory: Path, port: int) -> str:
        """Return a provider whose model is at a port where nobody answers. It is tried twice."""
        if not self.can("retries"):
            return ""
        return self._table(
            self.unreachable, program, self.prepare(directory / self.unreachable, port, retries=1)
        )

    def _table(self, name: str, program: str, variables: Mapping[str, str]) -> str:
        values = ", ".join(f"{key} = {json.dumps(value)}" for key, value in variables.items())
        settings = self.settings.format(program=json.dumps(program))
        runner = f"runner = {json.dumps(self.runner)}"
        return f"[providers.{name}]\n{runner}\n{settings}\nenv = {{ set = {{ {values} }} }}\n"

    def can(self, behaviour: str) -> bool:
        return behaviour not in self.cannot

    @property
    def hurried(self) -> str:
        return f"{self.name}-hurried"

    @property
    def unreachable(self) -> str:
        return f"{self.name}-unreachable"


def _codex(home: Path, port: int, retries: int = 0) -> Mapping[str, str]:
    return codex_env(write_codex_home(home, port, retries=retries))


def _claude(home: Path, port: int, retries: int = 0) -> Mapping[str, str]:
    return {**claude_env(home, port), "CLAUDE_CODE_MAX_RETRIES": str(retries)}


def _opencode(home: Path, port: int, retries: int = 0) -> Mapping[str, str]:
    return opencode_env(home, port)


def _gemini(home: Path, port: int, retries: int = 0) -> Mapping[str, str]:
    return gemini_env(home, port)


_CODEX_ERRORS: Final = {
    "http 401": "auth_failed",
    "http 400": "provider_error",
    "usage_limit": "quota_exhausted",
}

_CODEX_RETRIED: Final = {
    "http 429": "rate_limited",
    "http 500": "provider_error",
    "http 503": "provider_error",
    "say so far\ndisconnect": "provider_unreachable",
}

_CODEX_TOO_LONG: Final = "fail context_length_exceeded"

_CODEX_BY_HAND: Final = ("exec", "--skip-git-repo-check", "resume", "{thread}", "{text}")

_EXEC_ASKS_NOBODY: Final = "`codex exec` asks nobody; it declines"

AGENTS: Final = (
    Agent(
        name="codex-app-server",
        program="codex",
        runner="codex-app-server",
        shares_processes=True,
        version="0.169.0",
        mark=pytest.mark.codex,
        server=ModelServer,
        prepare=_codex,
        texts=attrgetter("user_texts"),
        tool="tool ",
        asking="escalate",
        errors=_CODEX_ERRORS,
        retried=_CODEX_RETRIED,
        too_long=_CODEX_TOO_LONG,
        by_hand=_CODEX_BY_HAND,
    ),
    Agent(
        name="codex-exec",
        program="codex",
        runner="codex-exec",
        version="0.169.0",
        mark=pytest.mark.codex,
        server=ModelServer,
        prepare=_codex,
        texts=attrgetter("user_texts"),
        tool="mcp agent_orchestrator.",
        asking="escalate",
        errors=_CODEX_ERRORS,
        retried=_CODEX_RETRIED,
        too_long=_CODEX_TOO_LONG,
        by_hand=_CODEX_BY_HAND,
        cannot={
            "deltas": "`codex exec` prints whole messages",
            "diffs": "the output of `codex exec` has none",
            "steer": "`codex exec` reads nothing while it works; the message is queued",
            "allow": _EXEC_ASKS_NOBODY,
            "allow_session": _EXEC_ASKS_NOBODY,
            "deny": _EXEC_ASKS_NOBODY,
            "expiry": _EXEC_ASKS_NOBODY,
            "late": _EXEC_ASKS_NOBODY,
            "parent": _EXEC_ASKS_NOBODY,
        },
    ),
    Agent(
        name="claude",
        program="claude",
        runner="claude",
        version="2.1.332",
        mark=pytest.mark.claude,
        server=MessagesServer,
        prepare=_claude,
        texts=attrgetter("texts"),
        tool="mcp agent_orchestrator.",
        asking="shell",
        errors={
            "http 401": "auth_failed",
            "http 400": "provider_error",
            "http 400 Your credit balance is too low to access the Anthropic API.": "quota_exhausted",
        },
        retried={
            "http 429": "rate_limited",
            "http 500": "provider_error",
            "http 529": "provider_error",
            "say so far\ndisconnect": "provider_unreachable",
        },
        too_long="http 400 prompt is too long: 250000 tokens > 200000 maximum",
        by_hand=("-p", "--resume", "{thread}", "{text}"),
        cannot={
            "exclusive": "Claude Code does not lock it; the run is not disturbed, and the session does not learn "
            "what the other program added"
        },
    ),
    Agent(
        name="opencode",
        program="opencode",
        runner="acp",
        version="1.18.33",
        mark=pytest.mark.acp,
        server=ChatModel,
        prepare=_opencode,
        texts=attrgetter("user_texts"),
        tool="mcp agent_orchestrator.",
        asking="shell",
        errors={
            "http 401 Incorrect API key provided.": "auth_failed",
            "http 400": "provider_error",
            "http 402 You are out of credits.": "quota_exhausted",
        },
        retried={"http 500": ""},
        too_long="http 400 This model's maximum context length is 1000 tokens.",
        by_hand=("run", "--session", "{thread}", "{text}"),
        completed_answers=completed_answers,
        settings='agent = "opencode"\nargv = [{program}, "acp", "--print-logs", "--log-level", "ERROR"]\nmax_idle = 1',
        open="open_to_agents = true",
        unasked={"approvals": "allow"},
        confirms_late=True,
        # A start of it takes five seconds of a processor.
        states=("commanding",),
        cannot={
            "exclusive": "opencode does not lock it; the run is not disturbed, and the session goes on with what both added",
            "takeover": "the daemon does not read what its own program records; `agentctl attach` and `adopt` refuse it",
            "steer": "it takes no message during a turn; the message is queued",
            "usage": "it reports the tokens of the last call only",
            "context": "it shortens the conversation and goes on",
            "retries": "it repeats the request for about a minute; each failed one is logged",
        },
        but={
            "daemon_killed": "until opencode has shown a part of its answer, it gets the prompt again",
            "agent_killed": "until opencode has shown a part of its answer, it gets the prompt again",
        },
    ),
    Agent(
        name="gemini",
        program="gemini",
        runner="acp",
        version="0.61.0",
        mark=pytest.mark.acp,
        server=GeminiServer,
        prepare=_gemini,
        texts=attrgetter("user_texts"),
        tool="mcp agent_orchestrator.",
        asking="shell",
        errors={
            "http 401": "auth_failed",
            "http 400": "provider_error",
            "quota": "quota_exhausted",
        },
        retried={"http 500": ""},
        too_long="http 400 The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).",
        by_hand=("--resume", "{thread}", "--prompt", "{text}"),
        settings='agent = "gemini"\nargv = [{program}, "--acp"]\nmax_idle = 1',
        open="open_to_agents = true",
        unasked={"approvals": "allow"},
        confirms_late=True,
        # A start of it takes three seconds of a processor.
        states=("commanding",),
        cannot={
            "exclusive": "gemini does not lock it; the run is not disturbed, and the session goes on with what both added",
            "takeover": "the daemon does not read what its own program records; `agentctl attach` and `adopt` refuse it",
            "steer": "it takes no message during a turn; the message is queued",
            "retries": "it repeats the request for minutes; each failed one is logged",
        },
        but={
            "daemon_killed": "until gemini has shown a part of its answer, it gets the prompt again",
            "agent_killed": "until gemini has shown a part of its answer, it gets the prompt again",
        },
    ),
)
