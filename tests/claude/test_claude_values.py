"""The parts of the runner of Claude Code that are pure: no program is started."""

import json

import pytest
from attrs import evolve

from agent_orchestrator.domain.errors import ConfigError
from agent_orchestrator.domain.model import Usage
from agent_orchestrator.fields import MAX_INTEGER
from agent_orchestrator.runners.claude import ClaudeRunner, approvals
from agent_orchestrator.runners.claude.driver import literal
from agent_orchestrator.runners.claude.failures import exit_failure, result_failure
from agent_orchestrator.runners.claude.file_changes import completed, proposed
from agent_orchestrator.runners.claude.launch import (
    Spec,
    decides_alone,
    environment,
    permission_mode,
)
from agent_orchestrator.runners.claude.locate import locate
from agent_orchestrator.runners.claude.messages import ENDED, STEPS, Message, Messages
from agent_orchestrator.runners.claude.plan import Plan
from agent_orchestrator.runners.claude.process import hook_answer
from agent_orchestrator.runners.claude.protocol import StreamJson
from agent_orchestrator.runners.claude.turns import RunReader
from agent_orchestrator.runners.claude.usage import plus, usage_of
from agent_orchestrator.runners.live.messages import AgentRequest, Answer, Notification
from agent_orchestrator.runners.present_files import PresentFile
from agent_orchestrator.runners.program import NotInstalled

SPEC = Spec(
    "claude",
    "/work",
    is_cwd_resolved=False,
    env=frozenset(),
    sources="user",
    mode="default",
    model=None,
    effort=None,
)


def test_messages_of_the_protocol_are_read_and_written():
    dialect = StreamJson()
    request = dialect.request(7, "interrupt", {"cancel_queued": True})
    assert request == {
        "type": "control_request",
        "request_id": "7",
        "request": {"subtype": "interrupt", "cancel_queued": True},
    }
    asked = dialect.read({**request, "request_id": "r"}, 10)
    assert isinstance(asked, AgentRequest)
    assert (asked.id, asked.method) == ("r", "interrupt")
    assert dialect.result(asked, {"a": 1})["response"]["request_id"] == "r"
    assert dialect.error(asked, 0, "no")["response"] == {
        "subtype": "error",
        "request_id": "r",
        "error": "no",
    }
    answer = dialect.read(
        {"type": "control_response", "response": {"subtype": "success", "request_id": "7"}}, 1
    )
    assert answer == Answer(7, None, size=1)
    init = dialect.read({"type": "system", "subtype": "init"}, 1)
    assert isinstance(init, Notification)
    assert init.method == "system/init"
    for odd in ({}, {"type": 1}, {"type": "control_request"}, {"type": "control_response"}):
        assert dialect.read(odd, 1) is None


def test_pieces_of_one_text_can_be_joined():
    dialect = StreamJson()
    pieces = [
        dialect.read(
            {
                "type": "stream_event",
                "uuid": text,
                "event": {
                    "type": "content_block_delta",
                    "index": 0,
                    "delta": {"type": "text_delta", "text": text},
                },
            },
            100,
        )
        for text in ("a", "b")
    ]
    first, second = pieces
    assert isinstance(first, Notification)
    assert isinstance(second, Notification)
    assert {**first.params, "text": ""} == {**second.params, "text": ""}


def test_every_message_state_can_end_and_an_ended_one_does_not_change():
    for state in Message:
        after = {word: STEPS.get((state, word)) for word in ("queued", "started", "completed")}
        assert (after["completed"] in ENDED) is (state not in ENDED), state
    messages = Messages()
    messages.send("a")
    messages.send("b")
    assert messages.report("x", "queued") is None
    assert messages.report("a", "completed") is Message.ANSWERED_BEFORE
    assert not messages.are_ended
    for word in ("queued", "started", "completed"):
        messages.report("b", word)
    assert messages.report("b", "queued") is None
    assert messages.states["b"] is Message.COMPLETED
    assert messages.are_ended


