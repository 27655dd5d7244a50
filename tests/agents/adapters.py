"""The real agents of the suite, and what each of them cannot."""

import json
from collections.abc import Callable, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any, Final

import attrs
import pytest
from messages_server import MessagesServer, claude_env
from model_server import ModelServer, ScriptedServer, codex_env, write_codex_home


@attrs.frozen
class Agent:
    """How the suite runs an agent.

    :param program: the name of its program.
    :param version: the version that the suite runs.
    :param prepare: makes its home with the model at a port, and returns its variables.
    :param texts: what the user's side has sent in the conversation of a request to the model.
    :param tool: how a script calls one of our tools.
    :param asking: the step of a script that runs a command for which the agent asks.
    :param cannot: the behaviours that it does not have, each with the reason.
    """

    name: str
    program: str
    runner: str
    version: str
    mark: pytest.MarkDecorator
    server: type[ScriptedServer[Any]]
    prepare: Callable[[Path, int], Mapping[str, str]]
    texts: Callable[[Any], list[str]]
    tool: str
    asking: str
    cannot: Mapping[str, str] = attrs.field(factory=dict[str, str])

    def configuration(self, program: str, variables: Mapping[str, str]) -> str:
        """Return its provider, and one that waits for decisions only for a moment."""
        values = ", ".join(f"{key} = {json.dumps(value)}" for key, value in variables.items())
        own = f"runner = {json.dumps(self.runner)}\ncommand = {json.dumps(program)}\n"
        own += f"env = {{ set = {{ {values} }} }}\n"
        hurried = f"[providers.{self.hurried}]\n{own}approval_timeout_s = 0.3\n"
        return f"[providers.{self.name}]\n{own}{'' if 'expiry' in self.cannot else hurried}"

    @property
    def hurried(self) -> str:
        return f"{self.name}-hurried"


def _codex(home: Path, port: int) -> Mapping[str, str]:
    return codex_env(write_codex_home(home, port))


_EXEC_ASKS_NOBODY: Final = "`codex exec` asks nobody; it declines"

AGENTS: Final = (
    Agent(
        name="codex-app-server",
        program="codex",
        runner="codex-app-server",
        version="0.169.0",
        mark=pytest.mark.codex,
        server=ModelServer,
        prepare=_codex,
        texts=attrgetter("user_texts"),
        tool="tool ",
        asking="escalate",
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
        prepare=claude_env,
        texts=attrgetter("texts"),
        tool="mcp agent_orchestrator.",
        asking="shell",
    ),
)
