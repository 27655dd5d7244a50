"""What tests do thousands of times, done once for a process.

A store's first opening makes its schema in as many steps as there are migrations, a configured token is
hashed slowly on purpose, and the web app compiles functions that make addresses, which nobody calls. That
took most of the processor time of many tests, and what it comes to is the same each time.
``tests/stores/test_sqlite_shortcut.py`` holds the copied schema against the real steps.

A daemon asks each agent for its version, and Claude Code whether it asks before it acts. The pinned agents answer
the same to each daemon, so those that are forked from one process share the answers.
"""

import contextlib
import functools
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import apsw
import pytest
from real_agents import MODULES
from werkzeug.routing import Rule

from agent_orchestrator.hosts.local import LocalHost
from agent_orchestrator.stores.sqlite import connection, schema

MIGRATE = schema.migrate
SCRYPT = hashlib.scrypt
STEPS = schema.migrations()


@functools.cache
def _migrated() -> bytes:
    with contextlib.closing(apsw.Connection(":memory:")) as made:
        made.pragma("application_id", schema.APPLICATION_ID)
        MIGRATE(made)
        return made.serialize("main")


def _migrate(database: apsw.Connection) -> None:
    if database.pragma("user_version") or schema.migrations() != STEPS:
        MIGRATE(database)
        return
    with contextlib.closing(apsw.Connection(":memory:")) as made:
        made.deserialize("main", _migrated())
        with database.backup("main", made, "main") as copy:
            copy.step()
    database.execute("UPDATE commits SET database = lower(hex(randomblob(16)))")


def _no_address(*_: Any, **__: Any) -> NoReturn:
    raise AssertionError("the app makes no addresses of its routes")


def take(patch: pytest.MonkeyPatch) -> None:
    """Take the shortcuts in this process, and in those that are forked from it."""
    _migrated()
    patch.setattr(connection, "migrate", _migrate)
    patch.setattr(hashlib, "scrypt", functools.cache(SCRYPT))
    patch.setattr(Rule, "_compile_builder", lambda *_: _no_address)


def share_answers(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let the processes that are forked from this one keep in a folder what the pinned agents have answered."""
    # Only processes that start agents need it.
    from agent_orchestrator.runners.claude import self_test

    ask, test = LocalHost.output, self_test._problem

    def output(
        self: LocalHost, argv: Sequence[str], *, env: Mapping[str, str], timeout_s: float
    ) -> bytes:
        answer = functools.partial(ask, self, argv, env=env, timeout_s=timeout_s)
        file = _answer_of(folder, argv[0], "version")
        if list(argv[1:]) != ["--version"] or file is None:
            return answer()
        return _kept(file, answer)

    async def problem(spec: Any) -> tuple[str | None, bool]:
        file = _answer_of(folder, spec.command, "self-test")
        if file is not None and file.exists():
            return None, True
        found = await test(spec)
        if file is not None and found == (None, True):
            file.touch()
        return found

    patch.setattr(LocalHost, "output", output)
    patch.setattr(self_test, "_problem", problem)


def _answer_of(folder: Path, program: str, question: str) -> Path | None:
    """Return the file for an answer of an agent; None if it is not a pinned one."""
    path = Path(program).resolve()
    if MODULES.resolve() not in path.parents or not path.exists():
        return None
    return folder / f"{question}-{hashlib.sha256(os.fsencode(path)).hexdigest()}"


def _kept(file: Path, answer: Callable[[], bytes]) -> bytes:
    if not file.exists():
        # Moved there as a whole: another process may read it at the same time.
        made = file.with_name(f"{file.name}.{os.getpid()}")
        made.write_bytes(answer())
        made.replace(file)
    return file.read_bytes()
