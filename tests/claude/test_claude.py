"""The runner with the real Claude Code against the local model server."""

import json
import os
import signal
import uuid

import anyio
import pytest
from attrs import evolve
from claude_runs import end_of_descendants, lasting, of, problems, run, with_argument
from loops import ON_ONE_LOOP
from model_server import acknowledgement
from pictures import RED

from agent_orchestrator.domain.errors import AgentFailed
from agent_orchestrator.domain.model import Thread, Usage
from agent_orchestrator.runners.claude import ClaudeRunner
from agent_orchestrator.testing.runners import RecordingContext, RunnerContract

pytestmark = [pytest.mark.anyio, pytest.mark.claude]


class TestContract(RunnerContract):
    succeeding, answer = "say hello", "hello"
    lasting = "shell tail -f /dev/null"
    failing, failure_code = "http 500", "provider_error"
    delegating = 'mcp agent_orchestrator.session_spawn {"task": "say hello"}'

    @pytest.fixture(autouse=True)
    def surroundings(self, claude, env, monkeypatch):
        self.claude, self.env = claude, env
        for name, value in env.items():
            monkeypatch.setenv(name, value)

    def make_runner(self):
        return ClaudeRunner(command=self.claude, sandbox="danger-full-access")

    def make_context(self, prompt, cwd):
        return RecordingContext(prompt, cwd=cwd, env=self.env)


# --- conversations --------------------------------------------------------------------------


@ON_ONE_LOOP
@pytest.mark.parametrize("is_restarted", [False, True])
async def test_a_conversation_continues_in_the_same_and_in_another_process(
    make_runner, record, models, is_restarted
):
    async with make_runner() as runner:
        first = record("usage 30 20 7\nsay first")
        assert (await run(runner, first)).text == "first"
        if not is_restarted:
            second = record("say second", thread=first.thread)
            assert (await run(runner, second)).text == "second"
    if is_restarted:
        async with make_runner() as runner:
            second = record("say second", thread=first.thread)
            assert (await run(runner, second)).text == "second"
    assert str(uuid.UUID(first.thread.id)) == first.thread.id == second.thread.id
    assert (first.pid == second.pid) is not is_restarted
    assert models.requests[-1].texts[-1] == "say second"
    assert "usage 30 20 7\nsay first" in models.requests[-1].texts
    assert first.usage == Usage(50, 20, 7, first.usage.cost_usd)
    assert second.usage == Usage(100, 0, 10, second.usage.cost_usd)
    assert 0 < first.usage.cost_usd < second.usage.cost_usd
    assert first.calls.index("set_thread") < first.calls.index("delivered")


@ON_ONE_LOOP
async def test_a_lost_conversation_is_replaced_or_fails_the_run(make_runner, record):
    gone = Thread(str(uuid.uuid4()), {"has_begun": True})
    async with make_runner() as runner:
        context = record("say hello", thread=gone)
        assert (await run(runner, context)).text == "hello"
        assert context.thread.id != gone.id
        assert of(context, "run.error")[0]["code"] == "thread_missing"
    async with make_runner(on_missing_thread="fail") as runner:
        with pytest.raises(AgentFailed) as caught:
            await run(runner, record("say hello", thread=gone))
    assert caught.value.code == "thread_missing"


@ON_ONE_LOOP
async def test_a_prompt_that_an_attempt_had_sent_is_not_run_twice(
    make_runner, record, models, workspace
):
    prompt = "shell echo once >> count"
    async with make_runner() as runner:
        first = record(prompt)
        assert (await run(runner, first)).text == "done"
    # As if the gateway had ended before it recorded that the model had the prompt.
    again = record(prompt, thread=Thread(first.thread.id, {}))
    again.run = first.run
    async with make_runner() as runner:
        outcome = await run(runner, again)
    assert (workspace / "count").read_text() == "once\n"
    assert "You were interrupted" in models.requests[-1].prompt
    assert outcome.text == acknowledgement(models.requests[-1].prompt)


@ON_ONE_LOOP
async def test_the_model_and_effort_of_a_run_do_not_affect_the_next(make_runner, record, models):
    async with make_runner() as runner:
        first = record("say first", model="claude-haiku-4-5")
        await run(runner, first)
        second = record("say second", thread=first.thread)
        await run(runner, second)
    assert models.requests[0].body["model"] == "claude-haiku-4-5"
    assert models.requests[-1].body["model"] != "claude-haiku-4-5"


