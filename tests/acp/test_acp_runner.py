"""The runner of ACP with an agent that does what the prompt says."""

import itertools
import json
import os
import re
import sys
from pathlib import Path

import anyio
import psutil
import pytest
from attrs import evolve
from deciding import CANCELED, EXPIRED, Deciding

from agent_orchestrator.domain.errors import AgentFailed, ConfigError
from agent_orchestrator.domain.model import Thread, Usage
from agent_orchestrator.runners.acp import agents, runner, sessions
from agent_orchestrator.runners.acp.agent import AcpAgent, OwnTool
from agent_orchestrator.runners.live import stopping
from agent_orchestrator.testing.runners import RunnerContract

pytestmark = pytest.mark.anyio

AGENT = Path(__file__).parent / "scripted_agent.py"
NUMBERS = itertools.count()

COMMAND = {
    "toolCallId": "t1",
    "kind": "execute",
    "title": "touch it",
    "rawInput": {"command": "touch it"},
}
KINDS = ["allow_always", "allow_once", "reject_always", "reject_once"]


APPROVED = {"decision": "approve"}
FOR_SESSION = {**APPROVED, "scope": "session"}
DENIED = {"decision": "deny"}


def context_for(prompt, decisions=(), **more):
    """Return the context of a run in a new session, with what is decided about its questions, in order."""
    context = Deciding(prompt if isinstance(prompt, str) else json.dumps(prompt), **more)
    context.session = evolve(context.session, id=f"ses_{next(NUMBERS)}")
    context.decide = [*decisions]
    return context


def make_runner(settings=None, known=None, monkeypatch=None, **more):
    argv = [sys.executable, "-S", str(AGENT)]
    if settings:
        argv.append(json.dumps(settings))
    if known is not None:
        monkeypatch.setitem(agents.AGENTS, "scripted", known)
        more["agent"] = "scripted"
    # With the tools, most agents need another process for each run.
    return runner.AcpRunner(name="mine", argv=[*argv, "acp"], **{"tools": False, **more})


@pytest.fixture
def known(monkeypatch):
    """Make runners of an agent with a row of its own."""

    def make(settings=None, more=None, **row):
        row.setdefault("ask_mode", "default")
        return make_runner(settings, AcpAgent(argv=(), **row), monkeypatch, **(more or {}))

    return make


@pytest.fixture
def record(tmp_path):
    def make(prompt, decisions=(), **more):
        return context_for(prompt, decisions, cwd=tmp_path, **more)

    return make


def of(context, event_type):
    return [data for kind, data in context.events if kind == event_type]


def messages(context):
    return [data["text"] for data in of(context, "agent.message")]


async def run(one, context, seconds=90):
    with anyio.fail_after(seconds):
        return await one.run(context)


async def failed(one, context):
    with pytest.raises(AgentFailed) as raised:
        await run(one, context)
    return raised.value


def following(context, prompt, decisions=(), **more):
    """Return the context of the session's next run."""
    found = context_for(prompt, decisions, cwd=context.session.cwd, thread=context.thread, **more)
    found.session = context.session
    return found


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


class TestContract(RunnerContract):
    succeeding, answer = "hello", "hello"
    lasting = '[["say", "begun"], ["sleep", 300]]'
    failing, failure_code = '[["error", -32603, "API Error 500"]]', "provider_error"

    def make_runner(self):
        return make_runner()

    def make_context(self, prompt, cwd):
        return context_for(prompt, cwd=cwd)


# --- sessions


async def test_turns_go_on_in_one_session_of_one_process(record):
    async with make_runner() as one:
        first = record("one")
        assert (await run(one, first)).text == "one"
        second = following(first, "two")
        assert (await run(one, second)).text == "two"
    assert first.pid == second.pid
    assert first.thread.id == second.thread.id
    assert first.usage == Usage(10, 2, 5)


async def test_the_conversation_is_recorded_before_the_agent_has_the_prompt(record):
    async with make_runner() as one:
        context = record("one")
        await run(one, context)
    assert context.calls.index("set_thread") < context.calls.index("delivered")
    assert context.calls.index("delivered") < context.calls.index("emit agent.message")


