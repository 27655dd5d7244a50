"""The app-server runner with the real codex against the local model server."""

import base64
import json
import os
import signal
import sys
from collections import Counter
from pathlib import Path

import anyio
import psutil
import pytest
from attrs import evolve
from deciding import EXPIRED, Deciding
from loops import ON_ONE_LOOP
from model_server import FAKE_KEY, codex_env
from pictures import BLUE, RED, picture
from threads import processes_of_threads

from agent_orchestrator.domain.errors import AgentFailed
from agent_orchestrator.domain.images import ImageContent
from agent_orchestrator.domain.model import Option, Thread, Usage
from agent_orchestrator.runners.codex import CodexExecRunner
from agent_orchestrator.runners.codex.appserver import CodexAppServerRunner
from agent_orchestrator.testing.runners import RecordingContext, RunnerContract

pytestmark = [pytest.mark.anyio, pytest.mark.codex]

MCP_SERVER = Path(__file__).parent / "mcp_server.py"
UNKNOWN_THREAD = "01a202ef-619b-7890-a3fa-a04dce33eadb"


@pytest.fixture
def record(home, workspace):
    def make(prompt, *, kind=RecordingContext, **more):
        return kind(prompt, cwd=workspace, env=codex_env(home), **more)

    return make


def of(context, event_type):
    return [data for kind, data in context.events if kind == event_type]


async def run(runner, context, seconds=90):
    with anyio.fail_after(seconds):
        return await runner.run(context)


