"""What is recorded of a turn, and how it is ended: with a real context, and processes that obey or do not."""

from types import SimpleNamespace

import anyio
import pytest

from agent_orchestrator.domain.errors import AgentFailed
from agent_orchestrator.domain.model import Invocation
from agent_orchestrator.runners.events import AgentEvent
from agent_orchestrator.runners.live import stopping, turn_log
from agent_orchestrator.runners.live.mailbox import Mailbox
from agent_orchestrator.runners.live.messages import Notification
from agent_orchestrator.runners.live.stopping import interrupt, run_shielded, until_deadline
from agent_orchestrator.runners.live.turn_log import TurnLog
from agent_orchestrator.runners.live.turn_state import Event, Prompt
from agent_orchestrator.testing.runners import RecordingContext

pytestmark = pytest.mark.anyio


def said(text):
    return AgentEvent("agent.message", {"text": text})


class Turn:
    """A turn that has begun, with its log and what was recorded in order."""

    def __init__(self, path):
        self.context = RecordingContext("x", cwd=path)
        self.process = SimpleNamespace(
            pid=7, failure=None, stderr_tail="", protocol=SimpleNamespace(agent="The agent")
        )
        invocation = Invocation("agent", ("agent",), str(path))
        self.log = TurnLog(self.context, self.process, invocation, self.record_thread)
        self.log.apply(Event.START)
        self.log.apply(Event.ACCEPTED)

    async def record_thread(self):
        self.context.calls.append("thread")


@pytest.fixture
def turn(tmp_path):
    return Turn(tmp_path)


async def test_events_wait_until_the_agent_has_the_prompt_and_keep_their_order(turn):
    await turn.log.emit([said("one")])
    assert turn.context.texts() == []
    await turn.log.act(turn.log.apply(Event.CONFIRMED))
    await turn.log.emit([said("two")])
    assert turn.context.texts() == ["one", "two"]
    assert sorted(turn.context.calls[:2]) == ["delivered", "report_process"]
    assert turn.context.calls[2] == "thread"
    assert turn.log.state.prompt is Prompt.RECORDED


async def test_a_process_is_recorded_without_the_prompt_if_that_is_late(turn, monkeypatch):
    monkeypatch.setattr(turn_log, "TURN_START_TIMEOUT_S", 0.01)
    with anyio.fail_after(60):
        await turn.log.record_if_late()
    assert turn.context.calls == ["report_process"]
    await turn.log.act(turn.log.apply(Event.CONFIRMED))
    assert turn.context.calls == ["report_process", "delivered", "thread"]


async def test_a_turn_without_a_prompt_releases_its_events(turn):
    await turn.log.emit([said("one")])
    turn.log.apply(Event.FAILED)
    await turn.log.act(turn.log.apply(Event.UNCONFIRMED))
    assert turn.context.texts() == ["one"]
    assert "delivered" not in turn.context.calls


async def test_pieces_are_recorded_while_waiting_for_the_next_message(turn):
    await turn.log.act(turn.log.apply(Event.CONFIRMED))
    piece = AgentEvent("agent.message.delta", {"text": "a", "item_id": "m"})
    await turn.log.emit([piece])
    mailbox, found = Mailbox(), []

    async def take():
        found.append(await turn.log.next(mailbox))

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(take)
            await turn.context.until(lambda context: context.texts("agent.message.delta") == ["a"])
            mailbox.put(Notification("more", {}))
    assert found == [Notification("more", {})]


class Process(SimpleNamespace):
    """What is asked of a process: only whether and how it was ended."""

    def __init__(self):
        super().__init__(protocol=SimpleNamespace(agent="the agent"), failure=None, killed=False)
        self.ended = anyio.Event()

    def fail(self, failure):
        self.failure = failure
        self.ended.set()

    def kill(self):
        self.killed = True
        self.ended.set()


async def test_an_agent_that_ends_its_turn_keeps_its_process():
    process, mailbox, read = Process(), Mailbox(), []

    async def ask():
        for name in ("more", "ended"):
            mailbox.put(Notification(name, {}))
        await anyio.sleep_forever()  # the answer to the request itself does not matter

    async def read_one():
        read.append((await mailbox.take()).method)

    with anyio.fail_after(60):
        await interrupt(process, ask, read_one, lambda: "ended" in read)
    assert read == ["more", "ended"]
    assert process.failure is None


async def test_the_process_of_an_agent_that_does_not_end_its_turn_is_ended(monkeypatch):
    monkeypatch.setattr(stopping, "INTERRUPT_S", 0.01)
    process, mailbox = Process(), Mailbox()
    with anyio.fail_after(60):
        await interrupt(process, anyio.sleep_forever, mailbox.take, lambda: False)
    assert process.failure.message == "the agent did not end its turn when asked to"


async def test_the_end_of_a_process_ends_the_interrupt():
    process, mailbox = Process(), Mailbox()
    mailbox.end()
    with anyio.fail_after(60):
        await interrupt(process, anyio.sleep_forever, mailbox.take, lambda: False)
    assert process.failure is None


async def test_steps_after_the_stop_deadline_end_with_the_process(tmp_path):
    context, process = RecordingContext("x", cwd=tmp_path), Process()
    context.force_stop.set()
    with anyio.fail_after(60):
        await until_deadline(context, process, process.ended.wait)
    assert process.killed


async def test_a_step_goes_on_when_the_run_is_canceled(tmp_path):
    context, process, steps = RecordingContext("x", cwd=tmp_path), Process(), []
    begun, go_on = anyio.Event(), anyio.Event()

    async def work():
        begun.set()
        await go_on.wait()
        steps.append("done")

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run_shielded, context, process, work)
            await begun.wait()
            tasks.cancel_scope.cancel()
            go_on.set()
    assert steps == ["done"]
    assert process.failure is None


@pytest.mark.parametrize("is_hurried", [False, True])
async def test_a_canceled_step_without_an_answer_ends_the_process(
    tmp_path, monkeypatch, is_hurried
):
    monkeypatch.setattr(stopping, "INTERRUPT_S", 60 if is_hurried else 0.01)
    context, process = RecordingContext("x", cwd=tmp_path), Process()
    if is_hurried:
        context.force_stop.set()
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run_shielded, context, process, process.ended.wait)
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
    assert process.killed is is_hurried
    assert (process.failure is None) is is_hurried


async def test_the_failure_of_a_shielded_step_is_raised_unchanged(tmp_path):
    async def work():
        raise AgentFailed("auth_failed", "who are you?")

    context = RecordingContext("x", cwd=tmp_path)
    with pytest.raises(AgentFailed, match="who are you"):
        await run_shielded(context, Process(), work)
