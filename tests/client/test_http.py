"""The client contract over HTTP, on either event loop, against a daemon's web app on loopback."""

import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path
from typing import Self, TypeVar, cast

import anyio
import anyio.from_thread
import anyio.lowlevel
import pytest
from attrs import define, evolve
from loops import ON_ONE_LOOP

from agent_orchestrator import Client, EngineConfig, Orchestrator, ProviderConfig, Routing, connect
from agent_orchestrator.hosts import this_host
from agent_orchestrator.operations.events import StreamRequest
from agent_orchestrator.operations.sessions import CreateSession
from agent_orchestrator.operations.table import Operation
from agent_orchestrator.ports.transport import Reply, Subscription, Transport
from agent_orchestrator.stores.registry import open_store
from agent_orchestrator.testing.clients import ClientContract
from agent_orchestrator.testing.scripted import PROVIDER, ScriptedRunner
from agentd.app import create_app
from agentd.auth import Guard
from agentd.lifetime import Lifetime
from agentd.server import listen, serve, url_of

TOKEN = "a-token-for-tests"

Req = TypeVar("Req")
Res = TypeVar("Res")


class Served:
    """A daemon's engine and web app in a thread with another event loop.

    The tests' loop may be trio's, the web server's is always asyncio's.
    """

    def __init__(
        self, store: str | Path, *, starts_runs: bool = True, host: str | None = None
    ) -> None:
        self._store = store
        self._host = host
        self._starts_runs = starts_runs
        self._listener = listen("127.0.0.1", 0)
        self.url = url_of(self._listener, "127.0.0.1")
        self._ready = threading.Event()
        self._thread = threading.Thread(target=anyio.run, args=(self._serve,))

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(60)
        return self

    def __exit__(self, *exc: object) -> None:
        anyio.from_thread.run_sync(self._stop, token=self._token)
        self._thread.join(60)
        self._listener.close()
        assert not self._thread.is_alive()

    def _stop(self) -> None:
        self._lifetime.close()
        self._stopped.set()

    async def _serve(self) -> None:
        self._token = anyio.lowlevel.current_token()
        self._stopped = anyio.Event()
        self._lifetime = Lifetime()
        config = EngineConfig(
            providers={PROVIDER: ProviderConfig(ScriptedRunner(), PROVIDER)},
            routing=Routing(PROVIDER),
            max_concurrency=2,
            host=this_host(),
            host_name=self._host,
        )
        guard = Guard([TOKEN])
        async with open_store(str(self._store)) as store, Orchestrator(store, config) as engine:
            if not self._starts_runs:
                await engine.pool.stop_starting()
            app = create_app(engine, guard=guard, lifetime=self._lifetime)
            self._ready.set()
            await serve(app, self._listener, self._stopped.wait)


@contextmanager
def served(
    store: str | Path, *, starts_runs: bool = True, host: str | None = None
) -> Iterator[str]:
    with Served(store, starts_runs=starts_runs, host=host) as one:
        yield one.url


@ON_ONE_LOOP
class TestOverHttp(ClientContract):
    @pytest.fixture
    async def client(self, tmp_path: Path) -> AsyncIterator[Client]:
        with served(tmp_path / "data.db") as url:
            async with connect(url, token=TOKEN) as one:
                yield one


ON_POSTGRES = {
    "test_lists_have_the_newest_first_and_page_both_ways",
    "test_closing_with_cascade_closes_the_tree_and_cancels_its_runs",
    "test_a_session_resumes_its_thread",
    "test_when_busy_interrupt_cancels_then_runs",
    "test_outcomes_wait_for_a_busy_parent_and_are_delivered_together",
    "test_a_repeated_spawn_with_the_same_key_makes_one_child",
    "test_a_child_asks_and_its_parent_answers",
    "test_requests_expire_and_are_canceled_with_their_run",
    "test_an_interrupted_reader_continues_from_its_cursor",
    "test_wait_returns_at_its_timeout_or_at_a_change",
    "test_the_same_key_fifty_times_at_once_makes_one_run",
    "test_all_sessions_are_followed_in_one_stream",
    "test_the_store_is_checked_and_copied_while_it_is_in_use",
    "test_tokens_are_created_listed_and_revoked",
    "test_grants_are_set_read_and_inherited",
}
"""The part of the contract that runs on PostgreSQL. Its store passes the contract of stores, so the rest has
nothing to find. ``CONTRACT_ON_POSTGRES=1`` runs all of it."""


