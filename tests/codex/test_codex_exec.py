"""The exec runner with the real codex against the local model server."""

import fcntl
import json
import os
import stat
import sys
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from attrs import evolve
from loops import ON_ONE_LOOP
from model_server import FAKE_KEY, closed_port, codex_env, write_codex_home
from pictures import BLUE, RED

from agent_orchestrator.domain.errors import AgentFailed, ConfigError
from agent_orchestrator.domain.model import Thread, Usage
from agent_orchestrator.ports.runner import CWD_MISSING, TAG_VARIABLE
from agent_orchestrator.runners.codex import CodexExecRunner, probe
from agent_orchestrator.testing.runners import (
    RecordingContext,
    RunnerContract,
    tagged_processes,
)
from agent_orchestrator.user_state import UserState, user_state

pytestmark = [pytest.mark.anyio, pytest.mark.codex]

UNKNOWN_THREAD = "01a202ef-619b-7890-a3fa-a04dce33eadb"


@pytest.fixture
def runner(codex, home):
    return make_runner(codex, home)


@pytest.fixture
def record(home, workspace):
    def make(prompt, *, own_env=None, **more):
        env = {**codex_env(home), **(own_env or {})}
        return RecordingContext(prompt, cwd=workspace, env=env, **more)

    return make


def make_runner(codex, home, **more):
    more.setdefault("sandbox", "danger-full-access")
    return CodexExecRunner(command=codex, home=str(home), **more)


def of(context, event_type):
    return [data for kind, data in context.events if kind == event_type]


async def run(runner, context, seconds=90):
    with anyio.fail_after(seconds):
        return await runner.run(context)


async def failing(runner, context, seconds=90):
    with pytest.raises(AgentFailed) as caught:
        await run(runner, context, seconds)
    assert tagged_processes(context.tag) == []
    return caught.value


class TestContract(RunnerContract):
    succeeding, answer = "say hello", "hello"
    lasting = "shell sleep 300"
    failing, failure_code = "http 500", "provider_error"

    @pytest.fixture(autouse=True)
    def surroundings(self, codex, home, monkeypatch):
        self.codex, self.home = codex, home
        monkeypatch.setenv("FAKE_KEY", FAKE_KEY)

    def make_runner(self):
        return make_runner(self.codex, self.home)

    def make_context(self, prompt, cwd):
        return RecordingContext(prompt, cwd=cwd, env=codex_env(self.home))


# --- turns ----------------------------------------------------------------------------------


@ON_ONE_LOOP
async def test_the_first_turn_starts_a_thread_and_reports_usage(runner, record, models, workspace):
    context = record("say hello")
    outcome = await run(runner, context)
    assert (outcome.text, outcome.exit_code) == ("hello", 0)
    assert context.events == [("agent.message", {"text": "hello", "item_id": "item_0"})]
    assert context.calls.count("delivered") == 1
    assert context.usage == Usage(100, 0, 10)
    [request] = models.requests
    assert request.thread_id == context.thread.id
    assert request.authorization == f"Bearer {FAKE_KEY}"
    assert context.invocation.cwd == str(workspace)
    assert Path(context.invocation.argv[0]).name == "codex"
    assert "codex-linux-" in context.invocation.argv[0]
    assert "say hello" not in context.invocation.argv
    assert tagged_processes(context.tag) == []


@ON_ONE_LOOP
async def test_codex_works_in_the_resolved_directory_of_the_session(runner, home, workspace):
    """In the directory itself, and no longer by the path that led there."""
    link = workspace.with_name("link")
    link.symlink_to(workspace.name)
    context = RecordingContext("shell pwd -P", cwd=link, env=codex_env(home))
    await run(runner, context)
    [command] = of(context, "tool.completed")
    assert command["output"] == f"{workspace}\n"
    [rollout] = (home / "sessions").rglob("*.jsonl")
    entries = [json.loads(line) for line in rollout.read_text().splitlines()]
    told = [one["payload"]["cwd"] for one in entries if one["payload"].get("cwd")]
    assert told
    assert set(told) == {str(workspace)}
    context = RecordingContext("say x", cwd=link, env=codex_env(home), is_cwd_resolved=True)
    failure = await failing(runner, context)
    assert failure.code == "invalid_config"
    assert str(link) in failure.message