@pytest.mark.parametrize("way", ["resumes", "loads"])
async def test_another_process_continues_the_conversation(record, tmp_path, way):
    (tmp_path / "sessions").mkdir()
    settings = {"sessions": str(tmp_path / "sessions"), "resumes": way == "resumes", "loads": True}
    first = record("one")
    async with make_runner(settings) as one:
        await run(one, first)
    async with make_runner(settings) as one:
        second = following(first, "two")
        assert (await run(one, second)).text == "two"
    assert second.pid != first.pid
    assert second.thread.id == first.thread.id
    assert messages(second) == ["two"]  # and not what was said before


async def test_a_history_that_is_replayed_after_loading_is_not_recorded(record, known, tmp_path):
    """The id in messages is the one that it was loaded by. The conversation keeps its own."""
    (tmp_path / "sessions").mkdir()
    settings = {"sessions": str(tmp_path / "sessions"), "resumes": False, "loads": True}
    row = {"load_prefix": " ", "late_replay": True}
    first = record("one")
    async with known({**settings, "late_replay": True}, **row) as one:
        await run(one, first)
    async with known({**settings, "late_replay": True}, **row) as one:
        second = following(first, "two")
        assert (await run(one, second)).text == "two"
        third = following(second, [["ask", COMMAND, KINDS], ["answer"]], [APPROVED])
        assert "allow_once-1" in (await run(one, third)).text
        assert third.pid == second.pid
    assert second.thread.id == third.thread.id == first.thread.id
    assert messages(second) == ["two"]


async def test_an_agent_that_does_not_answer_after_replaying_its_history_is_ended(
    record, known, monkeypatch
):
    monkeypatch.setattr(sessions, "OPEN_S", 0.5)
    settings = {"resumes": False, "loads": True}
    settings["mute"] = ["_agent_orchestrator/ping"]
    async with known(settings, late_replay=True) as one:
        failure = await failed(one, record("one", thread=Thread("s-1", {})))
    assert (failure.code, "was not done" in failure.message) == ("provider_error", True)
    settings = {"resumes": False, "loads": True, "late_replay": True, "endless": True}
    async with known(settings, late_replay=True) as one:
        failure = await failed(one, record("one", thread=Thread("s-1", {})))
    assert "was not done with session/load" in failure.message


async def test_a_failed_request_to_the_model_is_reported(record, known):
    """Whatever else is on stderr, and also if nothing else comes."""
    pattern = re.compile(r"failed: (.*)")
    noise = ["stderr", "x" * 20_000]
    script = [
        *[["stderr", "failed: slow down"], noise, ["sleep", 1]],
        *[["stderr", "no failure"], ["stderr", "failed: " + "y" * 20_000], noise, ["sleep", 1]],
        ["say", "done"],
    ]
    async with known(failed_request=pattern) as one:
        context = record(script)
        assert (await run(one, context)).text == "done"
        notes = [data["message"] for data in of(context, "run.error")]
        assert notes[0] == "a request to the model of scripted failed: slow down"
        assert len(notes) == 2
        assert len(notes[1]) < 3_000
        assert context.calls.index("delivered") < context.calls.index("emit run.error")
        # What was told is not told again.
        after = following(context, [["stderr", "else"], ["sleep", 1], ["say", "on"]])
        await run(one, after)
        assert of(after, "run.error") == []


@pytest.mark.parametrize("choice", ["fresh", "fail"])
async def test_a_lost_conversation_is_replaced_or_fails_the_run(record, tmp_path, choice):
    (tmp_path / "sessions").mkdir()
    settings = {"sessions": str(tmp_path / "sessions")}
    context = record("one", thread=Thread("unknown", {}))
    async with make_runner(settings, on_missing_thread=choice) as one:
        if choice == "fail":
            failure = await failed(one, context)
            assert (failure.code, failure.message) == ("thread_missing", "there is no such session")
            return
        assert (await run(one, context)).text == "one"
    assert context.thread.id != "unknown"
    assert [data["code"] for data in of(context, "run.error")] == ["thread_missing"]