async def gone(pid):
    """Wait until a process has ended."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        await anyio.wait_readable(fd)
    finally:
        os.close(fd)


def make_runner(codex, home, **more):
    more.setdefault("sandbox", "danger-full-access")
    return CodexAppServerRunner(command=codex, home=str(home), **more)


class TestContract(RunnerContract):
    succeeding, answer = "say hello", "hello"
    lasting = "shell sleep 300"
    failing, failure_code = "http 500", "provider_error"
    delegating = 'tool session_spawn {"task": "say hello"}'
    shares_processes = True

    @pytest.fixture(autouse=True)
    def surroundings(self, codex, home, monkeypatch):
        self.codex, self.home = codex, home
        monkeypatch.setenv("FAKE_KEY", FAKE_KEY)

    def make_runner(self):
        return make_runner(self.codex, self.home)

    def make_context(self, prompt, cwd):
        return RecordingContext(prompt, cwd=cwd, env=codex_env(self.home))


@ON_ONE_LOOP
async def test_the_text_of_a_decision_reaches_the_agent(codex, home, record, models):
    words = {"deny": "Leave that alone", "approve": "Only this once", "answer": "Not now"}
    async with make_runner(codex, home, sandbox="workspace-write") as runner:
        for decision, answer in words.items():
            decide = {"decision": decision, "text": answer}
            await ask(runner, record, "escalate echo hi\nsay done", decide)
    texts = {text for request in models.requests for text in request.user_texts}
    for decision, answer in words.items():
        said = [text for text in texts if answer in text]
        verdict = "approved" if decision == "approve" else "denied"
        assert said, decision
        assert all(f"was {verdict}" in text for text in said)


# --- many sessions, one process -------------------------------------------------------------


@ON_ONE_LOOP
async def test_sessions_share_a_process_and_keep_their_threads(codex, home, record, models):
    async with make_runner(codex, home) as runner:
        firsts = [record(f"say first {number}") for number in range(4)]
        async with anyio.create_task_group() as tasks:
            for context in firsts:
                tasks.start_soon(runner.run, context)
        seconds = [record("usage 30 20 7\nsay second", thread=first.thread) for first in firsts]
        for context in seconds:
            await run(runner, context)
    assert len({context.pid for context in (*firsts, *seconds)}) == 1
    assert len({context.thread.id for context in firsts}) == 4
    for first, second in zip(firsts, seconds, strict=True):
        assert first.thread.id == second.thread.id
        assert (first.usage, second.usage) == (Usage(100, 0, 10), Usage(30, 20, 7))
        asked = [one for one in models.requests if one.thread_id == first.thread.id]
        assert asked[-1].user_texts == [first.prompt, second.prompt]


@ON_ONE_LOOP
@pytest.mark.parametrize("is_restarted", [False, True])
async def test_the_model_and_effort_of_a_run_do_not_affect_the_next(
    codex, home, record, models, is_restarted
):
    first = record("say x", model="gpt-5.4")
    schema = {"type": "object", "properties": {}, "additionalProperties": False}
    first.run = evolve(first.run, effort="high", output_schema=schema)
    async with make_runner(codex, home) as runner:
        await run(runner, first)
        second = record("say x", thread=first.thread)
        if not is_restarted:
            await run(runner, second)
    if is_restarted:
        async with make_runner(codex, home) as runner:
            await run(runner, second)
    assert first.thread.id == second.thread.id
    assert [(one.body["model"], one.body["reasoning"]["effort"]) for one in models.requests] == [
        ("gpt-5.4", "high"),
        ("gpt-5.5", "medium"),
    ]
    formats = [one.body.get("text", {}).get("format", {}) for one in models.requests]
    assert [one.get("schema") for one in formats] == [schema, None]


@ON_ONE_LOOP
async def test_the_model_sees_the_images_of_a_run(codex, home, record, models):
    large = ImageContent.of(picture(1200, 1200, noise=True))
    assert large.image.size > 4_000_000
    async with make_runner(codex, home) as runner:
        first = record("say one", images=[RED, large])
        assert (await run(runner, first)).text == "one"
        second = record("say two", images=[BLUE], thread=first.thread)
        assert (await run(runner, second)).text == "two"
    async with make_runner(codex, home) as runner:  # it has to load the thread with the images
        await run(runner, record("say three", thread=first.thread))
    seen = [request.images for request in models.requests]
    assert seen[0] == [RED.data, large.data]
    assert seen[1] == seen[2] == [*seen[0], BLUE.data]
    assert not any(base64.b64encode(BLUE.data).decode() in str(event) for event in second.events)


@ON_ONE_LOOP
async def test_a_full_process_gets_no_more_threads(codex, home, record):
    async with make_runner(codex, home, max_threads_per_process=2) as runner:
        contexts = [record("say hello") for _ in range(5)]
        async with anyio.create_task_group() as tasks:
            for context in contexts:
                tasks.start_soon(runner.run, context)
        pids = Counter(context.pid for context in contexts)
        assert sorted(pids.values()) == [1, 2, 2]
        again = record("say again", thread=contexts[0].thread)
        await run(runner, again)
        assert again.pid == contexts[0].pid


@ON_ONE_LOOP
async def test_an_idle_process_is_ended_and_its_threads_go_on_in_the_next(codex, home, record):
    async with make_runner(codex, home, idle_s=0.2) as runner:
        first = record("say first")
        await run(runner, first)
        with anyio.fail_after(45):
            await gone(first.pid)
        second = record("say second", thread=first.thread)
        assert (await run(runner, second)).text == "second"
    assert second.pid != first.pid
    assert second.thread.id == first.thread.id
    assert second.usage == Usage(100, 0, 10)


@ON_ONE_LOOP
@pytest.mark.parametrize("is_shared", [False, True])
async def test_a_parked_run_ends_its_process_at_once_if_no_other_session_uses_it(
    codex, home, record, is_shared
):
    async with make_runner(codex, home, sandbox="workspace-write") as runner:
        other = record("say other")
        if is_shared:
            await run(runner, other)
        context = record("say first\n& escalate touch /nowhere/x", kind=Deciding)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run, runner, context)
            await context.until(lambda one: one.questions)
            context.is_parking = True
            tasks.cancel_scope.cancel()
        assert psutil.pid_exists(context.pid) is is_shared
        assert [context.thread.id in one.threads for one in runner._pool.serving] == [
            False
        ] * is_shared
        after = record("say approved", thread=context.thread)
        assert (await run(runner, after)).text == "approved"
        assert after.thread.id == context.thread.id
        assert (after.pid == context.pid) is is_shared
        if is_shared:
            assert other.pid == after.pid


@ON_ONE_LOOP
async def test_a_thread_of_exec_is_resumed_by_the_app_server(codex, home, record, models):
    first = record("say first")
    await CodexExecRunner(command=codex, home=str(home), sandbox="danger-full-access").run(first)
    async with make_runner(codex, home) as runner:
        second = record("say second", thread=first.thread)
        await run(runner, second)
    assert second.thread.id == first.thread.id
    assert second.usage == Usage(100, 0, 10)
    assert models.requests[-1].user_texts == [first.prompt, second.prompt]


@ON_ONE_LOOP
async def test_an_idle_thread_can_be_resumed_by_exec_meanwhile(codex, home, record, models):
    """And comes back to the warm process for its next run."""
    async with make_runner(codex, home, thread_idle_s=0.05) as runner:
        first = record("say first")
        await run(runner, first)
        [server] = runner._pool.serving
        with anyio.fail_after(45):
            while server.threads:
                await anyio.sleep(0.02)
        by_hand = record("say by hand", thread=first.thread)
        exec_runner = CodexExecRunner(command=codex, home=str(home), sandbox="danger-full-access")
        assert (await run(exec_runner, by_hand)).text == "by hand"
        assert runner._pool.serving == [server]
        again = record("say again", thread=first.thread)
        assert (await run(runner, again)).text == "again"
        assert runner._pool.serving == [server]
    assert models.requests[-1].user_texts == ["say first", "say by hand", "say again"]


@pytest.mark.parametrize("thread_idle_s", [0, 30])
async def test_a_turn_never_uses_a_thread_that_is_being_unloaded(
    codex, home, record, thread_idle_s
):
    async with make_runner(codex, home, thread_idle_s=thread_idle_s) as runner:
        context = record("say 0")
        await run(runner, context)
        [server] = runner._pool.serving
        for number in range(1, 4):
            assert bool(server.threads) or thread_idle_s == 0
            context = record(f"say {number}", thread=context.thread)
            assert (await run(runner, context)).text == str(number)
            assert [kind for kind, _ in context.events if kind == "run.error"] == []


def history_modes(home):
    """Return how codex keeps the history of each thread of a home."""
    paths = (home / "sessions").rglob("*.jsonl")
    metas = [json.loads(path.read_text().partition("\n")[0])["payload"] for path in paths]
    return {meta["id"]: meta["history_mode"] for meta in metas}


@ON_ONE_LOOP
async def test_a_thread_has_no_index_until_codex_is_told_to_make_one(codex, home, record, models):
    async with make_runner(codex, home) as runner:
        first = record("say first")
        await run(runner, first)
    thread_id = first.thread.id
    assert history_modes(home) == {thread_id: "legacy"}
    migrated = [codex, "migrate-rollouts", "--apply", "--thread", thread_id]
    await anyio.run_process(migrated, env=codex_env(home))
    assert history_modes(home) == {thread_id: "paginated"}
    async with make_runner(codex, home) as runner:
        second = record("say second", thread=first.thread)
        await run(runner, second)
    assert second.thread.id == thread_id
    assert models.requests[-1].user_texts == [first.prompt, second.prompt]


@ON_ONE_LOOP
@pytest.mark.parametrize("thread_id", [UNKNOWN_THREAD, "no-such-thread"])
async def test_a_lost_thread_is_replaced_or_fails_the_run(codex, home, record, thread_id):
    lost = Thread(thread_id, {})
    async with make_runner(codex, home) as runner:
        context = record("say hello", thread=lost)
        assert (await run(runner, context)).text == "hello"
        assert context.thread.id != thread_id
        assert [data["code"] for data in of(context, "run.error")] == ["thread_missing"]
    async with make_runner(codex, home, on_missing_thread="fail") as runner:
        with pytest.raises(AgentFailed) as caught:
            await run(runner, record("say hello", thread=lost))
        assert caught.value.code == "thread_missing"


async def test_a_killed_process_fails_its_runs_and_the_next_has_another(codex, home, record):
    async with make_runner(codex, home) as runner:
        first = record("shell sleep 300")
        failures = []

        async def failing():
            try:
                await runner.run(first)
            except AgentFailed as failure:
                failures.append(failure)

        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(failing)
                await first.until(lambda c: "emit tool.started" in c.calls)
                os.kill(first.pid, signal.SIGKILL)
        [failure] = failures
        assert failure.code == "agent_crashed"
        assert "SIGKILL" in failure.message
        assert processes_of_threads({first.thread.id}) == []
        second = record("say second", thread=first.thread)
        assert (await run(runner, second)).text == "second"
        assert second.pid != first.pid
        assert second.thread.id == first.thread.id


@ON_ONE_LOOP
async def test_usage_of_a_killed_run_is_not_counted_for_the_next(codex, home, record, models):
    async with make_runner(codex, home) as runner:
        first = record("usage 30 20 7\nshell true\nhang")
        with anyio.fail_after(60), pytest.RaisesGroup(AgentFailed):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(runner.run, first)
                while len(models.requests) < 2:
                    await anyio.sleep(0.01)
                await first.until(lambda c: c.pid is not None)
                os.kill(first.pid, signal.SIGKILL)
        second = record("say second", thread=first.thread)
        await run(runner, second)
    assert (first.usage, second.usage) == (Usage(30, 20, 7), Usage(100, 0, 10))


async def test_a_killed_process_does_not_affect_runs_of_other_processes(codex, home, record):
    async with make_runner(codex, home, max_threads_per_process=1) as runner:
        killed, other = record("shell sleep 300"), record("shell sleep 1\nsay other")
        said = {}

        async def execute(context, name):
            try:
                said[name] = (await runner.run(context)).text
            except AgentFailed as failure:
                said[name] = failure.code

        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(execute, killed, "killed")
                tasks.start_soon(execute, other, "other")
                for context in (killed, other):
                    await context.until(lambda c: "emit tool.started" in c.calls)
                assert killed.pid != other.pid
                os.kill(killed.pid, signal.SIGKILL)
        assert said == {"killed": "agent_crashed", "other": "other"}


@ON_ONE_LOOP
async def test_runs_with_another_environment_use_another_process(codex, home, record):
    """Its environment; and a run's own variables are none of it."""
    async with make_runner(codex, home) as runner:
        contexts = [record("say hello") for _ in range(3)]
        contexts[1].env = {
            **contexts[1].env,
            "AGENTCTL_RUN_ID": "run_1",
            "AGENTCTL_SESSION_ID": "s",
        }
        contexts[2].env = {**contexts[2].env, "OTHER": "1"}
        for context in contexts:
            await run(runner, context)
        first, second, third = (context.pid for context in contexts)
        assert first == second != third


