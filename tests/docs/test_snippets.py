"""The programs in the documents run, and say what the documents say they do."""

import re
from pathlib import Path

import anyio
import pytest

from agent_orchestrator import open_embedded
from agent_orchestrator.ports import Runner

DOCS = Path(__file__).parents[2] / "docs"
PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def programs(name: str) -> list[str]:
    return PYTHON.findall((DOCS / name).read_text())


def test_writing_a_runner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "snippets"}
    blocks = programs("writing-a-runner.md")
    for block in blocks:
        exec(compile(block, "writing-a-runner.md", "exec"), names)
    assert len(blocks) == 4
    assert capsys.readouterr().out == "HELLO\n"
    assert "TestShout" in names
    assert anyio.run(_led, names["runner"]) == "done: tests, done: docs, approved"


async def _led(runner: Runner) -> str:
    async with open_embedded(":memory:", runners=[runner]) as client:
        session = await client.create_session()
        sent = await client.send_message(session.id, "lead")
        assert sent.run is not None
        reply = await client.wait_run(sent.run.id, until="attention")
        assert reply.request is not None, reply
        await client.resolve_request(reply.request.id, "approve")
        run = (await client.wait_run(sent.run.id)).run
    assert run.result is not None, run.error
    return run.result.text
