"""The engine within the caller's process, without a daemon."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from os import PathLike, fspath
from pathlib import Path
from typing import Any, TypeVar

from attrs import frozen

from agent_orchestrator.client import Client
from agent_orchestrator.detached import DetachedScope
from agent_orchestrator.domain.errors import ConfigError
from agent_orchestrator.engine import (
    EngineConfig,
    EnvPolicy,
    Orchestrator,
    ProviderConfig,
    Routing,
    TreeLimits,
)
from agent_orchestrator.hosts import this_host
from agent_orchestrator.known_runners import DEFAULT_PROVIDER
from agent_orchestrator.notice_settings import read_notify
from agent_orchestrator.notifiers.registry import build_targets
from agent_orchestrator.notifiers.webpush import WebPush
from agent_orchestrator.operations.events import StreamPart, StreamRequest
from agent_orchestrator.operations.table import Operation
from agent_orchestrator.ports.runner import Runner
from agent_orchestrator.ports.store import Store
from agent_orchestrator.ports.transport import Download, Reply, Subscription
from agent_orchestrator.protection import Protection
from agent_orchestrator.runners.registry import build_runner
from agent_orchestrator.stores.registry import open_store
from agent_orchestrator.stores.sqlite.files import push_key_file
from agent_orchestrator.stores.urls import is_url

Req = TypeVar("Req")
Res = TypeVar("Res")


@asynccontextmanager
async def open_embedded(
    store: str | PathLike[str] | Store,
    *,
    runners: Sequence[Runner] | None = None,
    providers: Mapping[str, ProviderConfig] | None = None,
    routing: Routing | None = None,
    limits: TreeLimits | None = None,
    notify: Mapping[str, Any] | None = None,
    **settings: Any,
) -> AsyncIterator[Client]:
    """Open a database and execute its runs while the context is open.

    Runs on asyncio and on trio. When the context closes, active runs return to the queue; the next
    opening resumes them. The context may be closed by another task than the one that opened it, as
    fixtures, notebooks and application hooks do.

    :param store: the path of a SQLite file, created if missing; ``":memory:"``; the URL of a PostgreSQL
        database, ``postgresql://…``; or a store that is not open yet.
    :param runners: runners that execute runs. Each is a provider under its own name; the first is
        the default. Without runners and providers:
        :data:`~agent_orchestrator.known_runners.DEFAULT_PROVIDER`.
    :param providers: further providers by name, with their settings.
    :param routing: the default provider and the fallbacks for unavailable ones.
    :param limits: limits for spawned sessions.
    :param notify: the settings of notices, as in the table ``[notify]`` of ``agentd.toml``.
    :param settings: further fields of :class:`~agent_orchestrator.engine.EngineConfig`:
        ``max_concurrency``, ``workspace_roots``, ….
    :raises StoreOpenError: if the database cannot be used. It is unchanged then.
    :raises ConfigError: if the settings contradict each other.
    """
    if runners is None and providers is None:
        runners = [build_runner(DEFAULT_PROVIDER, DEFAULT_PROVIDER, {})]
    known = {runner.name: ProviderConfig(runner, runner.name) for runner in runners or ()}
    known |= providers or {}
    if not known:
        raise ConfigError("runners: at least one is required")
    defaults: dict[str, Any] = {"host": this_host(), "protected": Protection(_file(store))}
    if notify is not None:
        notices = read_notify(notify, location="notify")
        env = EnvPolicy().apply(defaults["host"].environment())
        defaults |= {
            "notify": notices.options,
            "targets": build_targets(notices, env),
            "push": WebPush(options=notices.options, key_file=push_key_file(_file(store))),
        }
    config = EngineConfig(
        providers=known,
        routing=routing or Routing(default=next(iter(known))),
        limits=limits or TreeLimits(),
        **(defaults | settings),
    )
    opened = open_store(fspath(store)) if isinstance(store, str | PathLike) else store
    scope = DetachedScope(_running_engine(opened, config))
    async with scope as engine:
        yield Client(_ScopedTransport(scope, engine))


@asynccontextmanager
async def _running_engine(store: Store, config: EngineConfig) -> AsyncIterator[Orchestrator]:
    async with store, Orchestrator(store, config) as engine:
        yield engine


@frozen
class _ScopedTransport:
    """A transport whose calls end with ``Unavailable`` when the engine closes or fails."""

    scope: DetachedScope[Orchestrator]
    engine: Orchestrator

    async def call(self, operation: Operation[Req, Res], request: Req) -> Reply[Res]:
        return await self.scope.call(self.engine.call, operation, request)

    @asynccontextmanager
    async def download(
        self, operation: Operation[Req, Res], request: Req
    ) -> AsyncIterator[Download]:
        lines = self.engine.download(operation, request)
        entered = await self.scope.call(lines.__aenter__)
        try:
            yield _ScopedDownload(self.scope, entered)
        finally:
            await lines.__aexit__(None, None, None)

    async def upload(
        self, operation: Operation[Req, Res], request: Req, data: AsyncIterator[bytes]
    ) -> Reply[Res]:
        return await self.scope.call(self.engine.upload, operation, request, data)

    @asynccontextmanager
    async def subscribe(self, request: StreamRequest) -> AsyncIterator[Subscription]:
        stream = self.engine.subscribe(request)
        entered = await self.scope.call(stream.__aenter__)
        try:
            yield _ScopedSubscription(self.scope, entered)
        finally:
            await stream.__aexit__(None, None, None)


@frozen
class _ScopedDownload:
    scope: DetachedScope[Orchestrator]
    lines: Download

    async def receive(self) -> bytes:
        return await self.scope.call(self.lines.receive)


@frozen
class _ScopedSubscription:
    scope: DetachedScope[Orchestrator]
    stream: Subscription

    @property
    def epoch(self) -> str | None:
        return self.stream.epoch

    async def receive(self) -> Sequence[StreamPart]:
        return await self.scope.call(self.stream.receive)

    async def wait_revoked(self) -> None:
        await self.scope.call(self.stream.wait_revoked)


def _file(store: str | PathLike[str] | Store) -> Path | None:
    """Return the path of a SQLite store's file; None for other stores."""
    location = fspath(store) if isinstance(store, str | PathLike) else store.location
    if location is None or location == ":memory:" or is_url(location):
        return None
    return Path(location).absolute()