@ON_ONE_LOOP
async def test_a_prompt_that_a_killed_process_had_not_taken_is_given_again(
    codex, home, record, models
):
    async with make_runner(codex, home) as runner:
        warm = record("say warm")
        await run(runner, warm)

        class Killing(type(warm)):
            is_read = False

            @property
            def prompt(self):
                if not self.is_read:  # about to be given to codex
                    self.is_read = True
                    os.kill(warm.pid, signal.SIGKILL)
                return "say hello"

            @prompt.setter
            def prompt(self, _):
                pass

        context = record("say hello", kind=Killing)
        assert (await run(runner, context)).text == "hello"
    assert context.pid != warm.pid
    assert context.calls.count("delivered") == 1
    assert [one.prompt for one in models.requests] == ["say warm", "say hello"]


# --- what is told ---------------------------------------------------------------------------


@ON_ONE_LOOP
async def test_a_message_is_recorded_in_pieces_and_complete(codex, home, record):
    async with make_runner(codex, home) as runner:
        context = record("stream 40 50 word")  # a busy machine may read late
        started = anyio.current_time()
        outcome = await run(runner, context)
        seconds = anyio.current_time() - started
    words = "".join(f"word{number} " for number in range(40))
    assert outcome.text == words
    pieces = of(context, "agent.message.delta")
    assert "".join(piece["text"] for piece in pieces) == words
    assert len({piece["item_id"] for piece in pieces}) == 1
    assert 2 <= len(pieces) <= seconds * 20 + 1
    assert context.texts() == [words]


@ON_ONE_LOOP
async def test_reasoning_messages_commands_and_file_changes_are_recorded(
    codex, home, record, workspace
):
    script = "reason why\nnote first\nshell echo hi; sleep 0.2; echo ha; sleep 0.2; echo ho\nadd new.txt hello\nsay done"
    async with make_runner(codex, home) as runner:
        context = record(script)
        assert (await run(runner, context)).text == "done"
    kinds = [kind for kind, _ in context.events]
    assert [kind for kind in kinds if kind != "tool.output"] == [
        "agent.reasoning",
        "agent.message",
        "tool.started",
        "tool.completed",
        "file.changed",
        "agent.message",
    ]
    [command] = of(context, "tool.completed")
    assert command["kind"] == "command"
    assert command["input"] == {
        "command": "/bin/bash -lc 'echo hi; sleep 0.2; echo ha; sleep 0.2; echo ho'"
    }
    assert (command["status"], command["output"], command["exit_code"]) == (
        "completed",
        "hi\nha\nho\n",
        0,
    )
    assert command["extra"]["cwd"] == str(workspace)
    assert of(context, "tool.output")[0]["tool_id"] == command["tool_id"]
    [change] = of(context, "file.changed")
    assert change["status"] == "completed"
    assert change["changes"] == [
        {"path": str(workspace / "new.txt"), "kind": "add", "diff": "hello\n"}
    ]


