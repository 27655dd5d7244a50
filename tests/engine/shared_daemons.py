"""Engines on one PostgreSQL database, in one process."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import pytest
from attrs import define

from agent_orchestrator import (
    Client,
    EngineConfig,
    Orchestrator,
    ProviderConfig,
    Routing,
)
from agent_orchestrator.domain.ids import SortableIds
from agent_orchestrator.hosts import this_host
from agent_orchestrator.ports.store import Store
from agent_orchestrator.testing.scripted import PROVIDER, ScriptedRunner

PATIENCE_S = 60.0


@define
class Daemon:
    """An engine on the shared database."""

    client: Client
    engine: Orchestrator
    runner: ScriptedRunner
    store: Any

    @property
    def id(self) -> str:
        return self.engine.core.instance

    async def ran(self, run_id: str) -> bool:
        """Return whether it executes, or executed, the last attempt of a run."""
        diagnostics = (await self.client.diagnose_run(run_id)).diagnostics
        return diagnostics.attempts[-1].worker_id.startswith(f"{self.id}/")


@pytest.fixture
def daemons(database: Callable[[], str]) -> Any:
    """Return how to open engines on one database, with further settings of theirs."""
    from agent_orchestrator.stores.postgres import PostgresStore

    url = database()

    @asynccontextmanager
    async def opened(
        *names: str,
        workers: int = 2,
        providers: tuple[str, ...] = (PROVIDER,),
        clock_off_s: int = 0,
        **options: Any,
    ) -> AsyncIterator[list[Daemon]]:
        options["clock"] = lambda: datetime.now(UTC) + timedelta(seconds=clock_off_s)
        options["ids"] = SortableIds(lambda: time.time_ns() + clock_off_s * 10**9)
        async with AsyncExitStack() as stack:
            yield [
                await stack.enter_async_context(
                    one(PostgresStore(url), workers, providers, options)
                )
                for _ in names
            ]

    @asynccontextmanager
    async def one(
        store: Store, workers: int, providers: tuple[str, ...], options: dict[str, Any]
    ) -> AsyncIterator[Daemon]:
        runner = ScriptedRunner()
        config = EngineConfig(
            providers={name: ProviderConfig(runner, name) for name in providers},
            routing=Routing(providers[0]),
            max_concurrency=workers,
            host=this_host(),
            **options,
        )
        async with store, Orchestrator(store, config) as engine:
            yield Daemon(Client(engine), engine, runner, store)

    return opened


async def until(condition: Callable[[], Any]) -> None:
    with anyio.fail_after(PATIENCE_S):
        while not await condition():
            await anyio.sleep(0.02)


async def heard(client: Client, session_id: str, text: str) -> None:
    """Wait until an agent's text is in a session's stream."""
    with anyio.fail_after(PATIENCE_S):
        async with client.events(session_id, follow=True) as events:
            async for event in events:
                if event.data.get("text") == text and event.event_type == "agent.message":
                    return


async def check(client: Client) -> None:
    """Check the whole database."""
    report = await client.check_store()
    assert report.ok, report.findings
