"""The client contract over HTTP, on either event loop, against a daemon's web app on loopback."""

import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import anyio
import anyio.from_thread
import anyio.lowlevel
import pytest

from agent_orchestrator import Client, EngineConfig, Orchestrator, ProviderConfig, Routing, connect
from agent_orchestrator.hosts import this_host
from agent_orchestrator.stores.sqlite import SqliteStore
from agent_orchestrator.testing.clients import ClientContract
from agent_orchestrator.testing.scripted import PROVIDER, ScriptedRunner
from agentd.app import create_app
from agentd.auth import Guard
from agentd.lifetime import Lifetime
from agentd.server import listen, serve, url_of

TOKEN = "a-token-for-tests"


class Served:
    """A daemon's engine and web app in a thread with an event loop of its own.

    The tests' loop may be trio's, the web server's is always asyncio's.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._listener = listen("127.0.0.1", 0)
        self.url = url_of(self._listener, "127.0.0.1")
        self._ready = threading.Event()
        self._thread = threading.Thread(target=anyio.run, args=(self._serve,))

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(20)
        return self

    def __exit__(self, *exc: object) -> None:
        anyio.from_thread.run_sync(self._stop, token=self._token)
        self._thread.join(20)
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
        )
        guard = Guard([TOKEN])
        async with SqliteStore(self._path) as store, Orchestrator(store, config) as engine:
            app = create_app(engine, guard=guard, lifetime=self._lifetime)
            self._ready.set()
            await serve(app, self._listener, self._stopped.wait)


@contextmanager
def served(path: Path) -> Iterator[str]:
    with Served(path) as one:
        yield one.url


class TestOverHttp(ClientContract):
    @pytest.fixture
    async def client(self, tmp_path: Path) -> AsyncIterator[Client]:
        with served(tmp_path / "data.db") as url:
            async with connect(url, token=TOKEN) as one:
                yield one
