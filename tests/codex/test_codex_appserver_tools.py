"""The orchestration tools as an app-server's agents have them, without a daemon."""

import json
from pathlib import Path
from typing import Any

import anyio
import pytest
from loops import ON_ONE_LOOP
from model_server import ModelServer, codex_env

from agent_orchestrator import Client, EnvPolicy, ProviderConfig, Routing, Run, open_embedded
from agent_orchestrator.ports.runner import Runner
from agent_orchestrator.runners.codex import CodexExecRunner
from agent_orchestrator.runners.codex.appserver import CodexAppServerRunner
from agent_orchestrator.runners.codex.appserver.dynamic_tools import call_tool, dynamic_tools
from agent_orchestrator.testing import ScriptedRunner
from agent_orchestrator.testing.runners import RecordingContext
from agent_orchestrator.tools.toolbox import TOOLS

pytestmark = pytest.mark.anyio

PATIENCE_S = 120.0


def embedded(
    path: Path, codex: str, home: Path, *, tools: bool = True, runner: Runner | None = None
):
    runner = runner or CodexAppServerRunner(
        command=codex, home=str(home), sandbox="danger-full-access", tools=tools
    )
    env = EnvPolicy(set=codex_env(home))
    scripted = ScriptedRunner()
    providers = {
        "codex": ProviderConfig(runner, "codex", env=env),
        "scripted": ProviderConfig(scripted, "scripted"),
    }
    return open_embedded(path, providers=providers, routing=Routing("codex"), max_concurrency=1)


async def turn(client: Client, session_id: str, text: str) -> Run:
    sent = await client.send_message(session_id, text)
    assert sent.run is not None
    with anyio.fail_after(PATIENCE_S):
        run = (await client.wait_run(sent.run.id)).run
    assert run.result is not None, run.error
    return run


@pytest.mark.codex
@ON_ONE_LOOP
async def test_an_agent_works_with_a_child_in_an_embedded_client(
    tmp_path: Path, codex: str, home: Path, workspace: Path, models: ModelServer
) -> None:
    script = (
        'tool session_spawn {"task": "say from the child", "provider": "scripted"}\n'
        'tool session_wait {"run_id": "<0.run.id>"}\nrelay'
    )
    async with embedded(tmp_path / "a.db", codex, home) as client:
        session = await client.create_session(cwd=str(workspace))
        run = await turn(client, session.id, script)
        (child,) = (await client.get_tree(session.id)).children
        (status, _) = (await client.status()).providers
        log = [event async for event in client.events(session.id)]
    assert run.result is not None
    assert "from the child" in run.result.text
    assert child.runs[0].parent_run_id == run.id
    assert status.capabilities is not None
    assert status.capabilities.tools
    tools = [event.data for event in log if event.event_type == "tool.completed"]
    assert [(one["kind"], one["name"], one["status"]) for one in tools] == [
        ("function", "session_spawn", "completed"),
        ("function", "session_wait", "completed"),
    ]
    assert not [event for event in log if event.event_type == "request.created"]


@pytest.mark.codex
@ON_ONE_LOOP
async def test_a_thread_that_began_with_tools_has_none_after_they_are_switched_off(
    tmp_path: Path, codex: str, home: Path, workspace: Path, models: ModelServer
) -> None:
    list_tool = "tool session_list {}\nrelay"
    async with embedded(tmp_path / "a.db", codex, home) as client:
        session = await client.create_session(cwd=str(workspace))
        before = await turn(client, session.id, list_tool)
    async with embedded(tmp_path / "a.db", codex, home, tools=False) as client:
        after = await turn(client, session.id, list_tool)
    assert before.result is not None
    assert after.result is not None
    assert before.thread_id == after.thread_id
    assert session.id in before.result.text
    assert session.id not in after.result.text
    assert "are off" in after.result.text


async def test_every_tool_is_declared_to_codex() -> None:
    tools = RecordingContext("x", cwd="/").tools
    told = dynamic_tools(tools)
    json.dumps(told)
    assert [one["name"] for one in told] == list(TOOLS)
    assert {one["type"] for one in told} == {"function"}
    assert [one["inputSchema"] for one in told] == [spec.input_schema for spec in tools.list()]


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"tool": None},
        {"tool": ["session_list"]},
        {"tool": "session_kill", "arguments": {}},
        {"tool": "session_list", "arguments": []},
        {"tool": "session_list", "arguments": "{}"},
        {"tool": "session_list", "arguments": 0},
        {"tool": "session_list", "arguments": {"limit": "1"}},
        {"tool": "session_spawn"},
        {"tool": "session_wait", "arguments": {"run_id": "run_x"}},
    ],
)
async def test_an_invalid_tool_call_is_answered_with_an_error(params) -> None:
    answer = await call_tool(RecordingContext("x", cwd="/").tools, params)
    (item,) = answer["contentItems"]
    assert answer["success"] is False
    assert item["type"] == "inputText"
    assert json.loads(item["text"])["error"]["code"] in {"invalid_request", "not_found"}


async def test_a_call_without_arguments_takes_the_defaults() -> None:
    for params in ({"tool": "session_list"}, {"tool": "session_list", "arguments": None}):
        answer = await call_tool(RecordingContext("x", cwd="/").tools, params)
        assert answer["success"] is True
        assert json.loads(answer["contentItems"][0]["text"])["children"] == []


@pytest.mark.codex
@ON_ONE_LOOP
@pytest.mark.parametrize("tools", [True, False])
async def test_the_status_says_whether_exec_has_the_tools(
    codex: str, home: Path, tools: bool
) -> None:
    runner = CodexExecRunner(command=codex, home=str(home), tools=tools)
    async with open_embedded(":memory:", runners=[runner]) as client:
        (status,) = (await client.status()).providers
    assert status.capabilities is not None
    assert status.capabilities.tools == tools


@pytest.mark.codex
@ON_ONE_LOOP
async def test_exec_works_with_a_child_in_an_embedded_client_and_its_thread_goes_on_in_an_app_server(
    tmp_path: Path, codex: str, home: Path, workspace: Path, models: ModelServer
) -> None:
    script = (
        'mcp agent_orchestrator.session_spawn {"task": "say from the child", "provider": "scripted"}\n'
        'mcp agent_orchestrator.session_wait {"run_id": "<0.run.id>"}\nrelay'
    )
    options: Any = {"command": codex, "home": str(home), "sandbox": "danger-full-access"}
    kinds = (CodexExecRunner, CodexAppServerRunner, CodexExecRunner)
    runs, log = [], []
    for runner in (kind(**options) for kind in kinds):
        async with embedded(tmp_path / "a.db", codex, home, runner=runner) as client:
            if not runs:
                session = await client.create_session(cwd=str(workspace))
            runs.append(await turn(client, session.id, script))
            tree = await client.get_tree(session.id)
            log = [event async for event in client.events(session.id)]
    assert all("from the child" in run.result.text for run in runs if run.result)
    assert [child.runs[0].parent_run_id for child in tree.children] == [run.id for run in runs]
    assert len({run.thread_id for run in runs}) == 1
    tools = [event.data for event in log if event.event_type == "tool.completed"]
    assert {(one["kind"], one["status"]) for one in tools} == {("mcp", "completed")}
    assert not [event for event in log if event.event_type in ("request.created", "run.error")]
