"""What agents whose programs ask can do: nothing unasked, and without questions what the table of the document says."""

import json
import os
import shlex
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import attrs
import httpx
import pytest
from adapters import AGENTS, Agent
from real_agents import found as installed
from real_agents import required
from serving import agentd
from test_codex_matrix import PATIENCE_S, SCRIPT, active_pid, told

from agent_orchestrator.domain.exposure import AGENT_ACTIONS
from agent_orchestrator.user_state import UserState

ASKING = [one for one in AGENTS if one.asking == "shell"]
by_agent = pytest.mark.parametrize(
    "agent", [pytest.param(one, id=one.name, marks=one.mark) for one in ASKING]
)


@attrs.frozen
class Place:
    """A daemon in whose directory the agents work, with what they try to reach."""

    client: httpx.Client
    own: Path

    def start(self, provider: str, text: str, options: Mapping[str, Any] | None = None) -> Any:
        """Return a run that has begun."""
        body = {"provider": provider, "cwd": str(self.own), **(options or {})}
        made = self.client.post("/sessions", json=body).json()
        path = f"/sessions/{made['session']['id']}/messages"
        return self.client.post(path, json={"text": text}).json()["run"]


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="exposure-")))
        own, other, state = (folder / name for name in ("own", "other", "state"))
        own.mkdir()
        other.mkdir()
        parts = ['[providers.sleeper]\nrunner = "command"\nargv = ["sleep", "600"]\n']
        for agent in ASKING:
            if (program := installed(agent.program)) is not None:
                models = stack.enter_context(agent.server())
                variables = agent.prepare(folder / agent.name, models.port)
                parts.append(agent.configuration(program, variables))
        parts.append('[routing]\ndefault = "sleeper"\n')
        (own / "agentd.toml").write_text("\n".join(parts))
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(other / "socket"))
        listener.listen(64)
        daemon = stack.enter_context(agentd(own, env={"XDG_STATE_HOME": str(state)}))
        client = stack.enter_context(httpx.Client(base_url=daemon.url, timeout=PATIENCE_S))
        one = Place(client, own)
        sleeper = one.start("sleeper", "x")["id"]
        users = UserState(state / "agent-orchestrator")
        token = users.token_file(int(daemon.url.rsplit(":", 1)[1]))
        database = own / ".data" / "agent-orchestrator.db"
        more = [
            {"cwd": str(other)},
            {"sandbox": "danger-full-access"},
            {"approvals": "allow"},
            {"max_depth": 50},
        ]
        targets = {
            "url": daemon.url,
            "state": [str(own / "agentd.toml"), str(database), str(daemon.stderr_path), str(token)],
            "secrets": [str(database), str(token)],
            "memory": [f"/proc/{daemon.pid}/environ", f"/proc/{daemon.pid}/mem"],
            "directories": [str(other / "file")],
            "process": active_pid(client, sleeper),
            "socket": str(other / "socket"),
            "program": [str(folder / agent.name / "settings.json") for agent in ASKING],
            "token": str(token),
            "more": {"unconfined": more},
        }
        (own / "deeds.json").write_text(json.dumps(targets))
        yield one
        client.post(f"/runs/{sleeper}/cancel")


PROMPT = f"shell {shlex.join([sys.executable, '-S', str(SCRIPT), '.', 'unconfined'])}\nrelay"


@by_agent
def test_without_questions_an_agent_can_do_only_what_the_table_says(
    place: Place, agent: Agent
) -> None:
    required(agent.program)
    found = told(place.client, place.start(agent.name, PROMPT, agent.unasked)["id"])
    wrong = {}
    for action in AGENT_ACTIONS:
        expected = action.unconfined
        if action.name == "memory" and os.geteuid() == 0:
            expected = "possible"  # nothing is kept from root
        if not found[action.name].startswith(expected):
            wrong[action.name] = found[action.name]
    assert not wrong


@by_agent
def test_an_agent_asks_before_it_does_any_of_that(place: Place, agent: Agent) -> None:
    required(agent.program)
    run = place.start(agent.name, PROMPT)
    waited = place.client.get(
        f"/runs/{run['id']}/wait", params={"until": "attention", "timeout_s": PATIENCE_S}
    ).json()
    request = waited["request"]
    assert "agent_actions.py" in request["text"]
    refused = place.client.post(f"/requests/{request['id']}/resolve", json={"decision": "deny"})
    assert refused.is_success, refused.text
    place.client.get(f"/runs/{run['id']}/wait", params={"timeout_s": PATIENCE_S})
    events = place.client.get(f"/sessions/{run['session_id']}/events").text
    assert "DEEDS=" not in events


@by_agent
def test_doctor_says_what_its_questions_do_not_prevent(place: Place, agent: Agent) -> None:
    required(agent.program)
    findings = place.client.get("/daemon/doctor").json()["findings"]
    said = " ".join(
        one["message"]
        for one in findings
        if one["about"] == f"provider {agent.name}" and one["security"]
    )
    for action in AGENT_ACTIONS:
        assert (action.text in said) == (action.unconfined == "possible"), action.name