@ON_ONE_LOOP
async def test_a_second_turn_resumes_the_thread(runner, record, models):
    first = record("usage 1000 400 50\nsay one")
    await run(runner, first)
    second = record("usage 30 20 7\nsay two", thread=first.thread)
    outcome = await run(runner, second)
    assert outcome.text == "two"
    assert second.thread.id == first.thread.id
    assert models.requests[-1].user_texts == [first.prompt, second.prompt]
    assert models.requests[-1].thread_id == first.thread.id
    assert (first.usage, second.usage) == (Usage(1000, 400, 50), Usage(30, 20, 7))
    assert second.thread.state["usage"]["input_tokens"] == 1030


@ON_ONE_LOOP
async def test_the_last_message_is_the_result(runner, record):
    context = record("note first I look\nshell true\nsay then I say")
    assert (await run(runner, context)).text == "then I say"
    assert [data["text"] for data in of(context, "agent.message")] == ["first I look", "then I say"]


@ON_ONE_LOOP
async def test_a_command_is_recorded_with_its_output(runner, record, workspace):
    context = record("shell echo hi; pwd")
    await run(runner, context)
    command = {
        "kind": "command",
        "name": "shell",
        "input": {"command": "/bin/bash -lc 'echo hi; pwd'"},
    }
    assert context.events[:2] == [
        ("tool.started", {"tool_id": "item_0", **command}),
        (
            "tool.completed",
            {
                "tool_id": "item_0",
                **command,
                "status": "completed",
                "output": f"hi\n{workspace}\n",
                "exit_code": 0,
            },
        ),
    ]


@ON_ONE_LOOP
async def test_a_failing_command_does_not_fail_the_run(runner, record):
    context = record("shell echo oops >&2; exit 3\nsay so be it")
    assert (await run(runner, context)).text == "so be it"
    [done] = of(context, "tool.completed")
    assert (done["status"], done["exit_code"], done["output"]) == ("failed", 3, "oops\n")


@ON_ONE_LOOP
async def test_parallel_commands_are_recorded_separately(runner, record, workspace):
    os.mkfifo(workspace / "gate")
    context = record("shell cat gate; echo a\n& shell echo opened > gate; echo b")
    await run(runner, context)
    started = {data["tool_id"] for data in of(context, "tool.started")}
    done = {data["tool_id"]: data["output"] for data in of(context, "tool.completed")}
    assert started == set(done)
    assert sorted(done.values()) == ["b\n", "opened\na\n"]


@ON_ONE_LOOP
async def test_a_command_that_is_left_running_is_closed_and_ended(runner, record):
    context = record("background sleep 300\nsay left it")
    assert (await run(runner, context)).text == "left it"
    [done] = of(context, "tool.completed")
    assert done["status"] == "failed"
    assert done["error"] == "unfinished when the turn ended"
    assert tagged_processes(context.tag) == []


@ON_ONE_LOOP
async def test_a_command_cannot_write_in_a_read_only_sandbox(codex, home, record, workspace):
    runner = make_runner(codex, home, sandbox="read-only")
    context = record("shell touch file; true")
    await run(runner, context)
    assert not (workspace / "file").exists()
    assert "Read-only file system" in of(context, "tool.completed")[0]["output"]


@ON_ONE_LOOP
async def test_a_run_may_have_another_sandbox_than_its_provider(codex, home, record, workspace):
    context = record("shell touch file; true")
    context.run = evolve(context.run, sandbox="read-only", approval_policy="on-request")
    await run(make_runner(codex, home, sandbox="danger-full-access"), context)
    assert not (workspace / "file").exists()


