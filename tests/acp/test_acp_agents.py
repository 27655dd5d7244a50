"""Each known agent: its row against a recording of it."""

import json
import sys
from pathlib import Path

import anyio
import pytest
from loops import ON_ONE_LOOP
from test_acp_runner import APPROVED, DENIED, context_for, of

from agent_orchestrator.domain.errors import AgentFailed
from agent_orchestrator.domain.model import Usage
from agent_orchestrator.known_runners import KNOWN_PROVIDERS
from agent_orchestrator.runners.acp.agents import AGENTS
from agent_orchestrator.runners.acp.prompts import blocks
from agent_orchestrator.runners.acp.recording import START, STARTS
from agent_orchestrator.runners.acp.runner import AcpRunner

pytestmark = [pytest.mark.anyio, ON_ONE_LOOP]

HERE = Path(__file__).parent
RECORDINGS = HERE / "recordings"


RECORDED = sorted(path.stem for path in RECORDINGS.glob("*.jsonl"))
"""Agents with recordings of turns: the cases ``ask``, ``deny``, ``write``, ``tools`` and ``error``."""


async def replayed(name, case, cwd, decisions=()):
    """Run a case. Return the context, the result and the agent's questions with our answers."""
    argv = [
        sys.executable,
        str(HERE / "replayed_agent.py"),
        str((STARTS if case == START else RECORDINGS) / f"{name}.jsonl"),
        case,
    ]
    env = {"AGENTCTL_URL": "http://127.0.0.1:1", "AGENTCTL_AUTH_TOKEN": "token"}
    context = context_for("do it", decisions, cwd=cwd, env=env if case == "tools" else None)
    ended = None
    stderr = ""
    async with AcpRunner(name=name, argv=argv) as runner:
        with anyio.fail_after(60):
            try:
                ended = (await runner.run(context)).text
            except AgentFailed as failure:
                ended = failure
            (process,) = [*runner._pool.serving] or [None]
            # What the agent was told comes through another pipe than its result, perhaps later.
            count = len(offered(name, case)) if case in ("ask", "deny", "tools") else 0
            while process is not None and len(outcomes(process.stderr_tail)) < count:
                await anyio.sleep(0.01)
            stderr = process.stderr_tail if process is not None else ""
    return context, ended, outcomes(stderr)


def outcomes(stderr):
    """Return our answers to the questions of a replayed agent, of which it has told."""
    lines = stderr[: stderr.rfind("\n") + 1].splitlines()
    answers = [json.loads(line) for line in lines if line.startswith("{")]
    return [one["result"]["outcome"] for one in answers if "result" in one]


def offered(name, case):
    """Return the options of each question in a recording, by kind."""
    lines = [json.loads(line) for line in (RECORDINGS / f"{name}.jsonl").read_text().splitlines()]
    return [
        [(one["kind"], one["optionId"]) for one in line["msg"]["params"]["options"]]
        for line in lines
        if line["case"] == case and line["msg"].get("method") == "session/request_permission"
    ]


@pytest.mark.parametrize("name", RECORDED)
async def test_each_command_is_asked_about_and_allowed_once(name, tmp_path):
    context, ended, answers = await replayed(name, "ask", tmp_path, [APPROVED, APPROVED])
    assert ended == "end"
    assert [one["detail"]["command"] for one in context.questions] == ["touch p1", "touch p2"]
    for options, answer in zip(offered(name, "ask"), answers, strict=True):
        assert ("allow_once", answer["optionId"]) in options
    started, completed = of(context, "tool.started"), of(context, "tool.completed")
    assert [one["input"] for one in started] == [{"command": "touch p1"}, {"command": "touch p2"}]
    assert [(one["kind"], one["name"], one["status"]) for one in completed] == [
        ("command", "shell", "completed")
    ] * 2
    calls = AGENTS[name].usage
    assert context.usage == Usage(
        *((10, 0, 5) if calls == "last_call" else (30, 0, 15)), cost_usd=context.usage.cost_usd
    )


@pytest.mark.parametrize("name", RECORDED)
async def test_a_denied_command_is_recorded_as_declined(name, tmp_path):
    context, _, answers = await replayed(name, "deny", tmp_path, [DENIED, DENIED])
    for options, answer in zip(offered(name, "deny"), answers, strict=True):
        assert ("reject_once", answer["optionId"]) in options
    assert {one["status"] for one in of(context, "tool.completed")} == {"declined"}


