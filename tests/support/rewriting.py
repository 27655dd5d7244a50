"""The rewriting of test modules by pytest, done once for all processes of a run.

In a fresh checkout each of them would rewrite and compile each module, all at the same time.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from _pytest.assertion import rewrite
from _pytest.assertion.rewrite import PYC_TAIL, assertstate_key, get_cache_dir


def rewrite_once(config: pytest.Config, files: Sequence[Path]) -> None:
    """Write the bytecode of those files that have none, or an old one, with all processors."""
    parts = os.cpu_count() or 1
    children = []
    for number in range(parts):
        if (child := os.fork()) == 0:
            with suppress(BaseException):  # the processes of the run do what is missing
                for file in files[number::parts]:
                    _rewrite(config, file)
            os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)


def _rewrite(config: pytest.Config, file: Path) -> None:
    pyc = get_cache_dir(file) / f"{file.name.removesuffix('.py')}{PYC_TAIL}"
    if rewrite._read_pyc(file, pyc) is None:
        pyc.parent.mkdir(exist_ok=True)
        source_hash, code = rewrite._rewrite_test(file, config)
        rewrite._write_pyc(config.stash[assertstate_key], code, source_hash, pyc)