@ON_ONE_LOOP
async def test_file_changes_are_recorded(runner, record, workspace):
    context = record("add a.txt one\nupdate a.txt one -> two\nadd b.txt x\ndelete b.txt")
    await run(runner, context)
    assert (workspace / "a.txt").read_text() == "two\n"
    changes = [(data["status"], data["changes"]) for data in of(context, "file.changed")]
    a, b = str(workspace / "a.txt"), str(workspace / "b.txt")
    assert changes == [
        ("completed", [{"path": a, "kind": "add"}]),
        ("completed", [{"path": a, "kind": "update"}]),
        ("completed", [{"path": b, "kind": "add"}]),
        ("completed", [{"path": b, "kind": "delete"}]),
    ]


@ON_ONE_LOOP
async def test_changes_of_the_plan_are_recorded(runner, record):
    context = record("plan [>] look; [ ] leap\nplan [x] look; [x] leap")
    await run(runner, context)
    steps = [
        [(step["text"], step["status"]) for step in data["steps"]]
        for data in of(context, "plan.updated")
    ]
    assert steps == [
        [("look", "pending"), ("leap", "pending")],
        [("look", "completed"), ("leap", "completed")],
    ]


@ON_ONE_LOOP
async def test_calls_of_mcp_tools_are_recorded(codex, home, record):
    config = {
        "mcp_servers.echo.command": sys.executable,
        "mcp_servers.echo.args": [str(Path(__file__).with_name("mcp_server.py"))],
        "mcp_servers.echo.required": True,
    }
    runner = make_runner(codex, home, config=config)
    context = record('mcp echo.echo {"text": "hi"}\nmcp echo.echo {"text": "fail"}')
    await run(runner, context)
    call = {"kind": "mcp", "name": "echo.echo", "input": {"text": "hi"}}
    assert of(context, "tool.started")[0] == {"tool_id": "item_0", **call}
    good, bad = of(context, "tool.completed")
    assert good == {"tool_id": "item_0", **call, "status": "completed", "output": "hi"}
    assert (bad["status"], bad["output"]) == ("failed", "fail")


@ON_ONE_LOOP
async def test_a_web_search_is_recorded_with_its_query(runner, record):
    context = record("search why is the sky blue\nsay because")
    await run(runner, context)
    [started] = of(context, "tool.started")
    [done] = of(context, "tool.completed")
    assert started["tool_id"] == done["tool_id"]
    assert (done["kind"], done["status"]) == ("web_search", "completed")
    assert done["input"]["query"] == "why is the sky blue"


@ON_ONE_LOOP
async def test_reasoning_is_recorded(runner, record):
    context = record("reason **Thinking** hard\nsay thought")
    await run(runner, context)
    assert of(context, "agent.reasoning") == [{"text": "**Thinking** hard", "item_id": "item_0"}]


@ON_ONE_LOOP
async def test_a_warning_of_codex_does_not_fail_the_run(codex, tmp_path, models, record):
    home = write_codex_home(tmp_path / "odd", models.port, model="no-such-model")
    context = record("say fine")
    assert (await run(make_runner(codex, home), context)).text == "fine"
    assert "Model metadata" in of(context, "run.error")[0]["message"]


@ON_ONE_LOOP
async def test_the_model_of_a_run_overrides_that_of_the_provider(codex, home, record, models):
    runner = make_runner(codex, home, model="gpt-5.4")
    await run(runner, record("say x"))
    await run(runner, record("say x", model="gpt-5.5"))
    assert [request.body["model"] for request in models.requests] == ["gpt-5.4", "gpt-5.5"]


@ON_ONE_LOOP
async def test_the_effort_of_a_run_does_not_affect_the_next(codex, home, record, models):
    runner = make_runner(codex, home, config={"model_reasoning_effort": "low"})
    first = record("say x", model="gpt-5.4")
    first.run = evolve(first.run, effort="high")
    await run(runner, first)
    await run(runner, record("say x", thread=first.thread))
    assert [(one.body["model"], one.body["reasoning"]["effort"]) for one in models.requests] == [
        ("gpt-5.4", "high"),
        ("gpt-5.5", "low"),
    ]


SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "string"}},
    "required": ["a"],
    "additionalProperties": False,
}


