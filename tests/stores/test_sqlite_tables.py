"""The tables follow from the model: the columns exist, and values are read as they were written."""

import contextlib
import json
from pathlib import Path
from typing import Any

import apsw
import attrs
import pytest
from attrs import evolve

from agent_orchestrator.domain.audit import AuditEntry
from agent_orchestrator.domain.model import (
    Attempt,
    ChoiceLimits,
    Image,
    Invocation,
    Option,
    RunError,
    RunResult,
    Usage,
)
from agent_orchestrator.domain.tokens import AccessToken
from agent_orchestrator.stores.sql.rows import (
    ATTEMPTS,
    AUDIT,
    MESSAGES,
    RECORDS,
    REQUESTS,
    RUNS,
    SESSIONS,
    TOKENS,
)
from agent_orchestrator.stores.sql.tables import Table, table
from agent_orchestrator.stores.sqlite import SqliteStore
from agent_orchestrator.stores.sqlite.schema import APPLICATION_ID, migrations
from agent_orchestrator.testing.stores.samples import (
    NOW,
    a_message,
    a_record,
    a_request,
    a_run,
    a_session,
)

SESSION = a_session()
RUN = a_run(SESSION.id)
IMAGES = (Image("image/png", 3, "ab"), Image("image/gif", 4, "cd"))
INVOCATION = Invocation("codex", ("codex", "exec"), "/work", "p", ("-c", "x"))
FULL_RUN = evolve(
    RUN,
    result=RunResult("done"),
    error=RunError("timeout", "late"),
    usage=Usage(1, 2, 3, 0.1),
    output_schema={"type": "object"},
    chosen=ChoiceLimits("low", {"codex": "m"}),
    started_at=NOW,
)

VALUES: list[tuple[str, Table[Any], Any]] = [
    ("sessions", SESSIONS, SESSION),
    ("messages", MESSAGES, a_message(SESSION.id)),
    ("messages", MESSAGES, evolve(a_message(SESSION.id), images=IMAGES, is_steering=True)),
    ("runs", RUNS, RUN),
    ("runs", RUNS, FULL_RUN),
    ("attempts", ATTEMPTS, Attempt(RUN.id, 1, "w", "codex", NOW)),
    ("attempts", ATTEMPTS, Attempt(RUN.id, 1, "w", "codex", NOW, invocation=INVOCATION)),
    ("idempotency", RECORDS, a_record()),
    ("access_tokens", TOKENS, AccessToken("t", "n", "p", ("read",), "x", NOW, None)),
    ("audit", AUDIT, AuditEntry(1, NOW, "p", "named", "o", None, "ok", {"a": 1}, "h")),
    ("requests", REQUESTS, a_request(RUN)),
    (
        "requests",
        REQUESTS,
        evolve(
            a_request(RUN),
            detail={"a": 1},
            options=(Option("y", "Yes", "allow_once"), Option.named("n")),
        ),
    ),
]


@pytest.mark.parametrize(("name", "kind", "value"), VALUES)
def test_row_of_a_value_is_read_as_the_same_value(name: str, kind: Table[Any], value: Any) -> None:
    row = kind.values(value)
    assert len(row) == len(kind.columns.split(", "))
    behind = (
        (value.last_seq, value.last_line, json.dumps(value.threads), value.oldest_cursor)
        if name == "sessions"
        else ()
    )
    again = kind.read((*row, *behind, "beyond"))
    assert again == value
    for one in attrs.fields(type(value)):
        assert type(getattr(again, one.name)) is type(getattr(value, one.name)), one.name


def test_the_schema_has_every_column() -> None:
    with contextlib.closing(apsw.Connection(":memory:")) as connection:
        for script in migrations():
            connection.execute(script)
        for name, kind, _ in VALUES:
            columns = {row[1] for row in connection.execute(f"PRAGMA table_info({name})")}
            assert set(kind.columns.split(", ")) <= columns, name


def test_new_field_of_a_model_becomes_a_column() -> None:
    @attrs.frozen
    class Inner:
        word: str
        words: tuple[str, ...] = ()

    @attrs.frozen
    class Model:
        id: str
        many: tuple[Inner, ...]
        maybe: Inner | None
        flag: bool | None
        source: Inner
        count: int = 3

    kind = table(Model, spread=("source",))
    assert kind.columns == "id, many, maybe, flag, count, source_word, source_words"
    assert kind.of("m").startswith("m.id, m.many")
    assert kind.select(count="count + 1").endswith("count + 1, source_word, source_words")
    value = Model("a", (Inner("b", ("c",)),), None, None, Inner("d"))
    assert kind.read(kind.values(value)) == value
    assert json.loads(kind.values(value)[1]) == [{"word": "b", "words": ["c"]}]


@pytest.mark.anyio
async def test_json_lists_of_an_older_schema_become_objects(tmp_path: Path) -> None:
    path = tmp_path / "data.db"
    message = evolve(a_message(SESSION.id), images=IMAGES)
    attempt = Attempt(RUN.id, 1, "w", "codex", NOW, invocation=INVOCATION)
    before = {
        "usage": "[1,2,3,0.1]",
        "chosen": '["low",{"codex":"m"}]',
        "images": '[["image/png",3,"ab"],["image/gif",4,"cd"]]',
        "invocation": '["codex",["codex","exec"],"/work","p",["-c","x"]]',
    }
    with contextlib.closing(apsw.Connection(str(path))) as connection:
        connection.pragma("application_id", APPLICATION_ID)
        for script in migrations()[:26]:
            connection.execute(script)
        connection.pragma("user_version", 26)
        for name, kind, value in (
            ("sessions", SESSIONS, SESSION),
            ("runs", RUNS, FULL_RUN),
            ("messages", MESSAGES, message),
            ("attempts", ATTEMPTS, attempt),
        ):
            columns = kind.columns.split(", ")
            cells = dict(zip(columns, kind.values(value), strict=True))
            cells |= {column: text for column, text in before.items() if column in cells}
            later = {
                "sessions": ("notices", "host", "retain_days", "retain_events", "retain_bytes"),
                "runs": ("kind", "holder"),
            }
            for column in later.get(name, ()):
                del cells[column]
            marks = ", ".join("?" * len(cells))
            names = ", ".join(cells)
            connection.execute(f"INSERT INTO {name} ({names}) VALUES ({marks})", [*cells.values()])
    async with SqliteStore(path) as store:
        assert await store.read(lambda view: view.run(RUN.id)) == FULL_RUN
        assert await store.read(lambda view: view.message(message.id)) == message
        assert await store.read(lambda view: view.attempts(RUN.id)) == [attempt]
