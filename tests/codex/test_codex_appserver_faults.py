"""What becomes of a run when an app-server does not say what it should: each ends in a clear state."""

import json
import sys
from pathlib import Path

import anyio
import pytest
from pace import allowed

from agent_orchestrator.domain.errors import AgentFailed, ConfigError
from agent_orchestrator.ports.runner import Availability
from agent_orchestrator.runners.codex.appserver import CodexAppServerRunner
from agent_orchestrator.runners.codex.versions import VERSIONS
from agent_orchestrator.runners.live import peer, process, stopping, turn_log
from agent_orchestrator.testing.runners import RecordingContext

pytestmark = pytest.mark.anyio

FAKE = Path(__file__).parent / "fake_appserver.py"


@pytest.fixture
def command(tmp_path):
    path = tmp_path / "codex"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} {FAKE} "$@"\n')
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def record(tmp_path):
    def make(prompt, fault="none", **more):
        env = {"FAKE_FAULT": fault, "FAKE_MARK": str(tmp_path / "been-here")}
        return RecordingContext(prompt, cwd=tmp_path, env=env, **more)

    return make


def backend_events(context):
    return [data for kind, data in context.events if kind == "backend.event"]


async def faulty(command, record, fault, seconds=90):
    """Return the context of a run with the fault, its end, and that of a run after it."""
    async with CodexAppServerRunner(command=command) as runner:
        context = record("fault", fault)
        with anyio.fail_after(allowed(seconds)):
            try:
                end = (await runner.run(context)).text
            except AgentFailed as failure:
                end = failure
            after = await runner.run(record("hello", fault))
    assert after.text == "hello"
    return context, end


async def test_lines_that_are_not_messages_are_recorded(command, record):
    context, end = await faulty(command, record, "not-json")
    assert end == "hello"
    assert [data["payload"]["text"] for data in backend_events(context)] == [
        "this is no message",
        '"nor this"',
        "[1, 2]",
    ]


async def test_unknown_messages_are_recorded_and_unknown_requests_refused(command, record):
    context, end = await faulty(command, record, "unknown")
    answer = json.loads(end)
    assert (answer["id"], answer["error"]["code"]) == ("x-1", -32601)
    assert "item/invented" in answer["error"]["message"]
    kept = backend_events(context)
    assert [data["kind"] for data in kept] == [
        "thread/invented",
        "item/started",
        "item/completed",
        "item/completed",
        "item/invented",
    ]
    assert kept[0]["payload"]["what"] == "a notification of a newer codex"
    assert kept[2]["payload"]["item"]["more"] == {"x": 1}


async def test_ids_of_the_two_sides_are_independent(command, record):
    _, end = await faulty(command, record, "ids")
    assert end == "hello"


async def test_a_line_of_fifty_megabytes_is_read(command, record):
    context, end = await faulty(command, record, "long")
    assert end == "x" * 50 * 2**20
    assert context.texts() == [end]


async def test_a_line_beyond_what_can_be_kept_fails_its_run(command, record):
    _, end = await faulty(command, record, "too-long")
    assert end.code == "provider_error"
    assert "bytes" in end.message


@pytest.mark.parametrize("fault", ["half", "eof"])
async def test_a_process_that_ends_during_a_turn_fails_the_run(command, record, fault):
    _, end = await faulty(command, record, fault)
    assert end.code == "agent_crashed"
    assert "3" in end.message


async def test_a_prompt_that_was_accepted_and_not_recorded_is_given_again(command, record):
    """Codex 0.169 killed in that moment has it not."""
    async with CodexAppServerRunner(command=command) as runner:
        context = record("hello", "not-taken")
        with anyio.fail_after(60):
            assert (await runner.run(context)).text == "hello"
    assert context.calls.count("delivered") == 1


async def test_a_question_that_codex_withdraws_ends_and_the_turn_goes_on(command, tmp_path):
    class Asked(RecordingContext):
        """Nobody answers. The question is withdrawn once it was asked."""

        async def ask_parent(self, *_, **options):
            (tmp_path / "been-here").touch()
            try:
                await anyio.sleep_forever()
            finally:
                self.calls.append("withdrawn")

    env = {"FAKE_FAULT": "withdrawn", "FAKE_MARK": str(tmp_path / "been-here")}
    async with CodexAppServerRunner(command=command) as runner:
        context = Asked("fault", cwd=tmp_path, env=env)
        with anyio.fail_after(60):
            assert (await runner.run(context)).text == "hello"
    assert context.calls.count("withdrawn") == 1


async def test_a_steering_message_that_no_turn_got_is_reported(command, record):
    """The process dies of it, when it has the prompt."""
    async with CodexAppServerRunner(command=command) as runner:
        context = record("fault", "steered")
        with anyio.fail_after(60), pytest.RaisesGroup(AgentFailed):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(runner.run, context)
                await context.until(lambda c: "delivered" in c.calls and c.steer("turn right"))
    [said] = [data["message"] for kind, data in context.events if kind == "run.error"]
    assert "turn right" in said