@ON_ONE_LOOP
async def test_an_answer_matches_the_schema_of_its_message(make_runner, record):
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    async with make_runner() as runner:
        context = record('tool StructuredOutput {"n": "x"}\ntool StructuredOutput {"n": 7}')
        context.run = evolve(context.run, output_schema=schema)
        assert json.loads((await run(runner, context)).text) == {"n": 7}
        after = record("say plain", thread=context.thread)
        assert (await run(runner, after)).text == "plain"
        without = record("say plain", thread=context.thread)
        without.run = evolve(without.run, output_schema=schema)
        with pytest.raises(AgentFailed, match="JSON Schema"):
            await run(runner, without)


@ON_ONE_LOOP
async def test_a_missing_working_directory_fails_the_run(make_runner, record, workspace):
    workspace.rmdir()
    async with make_runner() as runner:
        with pytest.raises(AgentFailed) as caught:
            await run(runner, record("say hello"))
    assert caught.value.code == "invalid_config"
    assert str(workspace) in caught.value.message


@ON_ONE_LOOP
async def test_two_runs_of_one_conversation_use_one_process_after_the_other(
    make_runner, record, models
):
    """Two processes of one conversation would each see a part of it."""
    async with make_runner() as runner:
        first = record("say first")
        await run(runner, first)
        others = [record(f"say {name}", thread=first.thread) for name in ("second", "third")]
        for context in others:
            await run(runner, context)
    assert len({first.pid, *(context.pid for context in others)}) == 1
    assert {"say first", "say second", "say third"} <= {*models.requests[-1].texts}


@ON_ONE_LOOP
async def test_failures_in_one_session_do_not_affect_others(make_runner, record, models):
    async with make_runner(max_idle=2) as runner:
        good = [record(f"stream 20 20 word{number}_") for number in range(3)]
        failing, canceled, killed = (
            record("http 500"),
            record("hang"),
            record("say up\nshell true\nhang"),
        )
        outcomes = {}

        async def work(name, context):
            try:
                outcomes[name] = (await run(runner, context)).text
            except AgentFailed as failure:
                outcomes[name] = failure.code

        async with anyio.create_task_group() as tasks:
            for number, context in enumerate(good):
                tasks.start_soon(work, number, context)
            tasks.start_soon(work, "failing", failing)
            tasks.start_soon(work, "killed", killed)
            async with anyio.create_task_group() as others:
                others.start_soon(work, "canceled", canceled)
                await anyio.to_thread.run_sync(models.wait_for_prompt, "hang")
                others.cancel_scope.cancel()
            await killed.until(lambda one: "up" in one.texts())
            os.kill(killed.pid, signal.SIGKILL)
        for number, context in enumerate(good):
            again = record("say again", thread=context.thread)
            assert (await run(runner, again)).text == "again"
            assert outcomes[number].startswith(f"word{number}_0 word{number}_1 ")
    assert (outcomes["failing"], outcomes["killed"]) == ("provider_error", "agent_crashed")
    assert "canceled" not in outcomes


# --- what comes out -------------------------------------------------------------------------


@ON_ONE_LOOP
async def test_the_output_becomes_events(make_runner, record, workspace):
    path = workspace / "a.txt"
    script = f"reason hmm\nsay looking\nshell echo hi; exit 3\nadd {path} one\nread {path}\nupdate {path} one -> two\nsay all done"
    async with make_runner() as runner:
        context = record(script)
        assert (await run(runner, context)).text == "all done"
    assert context.texts("agent.reasoning") == ["hmm"]
    assert context.texts() == ["looking", "all done"]
    command = of(context, "tool.completed")[0]
    assert (command["kind"], command["name"], command["status"]) == ("command", "shell", "failed")
    assert command["input"]["command"] == "echo hi; exit 3"
    assert command["exit_code"] == 3
    assert "hi" in command["output"]
    added, updated = of(context, "file.changed")
    assert added["changes"] == [{"path": str(path), "kind": "add", "diff": "one"}]
    (change,) = updated["changes"]
    assert (change["path"], change["kind"]) == (str(path), "update")
    lines = [line for line in change["diff"].splitlines() if not line.startswith("\\")]
    assert lines == ["@@ -1,1 +1,1 @@", "-one", "+two"]
    assert path.read_text() == "two"


@ON_ONE_LOOP
async def test_a_text_is_recorded_in_pieces_and_complete(make_runner, record):
    async with make_runner() as runner:
        context = record("stream 60 30 word")
        outcome = await run(runner, context)
    (whole,) = of(context, "agent.message")
    pieces = of(context, "agent.message.delta")
    assert pieces
    assert {piece["item_id"] for piece in pieces} == {whole["item_id"]}
    assert "".join(piece["text"] for piece in pieces) == whole["text"] == outcome.text