@pytest.mark.parametrize(
    ("result", "error", "code"),
    [
        ({"api_error_status": 401}, "authentication_failed", "auth_failed"),
        ({"api_error_status": 429}, "rate_limit", "rate_limited"),
        ({"api_error_status": 404}, "model_not_found", "invalid_config"),
        ({"api_error_status": 500}, "server_error", "provider_error"),
        ({"api_error_status": None}, "server_error", "provider_unreachable"),
        ({"terminal_reason": "blocking_limit"}, "invalid_request", "context_exceeded"),
        ({"subtype": "error_max_budget_usd"}, None, "quota_exhausted"),
        ({"subtype": "error_max_turns"}, None, "provider_error"),
    ],
)
def test_a_failed_turn_has_a_code(result, error, code):
    failure = result_failure({"is_error": True, **result}, error, "the words of it")
    assert (failure.code, failure.message) == (code, "the words of it")


def test_a_usage_limit_is_quota_exhausted_and_not_rate_limited():
    failure = result_failure({}, "rate_limit", "You've hit your limit · resets 3pm")
    assert failure.code == "quota_exhausted"
    told = result_failure({"errors": ["[ede_diagnostic] noise", "it broke"]}, None, "")
    assert told.message == "it broke"


def test_an_unexpected_exit_has_a_code_and_a_reason():
    assert "SIGKILL" in exit_failure(-9, "").message
    refused = exit_failure(1, "error: unknown option '--bogus'\n")
    assert (refused.code, refused.message) == (
        "invalid_config",
        "Claude Code refused its arguments: unknown option '--bogus'",
    )
    assert exit_failure(3, "oh").message == "Claude Code ended (exit code 3): oh"


def test_the_usage_of_a_turn_has_its_sub_agents_and_the_cost():
    model = {"inputTokens": 10, "cacheReadInputTokens": 5, "outputTokens": 3, "costUSD": 0.5}
    found = usage_of({"model_usage_since_last_result": {"one": model, "two": model}})
    assert found == Usage(30, 10, 6, 1.0)
    assert usage_of({"usage": {"input_tokens": 1}}) is None
    assert plus(None, found) == found
    assert plus(found, Usage(1, 1, 1)) == Usage(31, 11, 7, 1.0)


@pytest.mark.parametrize("cost", [-3, 1e308, True, "1", None])
def test_invalid_counts_and_costs_are_ignored(cost):
    model = {"inputTokens": "5", "outputTokens": -5, "cacheReadInputTokens": 1.5, "costUSD": cost}
    assert usage_of({"model_usage_since_last_result": {"one": model, "two": model}}) == Usage()
    most = {"inputTokens": MAX_INTEGER, "outputTokens": MAX_INTEGER}
    found = usage_of({"model_usage_since_last_result": {"one": most, "two": most}})
    assert plus(found, found) == found == Usage(MAX_INTEGER, 0, MAX_INTEGER)


@pytest.mark.parametrize(
    ("sandbox", "policy", "mode", "alone"),
    [
        ("read-only", "on-request", "default", None),
        ("read-only", "never", "default", False),
        ("workspace-write", "untrusted", "default", None),
        ("workspace-write", "on-request", "acceptEdits", None),
        ("workspace-write", "never", "acceptEdits", False),
        ("danger-full-access", "untrusted", "default", None),
        ("danger-full-access", "on-request", "acceptEdits", True),
        ("danger-full-access", "never", "acceptEdits", True),
    ],
)
def test_sandbox_and_policy_select_the_permission_mode(sandbox, policy, mode, alone):
    assert permission_mode(sandbox, policy) == mode
    assert decides_alone(sandbox, policy) is alone


