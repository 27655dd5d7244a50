import anyio
import pytest

from agent_orchestrator.domain.model import Thread
from agent_orchestrator.runners.demo import FILE, DemoRunner
from agent_orchestrator.testing.runners import RecordingContext, RunnerContract

pytestmark = pytest.mark.anyio


class TestDemoContract(RunnerContract):
    failing = None

    def make_runner(self):
        # Slow enough for `lasting` to be cancelled, fast enough for the rest.
        return DemoRunner("demo", pause_s=0.02)


async def test_the_demo_agent_introduces_itself_and_shows_each_kind_of_event(tmp_path):
    context = RecordingContext("hello there", cwd=tmp_path)
    with anyio.fail_after(45):
        outcome = await DemoRunner(pause_s=0).run(context)
    kinds = [kind for kind, _ in context.events]
    assert kinds[0] == "agent.message"
    assert "demo agent" in context.texts()[0]
    assert "I ask no model" in context.texts()[0]
    for kind in ("tool.started", "tool.output", "tool.completed", "file.changed", "plan.updated"):
        assert kind in kinds
    assert kinds.count("agent.message.delta") > 10
    assert context.texts()[-1] == outcome.text
    assert "first message" in outcome.text
    assert FILE in outcome.text
    assert (tmp_path / FILE).read_text().startswith("Written by the demo agent")
    [changes] = [data["changes"] for kind, data in context.events if kind == "file.changed"]
    assert changes == [{"path": str(tmp_path / FILE), "kind": "add"}]
    assert context.usage.output_tokens > 0


async def test_a_second_message_resumes_the_conversation(tmp_path):
    first = RecordingContext("one", cwd=tmp_path)
    second = RecordingContext("two", cwd=tmp_path)
    with anyio.fail_after(45):
        await DemoRunner(pause_s=0).run(first)
        second.thread = first.thread
        outcome = await DemoRunner(pause_s=0).run(second)
    assert second.thread == Thread(first.thread.id, {"messages": 2})
    assert "message number 2" in outcome.text
    [changes] = [data["changes"] for kind, data in second.events if kind == "file.changed"]
    assert changes[0]["kind"] == "update"


async def test_the_demo_agent_says_so_if_it_cannot_read_or_write(tmp_path):
    context = RecordingContext("one", cwd=tmp_path / "nowhere")
    with anyio.fail_after(45):
        outcome = await DemoRunner(pause_s=0).run(context)
    assert "could not write" in outcome.text
    assert "run.error" in [kind for kind, _ in context.events]
    [tool] = [data for kind, data in context.events if kind == "tool.completed"]
    assert tool["status"] == "failed"


async def test_file_names_that_are_not_utf8_are_shown(tmp_path):
    (tmp_path / "caf\udce9").touch()
    context = RecordingContext("one", cwd=tmp_path)
    with anyio.fail_after(45):
        await DemoRunner(pause_s=0).run(context)
    [tool] = [data for kind, data in context.events if kind == "tool.completed"]
    assert "caf?" in tool["output"]