async def test_a_message_to_a_process_that_has_not_taken_the_prompt_is_given_to_the_next(
    command, record, monkeypatch
):
    monkeypatch.setattr(turn_log, "TURN_START_TIMEOUT_S", 0.05)
    async with CodexAppServerRunner(command=command) as runner:
        context = record("hello", "steered-not-taken")
        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(runner.run, context)
                while not context.steer("turn right"):
                    await anyio.sleep(0.01)
    assert context.texts() == ["hello", "turn right"]


async def test_a_process_that_only_closes_its_stdout_has_crashed(command, record, monkeypatch):
    monkeypatch.setattr(process, "_EXIT_S", 0.2)
    _, end = await faulty(command, record, "closed")
    assert end.code == "agent_crashed"


async def test_a_blocked_process_is_ended_when_its_run_is_canceled(command, record, monkeypatch):
    monkeypatch.setattr(stopping, "INTERRUPT_S", 0.3)
    async with CodexAppServerRunner(command=command) as runner:
        context = record("fault", "stuck")
        with anyio.fail_after(60):
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(runner.run, context)
                    await context.until(lambda c: "delivered" in c.calls)
                    scope.cancel()
            second = record("hello", "stuck")
            assert (await runner.run(second)).text == "hello"
        assert second.pid != context.pid


async def test_a_blocked_process_is_killed_at_the_stop_deadline(command, record, monkeypatch):
    monkeypatch.setattr(stopping, "INTERRUPT_S", 600)
    async with CodexAppServerRunner(command=command) as runner:
        context = record("fault", "stuck")
        context.force_stop.set()
        with anyio.fail_after(60):
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(runner.run, context)
                    await context.until(lambda c: "delivered" in c.calls)
                    scope.cancel()
    assert scope.cancelled_caught


@pytest.mark.parametrize("is_hurried", [False, True], ids=["patient", "hurried"])
@pytest.mark.parametrize("what", ["the-prompt", "a-message"])
async def test_a_process_that_does_not_answer_is_not_waited_for_long_when_the_run_is_canceled(
    command, record, monkeypatch, what, is_hurried
):
    monkeypatch.setattr(stopping, "INTERRUPT_S", 60 if is_hurried else 0.3)
    context = record("unanswered" if what == "the-prompt" else "fault", "steered-deaf")
    async with CodexAppServerRunner(command=command) as runner:
        with anyio.fail_after(60), anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(runner.run, context)
                await context.until(lambda c: "report_process" in c.calls)
                while what == "a-message" and not context.steer("turn right"):
                    await anyio.sleep(0.01)
                await anyio.wait_all_tasks_blocked()
                if is_hurried:
                    context.force_stop.set()
                scope.cancel()
        assert scope.cancelled_caught
        again = record("hello")
        assert (await runner.run(again)).text == "hello"
    assert again.pid != context.pid


async def test_a_process_that_stops_reading_is_ended(command, record, monkeypatch):
    monkeypatch.setattr(peer, "WRITE_TIMEOUT_S", 0.3)
    async with CodexAppServerRunner(command=command) as runner:
        context = record("fault", "stuck")
        failures = []

        async def failing():
            try:
                await runner.run(context)
            except AgentFailed as failure:
                failures.append(failure)

        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(failing)
                await context.until(lambda c: "delivered" in c.calls)
                context.steer("x" * 900_000)
    [failure] = failures
    assert failure.code == "provider_error"
    assert "does not read" in failure.message


async def test_a_question_that_is_too_long_to_judge_is_refused_with_its_size(command, record):
    context, end = await faulty(command, record, "asks-long")
    words = "item/fileChange/requestApproval has 6,000,"
    assert words in json.loads(end)["error"]["message"]
    assert words in str(context.events)
    assert "ask_parent approval_request" not in context.calls


async def test_a_process_that_does_not_read_the_answers_to_what_it_asks_is_ended(
    command, record, monkeypatch
):
    monkeypatch.setattr(peer, "MAX_UNWRITTEN", 100_000)
    _, end = await faulty(command, record, "unread")
    assert end.code == "provider_error"
    assert "does not read" in end.message


@pytest.mark.parametrize("seconds", [0, 0.001, 31 * 86_400])
def test_an_approval_timeout_out_of_bounds_is_a_configuration_error(seconds):
    """Each would be declined without anybody's being asked."""
    with pytest.raises(ConfigError, match=r"^approval_timeout_s: must be between"):
        CodexAppServerRunner(approval_timeout_s=seconds)


@pytest.mark.parametrize(
    ("version", "available", "says"),
    [
        ("0.168.9", False, "too old"),
        ("0.169.0", True, None),
        ("0.170.0", True, "newer"),
        ("1.0.0", True, "newer"),
        ("odd", True, None),
        (None, True, None),
    ],
)
def test_an_old_or_untested_codex_version_is_reported(version, available, says):
    found = VERSIONS.judged(Availability(available=True, version=version))
    assert found.available is available
    assert (found.reason is None) if says is None else (says in found.reason)


async def test_threads_begin_in_the_only_history_mode_that_codex_supports(command, record):
    _, end = await faulty(command, record, "history")
    assert end == "hello"