@ON_ONE_LOOP
async def test_the_output_schema_of_a_run_does_not_affect_the_next(runner, record, models):
    first = record("say x")
    first.run = evolve(first.run, output_schema=SCHEMA)
    await run(runner, first)
    second = record("say x", thread=first.thread)
    second.run = evolve(second.run, output_schema=SCHEMA)
    await run(runner, second)
    await run(runner, record("say x", thread=first.thread))
    formats = [one.body.get("text", {}).get("format", {}) for one in models.requests]
    assert [one.get("schema") for one in formats] == [SCHEMA, SCHEMA, None]
    assert not [*user_state().runs.iterdir()]


@ON_ONE_LOOP
async def test_the_model_sees_the_images_of_a_run(runner, record, models):
    first = record("say one", images=[RED, BLUE])
    assert (await run(runner, first)).text == "one"
    second = record("say two", images=[BLUE], thread=first.thread)
    assert (await run(runner, second)).text == "two"
    await run(runner, record("say three", thread=first.thread))
    seen = [request.images for request in models.requests]
    assert seen[0] == [RED.data, BLUE.data]
    assert seen[1] == seen[2] == [*seen[0], BLUE.data]
    assert not [*user_state().runs.iterdir()]


@ON_ONE_LOOP
@pytest.mark.parametrize(
    ("name", "code"), [("with, comma", "invalid_config"), ("file/below", "provider_error")]
)
async def test_images_that_codex_could_not_read_fail_the_run(
    runner, record, models, tmp_path, monkeypatch, name, code
):
    (tmp_path / "file").touch()
    state = UserState(tmp_path / name)
    monkeypatch.setattr("agent_orchestrator.hosts.scratch.user_state", lambda: state)
    context = record("say x", images=[RED])
    with pytest.raises(AgentFailed) as caught:
        await run(runner, context)
    assert caught.value.code == code
    assert models.requests == []
    assert not [*state.runs.glob("*")]