def test_the_command_line_starts_or_resumes_a_conversation():
    new = SPEC.arguments("id", resumes=False)
    assert new[new.index("--session-id") + 1] == "id"
    again = evolve(SPEC, model="m", effort="low", extra_args=("--x",)).arguments(
        "id", ["Bash(touch *)"], resumes=True
    )
    assert again[again.index("--resume") + 1] == "id"
    assert again[-5:] == ("--model", "m", "--effort", "low", "--x")
    settings = json.loads(again[again.index("--settings") + 1])
    assert settings.pop("env")["CLAUDE_CODE_DISABLE_FILE_MENTIONS"] == "1"
    assert settings == {
        "crossSessionInbound": "refuse",
        "permissions": {"allow": ["Bash(touch *)"]},
    }
    assert not any(
        "mcp" in one for one in evolve(SPEC, has_tools=False).arguments("i", resumes=True)
    )


@pytest.mark.parametrize("argument", ["--permission-mode", "--settings={}", "-c"])
def test_arguments_that_the_runner_sets_itself_are_refused(argument):
    with pytest.raises(ConfigError, match=r"extra_args\[1\]: -.* is set by this runner"):
        ClaudeRunner(extra_args=["--add-dir=/a", argument])


def test_the_environment_has_no_variables_of_a_run_or_of_another_claude():
    given = {
        "PATH": "/bin",
        "AGENTCTL_RUN_ID": "r",
        "AGENT_ORCHESTRATOR_TAG": "t",
        "CLAUDECODE": "1",
        "CLAUDE_CODE_DISABLE_CRON": "0",
        "CLAUDE_CODE_MAX_RETRIES": "7",
    }
    found = environment(given, "/home/of/claude")
    assert found["PATH"] == "/bin"
    assert found["CLAUDE_CONFIG_DIR"] == "/home/of/claude"
    assert (found["CLAUDE_CODE_DISABLE_CRON"], found["CLAUDE_CODE_MAX_RETRIES"]) == ("1", "7")
    assert not found.keys() & {"AGENTCTL_RUN_ID", "AGENT_ORCHESTRATOR_TAG", "CLAUDECODE"}


def test_prompts_that_begin_with_a_command_are_text():
    assert literal("/clear") == "\n/clear"
    assert literal("clear /") == "clear /"


def test_the_native_binary_is_started_instead_of_the_npm_stub(tmp_path, monkeypatch):
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.36"))
    modules = tmp_path / "node_modules" / "@anthropic-ai"
    stub = modules / "claude-code" / "bin" / "claude.exe"
    stub.parent.mkdir(parents=True)
    stub.write_text("echo not installed\n")
    stub.chmod(0o755)
    link = tmp_path / "claude"
    link.symlink_to(stub)
    with pytest.raises(NotInstalled, match="no native binary"):
        locate("claude", {"PATH": str(tmp_path)})
    native = modules / "claude-code-linux-x64" / "claude"
    native.parent.mkdir()
    native.write_text("binary")
    native.chmod(0o755)
    assert locate("claude", {"PATH": str(tmp_path)}) == native
    with pytest.raises(NotInstalled, match="npm install"):
        locate("claude", {"PATH": "/nowhere"})
    for missing in ("missing", "x" * 300):
        with pytest.raises(NotInstalled, match="there is no file"):
            locate(str(tmp_path / missing), {})


def test_a_program_that_is_not_a_stub_is_started_itself(tmp_path):
    program = tmp_path / "claude"
    program.write_text("#!/bin/sh\n")
    with pytest.raises(NotInstalled, match="chmod"):
        locate(str(program), {})
    program.chmod(0o755)
    assert locate(str(program), {}) == program


def test_a_plan_is_kept_over_turns():
    plan = Plan()
    made = plan.change("TaskCreate", {}, {"task": {"id": "1", "subject": "First"}})
    assert made == [{"text": "First", "status": "pending"}]
    again = Plan.kept(json.loads(json.dumps(plan.keep())))
    done = again.change("TaskUpdate", {"taskId": "1", "status": "completed"}, {"success": True})
    assert done == [{"text": "First", "status": "completed"}]
    assert again.change("TaskUpdate", {"taskId": "1", "status": "completed"}, {}) is None
    assert again.change("TaskUpdate", {"taskId": "1", "status": "deleted"}, {}) == []
    todos = [{"content": "A", "status": "in_progress"}, {"content": "B", "status": "odd"}]
    assert again.change("TodoWrite", {"todos": todos}, None) == [
        {"text": "A", "status": "in_progress"},
        {"text": "B", "status": "pending"},
    ]
    assert Plan.kept(["odd"]) == Plan()


