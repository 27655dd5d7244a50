"""What agents can do: each runner, with each sandbox, tries all of ``domain.exposure``.

One daemon in its default layout, in whose own directory all agents work: nothing is nearer to them.
"""

import json
import os
import shlex
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from attrs import evolve
from model_server import ModelServer, codex_env, write_codex_home
from serving import agentd

from agent_orchestrator.domain.exposure import AGENT_ACTIONS, table
from agent_orchestrator.engine.doctor import runner_findings
from agent_orchestrator.user_state import UserState
from agentd.daemon import engine_config
from agentd.settings import load

pytestmark = pytest.mark.codex

SCRIPT = Path(__file__).with_name("agent_actions.py")
SECURITY = Path(__file__).parents[2] / "docs" / "security.md"
PATIENCE_S = 120

CODEX = {
    f"{runner}-{sandbox}{more}": (f"codex-{runner}", sandbox, more)
    for runner in ("exec", "app-server")
    for sandbox in ("read-only", "workspace-write", "danger-full-access")
    for more in ("", "-network")
    if not more or sandbox == "workspace-write"
}
"""Each way codex is run: with the network, where its sandbox may be given it, an agent reaches agentd."""

AGENTS = (*CODEX, "command")


def is_confined(agent: str) -> bool:
    return agent != "command" and "danger" not in agent


def configuration(codex: str, home: Path) -> str:
    env = ", ".join(f"{name} = {json.dumps(value)}" for name, value in codex_env(home).items())
    parts = [
        f"[providers.{name}]\nrunner = {json.dumps(runner)}\ncommand = {json.dumps(codex)}\n"
        f"sandbox = {json.dumps(sandbox)}\nenv = {{ set = {{ {env} }} }}\n"
        + ('config = { "sandbox_workspace_write.network_access" = true }\n' if more else "")
        for name, (runner, sandbox, more) in CODEX.items()
    ]
    command = json.dumps([sys.executable, "-S", str(SCRIPT), ".", "unconfined"])
    parts.append(f'[providers.command]\nrunner = "command"\nargv = {command}\n')
    parts.append('[providers.sleeper]\nrunner = "command"\nargv = ["sleep", "600"]\n')
    return "\n".join([*parts, '[routing]\ndefault = "command"\n'])


@pytest.fixture(scope="module")
def found(codex: str) -> Iterator[Mapping[str, Mapping[str, str]]]:
    """What came of each deed, for each agent."""
    # Not below /tmp, where a codex with workspace-write may write in any case.
    with (
        tempfile.TemporaryDirectory(prefix="matrix-", dir="/var/tmp") as folder,
        ModelServer() as models,
    ):
        place = Path(folder)
        own, other, state = (place / name for name in ("own", "other", "state"))
        own.mkdir()
        other.mkdir()
        home = write_codex_home(place / "home", models.port)
        (own / "agentd.toml").write_text(configuration(codex, home))
        env = {"XDG_STATE_HOME": str(state)}
        with (
            socket.socket(socket.AF_UNIX) as listener,
            agentd(own, "--max-concurrency", "16", env=env) as daemon,
            httpx.Client(base_url=daemon.url, timeout=PATIENCE_S) as client,
        ):
            listener.bind(str(other / "socket"))
            listener.listen(64)
            users = UserState(state / "agent-orchestrator")
            token = users.token_file(int(daemon.url.rsplit(":", 1)[1]))
            database = own / ".data" / "agent-orchestrator.db"
            log = daemon.stderr_path
            sleeper = start(client, other, "sleeper", "x")
            more = [
                {"cwd": str(other)},
                {"sandbox": "danger-full-access"},
                {"approvals": "allow"},
                {"max_depth": 50},
            ]
            targets = {
                "url": daemon.url,
                "state": [*map(str, (own / "agentd.toml", database, f"{database}-wal", log, token)),
                          *(f"{users.root}/{name}/x" for name in ("tokens", "daemons", "trusted"))],
                "secrets": [str(database), str(token)],
                "memory": [f"/proc/{daemon.pid}/environ", f"/proc/{daemon.pid}/mem"],
                "directories": [str(other / "file")],
                "process": active_pid(client, sleeper),
                "socket": str(other / "socket"),
                "program": [str(home / name) for name in ("config.toml", "auth.json", "x.rules")],
                "token": str(token),
                "more": {
                    "confined": [*more, {"provider": "command"}],
                    "unconfined": more,
                },
            }  # fmt: skip
            (own / "deeds.json").write_text(json.dumps(targets))
            runs = {name: start(client, own, name, prompt(name)) for name in AGENTS}
            yield {name: told(client, run_id) for name, run_id in runs.items()}
            client.post(f"/runs/{sleeper}/cancel")