@pytest.mark.parametrize("is_canceled", [True, False])
async def test_a_lock_on_the_directory_of_runs_does_not_block_a_run(
    runner, record, models, monkeypatch, is_canceled
):
    user_state().runs.mkdir(parents=True, mode=0o700, exist_ok=True)
    held = os.open(user_state().runs, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        context = record("say x", images=[RED])
        if is_canceled:
            with anyio.fail_after(60), anyio.move_on_after(0.2) as scope:
                await runner.run(context)
            assert scope.cancelled_caught
        else:
            monkeypatch.setattr("agent_orchestrator.hosts.scratch._LOCK_TIMEOUT_S", 0.1)
            failure = await failing(runner, context)
            assert failure.code == "provider_error"
            assert f"process {os.getpid()} has locked it" in str(failure)
    finally:
        os.close(held)
    assert models.requests == []
    assert not [*user_state().runs.iterdir()]


@ON_ONE_LOOP
async def test_the_files_of_a_run_are_private_and_removed_with_it(runner, record):
    context = record("hang", images=[RED])
    found = []

    async def look():
        await context.until(lambda context: "delivered" in context.calls)
        [directory] = user_state().runs.iterdir()
        [file] = directory.iterdir()
        found.append([stat.S_IMODE(path.stat().st_mode) for path in (directory, file)])
        found.append(file.read_bytes())
        tasks.cancel_scope.cancel()

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(look)
            await runner.run(context)
    assert found == [[0o700, 0o600], RED.data]
    assert not [*user_state().runs.iterdir()]


@ON_ONE_LOOP
async def test_the_profile_of_the_provider_is_used(codex, home, record, models):
    (home / "deep.config.toml").write_text('model_reasoning_effort = "high"\n')
    context = record("say x")
    await run(make_runner(codex, home, profile="deep"), context)
    assert models.requests[0].body["reasoning"]["effort"] == "high"
    assert of(context, "run.error") == []


# --- failing turns --------------------------------------------------------------------------


@ON_ONE_LOOP
@pytest.mark.parametrize(
    ("script", "code", "message"),
    [
        ("http 401 Incorrect API key", "auth_failed", "401 Unauthorized: Incorrect API key"),
        ("http 429", "rate_limited", "429 Too Many Requests"),
        ("http 500", "provider_error", "high demand"),
        ("http 404 gone", "provider_error", "404"),
        ("usage_limit", "quota_exhausted", "usage limit"),
        ("fail insufficient_quota", "quota_exhausted", "Quota exceeded"),
        ("fail context_length_exceeded", "context_exceeded", "ran out of room"),
        ("note so far\ndisconnect", "provider_unreachable", "stream disconnected"),
        ("shell echo one\nhttp 500", "provider_error", "high demand"),
    ],
)
async def test_a_failed_turn_has_a_code_and_a_reason(runner, record, script, code, message):
    context = record(script)
    failure = await failing(runner, context)
    assert failure.code == code
    assert message in failure.message
    assert failure.exit_code == 1
    assert context.calls.count("delivered") == 1
    assert context.thread is not None


@ON_ONE_LOOP
async def test_a_thread_can_be_resumed_after_a_failed_turn(runner, record, models):
    first = record("http 500")
    await failing(runner, first)
    second = record("say better", thread=first.thread)
    assert (await run(runner, second)).text == "better"
    assert second.thread.id == first.thread.id


@ON_ONE_LOOP
async def test_a_missing_key_fails_the_run_and_is_named(runner, record):
    failure = await failing(runner, record("say x", own_env={"FAKE_KEY": ""}))
    assert failure.code == "auth_failed"
    assert "FAKE_KEY" in failure.message


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_a_server_that_cannot_be_reached_ends_the_run(codex, tmp_path, record):
    with closed_port() as port:
        home = write_codex_home(tmp_path / "home", port, retries=2)
        context = record("say x")
        failure = await failing(make_runner(codex, home), context)
    assert failure.code == "provider_unreachable"
    assert "Connection failed" in failure.message
    assert any("Reconnecting" in data["message"] for data in of(context, "run.error"))


# --- codex that cannot start ----------------------------------------------------------------


@ON_ONE_LOOP
async def test_a_missing_codex_is_provider_unavailable(home, record):
    failure = await failing(make_runner("/nowhere/codex", home), record("say x"))
    assert (failure.code, failure.exit_code) == ("provider_unavailable", None)
    assert "not installed" in failure.message


@ON_ONE_LOOP
async def test_a_codex_that_is_not_executable_is_provider_unavailable(home, record, tmp_path):
    (tmp_path / "codex").write_text("#!/bin/sh\n")
    failure = await failing(make_runner(str(tmp_path / "codex"), home), record("say x"))
    assert failure.code == "provider_unavailable"
    assert "not executable" in failure.message


@ON_ONE_LOOP
async def test_a_working_directory_that_disappears_before_the_start_is_named(runner, tmp_path):
    failure = await failing(runner, RecordingContext("say x", cwd=tmp_path / "gone"))
    assert failure.code == "invalid_config"
    assert failure.message.startswith(CWD_MISSING)


@ON_ONE_LOOP
async def test_a_missing_profile_is_a_warning(codex, home, record):
    context = record("say x")
    await run(make_runner(codex, home, profile="nope"), context)
    [warning] = of(context, "run.error")
    assert "profile 'nope'" in warning["message"]
    assert str(home / "nope.config.toml") in warning["message"]


@ON_ONE_LOOP
@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"extra_args": ["--verbose"]}, "unexpected argument '--verbose'"),
        ({"extra_args": ["-c", "model_provider=nowhere"]}, "nowhere"),
        ({"profile": "a/b"}, "a/b"),
        ({"config": {"mcp_servers.x.command": "/nowhere", "mcp_servers.x.required": True}}, "MCP"),
        ({"extra_args": ["-c", "no-equals-sign"]}, "no-equals-sign"),
    ],
)
async def test_a_setting_that_codex_refuses_is_invalid_config(codex, home, record, more, message):
    context = record("say x")
    failure = await failing(make_runner(codex, home, **more), context)
    assert failure.code == "invalid_config"
    assert message in failure.message
    assert "delivered" not in context.calls