async def test_an_agent_that_cannot_continue_a_conversation_begins_another(record):
    async with make_runner({"resumes": False}) as one:
        context = record("one", thread=Thread("s-1", {}))
        assert (await run(one, context)).text == "one"
        second = following(context, "two")
        await run(one, second)
    assert context.thread.id != "s-1"
    assert second.thread.id == context.thread.id  # its process has it


async def test_the_mode_in_which_it_asks_is_set_whenever_a_session_is_opened(
    record, known, tmp_path
):
    (tmp_path / "sessions").mkdir()
    script = [["request", "x/mode"], ["say", "done"]]
    settings = {"sessions": str(tmp_path / "sessions"), "sticky": True}
    context = record(script)
    async with known(settings) as one:
        failure = await failed(one, context)
    assert failure.code == "provider_error"
    assert "stayed in the mode 'auto'" in failure.message
    async with known({**settings, "mode": "default"}) as one:
        assert (await run(one, record("one"))).text == "one"


async def test_an_agent_without_the_mode_in_which_it_asks_gets_no_prompt(record, known):
    async with known({"refuses": {"session/set_config_option": -32602}}) as one:
        context = record("one")
        failure = await failed(one, context)
    assert failure.code == "invalid_config"
    assert "'default'" in failure.message
    assert "delivered" not in context.calls


async def test_a_mode_that_the_agent_leaves_by_itself_is_set_again(record, known):
    changed = {"sessionUpdate": "current_mode_update", "currentModeId": "auto"}
    async with known() as one:
        context = record([["update", changed], ["sleep", 1], ["say", "done"]])
        assert (await run(one, context)).text == "done"
    (note,) = [data["message"] for data in of(context, "run.error")]
    assert "'auto'" in note
    assert "'default' again" in note


async def test_the_mode_is_set_again_for_a_later_run_only_if_the_agent_has_left_it(record, known):
    async with known() as one:
        first = record([["mode"]])
        assert (await run(one, first)).text == "default, set 1 times"
        assert (await run(one, following(first, [["mode"]]))).text == "default, set 1 times"
        leaves = [["end", {"stopReason": "end_turn"}], ["leave", "auto"]]
        await run(one, following(first, leaves))
        (process,) = one._pool.serving
        with anyio.fail_after(60):
            while not process.has_left_mode:
                await anyio.sleep(0.01)
        assert (await run(one, following(first, [["mode"]]))).text == "default, set 2 times"
        assert (await run(one, following(first, [["mode"]]))).text == "default, set 2 times"


async def test_the_model_of_a_message_does_not_affect_the_next(record):
    async with make_runner() as one:
        first = record([["model"]], model="large")
        assert (await run(one, first)).text == "large"
        second = following(first, [["model"]])
        assert (await run(one, second)).text == "small"
        failure = await failed(one, following(second, "three", model="huge"))
        assert failure.code == "invalid_config"
        assert "'huge'" in failure.message
    async with make_runner() as one:  # the agent itself goes on with the model of the last message
        assert (await run(one, following(second, [["model"]]))).text == "small"


async def test_the_first_process_in_a_home_starts_alone(record, known, tmp_path):
    outcomes = []

    async def answer(name):
        outcomes.append((await run(one, record(name, env=home))).text)

    home = {"HOME": str(tmp_path)}
    starting = known({"first": str(tmp_path)}, home=("HOME",))
    async with starting as one, anyio.create_task_group() as tasks:
        for name in ("one", "two", "three"):
            tasks.start_soon(answer, name)
    assert sorted(outcomes) == ["one", "three", "two"]


async def test_after_a_first_start_that_failed_the_next_is_alone(record, known, tmp_path):
    home = {"HOME": str(tmp_path)}
    (tmp_path / "making").mkdir()
    async with known({"first": str(tmp_path)}, home=("HOME",)) as one:
        assert "CREATE TABLE" in (await failed(one, record("one", env=home))).message
        (tmp_path / "making").rmdir()
        async with anyio.create_task_group() as tasks:
            for name in ("two", "three"):
                tasks.start_soon(run, one, record(name, env=home))


