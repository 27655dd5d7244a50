"""The tables of the PostgreSQL store have a column for each field. No server is needed."""

import re
from importlib.resources import files

import pytest

from agent_orchestrator.stores.sql import rows

MIGRATIONS = files("agent_orchestrator.stores.postgres") / "migrations"

TABLES = {
    "sessions": rows.SESSIONS,
    "messages": rows.MESSAGES,
    "runs": rows.RUNS,
    "attempts": rows.ATTEMPTS,
    "requests": rows.REQUESTS,
    "access_tokens": rows.TOKENS,
    "audit": rows.AUDIT,
    "idempotency": rows.RECORDS,
    "notices": rows.NOTICES,
}


def script() -> str:
    steps = sorted(MIGRATIONS.iterdir(), key=lambda step: step.name)
    return "\n".join(step.read_text() for step in steps)


@pytest.mark.parametrize("name", TABLES)
def test_each_field_has_a_column(name: str) -> None:
    [created] = re.findall(rf"CREATE TABLE {name} \((.*?)\n\)", script(), re.DOTALL)
    columns = set(re.findall(r"^    (\w+) ", created, re.MULTILINE))
    columns |= set(re.findall(rf"ALTER TABLE {name} ADD COLUMN (\w+)", script()))
    missing = set(TABLES[name].columns.split(", ")) - columns
    assert not missing, f"add them to {name} in a file in stores/postgres/migrations"


def test_all_texts_are_compared_by_bytes() -> None:
    texts = re.findall(r"^.*\btext\b.*$", script(), re.MULTILINE)
    assert len(texts) > 100
    assert not [line for line in texts if 'text COLLATE "C"' not in line and "--" not in line]