@ON_ONE_LOOP
@pytest.mark.parametrize(
    ("extra_args", "refusal"),
    [
        (["--verbose", "--color", "never"], "unexpected argument '--verbose' found"),
        (["--color", "never"], "unexpected argument '--color' found"),
        (
            ["--sandbox", "sometimes"],
            (
                "invalid value 'sometimes' for '--sandbox <SANDBOX_MODE>'"
                " [possible values: read-only, workspace-write, danger-full-access]"
            ),
        ),
    ],
)
async def test_an_argument_codex_refuses_is_named_on_one_line(
    codex, home, record, extra_args, refusal
):
    context = record("say x")
    failure = await failing(make_runner(codex, home, extra_args=extra_args), context)
    assert (failure.code, failure.exit_code) == ("invalid_config", 2)
    assert failure.message == f"codex refused its arguments: {refusal}"
    assert "For more information, try '--help'." in context.stderr


@ON_ONE_LOOP
async def test_a_config_file_that_is_not_toml_is_invalid_config(codex, home, record):
    (home / "config.toml").write_text("model = \n")
    failure = await failing(make_runner(codex, home), record("say x"))
    assert failure.code == "invalid_config"
    assert "config.toml" in failure.message


@ON_ONE_LOOP
async def test_a_missing_codex_home_is_invalid_config(codex, tmp_path, record):
    failure = await failing(make_runner(codex, tmp_path / "nowhere"), record("say x"))
    assert failure.code == "invalid_config"


async def test_a_killed_codex_is_agent_crashed(home, record, tmp_path):
    fake = tmp_path / "dying"
    fake.write_text('#!/bin/sh\necho \'{"type":"turn.started"}\'\nkill -SEGV $$\n')
    fake.chmod(0o755)
    failure = await failing(make_runner(str(fake), home), record("say x"))
    assert (failure.code, failure.exit_code) == ("agent_crashed", -11)
    assert "SIGSEGV" in failure.message


# --- threads --------------------------------------------------------------------------------


@ON_ONE_LOOP
async def test_a_missing_thread_is_replaced(runner, record):
    context = record("say new", thread=Thread(UNKNOWN_THREAD, {"usage": {"input_tokens": 7}}))
    assert (await run(runner, context)).text == "new"
    assert context.thread.id != UNKNOWN_THREAD
    assert context.calls.count("delivered") == 1
    assert context.usage == Usage(100, 0, 10)
    [note] = of(context, "run.error")
    assert note["code"] == "thread_missing"
    assert UNKNOWN_THREAD in note["message"]


@ON_ONE_LOOP
async def test_a_missing_thread_fails_the_run_if_configured(codex, home, record, models):
    context = record("say new", thread=Thread(UNKNOWN_THREAD, {}))
    failure = await failing(make_runner(codex, home, on_missing_thread="fail"), context)
    assert failure.code == "thread_missing"
    assert "no rollout found" in failure.message
    assert context.thread.id == UNKNOWN_THREAD
    assert models.requests == []


@ON_ONE_LOOP
async def test_a_thread_id_that_codex_takes_for_a_name_is_a_missing_thread(codex, home, record):
    context = record("say new", thread=Thread("no-uuid", {}))
    assert (await run(make_runner(codex, home), context)).text == "new"
    assert context.thread.id != "no-uuid"
    assert "no-uuid" in of(context, "run.error")[0]["message"]
    strict = record("say new", thread=Thread("no-uuid", {}))
    failure = await failing(make_runner(codex, home, on_missing_thread="fail"), strict)
    assert failure.code == "thread_missing"
    assert strict.thread.id == "no-uuid"


@ON_ONE_LOOP
async def test_a_thread_id_that_looks_like_an_option_is_not_passed_to_codex(codex, home, record):
    context = record("say new", thread=Thread("--help", {}))
    assert (await run(make_runner(codex, home), context)).text == "new"
    assert "--help" not in context.invocation.argv
    strict = record("say new", thread=Thread("--help", {}))
    failure = await failing(make_runner(codex, home, on_missing_thread="fail"), strict)
    assert failure.code == "thread_missing"


