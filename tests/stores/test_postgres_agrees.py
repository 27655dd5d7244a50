"""The store on PostgreSQL gives the same answers as the one in memory, after the same random changes."""

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from loops import ON_ONE_LOOP
from test_memory_and_sqlite_agree import changes, everything, outcome

from agent_orchestrator.stores.memory import MemoryStore


async def compare(url, played):
    from agent_orchestrator.stores.postgres import PostgresStore

    with anyio.fail_after(60):
        async with MemoryStore() as memory, PostgresStore(url) as postgres:
            for change in played:
                assert await outcome(memory, change) == await outcome(postgres, change)
            expected = await memory.read(everything)
            found = await postgres.read(everything)
            for question, answer in expected.items():
                assert found[question] == answer, question
        async with PostgresStore(url) as reopened:
            assert await reopened.read(everything) == expected
            assert await reopened.check() == []


@ON_ONE_LOOP
@pytest.mark.timeout(300)
@settings(
    max_examples=8,
    deadline=None,
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.function_scoped_fixture,
    ],
)
@given(played=changes)
def test_memory_and_postgresql_stores_give_the_same_answers(postgres, database, played):
    url = database()
    try:
        anyio.run(compare, url, played)
    finally:
        postgres.empty(url)
