"""What tests do thousands of times, done once for a process.

A store's first opening makes its schema in as many steps as there are migrations, a configured token is
hashed slowly on purpose, and the web app compiles functions that make addresses, which nobody calls. That
took most of the processor time of many tests, and what it comes to is the same each time.
``tests/stores/test_sqlite_shortcut.py`` holds the copied schema against the real steps.
"""

import contextlib
import functools
import hashlib
from typing import Any, NoReturn

import apsw
import pytest
from werkzeug.routing import Rule

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