@ON_ONE_LOOP
async def test_a_thread_in_use_by_another_process_fails_after_retries(runner, record, models):
    first = record("say one")
    await run(runner, first)
    holder = record("hang", thread=first.thread)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(runner.run, holder)
        await anyio.to_thread.run_sync(models.wait_for, 2)
        context = record("say two", thread=first.thread)
        failure = await failing(runner, context)
        tasks.cancel_scope.cancel()
    assert failure.code == "provider_error"
    assert "another process is using this thread" in failure.message
    assert context.calls.count("report_process") == 5
    assert tagged_processes(holder.tag) == []


# --- cancelling -----------------------------------------------------------------------------


async def test_a_cancel_while_the_model_thinks_ends_codex(runner, record, models):
    context = record("hang")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(runner.run, context)
        await anyio.to_thread.run_sync(models.wait_for, 1)
        assert tagged_processes(context.tag) != []
        tasks.cancel_scope.cancel()
    assert tagged_processes(context.tag) == []
    again = record("say back", thread=context.thread)
    assert (await run(runner, again)).text == "back"
    assert again.thread.id == context.thread.id


async def test_a_cancel_while_a_command_runs_ends_both(codex, usual_home, record, workspace):
    runner = make_runner(codex, usual_home)
    os.mkfifo(workspace / "begun")
    survivor = "setsid sh -c 'echo yes > begun; exec sleep 300' &"
    context = record(f"shell trap '' INT TERM HUP; {survivor} sleep 300")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(runner.run, context)
        with anyio.fail_after(45):
            assert await anyio.to_thread.run_sync((workspace / "begun").read_text) == "yes\n"
        with anyio.fail_after(45):
            while len(tagged_processes(context.tag)) < 3:  # it may not have begun its own sleep
                await anyio.sleep(0.01)
        tasks.cancel_scope.cancel()
    assert tagged_processes(context.tag) == []
    again = record("say back", thread=context.thread)
    assert (await run(runner, again)).text == "back"


# --- probe ----------------------------------------------------------------------------------


@pytest.fixture
def environ(monkeypatch):
    monkeypatch.setenv("FAKE_KEY", "x")
    monkeypatch.delenv("CODEX_API_KEY", raising=False)
    return monkeypatch


@ON_ONE_LOOP
async def test_an_installed_codex_with_a_key_is_available(runner, environ):
    found = await runner.probe(os.environ)
    assert (found.available, found.reason) == (True, None)
    assert found.version == "0.169.0"


@ON_ONE_LOOP
async def test_a_missing_key_makes_it_unavailable(runner, environ):
    environ.delenv("FAKE_KEY")
    found = await runner.probe(os.environ)
    assert not found.available
    assert "FAKE_KEY" in found.reason
    assert (await runner.probe({**os.environ, "FAKE_KEY": "x"})).available


@ON_ONE_LOOP
@pytest.mark.parametrize(
    ("files", "env", "available"),
    [
        ({}, {}, False),
        ({"auth.json": "{}"}, {}, False),
        ({"auth.json": "not json"}, {}, False),
        ({"auth.json": json.dumps({"OPENAI_API_KEY": "sk"})}, {}, True),
        ({"auth.json": json.dumps({"tokens": {"id_token": "t"}})}, {}, True),
        ({}, {"CODEX_API_KEY": "sk"}, True),
        ({"config.toml": 'model_provider = "ollama"'}, {}, True),
        ({"config.toml": 'cli_auth_credentials_store = "keyring"'}, {}, True),
        (
            {
                "config.toml": 'model_provider = "p"\n[model_providers.p]\nname = "p"\n'
                "requires_openai_auth = true"
            },
            {},
            False,
        ),
        ({"extra.config.toml": 'model_provider = "ollama"'}, {}, True),
    ],
)
async def test_login_files_and_variables_decide_availability(
    codex, tmp_path, environ, files, env, available
):
    home = tmp_path / "plain"
    home.mkdir()
    for name, text in files.items():
        (home / name).write_text(text)
    for name, value in env.items():
        environ.setenv(name, value)
    found = await make_runner(codex, home, profile="extra").probe(os.environ)
    assert found.available == available
    if not available:
        assert "codex login" in found.reason


