"""What the processes of a run read of the modules, made once for all of them.

In a fresh checkout each of them would rewrite and compile each test module, as pytest does, and look for the
constants in each of our modules, which Hypothesis tries: all at the same time.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import pytest
from _pytest.assertion import rewrite
from _pytest.assertion.rewrite import PYC_TAIL, assertstate_key, get_cache_dir
from hypothesis.internal.constants_ast import constants_from_module


def prepare_once(config: pytest.Config, tests: Sequence[Path], modules: Sequence[Path]) -> None:
    """Write, with all processors, what is missing or old.

    :param tests: the files to rewrite.
    :param modules: the files with constants.
    """
    parts = os.cpu_count() or 1
    children = []
    for number in range(parts):
        if (child := os.fork()) == 0:
            with suppress(BaseException):  # the processes of the run do what is missing
                for file in tests[number::parts]:
                    _rewrite(config, file)
                for file in modules[number::parts]:
                    module = ModuleType(file.stem)
                    module.__file__ = str(file)
                    constants_from_module(module)
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
