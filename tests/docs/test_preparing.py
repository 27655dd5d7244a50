"""What is made once for all processes of a run."""

import hashlib
from pathlib import Path

import pytest
from _pytest.assertion.rewrite import PYC_TAIL
from hypothesis.configuration import storage_directory
from preparing import prepare_once

MODULE = "def test_both() -> None:\n    both = [1, 2]\n    assert both == [2, 1]\n"


def test_processes_find_the_modules_rewritten(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    files = [tmp_path / name for name in ("test_one.py", "test_other.py", "test_broken.py")]
    for file in files:
        file.write_text("assert (" if "broken" in file.name else MODULE)
    prepare_once(pytestconfig, files, [])
    made = sorted(tmp_path.glob("__pycache__/*"))
    assert [file.name for file in made] == [f"test_one{PYC_TAIL}", f"test_other{PYC_TAIL}"]
    before = [file.stat().st_ino for file in made]
    prepare_once(pytestconfig, files, [])
    assert [file.stat().st_ino for file in made] == before, "they are made again"
    (tmp_path / "test_one.py").write_text(f"{MODULE}\n")
    prepare_once(pytestconfig, files, [])
    assert [file.stat().st_ino == one for file, one in zip(made, before, strict=True)] == [
        False,
        True,
    ]


def test_processes_find_the_constants(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    file = tmp_path / "one.py"
    file.write_text(f"NUMBER = 7654321  # {tmp_path}\n")
    name = hashlib.sha1(file.read_bytes(), usedforsecurity=False).hexdigest()[:16]
    kept = storage_directory("constants").path / name
    try:
        prepare_once(pytestconfig, [], [file])
        assert "7654321" in kept.read_text()
    finally:
        kept.unlink(missing_ok=True)