@pytest.mark.parametrize("name", RECORDED)
async def test_a_file_change_is_shown_in_the_request_and_recorded_afterwards(name, tmp_path):
    context, ended, _ = await replayed(name, "write", tmp_path, [APPROVED])
    assert ended == "end"
    (question,) = context.questions
    if name == "codex-acp":  # its recording writes with a command
        assert "wf.txt" in question["detail"]["command"]
        return
    change = {"path": "<cwd>/wf.txt", "kind": "add", "diff": "hello"}
    assert question["detail"]["changes"] == [change]
    (changed,) = of(context, "file.changed")
    assert (changed["status"], changed["changes"]) == ("completed", [change])


@pytest.mark.parametrize("name", RECORDED)
async def test_orchestration_tools_are_allowed_without_a_request(name, tmp_path):
    context, _, answers = await replayed(name, "tools", tmp_path)
    assert context.questions == []
    for options, answer in zip(offered(name, "tools"), answers, strict=True):
        assert ("allow_once", answer["optionId"]) in options
    (tool,) = of(context, "tool.completed")
    assert (tool["kind"], tool["name"]) == ("mcp", "agent_orchestrator.session_list")
    assert tool["status"] == "completed"


@pytest.mark.parametrize("name", RECORDED)
async def test_an_error_of_the_model_is_a_failure(name, tmp_path):
    _, ended, _ = await replayed(name, "error", tmp_path)
    assert isinstance(ended, AgentFailed)
    assert ended.code == "provider_error"
    assert "400" in ended.message


WITHOUT_A_LOGIN = {
    **dict.fromkeys(("auggie", "cline", "droid", "kimi"), "auth_failed"),
    "pi": "provider_error",  # its adapter was there, and pi itself was not
}


@pytest.mark.parametrize("name", AGENTS)
async def test_an_agent_without_a_login_says_how_to_log_in(name, tmp_path):
    _, ended, _ = await replayed(name, START, tmp_path)
    code = WITHOUT_A_LOGIN.get(name)
    if code is None:  # it answers the prompt, which is not in the recording
        assert ended == ""
        return
    assert isinstance(ended, AgentFailed)
    assert ended.code == code
    if code == "auth_failed":
        assert ended.message == f"{name} is not logged in: run {AGENTS[name].login}"


def test_each_agent_of_the_table_has_a_recording():
    assert {path.stem for path in STARTS.glob("*.jsonl")} == set(AGENTS)
    assert set(RECORDED) <= set(AGENTS)


@pytest.mark.parametrize(
    ("printed", "version"),
    [
        ("2.1.0", "2.1.0"),
        ("0.36.0 (commit 7c61e5bb)", "0.36.0"),
        ("@agentclientprotocol/codex-acp 2.6.0", "2.6.0"),
        ("GitHub Copilot CLI 1.0.102.\nRun 'copilot update' to check for updates.", "1.0.102"),
        ("0.0.0-beta.1+x", "0.0.0-beta.1+x"),
        ("no version here", None),
    ],
)
async def test_the_version_is_found_in_what_an_agent_prints(tmp_path, printed, version):
    program = tmp_path / "opencode"
    text = printed.replace("'", "'\\''")
    program.write_text(f"#!/bin/sh\nprintf '%s\\n' '{text}'\n")
    program.chmod(0o755)
    found = await AcpRunner(name="opencode", argv=[str(program), "acp"]).probe({})
    assert (found.available, found.version) == (True, version)


@pytest.mark.parametrize("name", AGENTS)
def test_a_prompt_that_begins_with_a_slash_is_text(name):
    for prompt in ("/help", " \n/help"):
        (block,) = blocks(AGENTS[name], prompt)
        assert not block["text"].startswith("/")
        assert block["text"].strip("\u200b\n") == prompt.strip("\n") or block["text"].endswith(
            prompt
        )
    assert blocks(AGENTS[name], "a/b") == [{"type": "text", "text": "a/b"}]


def test_each_agent_of_the_table_is_a_known_provider() -> None:
    known = {name: one.program for name, one in KNOWN_PROVIDERS.items() if one.runner == "acp"}
    assert known == {name: agent.argv[0] for name, agent in AGENTS.items()}


@pytest.mark.parametrize("name", AGENTS)
async def test_an_agent_of_the_table_needs_no_settings(name):
    found = await AcpRunner(name=name).probe({"PATH": "/nonexistent"})
    assert not found.available
    assert found.reason.startswith(
        f"{AGENTS[name].argv[0]} is not on the PATH; install it with: npm"
    )