@ON_ONE_LOOP
class TestOverPostgres(ClientContract):
    @pytest.fixture
    async def client(self, database: Callable[[], str]) -> AsyncIterator[Client]:
        with served(database()) as url:
            async with connect(url, token=TOKEN) as one:
                yield one


@ON_ONE_LOOP
class TestOverAnotherDaemon(ClientContract):
    """The client calls one daemon, and another one of the same database executes all runs."""

    @pytest.fixture
    async def client(self, database: Callable[[], str]) -> AsyncIterator[Client]:
        url = database()
        with served(url), served(url, starts_runs=False) as other:
            async with connect(other, token=TOKEN) as one:
                yield one

    test_status_describes_the_daemon = None  # type: ignore[assignment] # this one has no workers


@define
class Placing:
    """A transport that makes each session on another host than that of its daemon."""

    transport: Transport
    host: str

    async def call(self, operation: Operation[Req, Res], request: Req) -> Reply[Res]:
        if isinstance(request, CreateSession):
            cwd = request.cwd or str(Path.cwd())
            request = cast(Req, evolve(request, host=self.host, cwd=cwd))
        return await self.transport.call(operation, request)

    def subscribe(self, request: StreamRequest) -> AbstractAsyncContextManager[Subscription]:
        return self.transport.subscribe(request)


@ON_ONE_LOOP
class TestOverAnotherHost(ClientContract):
    """The client calls a daemon of one host, and a daemon of another host executes all runs."""

    @pytest.fixture
    async def client(self, database: Callable[[], str]) -> AsyncIterator[Client]:
        url = database()
        with served(url, host="there"), served(url, host="here") as here:
            async with connect(here, token=TOKEN) as one:
                yield Client(Placing(one.transport, "there"))

    async def test_all_its_runs_are_on_the_other_host(self, client: Client) -> None:
        session = await client.create_session()
        run = (await client.send_message(session.id, "say here")).run
        assert run is not None
        await client.wait_run(run.id, timeout_s=60)
        attempts = (await client.diagnose_run(run.id)).diagnostics.attempts
        assert [attempt.host for attempt in attempts] == ["there"]


if not os.environ.get("CONTRACT_ON_POSTGRES"):
    assert all(hasattr(ClientContract, name) for name in ON_POSTGRES)
    ON_POSTGRES.add("test_all_its_runs_are_on_the_other_host")
    for contract in (TestOverPostgres, TestOverAnotherDaemon, TestOverAnotherHost):
        for name in dir(contract):
            if name.startswith("test_") and name not in ON_POSTGRES:
                setattr(contract, name, None)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["trio"])
class TestOverHttpOnTrio:
    """The tests of the contract that wait, stream, are interrupted or concurrent.

    The other calls use the same code and differ only in their data.
    """

    client = TestOverHttp.client
    _complete_soon = staticmethod(ClientContract._complete_soon)

    test_wait = ClientContract.test_wait_returns_at_its_timeout_or_at_a_change
    test_reading = ClientContract.test_reading_events_waits_for_new_ones
    test_follower = ClientContract.test_a_follower_gets_every_event_once_as_it_happens
    test_all_sessions = ClientContract.test_all_sessions_are_followed_in_one_stream
    test_broken_off = ClientContract.test_an_interrupted_reader_continues_from_its_cursor
    test_at_once = ClientContract.test_the_same_key_fifty_times_at_once_makes_one_run
    test_cancel = ClientContract.test_a_running_agent_is_canceled
    test_question = ClientContract.test_a_child_asks_and_its_parent_answers
    test_not_found = ClientContract.test_unknown_ids_are_not_found
    test_copy = ClientContract.test_the_store_is_checked_and_copied_while_it_is_in_use
