"""The tests' temporary files are in memory if there is enough."""

import os
import shutil
import subprocess
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
MEMORY = Path("/dev/shm")
SCRIPT = '. ./bin/memory-files; printf %s "${TMPDIR:-none}"'


def place(**environ: str) -> str:
    kept = {name: value for name, value in os.environ.items() if name != "TMPDIR"}
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", SCRIPT],
        cwd=ROOT, env=kept | environ, capture_output=True, text=True, timeout=60, check=True,
    ).stdout  # fmt: skip


def test_given_tmpdir_is_kept(tmp_path: Path) -> None:
    assert place(TMPDIR=str(tmp_path)) == str(tmp_path)


def test_temporary_files_are_in_memory_and_removed_afterwards() -> None:
    if not MEMORY.is_dir() or shutil.disk_usage(MEMORY).free < 9 * 2**30:
        pytest.skip("/dev/shm has no room")
    if psutil.virtual_memory().available < 14 * 2**30:
        pytest.skip("this machine has not enough memory")
    found = place()
    assert found.startswith(f"{MEMORY}/ao-")
    assert not Path(found).exists()
