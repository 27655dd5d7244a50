"""The tests copy a new database; one made by the migrations is the same."""

import contextlib

import apsw
import pytest
import shortcuts

from agent_orchestrator.stores.sqlite import SqliteStore

pytestmark = pytest.mark.anyio


def contents(path):
    with contextlib.closing(apsw.Connection(str(path))) as database:
        tables = [
            name
            for (name,) in database.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
        ]
        rows = {
            name: [[*row] for row in database.execute(f'SELECT * FROM "{name}"')] for name in tables
        }
        [commits] = rows["commits"]
        names = {value for value in commits if isinstance(value, str) and len(value) == 32}
        return (
            names,
            [*database.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY 1, 2")],
            {name: len(found) for name, found in rows.items()},
            {name: database.pragma(name) for name in ("user_version", "application_id", "page_size",
             "journal_mode", "encoding", "auto_vacuum", "integrity_check")},
        )  # fmt: skip


async def test_copied_schema_is_the_one_that_the_migrations_make(tmp_path, monkeypatch):
    for name in ("copied", "again"):
        async with SqliteStore(tmp_path / name):
            pass
    monkeypatch.setattr("agent_orchestrator.stores.sqlite.connection.migrate", shortcuts.MIGRATE)
    async with SqliteStore(tmp_path / "made"):
        pass
    names, *copied = contents(tmp_path / "copied")
    other_names, *again = contents(tmp_path / "again")
    made_names, *made = contents(tmp_path / "made")
    assert copied == again == made
    assert len(names) == len(other_names) == len(made_names) == 1
    assert len(names | other_names | made_names) == 3
