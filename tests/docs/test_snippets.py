"""The programs in the documents run, and print what the documents show."""

import re
import sys
from itertools import pairwise
from pathlib import Path

import anyio
import pytest
from driving import finished
from pages import PAGES, ROOT, blocks, name_of

from agent_orchestrator import open_embedded
from agent_orchestrator.ports.runner import Runner

PROGRAMS = [page for page in PAGES if blocks(page, "python")]


def run(page: Path) -> dict[str, object]:
    """Run the programs of a page, one after the other, as if they were one; return its names."""
    names: dict[str, object] = {"__name__": "snippets"}
    for block in blocks(page, "python"):
        assert block.reason is None, block.place
        source = "\n" * block.line + block.text  # so that a traceback names the page's line
        exec(compile(source, str(page), "exec"), names)
    return names


def outputs(page: Path) -> list[str]:
    """Return what the page says its programs print: the text that follows one."""
    every = blocks(page)
    return [
        after.text
        for before, after in pairwise(every)
        if (before.language, after.language) == ("python", "text")
    ]


@pytest.mark.parametrize("page", PROGRAMS, ids=name_of)
def test_programs_run_and_print_what_the_page_says(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names = run(page)
    printed = capsys.readouterr().out
    assert printed == "".join(outputs(page))
    if page.name == "writing-a-runner.md":
        assert "TestShout" in names
        assert anyio.run(_led, names["runner"]) == "done: tests, done: docs, approved"


def test_runner_in_the_documents_passes_the_contract_suite(tmp_path: Path) -> None:
    page = ROOT / "docs" / "writing-a-runner.md"
    (tmp_path / "test_shown.py").write_text("\n\n".join(b.text for b in blocks(page, "python")))
    plain = ("-q", "-p", "no:cacheprovider", "-p", "no:schemathesis", "-p", "no:randomly")
    argv = [sys.executable, "-m", "pytest", *plain, "test_shown.py"]
    done = finished(argv, 100, cwd=tmp_path, text=True)
    assert done.returncode == 0, done.stdout
    assert re.search(r"\d\d passed", done.stdout), done.stdout


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


def test_documents_contain_programs() -> None:
    assert ROOT / "docs" / "embedding.md" in PROGRAMS