def test_changes_of_files_are_shown_before_and_after():
    edit = {"file_path": "/a", "old_string": "one\ntwo", "new_string": "three"}
    update = {"path": "/a", "kind": "update"}
    pieces = {**update, "diff": "@@ -1,2 +1,1 @@\n-one\n-two\n+three\n"}
    assert proposed("Edit", edit) == pieces
    known = PresentFile(exists=True, text="zero\none\ntwo\n")
    whole = {**update, "diff": "@@ -1,3 +1,2 @@\n zero\n-one\n-two\n+three\n"}
    assert proposed("Edit", edit, known) == whole
    assert proposed("Edit", edit, PresentFile(exists=True, text="other")) == pieces
    several = {
        "edits": [{"old_string": "z", "new_string": "Z"}, {"old_string": "Z", "new_string": "Y"}]
    }
    (one, other) = ("@@ -1,1 +1,1 @@\n-z\n+Z\n", "@@ -1,1 +1,1 @@\n-Z\n+Y\n")
    assert proposed("MultiEdit", {"file_path": "/a", **several}) == {**update, "diff": one + other}
    seen = proposed(
        "MultiEdit", {"file_path": "/a", **several}, PresentFile(exists=True, text="z\n")
    )
    assert seen["diff"] == "@@ -1,1 +1,1 @@\n-z\n+Y\n"
    patch = [{"oldStart": 1, "oldLines": 1, "newStart": 1, "newLines": 1, "lines": ["-a", "+b"]}]
    assert completed("Edit", edit, {"filePath": "/a", "structuredPatch": patch}) == {
        **update,
        "diff": "@@ -1,1 +1,1 @@\n-a\n+b\n",
    }
    write = {"file_path": "/a", "content": "all"}
    created = {"type": "create", "filePath": "/a", "content": "all", "structuredPatch": []}
    new = {"path": "/a", "kind": "add", "diff": "all"}
    assert completed("Write", write, created) == new
    assert proposed("Write", write, PresentFile(exists=False)) == new
    assert proposed("Write", write) == {**update, "diff": "@@ -0,0 +1,1 @@\n+all\n"}
    for odd in ("refused", None, {}, {"structuredPatch": "odd"}):
        assert completed("Write", write, odd) == proposed("Write", write)
    cell = {"notebook_path": "/a", "cell_id": "c", "new_source": "y"}
    notebook = '{"cells": [{"id": "c", "source": ["x"]}]}'
    for mode, diff in (
        ("replace", "@@ -1,1 +1,1 @@\n-x\n+y\n"),
        ("insert", "@@ -0,0 +1,1 @@\n+y\n"),
        ("delete", "@@ -1,1 +0,0 @@\n-x\n"),
    ):
        present = PresentFile(exists=True, text=notebook)
        assert proposed("NotebookEdit", {**cell, "edit_mode": mode}, present)["diff"] == diff
    for odd in ("[", "[]", '{"cells": [1, {"id": "c", "source": 5}]}', "[" * 100_000):
        proposed("NotebookEdit", cell, PresentFile(exists=True, text=odd))


def test_messages_of_unknown_shape_are_kept():
    reader = RunReader()
    for name, params in (
        ("assistant", {"message": "odd"}),
        ("user", {}),
        ("system/new_thing", {"a": 1}),
        ("assistant", {"message": {"content": [{"type": "new"}]}}),
    ):
        (event,) = reader.feed(Notification(name, params))
        assert event.event_type == "backend.event"
        assert event.data["kind"] == name
    assert reader.feed(Notification("tool_progress", {})) == []
    start = {"parent_tool_use_id": None, "event": {"message": {"id": "m"}}}
    assert reader.feed(Notification("stream_event/message_start", start)) == []
    piece = {"parent_tool_use_id": [1], "text": "x"}
    assert reader.feed(Notification("stream_event/text_delta", piece)) == []
    piece = {"parent_tool_use_id": None, "text": "x"}
    (event,) = reader.feed(Notification("stream_event/text_delta", piece))
    assert event.data["item_id"] == "m.0"