@ON_ONE_LOOP
async def test_events_of_sub_agents_are_marked(make_runner, record):
    async with make_runner() as runner:
        context = record(
            "say part begun\n& delegate shell echo below ; say part done\nsay all done"
        )
        assert (await run(runner, context)).text == "all done"
    call, below = of(context, "tool.started")
    assert (call["kind"], below["kind"]) == ("agent", "command")
    assert "parent_tool_id" not in call
    assert below["parent_tool_id"] == call["tool_id"]
    assert context.texts() == ["part begun", "all done"]
    [words] = of(context, "subagent.message")
    assert (words["text"], words["parent_tool_id"]) == ("part done", call["tool_id"])
    pieces = of(context, "agent.message.delta")
    assert not any("parent_tool_id" in piece or piece["text"] == "part done" for piece in pieces)
    assert context.usage.output_tokens == 40  # four answers, two of them the sub-agent's


@ON_ONE_LOOP
async def test_the_to_do_list_is_the_plan(make_runner, record):
    script = """\
tool TaskCreate {"subject": "First", "description": "do it"}
tool TaskCreate {"subject": "Second", "description": "do it"}
tool TaskUpdate {"taskId": "1", "status": "in_progress"}"""
    model = "claude-haiku-4-5"  # the newest models do without
    async with make_runner() as runner:
        first = record(script, model=model)
        await run(runner, first)
        update = 'tool TaskUpdate {"taskId": "1", "status": "completed"}'
        second = record(update, model=model, thread=first.thread)
        await run(runner, second)
    steps = [
        [(one["text"], one["status"]) for one in data["steps"]]
        for data in of(first, "plan.updated")
    ]
    assert steps[-1] == [("First", "in_progress"), ("Second", "pending")]
    (last,) = of(second, "plan.updated")
    assert [one["status"] for one in last["steps"]] == ["completed", "pending"]


@ON_ONE_LOOP
async def test_an_image_reaches_the_model(make_runner, record, models):
    async with make_runner() as runner:
        await run(runner, record("say seen", images=[RED]))
    kinds = [block["type"] for block in models.requests[-1].body["messages"][0]["content"]]
    assert "image" in kinds


# --- failures -------------------------------------------------------------------------------

FAILURES = ("http 400", "http 401", "http 429", "http 529", "stop refusal")


@ON_ONE_LOOP
async def test_a_process_and_its_conversation_survive_failed_turns(make_runner, record):
    async with make_runner() as runner:
        thread = None
        for script in FAILURES:
            context = record(script, thread=thread)
            with pytest.raises(AgentFailed):
                await run(runner, context)
            assert context.texts() == []
            thread = context.thread
        context = record("say hello", thread=thread)
        assert (await run(runner, context)).text == "hello"


@ON_ONE_LOOP
async def test_an_answer_that_breaks_off_is_continued(make_runner, record):
    async with make_runner() as runner:
        context = record("say one\nshell true\nsay two")
        assert (await run(runner, context)).text == "two"
        cut = record("say part one\nslow 0.2\nfail overloaded_error", thread=context.thread)
        with pytest.raises(AgentFailed) as caught:
            await run(runner, cut)
    assert caught.value.code in ("provider_error", "provider_unreachable")


@ON_ONE_LOOP
async def test_without_a_login_the_provider_is_unavailable(make_runner, record, env):
    env["ANTHROPIC_API_KEY"] = ""
    async with make_runner() as runner:
        found = await runner.probe({**os.environ, **env})
        assert (found.available, found.logged_in) == (False, False)
        assert "not logged in" in found.reason
        context = record("say hello")
        with pytest.raises(AgentFailed) as caught:
            await run(runner, context)
    assert caught.value.code == "auth_failed"
    assert context.calls == []  # another provider may do it


@ON_ONE_LOOP
async def test_arguments_that_claude_refuses_are_named(make_runner, record):
    async with make_runner(extra_args=["--bogus"]) as runner:
        with pytest.raises(AgentFailed) as caught:
            await run(runner, record("say hello"))
    assert caught.value.code in ("invalid_config", "provider_unavailable")
    assert "--bogus" in caught.value.message