# --- questions


async def test_the_option_is_chosen_by_its_kind_and_not_its_position(record):
    async with make_runner() as one:
        context = record([["ask", COMMAND, KINDS], ["answer"]], [APPROVED])
        await run(one, context)
    (question,) = context.questions
    assert question["kind"] == "approval_request"
    assert question["text"] == "Run: touch it"
    assert question["detail"]["command"] == "touch it"
    kinds = [option.kind for option in question["options"]]
    assert kinds == ["allow_once", "allow_session", "deny", "deny_and_stop"]
    chosen = json.loads(messages(context)[-1])["outcome"]
    assert chosen == {"outcome": "selected", "optionId": "allow_once-1"}


@pytest.mark.parametrize(
    ("decision", "kinds", "answer"),
    [
        (APPROVED, KINDS, "allow_once-1"),
        (FOR_SESSION, KINDS, "allow_once-1"),
        ({"decision": "answer", "text": "yes, do"}, KINDS, "reject_once-3"),
        (DENIED, KINDS, "reject_once-3"),
        (EXPIRED, KINDS, "reject_once-3"),
        (CANCELED, KINDS, "reject_once-3"),
        (DENIED, ["allow_once", "reject_always"], "cancelled"),
    ],
)
async def test_a_decision_becomes_the_option_of_its_kind(record, decision, kinds, answer):
    async with make_runner() as one:
        context = record([["ask", COMMAND, kinds], ["answer"]], [decision])
        await run(one, context)
    outcome = json.loads(next(text for text in messages(context) if "outcome" in text))["outcome"]
    assert outcome.get("optionId", outcome["outcome"]) == answer


async def test_a_request_that_is_too_long_to_judge_is_denied_with_its_size(record):
    long = {**COMMAND, "title": "a long one", "rawInput": {"command": "x\n" * 3_000_000}}
    async with make_runner() as one:
        context = record([["ask", long, KINDS], ["answer"]], [APPROVED])
        await run(one, context)
    assert context.questions == []
    assert "a long one has 6,000," in of(context, "run.error")[0]["message"]
    outcome = json.loads(next(text for text in messages(context) if "outcome" in text))["outcome"]
    assert outcome["optionId"] == "reject_once-3"


@pytest.mark.parametrize("kinds", [["allow_always", "reject_always"], []])
async def test_a_request_that_cannot_be_allowed_once_is_denied(record, kinds):
    async with make_runner() as one:
        context = record([["ask", COMMAND, kinds], ["answer"]], [APPROVED])
        await run(one, context)
    assert context.questions == []
    assert json.loads(messages(context)[-1]) == {"outcome": {"outcome": "cancelled"}}
    assert "only once" in of(context, "run.error")[0]["message"]


async def test_an_approval_for_the_session_holds_for_the_same_and_in_the_next_process(record):
    script = [["ask", COMMAND, KINDS], ["answer"]]
    other = {**COMMAND, "rawInput": {"command": "touch another"}}
    async with make_runner() as one:
        context = record([["ask", COMMAND, KINDS], *script], [FOR_SESSION])
        await run(one, context)
        assert len(context.questions) == 1
    async with make_runner() as one:
        second = following(context, [*script, ["ask", other, KINDS]], [DENIED])
        await run(one, second)
    assert [question["detail"]["command"] for question in second.questions] == ["touch another"]
    assert json.loads(messages(second)[0])["outcome"]["optionId"] == "allow_once-1"


async def test_the_text_of_a_denial_is_the_next_prompt(record):
    async with make_runner() as one:
        decision = {**DENIED, "text": "use the other file"}
        context = record([["ask", COMMAND, KINDS], ["say", "stopped"]], [decision])
        ended = await run(one, context)
    assert messages(context) == ["stopped", ended.text]
    assert ended.text == "Your request was denied, with this message: use the other file"
    (tool,) = of(context, "tool.completed")
    assert tool["status"] == "declined"