@ON_ONE_LOOP
async def test_changes_of_the_plan_are_recorded(codex, home, record):
    async with make_runner(codex, home) as runner:
        context = record("plan [x] one; [>] two; [ ] three\nsay done")
        await run(runner, context)
    [plan] = of(context, "plan.updated")
    assert [step["status"] for step in plan["steps"]] == ["completed", "in_progress", "pending"]


FAILURES = {
    "http 401": "auth_failed",
    "http 429": "rate_limited",
    "http 500": "provider_error",
    "usage_limit": "quota_exhausted",
    "fail context_length_exceeded": "context_exceeded",
}


@ON_ONE_LOOP
async def test_failures_have_codes_and_leave_the_thread_usable(codex, home, record):
    async with make_runner(codex, home) as runner:
        for script, code in FAILURES.items():
            context = record(script)
            with pytest.raises(AgentFailed) as caught:
                await run(runner, context)
            assert caught.value.code == code, caught.value.message
            second = record("say hello", thread=context.thread)
            assert (await run(runner, second)).text == "hello"


# --- approvals ------------------------------------------------------------------------------


async def ask(runner, record, script, decide):
    context = record(script, kind=Deciding)
    context.decide = decide
    return context, await run(runner, context)


async def asked(codex, home, record, script, decide, **more):
    async with make_runner(codex, home, sandbox="workspace-write", **more) as runner:
        return await ask(runner, record, script, decide)


DECISIONS = [
    ({"decision": "approve"}, True, None),
    ({"option": "accept", "text": "Only this"}, True, "approved, with this message: Only this"),
    ({"decision": "approve", "scope": "session"}, True, None),
    ({"option": "acceptForSession"}, True, None),
    ({"decision": "deny"}, False, None),
    ({"decision": "deny", "text": "Use make"}, False, "denied, with this message: Use make"),
    ({"option": "decline", "text": "Use make"}, False, "denied, with this message: Use make"),
    (EXPIRED, False, None),
    ({"decision": "answer", "text": "accept"}, True, None),
    ({"decision": "answer", "text": "Allow once"}, True, None),
    ({"decision": "answer", "text": "please do"}, False, "denied, with this message: please do"),
]
"""Decisions, whether they approve, and the message to the agent."""


@ON_ONE_LOOP
async def test_a_command_runs_only_if_it_is_approved(codex, home, record, outside, models):
    async with make_runner(codex, home, sandbox="workspace-write") as runner:
        for number, (decide, happens, words) in enumerate(DECISIONS):
            file = outside / f"made-{number}"
            script = f"escalate touch {file}\nsay done"
            context, outcome = await ask(runner, record, script, decide)
            assert file.exists() is happens, decide
            last = models.requests[-1].user_texts[-1]
            if words is None:
                assert outcome.text == "done"  # nothing more is said to the agent
                assert "with this message" not in last
            else:
                assert words in last
            [question] = context.questions
            assert question["kind"] == "approval_request"
            detail = dict(question["detail"])
            detail.pop("agent")
            assert detail == {
                "type": "command",
                "command": f"/bin/bash -lc 'touch {file}'",
                "cwd": context.session.cwd,
                "reason": "it must",
            }
            assert f"touch {file}" in question["text"]
            assert {option.id for option in question["options"]} >= {"accept", "decline", "cancel"}
            [done] = of(context, "tool.completed")
            assert done["status"] == ("completed" if happens else "declined"), decide


@ON_ONE_LOOP
@pytest.mark.parametrize("decide", [{"option": "acceptForSession"}, {"decision": "approve"}])
async def test_an_approval_for_the_session_covers_the_same_command(
    codex, home, record, outside, decide
):
    script = f"escalate touch {outside}/made\nescalate touch {outside}/made\nsay done"
    context, _ = await asked(codex, home, record, script, decide)
    assert len(context.questions) == (1 if "option" in decide else 2)


@ON_ONE_LOOP
async def test_by_default_codex_asks_before_it_writes_outside_the_workspace(
    codex, home, record, outside
):
    """Codex 0.169 sometimes says nothing of a command that its sandbox refuses at once."""
    file, asked_for = outside / "made", outside / "asked-for"
    async with CodexAppServerRunner(command=codex, home=str(home)) as runner:
        script = f"shell touch {file}\nshell touch inside\nescalate touch {asked_for}\nsay done"
        context = record(script, kind=Deciding)
        context.decide = {"decision": "deny"}
        await run(runner, context)
    done, declined = of(context, "tool.completed")[-2:]
    assert (done["exit_code"], declined["status"]) == (0, "declined")
    [question] = context.questions
    assert question["detail"]["command"] == f"/bin/bash -lc 'touch {asked_for}'"
    assert list(outside.iterdir()) == []


@ON_ONE_LOOP
@pytest.mark.parametrize(
    ("decide", "message"),
    [
        ({"option": "cancel", "text": "Not today"}, "the turn was ended: Not today"),
        ({"decision": "answer", "text": "cancel"}, "the turn was ended"),
    ],
)
async def test_a_deny_and_stop_option_ends_the_turn(codex, home, record, outside, decide, message):
    with pytest.raises(AgentFailed) as caught:
        await asked(codex, home, record, f"escalate touch {outside / 'made'}\nsay done", decide)
    assert caught.value.code == "denied"
    assert caught.value.message.endswith(message)
    assert not (outside / "made").exists()