@ON_ONE_LOOP
async def test_configuration_overrides_are_used_to_check_the_login(codex, tmp_path, environ):
    for more in ({"config": {"model_provider": "ollama"}}, {"extra_args": ["--oss"]}):
        assert (await make_runner(codex, tmp_path, **more).probe(os.environ)).available
    runner = make_runner(codex, tmp_path, extra_args=["-c", "model_provider=ollama"])
    assert (await runner.probe(os.environ)).available


@ON_ONE_LOOP
async def test_an_invalid_configuration_is_reported_by_the_probe(codex, home, environ):
    found = await make_runner(codex, home, profile="nope").probe(os.environ)
    assert found.available
    assert "profile 'nope'" in found.reason
    (home / "config.toml").write_text("x = ")
    found = await make_runner(codex, home).probe(os.environ)
    assert found.available
    assert "config.toml" in found.reason


@ON_ONE_LOOP
async def test_each_probe_reads_the_configuration_again(codex, tmp_path, environ):
    runner = make_runner(codex, tmp_path)
    (tmp_path / "config.toml").write_text('model_provider = "ollama"')
    assert (await runner.probe(os.environ)).available
    (tmp_path / "config.toml").write_text('model_provider = "openai"')  # as many bytes
    assert "codex login" in (await runner.probe(os.environ)).reason
    (tmp_path / "auth.json").write_text(json.dumps({"OPENAI_API_KEY": "sk"}))
    assert (await runner.probe(os.environ)).available
    (tmp_path / "config.toml").unlink()
    (tmp_path / "auth.json").unlink()
    assert not (await runner.probe(os.environ)).available


@ON_ONE_LOOP
async def test_a_program_that_prints_no_version_is_available(home, tmp_path):
    fake = tmp_path / "fake"
    fake.write_text("#!/bin/sh\nexit 1\n")
    fake.chmod(0o755)
    found = await make_runner(str(fake), home).probe(os.environ)
    assert (found.available, found.version) == (True, None)


@pytest.mark.parametrize(("pause", "version"), [(60.0, None), (0.0, "0.1")])
async def test_a_version_query_that_timed_out_is_repeated_after_a_pause(
    home, tmp_path, monkeypatch, pause, version
):
    (tmp_path / "hang").touch()
    script = tmp_path / "codex"
    script.write_text(
        f"#!/bin/sh\nif [ -e {tmp_path}/hang ]; then sleep 300 & wait; fi\necho codex-cli 0.1\n"
    )
    script.chmod(0o755)
    monkeypatch.setattr(probe, "_VERSION_TIMEOUT", 0.5)
    monkeypatch.setattr(probe, "_ASK_AGAIN_S", pause)
    runner = make_runner(str(script), home)
    env = codex_env(home) | {TAG_VARIABLE: f"{tmp_path}"}
    found = await runner.probe(env)
    assert (found.available, found.version) == (True, None)
    assert found.reason == f"{script} did not print its version within 0.5 s"
    with anyio.fail_after(45):
        while tagged_processes(f"{tmp_path}"):
            await anyio.sleep(0.01)
    (tmp_path / "hang").unlink()
    if version:
        monkeypatch.setattr(probe, "_VERSION_TIMEOUT", 60)  # to answer on a busy machine
    again = await runner.probe(env)
    assert (again.version, again.reason) == (version, None if version else found.reason)


@ON_ONE_LOOP
async def test_a_program_that_cannot_be_run_is_unavailable(home, tmp_path):
    fake = tmp_path / "fake"
    fake.write_text("#!/nowhere/sh\n")
    fake.chmod(0o755)
    assert not (await make_runner(str(fake), home).probe(os.environ)).available
    assert not (await make_runner("/nowhere/codex", home).probe(os.environ)).available


def test_invalid_options_are_configuration_errors():
    with pytest.raises(ConfigError, match="sandbox"):
        CodexExecRunner(sandbox="none")
    with pytest.raises(ConfigError, match="on_missing_thread"):
        CodexExecRunner(on_missing_thread="retry")