@pytest.mark.parametrize("reason", ["end_turn", "cancelled"])
async def test_an_agent_whose_turn_a_denial_ends_is_told_to_go_on(record, known, reason):
    async with known(denial_ends_turn=True) as one:
        context = record([["ask", COMMAND, KINDS], ["end", {"stopReason": reason}]], [DENIED])
        assert (await run(one, context)).text == "Your request was denied."


async def test_an_agent_that_asks_again_after_each_denial_is_ended(record, known):
    asks = [["ask", COMMAND, KINDS]]
    async with known({"otherwise": asks}, denial_ends_turn=True) as one:
        context = record(asks, [DENIED] * 12)
        failure = await failed(one, context)
    assert failure.code == "denied"
    assert len(context.questions) == 11
    assert of(context, "run.error") == []


async def test_an_agent_that_works_between_denials_goes_on(record, known):
    steps = [["tool"], ["ask", COMMAND, KINDS]]
    async with known({"otherwise": steps}, denial_ends_turn=True) as one:
        context = record(steps, [DENIED] * 12 + [APPROVED])
        await run(one, context)
    assert len(context.questions) == 13


async def test_a_question_that_is_denied_and_stopped_ends_the_turn(record):
    async with make_runner() as one:
        context = record([["ask", COMMAND, KINDS], ["say", "no"]], [{"option": "deny_and_stop"}])
        failure = await failed(one, context)
        assert failure.code == "denied"
        after = following(context, "hello")
        assert (await run(one, after)).text == "hello"


async def test_a_question_that_the_agent_withdraws_ends_and_the_turn_goes_on(record, tmp_path):
    class Marking(Deciding):
        async def ask_parent(self, *given, **more):
            (tmp_path / "been-asked").touch()
            try:
                return await super().ask_parent(*given, **more)
            finally:
                self.calls.append("withdrawn")

    async with make_runner() as one:
        context = Marking(json.dumps([["withdraw", COMMAND], ["say", "on"]]), cwd=tmp_path)
        assert (await run(one, context)).text == "on"
    assert "withdrawn" in context.calls


async def test_a_call_of_an_orchestration_tool_opens_no_request(record, known):
    own = OwnTool("title", r"agent_orchestrator_(\w+)", kind="other")
    call = {"toolCallId": "t1", "kind": "other", "title": "agent_orchestrator_wait"}
    update = {"sessionUpdate": "tool_call", "rawInput": {"x": 1}, **call}
    lies = [{**call, "toolCallId": "t2", "kind": "execute"}, {**COMMAND, "toolCallId": "t1"}]
    script = [["update", update], ["ask", call, KINDS], ["answer"]]
    async with known(own_tool=own) as one:
        context = record([*script, *(["ask", lie, KINDS] for lie in lies)], [DENIED, DENIED])
        await run(one, context)
    assert len(context.questions) == len(lies)
    assert json.loads(messages(context)[0])["outcome"]["optionId"] == "allow_once-1"
    assert of(context, "tool.started")[0] == {
        "tool_id": "t1",
        "kind": "mcp",
        "name": "agent_orchestrator.wait",
        "input": {"x": 1},
    }


# --- ends


@pytest.mark.parametrize(
    "script", [[["sleep", 300]], [["ask", COMMAND, KINDS]]], ids=["work", "question"]
)
async def test_after_a_canceled_run_the_session_goes_on(record, script):
    has_begun = "ask" if script[0][0] == "ask" else "emit agent.message.delta"
    async with make_runner() as one:
        context = record([["say", "begun"], *script])
        with anyio.fail_after(60), anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(one.run, context)
                await context.until(lambda c: has_begun in c.calls)
                scope.cancel()
        after = following(context, "hello")
        assert (await run(one, after)).text == "hello"
        # A call of a tool may have left something running.
        assert (after.pid == context.pid) is (script[0][0] == "sleep")