@ON_ONE_LOOP
@pytest.mark.parametrize("is_approved", [True, False])
@pytest.mark.parametrize(
    ("step", "before", "change"),
    [
        ("add {} hello", None, {"kind": "add", "diff": "hello\n"}),
        (
            "update {} two -> TWO",
            "one\ntwo\n",
            {"kind": "update", "diff": "@@ -1,2 +1,2 @@\n one\n-two\n+TWO\n"},
        ),
    ],
    ids=["add", "update"],
)
async def test_a_file_changes_only_if_it_is_approved(
    codex, home, record, outside, is_approved, step, before, change
):
    file = outside / "new.txt"
    if before is not None:
        file.write_text(before)
    decide = {"decision": "approve" if is_approved else "deny"}
    context, outcome = await asked(codex, home, record, f"{step.format(file)}\nsay done", decide)
    after = "hello\n" if before is None else "one\nTWO\n"
    assert (file.read_text() if file.exists() else None) == (after if is_approved else before)
    assert outcome.text == "done"
    [question] = context.questions
    assert question["detail"]["type"] == "file_change"
    assert question["detail"]["changes"] == [{"path": str(file), **change}]
    assert question["detail"]["reason"] is None
    assert str(file) in question["text"]


@ON_ONE_LOOP
@pytest.mark.parametrize(
    ("decide", "answers"),
    [
        ({"option": "Blue"}, ["Blue"]),
        ({"decision": "answer", "text": "Blue"}, ["Blue"]),
        ({"option": "Blue", "text": "but dark"}, ["Blue", "but dark"]),
        ({"decision": "answer", "text": "Green"}, ["Green"]),
    ],
)
async def test_questions_are_answered(codex, home, record, decide, answers):
    options = [{"label": "Red", "description": "r"}, {"label": "Blue", "description": "b"}]
    questions = [{"id": "color", "header": "Color", "question": "Which?", "options": options}]
    script = f"question {json.dumps({'questions': questions})}\nrelay"
    context, outcome = await asked(
        codex,
        home,
        record,
        script,
        decide,
        config={"features.default_mode_request_user_input": True},
    )
    [question] = context.questions
    assert question["kind"] == "input_request"
    assert question["text"] == "Which? (Red / Blue)"
    assert question["options"] == (Option.named("Red"), Option.named("Blue"))
    assert question["detail"]["questions"] == [
        {"id": "color", "text": "Which?", "choices": options, "multiple": False, "free_text": True}
    ]
    assert json.loads(outcome.text) == {"answers": {"color": {"answers": answers}}}


@ON_ONE_LOOP
@pytest.mark.parametrize("option", ["accept", "acceptForSession", "decline"])
async def test_permissions_are_granted_only_if_approved(codex, home, record, outside, option):
    context, _ = await asked(
        codex,
        home,
        record,
        f"permit {outside}\nshell touch {outside}/made\nsay done",
        {"option": option},
        config={
            "features.request_permissions_tool": True,
            "features.exec_permission_approvals": True,
        },
    )
    [question] = context.questions
    assert question["kind"] == "permission_request"
    assert question["detail"]["permissions"]["fileSystem"]["write"] == [str(outside)]
    assert question["detail"]["type"] == "permission"
    assert (outside / "made").exists() is (option != "decline")


def mcp_config(**more):
    server = {"command": sys.executable, "args": [str(MCP_SERVER)], "required": True, **more}
    return {f"mcp_servers.small.{name}": value for name, value in server.items()}


@ON_ONE_LOOP
async def test_a_text_answer_does_not_approve_an_mcp_tool(codex, home, record, models):
    decide = {"decision": "answer", "text": "rather not"}
    script = 'mcp small.echo {"text": "one"}\nsay done'
    context, _ = await asked(codex, home, record, script, decide, config=mcp_config())
    [tool] = of(context, "tool.completed")
    assert tool["status"] != "completed"
    assert "with this message: rather not" in models.requests[-1].user_texts[-1]


TOOL_DECISIONS = [
    ({"decision": "approve"}, 2, "two"),
    ({"decision": "approve", "scope": "session"}, 1, "two"),
    ({"option": "accept"}, 2, "two"),
    ({"option": "acceptForSession"}, 1, "two"),
    ({"decision": "answer", "text": "acceptForSession"}, 1, "two"),
    ({"decision": "deny"}, 2, "rejected"),
    (EXPIRED, 2, "rejected"),
    ({"option": "cancel"}, 2, "cancelled"),
]


@ON_ONE_LOOP
async def test_an_mcp_tool_runs_only_if_it_is_approved(codex, home, record):
    """For the thread that asked: the others of its process ask as before."""
    script = 'mcp small.echo {"text": "one"}\nmcp small.echo {"text": "two"}\nrelay'
    async with make_runner(codex, home, sandbox="workspace-write", config=mcp_config()) as runner:
        for decide, questions, says in TOOL_DECISIONS:
            context, outcome = await ask(runner, record, script, decide)
            assert says in outcome.text, decide
            assert len(context.questions) == questions, decide
            question = context.questions[0]
            assert question["kind"] == "approval_request"
            assert [(option.id, option.kind) for option in question["options"]] == [
                ("accept", "allow_once"),
                ("acceptForSession", "allow_session"),
                ("decline", "deny"),
                ("cancel", "deny"),
            ]
            detail = dict(question["detail"])
            detail.pop("agent")
            assert detail == {
                "type": "tool", "name": "echo", "server": "small", "input": {"text": "one"}
            }  # fmt: skip
            assert "echo" in question["text"]
            assert '{"text": "one"}' in question["text"]
            done = [one["status"] for one in of(context, "tool.completed")]
            assert done == ["completed" if says == "two" else "failed"] * 2, decide