def prompt(agent: str) -> str:
    kind = "confined" if is_confined(agent) else "unconfined"
    return f"shell {shlex.join([sys.executable, '-S', str(SCRIPT), '.', kind])}\nrelay"


def start(client: httpx.Client, cwd: Path, provider: str, text: str) -> str:
    made = client.post("/sessions", json={"provider": provider, "cwd": str(cwd)}).json()
    path = f"/sessions/{made['session']['id']}/messages"
    return str(client.post(path, json={"text": text}).json()["run"]["id"])


def active_pid(client: httpx.Client, run_id: str) -> int:
    while (
        pid := client.get(f"/runs/{run_id}/diagnose").json()["diagnostics"]["active_pid"]
    ) is None:
        pass
    return int(pid)


def told(client: httpx.Client, run_id: str) -> dict[str, str]:
    run: Any = client.get(f"/runs/{run_id}/wait", params={"timeout_s": PATIENCE_S}).json()["run"]
    assert run["status"] == "completed", run
    text = run["result"]["text"]
    assert "DEEDS=" in text, text
    found: dict[str, str] = json.loads(text.partition("DEEDS=")[2].splitlines()[0])
    return found


@pytest.mark.parametrize("agent", AGENTS)
def test_an_agent_can_do_only_what_the_table_of_the_document_says(
    found: Mapping[str, Mapping[str, str]], agent: str
) -> None:
    assert found[agent].keys() == {deed.name for deed in AGENT_ACTIONS}
    wrong = {}
    for deed in AGENT_ACTIONS:
        expected = deed.networked if "network" in agent else deed.confined
        expected = expected if is_confined(agent) else deed.unconfined
        if deed.name == "memory" and not is_confined(agent) and os.geteuid() == 0:
            expected = "possible"  # nothing is kept from root
        if not found[agent][deed.name].startswith(expected):
            wrong[deed.name] = found[agent][deed.name]
    assert not wrong


def test_with_the_network_an_agent_reaches_the_daemon(
    found: Mapping[str, Mapping[str, str]],
) -> None:
    """So what it is refused there is refused by the daemon."""
    for agent in AGENTS:
        if "network" in agent or not is_confined(agent):
            # Where a process is shared, an agent's commands have no token.
            own = () if "app-server" in agent else ("approve", "spawn")
            for deed in ("administer", *own):
                said = found[agent][deed]
                assert "refused with every token" in said or "refused every child" in said, said


def test_the_security_document_has_the_table() -> None:
    assert table() in SECURITY.read_text()


def test_doctor_names_what_agents_without_a_sandbox_can_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "agentd.toml"
    file.write_text(
        '[providers.bare]\nrunner = "command"\nargv = ["cat"]\n'
        '[providers.free]\nrunner = "codex"\nsandbox = "danger-full-access"\n'
        '[providers.kept]\nrunner = "codex"\n'
        '[providers.online]\nrunner = "codex"\n'
        'config = { "sandbox_workspace_write.network_access" = true }\n'
        '[routing]\ndefault = "bare"\n'
    )
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    config = engine_config(load({}, environ, str(file)))
    findings = runner_findings(evolve(config, environ=environ))
    column = {"bare": "unconfined", "free": "unconfined", "kept": "confined", "online": "networked"}
    for name, kind in column.items():
        said = " ".join(
            one.message for one in findings if one.about == f"provider {name}" and one.security
        )
        for deed in AGENT_ACTIONS:
            assert (deed.text in said) == (getattr(deed, kind) == "possible"), (name, deed.name)