def test_an_answer_without_a_request_is_ignored():
    for number in ("9" * 6_000, "\u0663", "-1", "r", 5, None):
        answer = {"type": "control_response", "response": {"request_id": number}}
        assert StreamJson().read(answer, 10) is None


def test_mcp_servers_that_did_not_connect_are_reported():
    servers = [
        {"name": "agent_orchestrator", "status": "pending"},
        {"name": "theirs", "status": "failed"},
        {"name": "other", "status": "pending"},
    ]
    events = RunReader().feed(Notification("system/init", {"mcp_servers": servers}))
    assert [event.data["message"] for event in events] == [
        "the MCP server agent_orchestrator cannot be used: pending",
        "the MCP server theirs cannot be used: failed",
    ]


def test_the_hook_makes_every_mode_ask():
    def decision(mode, tool):
        found = hook_answer({"permission_mode": mode, "tool_name": tool})
        return found.get("hookSpecificOutput", {}).get("permissionDecision")

    for mode in ("default", "acceptEdits"):
        assert decision(mode, "Bash") is None
    for mode in ("plan", "auto", "bypassPermissions", "dontAsk", "a new one", None):
        assert decision(mode, "Bash") == "ask"
        assert decision(mode, "mcp__theirs__tool") == "ask"
        assert decision(mode, "Read") is None
        assert decision(mode, "mcp__agent_orchestrator__session_list") is None
    assert hook_answer(None)["hookSpecificOutput"]["permissionDecision"] == "ask"


def test_a_session_rule_is_not_written_to_the_settings():
    suggestion = {
        "type": "addRules",
        "behavior": "allow",
        "destination": "localSettings",
        "rules": [{"toolName": "Bash", "ruleContent": "touch *"}],
    }
    mode = {"type": "setMode", "mode": "acceptEdits", "destination": "session"}
    params = {
        "tool_name": "Bash",
        "input": {"command": "touch a"},
        "permission_suggestions": [suggestion, mode, "odd"],
    }
    question = approvals.question_for(params, None)
    lasting = next(one for one in question.options if one.kind == "allow_session")
    assert lasting.reaches.startswith("commands that begin with touch, without asking again")
    updates = approvals.allow({}, [{**suggestion, "destination": "session"}])
    assert approvals.granted_rules(updates) == ["Bash(touch *)"]
    without = approvals.question_for({**params, "permission_suggestions": [mode]}, None)
    assert [one.kind for one in without.options] == ["allow_once", "deny", "deny_and_stop"]


@pytest.mark.parametrize(
    ("name", "content", "reaches"),
    [
        ("Bash", "make all", "the command make all"),
        ("Bash", "git commit *", "commands that begin with git commit"),
        ("Bash", "git commit:*", "commands that begin with git commit"),
        ("Bash", "sh -c 'echo *'", None),
        ("Bash", "rm *.txt *", None),
        ("Bash", "x" * 3_000, None),
        ("Bash", None, "all uses of Bash"),
        ("WebFetch", "domain:example.com", "uses of WebFetch(domain:example.com)"),
        ("Read", "//home/me/**", "reading below /home/me"),
        ("Read", "//home/m*/**", None),
        ("", None, None),
    ],
)
def test_a_rule_is_offered_only_if_its_effect_can_be_described(name, content, reaches):
    rule = {"toolName": name, **({"ruleContent": content} if content else {})}
    suggestion = {"type": "addRules", "behavior": "allow", "rules": [rule]}
    params = {"tool_name": "Bash", "input": {}, "permission_suggestions": [suggestion]}
    options = approvals.question_for(params, None).options
    found = [one.reaches for one in options if one.kind == "allow_session"]
    assert found == ([f"{reaches}, without asking again in this session"] if reaches else [])