async def test_a_parked_run_ends_its_process_at_once(record):
    async with make_runner() as one:
        context = record([["say", "begun"], ["sleep", 300]])
        with anyio.fail_after(60), anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(one.run, context)
                await context.until(lambda c: "emit agent.message.delta" in c.calls)
                context.is_parking = True
                scope.cancel()
        assert not psutil.pid_exists(context.pid)
        after = following(context, "hello")
        assert (await run(one, after)).text == "hello"
        assert after.thread.id == context.thread.id


async def test_a_run_that_used_tools_is_canceled_with_all_it_started(record):
    tool = {"sessionUpdate": "tool_call", **COMMAND}
    async with make_runner() as one:
        context = record([["run", ["sleep", "600"]], ["update", tool], ["sleep", 300]])
        with anyio.fail_after(60), anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(one.run, context)
                await context.until(lambda c: "emit tool.started" in c.calls)
                scope.cancel()
        (pid,) = (int(text) for text in messages(context))
        with anyio.fail_after(60):
            await gone(pid)
            await gone(context.pid)


async def test_an_agent_that_ignores_a_cancel_is_ended(record, monkeypatch):
    monkeypatch.setattr(stopping, "INTERRUPT_S", 0.3)
    async with make_runner() as one:
        context = record([["say", "begun"], ["deaf"]])
        with anyio.fail_after(60), anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(one.run, context)
                await context.until(lambda c: "emit agent.message.delta" in c.calls)
                scope.cancel()
        await gone(context.pid)
        assert (await run(one, following(context, "hello"))).text == "hello"


@pytest.mark.parametrize(
    ("step", "code", "words"),
    [
        (["error", -32000, "Authentication required"], "auth_failed", "not logged in"),
        (["error", -32603, "Internal error", {"details": "429 slow down"}], "rate_limited", "slow"),
        (["error", -32603, "no", {"errorKind": "rate_limit"}], "rate_limited", "no"),
        (
            ["error", 400, '{"error": {"message": "a bad request"}}'],
            "provider_error",
            "a bad request",
        ),
        (["error", 401, "who are you"], "auth_failed", "who"),
        (["error", -32603, "ran out of its context window"], "context_exceeded", "context"),
        (["error", 429, "You have exhausted your daily quota"], "quota_exhausted", "daily"),
        (["error", 429, "Quota exceeded for requests per minute"], "rate_limited", "minute"),
        (
            ["error", 400, "It exceeds the maximum number of tokens allowed (1)."],
            "context_exceeded",
            "allowed",
        ),
        (["error", -32603, "The socket connection was closed"], "provider_unreachable", "socket"),
        (["end", {"stopReason": "refusal"}], "provider_error", "refused"),
        (["end", {"stopReason": "max_tokens"}], "provider_error", "tokens"),
        (["end", {"stopReason": "cancelled"}], "provider_error", "cancelled"),
        (["end", {"stopReason": "invented"}], "provider_error", "invented"),
        (["exit", 3], "agent_crashed", "it has no more to say"),
    ],
)
async def test_a_turn_without_a_result_is_a_failure_with_a_code(record, step, code, words):
    async with make_runner() as one:
        context = record([["say", "begun"], step])
        failure = await failed(one, context)
        assert failure.code == code
        assert words in failure.message
        assert messages(context) == ["begun"]
        second = following(context, "hello")
        assert (await run(one, second)).text == "hello"
        # A login may be read at the start only.
        assert (second.pid != context.pid) is (code in ("auth_failed", "agent_crashed"))


async def test_a_failed_login_does_not_end_a_conversation_that_no_other_process_could_continue(
    record,
):
    async with make_runner({"resumes": False}) as one:
        refused = [["say", "begun"], ["error", 403, "not for you"]]
        context = record("hello")
        await run(one, context)
        second = following(context, refused)
        assert (await failed(one, second)).code == "auth_failed"
        third = following(second, "again")
        assert (await run(one, third)).text == "again"
        assert (third.pid, third.thread.id) == (context.pid, context.thread.id)
        # Without an answer, there is nothing to lose.
        other = record(refused)
        assert (await failed(one, other)).code == "auth_failed"
        again = following(other, "hello")
        assert (await run(one, again)).text == "hello"
        assert again.pid != other.pid


