"""The contract of runners, for each way to read a program's output, on both event loops."""

import json
import sys
from pathlib import Path

import anyio
import pytest

from agent_orchestrator.runners.command import CommandRunner, FailRule, Rule
from agent_orchestrator.testing.runners import RecordingContext, RunnerContract

AGENT = (sys.executable, "-S", str(Path(__file__).parent / "agents.py"))

MAP = (
    Rule({"type": "done"}, result="$.text"),
    Rule({"type": "error"}, fail=FailRule("rate_limited", "$.error")),
)


class TestLinesContract(RunnerContract):
    succeeding, answer = "print hello", "hello"
    lasting = "last"
    failing, failure_code = "exit 3", "agent_crashed"

    def make_runner(self):
        return CommandRunner("mine", [*AGENT, "prompt"], version_argv=[*AGENT, "print", "1.2"])


class TestTextContract(TestLinesContract):
    lasting = "stubborn"

    def make_runner(self):
        return CommandRunner(
            "mine", [*AGENT, "prompt"], output="text", stop_signal="TERM", stop_grace_s=0.1
        )


class TestObjectsContract(RunnerContract):
    succeeding = "jsonl " + json.dumps({"type": "done", "text": "hello"})
    answer = "hello"
    lasting = "last"
    failing, failure_code = 'jsonl {"type":"error","error":"slow down"}', "rate_limited"

    def make_runner(self):
        return CommandRunner("mine", [*AGENT, "prompt"], output="jsonl", map=MAP)


@pytest.mark.anyio
async def test_lines_come_while_the_agent_works(tmp_path):
    context = RecordingContext("", cwd=tmp_path)
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(CommandRunner("mine", [*AGENT, "last"]).run, context)
            await context.until(lambda c: c.texts() == ["ready"])
            tasks.cancel_scope.cancel()