NO_FIELDS = {"type": "object", "properties": {}}
ONE_FIELD = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
TWO_FIELDS = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
}
CHOICE = {"type": "object", "properties": {"how": {"type": "string", "enum": ["cancel", "go"]}}}


ANSWERS = [
    (
        {"decision": "answer", "text": "Bo"},
        ONE_FIELD,
        {"action": "accept", "content": {"name": "Bo"}},
    ),
    (
        {"decision": "answer", "text": '{"name": "Bo", "age": 7}'},
        TWO_FIELDS,
        {"action": "accept", "content": {"name": "Bo", "age": 7}},
    ),
    (
        {"decision": "answer", "text": '{"name": "\\ud800", "age": NaN}'},
        TWO_FIELDS,
        {"action": "accept", "content": {"name": "\ufffd", "age": "NaN"}},
    ),
    (
        {"decision": "answer", "text": "cancel"},
        CHOICE,
        {"action": "accept", "content": {"how": "cancel"}},
    ),
    (
        {"decision": "approve", "text": "Bo"},
        ONE_FIELD,
        {"action": "accept", "content": {"name": "Bo"}},
    ),
    ({"option": "accept"}, NO_FIELDS, {"action": "accept", "content": {}}),
    ({"option": "go"}, CHOICE, {"action": "accept", "content": {"how": "go"}}),
    ({"option": "decline"}, ONE_FIELD, {"action": "decline"}),
    ({"option": "cancel"}, ONE_FIELD, {"action": "cancel"}),
    ({"decision": "answer", "text": "cancel"}, ONE_FIELD, {"action": "cancel"}),
    ({"decision": "deny"}, ONE_FIELD, {"action": "decline"}),
    (EXPIRED, ONE_FIELD, {"action": "decline"}),
]


@ON_ONE_LOOP
async def test_the_answer_reaches_the_mcp_server_that_asked(codex, home, record):
    config = mcp_config(default_tools_approval_mode="approve")
    async with make_runner(codex, home, sandbox="workspace-write", config=config) as runner:
        for decide, schema, told in ANSWERS:
            wanted = json.dumps({"message": "Who are you?", "requestedSchema": schema})
            script = f"mcp small.ask {wanted}\nrelay"
            context, outcome = await ask(runner, record, script, decide)
            [question] = context.questions
            assert question["kind"] == "input_request"
            assert question["text"] == "small: Who are you?"
            asks = question["detail"]["agent"]
            assert asks["serverName"] == "small"
            assert asks["requestedSchema"]["properties"] == schema["properties"]
            fields = [field["id"] for field in question["detail"]["questions"]]
            assert sorted(fields) == sorted(schema["properties"])
            names = {option.id for option in question["options"]}
            assert names >= {"decline", "cancel"}
            [done] = of(context, "tool.completed")
            assert json.loads(done["output"]) == told, decide
            assert told["action"] in outcome.text


@ON_ONE_LOOP
async def test_approval_policy_never_opens_no_request(codex, home, record, outside):
    context, _ = await asked(
        codex,
        home,
        record,
        f"escalate touch {outside / 'made'}\nsay done",
        {"decision": "approve"},
        approval_policy="never",
    )
    assert context.questions == []
    assert not (outside / "made").exists()


# --- meanwhile ------------------------------------------------------------------------------


@ON_ONE_LOOP
async def test_a_message_steers_the_turn(codex, home, record, models):
    async with make_runner(codex, home) as runner:
        context = record("shell sleep 1\nsay unheard")
        outcomes = []

        async def execute():
            outcomes.append(await runner.run(context))

        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(execute)
                await context.until(lambda c: "emit tool.started" in c.calls)
                assert context.steer("say steered")
    assert outcomes[0].text == "steered"
    assert models.requests[-1].user_texts[-1] == "say steered"


@ON_ONE_LOOP
async def test_a_steered_stream_is_not_lost(codex, home, record):
    async with make_runner(codex, home) as runner:
        context = record("stream 500 20 word")
        outcomes = []

        async def execute():
            outcomes.append(await runner.run(context))

        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(execute)
                await context.until(lambda c: "emit agent.message.delta" in c.calls)
                context.steer("say steered")
    assert outcomes[0].text == "steered"
    broken, whole = of(context, "agent.message")
    pieces = [
        piece["text"]
        for piece in of(context, "agent.message.delta")
        if piece["item_id"] == broken["item_id"]
    ]
    assert "".join(pieces) == broken["text"]
    assert broken["extra"] == {"incomplete": True}
    assert whole["text"] == "steered"


@pytest.mark.parametrize(
    "command",
    ["sleep 300", "setsid sleep 300 & sleep 300", "trap '' TERM INT HUP; sleep 300"],
    ids=["plain", "setsid", "trap"],
)
async def test_a_cancel_ends_the_commands_of_its_run_only(codex, home, record, command):
    async with make_runner(codex, home) as runner:
        other = record("shell sleep 2\nsay other")
        outcomes = []

        async def execute():
            outcomes.append(await runner.run(other))

        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(execute)
                await other.until(lambda c: "emit tool.started" in c.calls)
                context = record(f"shell {command}")
                with anyio.CancelScope() as scope:
                    async with anyio.create_task_group() as inner:
                        inner.start_soon(runner.run, context)
                        await context.until(lambda c: "emit tool.started" in c.calls)
                        while not processes_of_threads({context.thread.id}):  # it is told of first
                            await anyio.sleep(0.02)
                        scope.cancel()
                assert processes_of_threads({context.thread.id}) == []
        assert outcomes[0].text == "other"
        assert other.pid == context.pid
        second = record("say second", thread=context.thread)
        assert (await run(runner, second)).text == "second"