async def test_a_conversation_that_is_too_long_may_be_a_reason_to_stop(record, known):
    async with known(overflow_reason="max_tokens") as one:
        failure = await failed(one, record([["end", {"stopReason": "max_tokens"}]]))
    assert failure.code == "context_exceeded"


async def test_an_error_reported_as_a_message_fails_the_run(record, known):
    script = [["say", "Error: 429 slow down"], ["end", {"stopReason": "end_turn"}]]
    async with known(hides_errors=True) as one:
        failure = await failed(one, record(script))
        assert (failure.code, failure.message) == ("rate_limited", "Error: 429 slow down")
        assert (await run(one, record("fine"))).text == "fine"


# --- agents that do not say what they should


@pytest.mark.parametrize(
    ("settings", "code", "words"),
    [
        ({"version": 2}, "provider_unavailable", "version 2"),
        ({"refuses": {"initialize": -32600}}, "provider_error", "refuses"),
        ({"refuses": {"session/new": -32000}}, "auth_failed", "not logged in"),
        ({"refuses": {"session/new": -32603}}, "provider_error", "refuses"),
    ],
)
async def test_an_agent_that_opens_no_session_fails_the_run(record, settings, code, words):
    async with make_runner(settings) as one:
        context = record("hello")
        failure = await failed(one, context)
        assert (
            code != "auth_failed" or one._pool.serving == []
        )  # it may read its login at its start
    assert failure.code == code
    assert words in failure.message
    assert "delivered" not in context.calls


async def test_an_agent_that_never_opens_the_session_is_ended(record, monkeypatch):
    monkeypatch.setattr(sessions, "OPEN_S", 0.3)
    async with make_runner({"mute": ["session/new"]}) as one:
        failure = await failed(one, record("hello"))
    assert "session/new" in failure.message


async def test_unknown_updates_are_recorded_and_unknown_requests_refused(record):
    strange = [
        {"sessionUpdate": "invented", "x": {"y": [1]}},
        {"sessionUpdate": "agent_message_chunk", "content": {"type": "image", "data": "AAAA"}},
        {"sessionUpdate": "tool_call", "title": "without an id"},
        {},
    ]
    script = [
        *(["update", one] for one in strange),
        ["notify", "session/update", {"sessionId": "another", "update": {"sessionUpdate": "plan"}}],
        ["notify", "_invented", {"z": 1}],
        ["raw", "this is no message"],
        ["request", "fs/write_text_file"],
        ["answer"],
    ]
    async with make_runner() as one:
        context = record(script)
        ended = await run(one, context)
    assert json.loads(ended.text)["code"] == -32601
    kept = of(context, "backend.event")
    assert [data["kind"] for data in kept] == [
        "invented",
        "agent_message_chunk",
        "tool_call",
        "session/update",
        "session/update",
        "_invented",
        "stdout",
    ]
    assert kept[0]["payload"]["x"] == {"y": [1]}


async def test_updates_of_unknown_and_ended_tools_are_not_lost_and_not_repeated(record):
    update = {"sessionUpdate": "tool_call_update", "toolCallId": "t9", "status": "completed"}
    async with make_runner() as one:
        context = record([["update", update], ["update", update], ["say", "done"]])
        await run(one, context)
    assert [kind for kind, _ in context.events if kind.startswith("tool")] == [
        "tool.started",
        "tool.completed",
    ]


async def test_a_line_of_many_megabytes_is_read_and_a_longer_one_fails(record):
    async with make_runner() as one:
        context = record([["line", 20 * 2**20], ["say", "on"]])
        assert (await run(one, context)).text == "on"
        failure = await failed(one, record([["line", 65 * 2**20], ["sleep", 60]]))
    assert "bytes" in failure.message


