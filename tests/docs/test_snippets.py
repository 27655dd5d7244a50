"""The programs in the documents run, and say what the documents say they do."""

import re
from pathlib import Path

import pytest

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
    assert len(blocks) == 3
    assert capsys.readouterr().out == "HELLO\n"
    assert "TestShout" in names