@ON_ONE_LOOP
@pytest.mark.parametrize("script", ["hang", "shell tail -f /dev/null"])
async def test_a_killed_agent_fails_the_run_and_its_conversation_goes_on(
    make_runner, record, models, script
):
    async with make_runner() as runner:
        first = record("say first")
        await run(runner, first)
        context = record(f"say before\nshell true\n{script}", thread=first.thread)
        async with anyio.create_task_group() as tasks:

            async def kill():
                await context.until(lambda one: "before" in one.texts())
                await anyio.to_thread.run_sync(models.wait_for, 3)
                os.kill(context.pid, signal.SIGKILL)

            tasks.start_soon(kill)
            with pytest.raises(AgentFailed) as caught:
                await run(runner, context)
        assert caught.value.code == "agent_crashed"
        assert "SIGKILL" in caught.value.message
        third = record("say third", thread=context.thread)
        assert (await run(runner, third)).text == "third"
        assert "say first" in models.requests[-1].texts


@ON_ONE_LOOP
async def test_a_process_that_ended_between_runs_is_replaced(make_runner, record):
    async with make_runner() as runner:
        first = record("say first")
        await run(runner, first)
        os.kill(first.pid, signal.SIGKILL)
        second = record("say second", thread=first.thread)
        assert (await run(runner, second)).text == "second"
        assert problems(second) == []
    assert second.pid != first.pid
    assert second.thread.id == first.thread.id


# --- messages on the way, and the end -------------------------------------------------------


@ON_ONE_LOOP
async def test_a_message_reaches_the_turn_while_a_tool_runs(make_runner, record, models, workspace):
    async with make_runner() as runner:
        context = record("shell while ! test -e go; do sleep 0.1; done\nsay done")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run, runner, context)
            await context.until(lambda one: of(one, "tool.started"))
            assert context.steer("and one more thing")
            await anyio.sleep(0.5)  # Claude Code reads its input while the command runs
            (workspace / "go").touch()
    assert "and one more thing" in str(models.requests[-1].body["messages"])
    assert problems(context) == []


@ON_ONE_LOOP
async def test_a_message_during_an_answer_gets_a_turn_of_the_same_run(make_runner, record):
    async with make_runner() as runner:
        context = record("stream 80 50 word")
        outcomes = []
        async with anyio.create_task_group() as tasks:

            async def work():
                outcomes.append(await run(runner, context))

            tasks.start_soon(work)
            await context.until(lambda one: of(one, "agent.message.delta"))
            assert context.steer("say second")
    assert outcomes[0].text == "second"
    assert len(context.texts()) == 2
    assert context.usage.output_tokens == 20


DETACHED = lasting()
STATES = {
    "hung": ("hang", lambda one: "delivered" in one.calls or one.pid),
    "streaming": ("stream 1000 50 word", lambda one: of(one, "agent.message.delta")),
    "command": ("shell tail -f /dev/null --pid 1", lambda one: of(one, "tool.started")),
    "detached": (
        f"shell (setsid {DETACHED} &) ; {DETACHED}",
        lambda one: with_argument(DETACHED),
    ),
    "retry": ("http 529", lambda one: problems(one) and one.pid),
}


@ON_ONE_LOOP
@pytest.mark.parametrize("state", STATES)
async def test_a_cancel_ends_the_turn_and_keeps_the_process(make_runner, record, models, state):
    script, is_there = STATES[state]
    async with make_runner() as runner:
        first = record("say first", env={"CLAUDE_CODE_MAX_RETRIES": "10"})
        await run(runner, first)
        context = record(script, thread=first.thread, env={"CLAUDE_CODE_MAX_RETRIES": "10"})
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run, runner, context)
            await anyio.to_thread.run_sync(models.wait_for_prompt, script)
            with anyio.fail_after(90):
                while not is_there(context):
                    await anyio.sleep(0.02)
            context.steer("this comes too late")
            tasks.cancel_scope.cancel()
        assert with_argument(DETACHED) == []
        await end_of_descendants(context.pid)
        after = record("say after", thread=context.thread, env={"CLAUDE_CODE_MAX_RETRIES": "10"})
        assert (await run(runner, after)).text == "after"
        assert after.pid == first.pid


@ON_ONE_LOOP
async def test_processes_that_a_command_left_running_end_with_the_run(make_runner, record):
    async with make_runner() as runner:
        command = lasting()
        context = record(f"shell nohup setsid {command} >/dev/null 2>&1 & echo left")
        await run(runner, context)
        assert with_argument(command) == []


@ON_ONE_LOOP
async def test_background_tools_are_disabled(make_runner, record, models):
    async with make_runner() as runner:
        await run(runner, record("say hello"))
    offered = {*models.requests[0].tools}
    assert "Bash" in offered
    off = {"SendMessage", "ListAgents", "CronCreate", "ScheduleWakeup", "Monitor"}
    assert not offered & {*off, "EnterWorktree"}
    (bash,) = [tool for tool in models.requests[0].body["tools"] if tool["name"] == "Bash"]
    assert "run_in_background" not in str(bash["input_schema"])