async def test_a_process_that_dies_before_it_has_the_prompt_is_replaced(record, tmp_path):
    """The next one continues the conversation."""
    async with make_runner() as one:
        first = record("one")
        await run(one, first)
        os.kill(first.pid, 9)
        second = following(first, "two")
        assert (await run(one, second)).text == "two"
    assert second.calls.count("delivered") == 1


async def test_a_missing_working_directory_fails_the_run(record, tmp_path):
    async with make_runner() as one:
        context = record("one")
        context.session = evolve(context.session, cwd=str(tmp_path / "gone"))
        failure = await failed(one, context)
    assert failure.code == "invalid_config"
    assert failure.message.startswith("the working directory does not exist")


# --- steering, tools, settings


async def test_a_message_during_the_turn_reaches_an_agent_that_supports_it(record, known):
    async with known({"steers": True}, steers=True) as one:
        context = record([["say", "begun "], ["steered"], ["answer"]])
        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(one.run, context)
                await context.until(lambda c: "delivered" in c.calls and c.steer("turn left"))
    assert messages(context) == ['begun "turn left"']


async def test_the_tools_come_with_the_token_of_each_run(record, known):
    env = {"AGENTCTL_URL": "http://127.0.0.1:1", "AGENTCTL_AUTH_TOKEN": "first"}
    with_tools = {"tools": True}
    async with known(more=with_tools, renews_tools=True) as one:
        first = record("one", env=env)
        await run(one, first)
        second = following(first, "two", env={**env, "AGENTCTL_AUTH_TOKEN": "second"})
        await run(one, second)
        assert second.pid == first.pid
    async with known(more=with_tools) as one:  # it would keep the token of the first run
        third = record("one", env=env)
        await run(one, third)
        fourth = following(third, "two", env={**env, "AGENTCTL_AUTH_TOKEN": "second"})
        await run(one, fourth)
        assert fourth.pid != third.pid


async def test_an_agent_that_does_not_connect_to_its_tools_is_reported(record):
    env = {"AGENTCTL_URL": "http://127.0.0.1:1", "AGENTCTL_AUTH_TOKEN": "token"}
    async with make_runner(tools=True) as one:
        for more in ({"env": env}, {}):
            context = record("one", **more)
            await run(one, context)
            (note,) = [data["message"] for data in of(context, "run.error")]
            assert "without its tools" in note
        connected = record("one", env=env)
        connected.has_used_token = True
        await run(one, connected)
    async with make_runner() as one:
        without = record("one")
        await run(one, without)
    assert of(connected, "run.error") == of(without, "run.error") == []


async def test_the_probe_shows_whether_the_agent_was_logged_in(record):
    async with make_runner() as one:
        before = await one.probe(os.environ)
        assert (before.logged_in, before.version) == (None, None)
        await failed(one, record([["error", -32000, "Authentication required"]]))
        found = await one.probe(os.environ)
        assert (found.available, found.logged_in, found.version) == (True, False, "7.0")
        assert "not logged in" in found.reason
        await run(one, record("hello"))
        found = await one.probe(os.environ)
        assert (found.logged_in, found.reason) == (True, None)


async def test_the_tools_are_reached_without_a_proxy(record):
    env = {"AGENTCTL_URL": "http://127.0.0.1:1", "HTTP_PROXY": "http://proxy", "NO_PROXY": "x"}
    async with make_runner(tools=True) as one:
        context = record([["variable", "NO_PROXY"]], env=env)
        assert (await run(one, context)).text == "x,127.0.0.1"


def test_an_unknown_agent_needs_arguments():
    with pytest.raises(ConfigError, match="'mine' is not known"):
        runner.AcpRunner(name="mine")
    with pytest.raises(ConfigError, match="'nobody' is not known"):
        runner.AcpRunner(name="mine", agent="nobody", argv=["x"])


async def test_an_agent_that_is_not_installed_is_not_available():
    found = await runner.AcpRunner(name="qwen", argv=["/nonexistent/qwen"]).probe(
        {"PATH": "/usr/bin"}
    )
    assert not found.available
    assert (
        found.reason
        == "there is no file /nonexistent/qwen; install it with: npm install -g @qwen-code/qwen-code"
    )