@ON_ONE_LOOP
async def test_processes_that_a_command_left_running_end_with_the_run(codex, home, record):
    async with make_runner(codex, home) as runner:
        context = record("background sleep 300\nshell setsid sleep 300 >/dev/null 2>&1 &\nsay done")
        assert (await run(runner, context)).text == "done"
        assert processes_of_threads({context.thread.id}) == []
        done = of(context, "tool.completed")
        assert [one["status"] for one in done] == ["completed", "failed"]


async def test_a_cancel_at_the_end_of_a_turn_leaves_nothing_running(codex, home, record):
    """The turn has ended, and what it left running has not yet been ended."""
    scope = anyio.CancelScope()

    class CancelingWhenAllIsTold(RecordingContext):
        async def set_thread(self, *arguments):
            await super().set_thread(*arguments)
            if self.usage is not None:
                scope.cancel()

    async with make_runner(codex, home) as runner:
        context = record(
            "shell setsid sleep 300 >/dev/null 2>&1 &\nsay done", kind=CancelingWhenAllIsTold
        )
        with anyio.fail_after(60), scope:
            await runner.run(context)
        assert scope.cancel_called
        assert processes_of_threads({context.thread.id}) == []


async def test_a_message_for_an_ended_turn_starts_another_turn(codex, home, record, models):
    """And what the first turn left running is ended with the second."""

    class SteeredAtTheEnd(RecordingContext):
        async def emit(self, event_type, data):
            await super().emit(event_type, data)
            if event_type == "agent.message" and data["text"] == "first":
                [rollout] = (home / "sessions").rglob(f"*{self.thread.id}.jsonl")
                while '"task_complete"' not in rollout.read_text():
                    await anyio.sleep(0.01)
                assert self.steer("say second")

    async with make_runner(codex, home) as runner:
        script = "shell setsid sleep 300 >/dev/null 2>&1 &\nsay first"
        context = record(script, kind=SteeredAtTheEnd)
        assert (await run(runner, context)).text == "second"
        assert processes_of_threads({context.thread.id}) == []
    assert context.texts() == ["first", "second"]
    assert models.requests[-1].user_texts == [script, "say second"]


async def test_a_cancel_while_codex_asks_ends_the_run(codex, home, record, outside):
    async with make_runner(codex, home, sandbox="workspace-write") as runner:
        context = record(f"escalate touch {outside / 'made'}\nsay done", kind=Deciding)
        with anyio.fail_after(60), anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(runner.run, context)
                await context.until(lambda c: c.questions)
                scope.cancel()
        second = record("say second", thread=context.thread)
        assert (await run(runner, second)).text == "second"
    assert not (outside / "made").exists()


@ON_ONE_LOOP
async def test_a_run_may_have_another_sandbox_than_the_run_before(codex, home, record, outside):
    """In a thread that is open already; and the next is as its provider says again."""
    file = outside / "made"
    async with make_runner(codex, home, sandbox="danger-full-access") as runner:
        first = record("say first")
        await run(runner, first)
        second = record(f"shell touch {file}\nsay second", thread=first.thread)
        second.run = evolve(second.run, sandbox="workspace-write", approval_policy="never")
        await run(runner, second)
        assert not file.exists()
        asking = record(f"escalate touch {file}\nsay asked", thread=second.thread, kind=Deciding)
        asking.run = evolve(asking.run, sandbox="read-only", approval_policy="on-request")
        asking.decide = {"decision": "deny"}
        await run(runner, asking)
        assert len(asking.questions) == 1
        assert not file.exists()
        await run(runner, record(f"shell touch {file}\nsay last", thread=asking.thread))
        assert file.exists()


async def test_a_thread_whose_loading_was_canceled_uses_the_sandbox_of_its_next_run(
    codex, home, record, outside, tmp_path
):
    """It stays with the process that loads it, and codex takes nothing else for it while it has it."""
    file, begun, gate = outside / "made", tmp_path / "begun", tmp_path / "gate"
    script = f"touch {begun}; until [ -e {gate} ]; do sleep 0.02; done; exec {sys.executable} {MCP_SERVER}"
    config = mcp_config(command="/bin/sh", args=["-c", script])
    gate.touch()
    first = record("say first")
    async with make_runner(codex, home, config=config) as runner:
        await run(runner, first)
    async with make_runner(codex, home, config=config, max_threads_per_process=2) as runner:
        others = [record("say other") for _ in range(3)]
        for other in others:
            await run(runner, other)
        gate.unlink()
        begun.unlink()
        with anyio.fail_after(60), anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(runner.run, record("say canceled", thread=first.thread))
                while not begun.exists():
                    await anyio.sleep(0.01)
                scope.cancel()
        gate.touch()
        await run(runner, record("say another"))
        second = record(f"shell touch {file}\nsay second", thread=first.thread)
        second.run = evolve(second.run, sandbox="read-only", approval_policy="never")
        assert (await run(runner, second)).text == "second"
    assert second.pid == others[2].pid
    assert second.thread.id == first.thread.id
    assert not file.exists()


@ON_ONE_LOOP
async def test_a_prompt_that_codex_refuses_does_not_change_the_sandbox_of_the_thread(
    codex, home, record, outside
):
    """Codex 0.169 refuses more than 2**20 characters."""
    file = outside / "made"

    def confined(prompt, thread):
        context = record(prompt, thread=thread)
        context.run = evolve(context.run, sandbox="read-only", approval_policy="never")
        return context

    async with make_runner(codex, home, sandbox="danger-full-access") as runner:
        first = record("say first")
        await run(runner, first)
        with pytest.raises(AgentFailed, match="refused the turn"):
            await run(runner, confined("x" * (2**20 + 1), first.thread))
        second = confined(f"shell touch {file}\nsay second", first.thread)
        assert (await run(runner, second)).text == "second"
    assert second.pid == first.pid
    assert not file.exists()


