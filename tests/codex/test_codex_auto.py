"""The runner `codex`: an app-server where the installed codex has one, exec where not."""

import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
from model_server import codex_env

from agent_orchestrator.engine import EngineConfig, ProviderConfig, Routing
from agent_orchestrator.engine.diagnosis import provider_statuses
from agent_orchestrator.hosts import this_host
from agent_orchestrator.runners.codex import CodexExecRunner
from agent_orchestrator.runners.codex.auto import CodexRunner
from agent_orchestrator.runners.registry import build_runner
from agent_orchestrator.testing.runners import RecordingContext

pytestmark = pytest.mark.anyio

FAKE = Path(__file__).parent / "fake_appserver.py"

EXEC_ONLY = """\
#!{python}
import json, sys
if "--version" in sys.argv:
    print("{version}")
elif "app-server" in sys.argv:
    sys.exit("error: unrecognized subcommand")
else:
    thread = "01a20000-0000-7000-8000-000000000000"
    item = {{"id": "item_0", "type": "agent_message", "text": "by exec " + sys.argv[sys.argv.index("-s") + 1]}}
    print(json.dumps({{"type": "thread.started", "thread_id": thread}}))
    print(json.dumps({{"type": "item.completed", "item": item}}))
    print(json.dumps({{"type": "turn.completed", "usage": {{}}}}))
"""


@pytest.fixture
def record(tmp_path, tmp_path_factory):
    # A login that both ways take: CODEX_API_KEY is for exec alone.
    home = tmp_path_factory.mktemp("home")
    (home / "auth.json").write_text('{"OPENAI_API_KEY": "x"}')

    def make(prompt, **env):
        env = {"FAKE_FAULT": "none", "CODEX_HOME": str(home), **env}
        return RecordingContext(prompt, cwd=tmp_path, env=env)

    return make


async def carried_out(runner, context):
    async with runner:
        found = await runner.probe(context.env)
        with anyio.fail_after(60):
            return found, (await runner.run(context)).text


@pytest.mark.parametrize(
    ("version", "means"),
    [
        ("codex-cli 0.168.0", "codex-exec"),
        ("codex-cli 0.169.0", "codex-app-server"),
        ("something else", "codex-exec"),
    ],
)
async def test_a_codex_without_an_app_server_is_used_with_exec(tmp_path, record, version, means):
    """Also one whose version says that it has one."""
    path = tmp_path / "codex"
    path.write_text(EXEC_ONLY.format(python=sys.executable, version=version))
    path.chmod(0o755)
    found, said = await carried_out(CodexRunner(command=str(path)), record("hello"))
    assert (found.available, found.mode) == (True, means)
    assert said == "by exec workspace-write"


async def test_a_codex_with_an_app_server_is_used_with_it(tmp_path, record):
    path = tmp_path / "codex"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} {FAKE} "$@"\n')
    path.chmod(0o755)
    found, said = await carried_out(CodexRunner(command=str(path)), record("hello"))
    assert (found.available, found.reason, found.logged_in) == (True, None, True)
    assert (found.version, found.mode) == ("0.169.0", "codex-app-server")
    assert said == "hello"


async def test_a_codex_whose_app_server_fails_is_used_with_exec_and_says_so(tmp_path, record):
    path = tmp_path / "codex"
    tag = tmp_path / "app-server-was-here"
    script = EXEC_ONLY.format(python=sys.executable, version="codex-cli 0.169.0")
    refusing = f"""    open({str(tag)!r}, "a").write("x")
    asked = json.loads(sys.stdin.readline())
    print(json.dumps({{"id": asked["id"], "error": {{"code": -32600, "message": "no sesame"}}}}), flush=True)
    sys.stdin.read()
"""
    lines = script.splitlines(keepends=True)
    at = next(i for i, line in enumerate(lines) if "unrecognized" in line)
    lines[at] = refusing
    path.write_text("".join(lines))
    path.chmod(0o755)
    async with CodexRunner(command=str(path)) as runner:
        for _ in range(2):
            context = record("hello")
            await runner.probe(context.env)
            with anyio.fail_after(60):
                assert (await runner.run(context)).text == "by exec workspace-write"
        found = await runner.probe(record("hello").env)
    assert (found.available, found.mode) == (True, "codex-exec")
    assert "no sesame" in found.reason
    assert tag.read_text() == "x"  # it is not tried anew for each run


async def test_a_missing_codex_is_not_available(tmp_path, record):
    async with CodexRunner(command=str(tmp_path / "none")) as runner:
        assert not (await runner.probe(record("hello").env)).available


def test_the_configured_kind_selects_the_runner():
    assert isinstance(build_runner("c", "codex", {"approval_policy": "never"}), CodexRunner)
    assert isinstance(build_runner("c", "codex-exec", {}), CodexExecRunner)


@pytest.mark.codex
async def test_the_real_codex_resumes_a_thread_of_exec(codex, home, workspace, models):
    env = codex_env(home)
    first = RecordingContext("say first", cwd=workspace, env=env)
    await CodexExecRunner(command=codex, sandbox="danger-full-access").run(first)
    second = RecordingContext("say second", cwd=workspace, env=env, thread=first.thread)
    found, said = await carried_out(CodexRunner(command=codex), second)
    assert (found.mode, said) == ("codex-app-server", "second")
    assert second.thread.id == first.thread.id
    assert models.requests[-1].user_texts == ["say first", "say second"]


@pytest.mark.parametrize(("script", "can_ask"), [(None, True), (EXEC_ONLY, False)])
async def test_the_capabilities_are_those_of_the_mode_in_use(
    tmp_path: Path, record: Any, script: str | None, can_ask: bool
) -> None:
    path = tmp_path / "codex"
    fake = f'#!/bin/sh\nexec {sys.executable} {FAKE} "$@"\n'
    version = "codex-cli 0.168.0"
    path.write_text(script.format(python=sys.executable, version=version) if script else fake)
    path.chmod(0o755)
    runner = CodexRunner(command=str(path), tools=False)
    config = EngineConfig(
        host=this_host(),
        providers={"codex": ProviderConfig(runner, "codex")},
        routing=Routing("codex"),
        environ=record("").env,
    )
    (status,) = await provider_statuses(config)
    assert (status.capabilities.ask, status.capabilities.steer) == (can_ask, can_ask)
    assert status.capabilities.images
    assert status.logged_in
    assert not status.capabilities.tools
    assert status.capabilities.sandbox == "workspace-write"
