"""The engine in your own process: sessions and runs over a database file, no daemon."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from os import PathLike, fspath
from typing import Any

from agent_orchestrator.client import Client
from agent_orchestrator.domain.errors import ConfigError
from agent_orchestrator.engine import (
    EngineConfig,
    Orchestrator,
    ProviderConfig,
    Routing,
    TreeLimits,
)
from agent_orchestrator.ports import Runner, Store
from agent_orchestrator.runners.reaper import reap
from agent_orchestrator.runners.registry import build_runner
from agent_orchestrator.stores.registry import open_store


@asynccontextmanager
async def open_embedded(
    store: str | PathLike[str] | Store,
    *,
    runners: Sequence[Runner] | None = None,
    providers: Mapping[str, ProviderConfig] | None = None,
    routing: Routing | None = None,
    max_concurrency: int = 4,
    max_queue: int = 1000,
    limits: TreeLimits | None = None,
    **settings: Any,
) -> AsyncIterator[Client]:
    """Open a database and execute its runs while the scope is open.

    Runs on asyncio and on trio. Runs under way when the scope is left go back to the queue and are
    taken up at the next opening.

    :param store: the path of a SQLite file, made if missing; ``":memory:"`` for one that forgets; or
        a store that is not open yet.
    :param runners: what executes runs, each a provider of its own name; the first is the default.
        Without any: ``codex``.
    :param providers: further providers by name, with settings of their own.
    :param routing: which provider messages go to, and what stands in for one that is unavailable.
    :param max_concurrency: runs executed at once.
    :param max_queue: queued runs past which another is refused with ``Unavailable``.
    :param limits: how far sessions may spawn others.
    :param settings: further fields of :class:`~agent_orchestrator.engine.EngineConfig`.
    :raises StoreOpenError: if the database cannot be used; nothing in it was changed.
    :raises ConfigError: if the settings contradict each other.
    """
    if runners is None and providers is None:
        runners = [build_runner("codex", "codex", {})]
    known = {runner.name: ProviderConfig(runner, runner.name) for runner in runners or ()}
    known |= providers or {}
    if not known:
        raise ConfigError("runners: there must be at least one")
    config = EngineConfig(
        providers=known,
        routing=routing or Routing(default=next(iter(known))),
        max_concurrency=max_concurrency,
        max_queue=max_queue,
        limits=limits or TreeLimits(),
        **({"reaper": reap} | settings),
    )
    opened = open_store(fspath(store)) if isinstance(store, str | PathLike) else store
    async with opened, Orchestrator(opened, config) as engine:
        yield Client(engine)