@ON_ONE_LOOP
@pytest.mark.parametrize("is_configured", [True, False])
async def test_a_workspace_is_confined_as_configured_again_after_another_run(
    codex, home, record, models, is_configured
):
    connect = f"socket.create_connection(('127.0.0.1', {models.port}))"
    script = f'shell {sys.executable} -c "import socket; {connect}"\nsay done'
    config = {"sandbox_workspace_write.network_access": True} if is_configured else {}
    reached = []
    async with make_runner(codex, home, sandbox="workspace-write", config=config) as runner:
        thread = None
        for sandbox in ("read-only", None, "read-only", None):
            context = record(script, thread=thread)
            context.run = evolve(context.run, sandbox=sandbox, approval_policy="never")
            await run(runner, context)
            thread = context.thread
            # Codex 0.169 sometimes says nothing of a command that its sandbox refuses at once.
            reached.append(any(one["exit_code"] == 0 for one in of(context, "tool.completed")))
    assert reached == [False, is_configured, False, is_configured]


# --- sub-agents -----------------------------------------------------------------------------


def spawning(task, *then):
    """Return the script of an agent that gives a sub-agent of codex's own a task."""
    return "\n".join([f"agent spawn_agent {json.dumps({'message': task})}", *then])


WAITING = 'agent wait_agent {"targets": ["<0.agent_id>"]}'


def children_of(context):
    """Return the threads of a run's sub-agents, each with what is kept of it."""
    kept = {}
    for data in of(context, "backend.event"):
        kept.setdefault(data["payload"]["threadId"], []).append(data)
    return kept


@ON_ONE_LOOP
async def test_events_of_sub_agents_are_recorded_separately(codex, home, record):
    """Two runs at once in one process, each with a sub-agent whose items have the ids of its own."""
    names = ("one", "two")
    async with make_runner(codex, home, model="fake-model") as runner:
        contexts = [
            record(
                spawning(f"usage 999 9 99\nshell echo by {name}\nsay sub {name}", WAITING, "relay")
            )
            for name in names
        ]
        outcomes = {}

        async def execute(context, name):
            outcomes[name] = (await runner.run(context)).text

        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                for context, name in zip(contexts, names, strict=True):
                    tasks.start_soon(execute, context, name)
    assert contexts[0].pid == contexts[1].pid
    for context, name in zip(contexts, names, strict=True):
        assert f"sub {name}" in outcomes[name]
        assert context.texts() == [outcomes[name]]
        tools = [(one["kind"], one["name"]) for one in of(context, "tool.completed")]
        assert tools == [("agent", "spawn_agent"), ("agent", "wait")]
        assert context.usage.output_tokens == 30  # of its own three requests
        [(child, kept)] = children_of(context).items()
        assert child != context.thread.id
        ends = [data for data in kept if data["kind"] == "item/completed"]
        items = [data["payload"]["item"] for data in ends]
        types = [item["type"] for item in items]
        assert types == ["userMessage", "commandExecution", "agentMessage"]
        assert items[1]["aggregatedOutput"] == f"by {name}\n"
        assert items[2]["text"] == f"sub {name}"
        assert "turn/completed" in [data["kind"] for data in kept]


@ON_ONE_LOOP
@pytest.mark.parametrize("is_approved", [True, False])
async def test_requests_of_a_sub_agent_are_opened_too(codex, home, record, outside, is_approved):
    file = outside / "made"
    decide = {"decision": "approve" if is_approved else "deny"}
    script = spawning(f"escalate touch {file}\nsay sub done", WAITING, "relay")
    context, outcome = await asked(codex, home, record, script, decide, model="fake-model")
    [question] = context.questions
    assert question["detail"]["command"] == f"/bin/bash -lc 'touch {file}'"
    assert file.exists() is is_approved
    assert "sub done" in outcome.text


@ON_ONE_LOOP
@pytest.mark.parametrize("how", ["cancel", "end"])
async def test_a_sub_agent_ends_with_the_run(codex, home, record, models, tmp_path, how):
    """Codex 0.169 lets it go on when the turn that gave it work has ended."""
    begun = tmp_path / "begun"
    task = f"shell touch {begun}; setsid sleep 300 & sleep 300\nsay never"
    gate = f"shell while [ ! -e {begun} ]; do sleep 0.02; done"
    script = spawning(task, gate, *([WAITING] if how == "cancel" else ["say bye"]))
    async with make_runner(codex, home, model="fake-model") as runner:
        context = record(script)
        with anyio.fail_after(60):
            if how == "end":
                assert (await runner.run(context)).text == "bye"
            else:
                with anyio.CancelScope() as scope:
                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(runner.run, context)
                        await context.until(lambda c: c.calls.count("emit tool.started") == 3)
                        [child] = children_of(context)
                        assert processes_of_threads({child})
                        scope.cancel()
        [child] = children_of(context)
        assert processes_of_threads({child, context.thread.id}) == []
        second = record("shell sleep 0.5\nsay second", thread=context.thread)
        assert (await run(runner, second)).text == "second"
        assert second.pid == context.pid
    # It asks its model nothing more, as one would whose command was ended alone.
    assert [one.step for one in models.requests if one.thread_id == child] == [0]


@pytest.mark.parametrize(
    "task", ["stream 4000 1 word", "hang"], ids=["that-says-much", "that-says-nothing"]
)
async def test_a_working_sub_agent_does_not_delay_the_end_of_the_run(codex, home, record, task):
    async with make_runner(codex, home, model="fake-model") as runner:
        context = record(spawning(task, "say bye"))
        assert (await run(runner, context)).text == "bye"
        second = record("say second", thread=context.thread)
        assert (await run(runner, second)).text == "second"
        assert second.pid == context.pid
