"""The engine: an async context manager that runs the workers, and the entry point of callers."""

import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from math import inf
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import anyio
from attrs import frozen

from agent_orchestrator.domain.access import LOCAL, Principal
from agent_orchestrator.domain.errors import Forbidden
from agent_orchestrator.domain.ids import SortableIds
from agent_orchestrator.domain.lifecycle import RunStatus
from agent_orchestrator.engine import (
    audit,
    expiry,
    feed,
    inquiries,
    last_seen,
    log_retention,
    notice_delivery,
    notice_feed,
    recovery,
    requests,
    retention,
    sharing,
    takeovers,
    tokens,
)
from agent_orchestrator.engine.access import holder, seconds_left
from agent_orchestrator.engine.calls import dispatch, download, upload
from agent_orchestrator.engine.config import EngineConfig, ProviderConfig
from agent_orchestrator.engine.core import Core
from agent_orchestrator.engine.daemons import name_host, profile_of
from agent_orchestrator.engine.persistence import read_with_retry
from agent_orchestrator.engine.providers import with_default
from agent_orchestrator.engine.worker_pool import WorkerPool
from agent_orchestrator.host import Host, use_host
from agent_orchestrator.operations.events import StreamRequest
from agent_orchestrator.operations.table import Operation
from agent_orchestrator.ports.queries import View
from agent_orchestrator.ports.runner import Runner
from agent_orchestrator.ports.store import Store, Synchronizing
from agent_orchestrator.ports.transport import Download, Reply, Subscription

logger = logging.getLogger("agent_orchestrator.engine")

RECOVERY_S: Final = 0.5
"""Maximum seconds that the start waits for recovery, which then continues in the background."""

Req = TypeVar("Req")
Res = TypeVar("Res")


@frozen
class DrainReport:
    """The result of a drain.

    :param finished: the number of active runs that ended within the grace period.
    :param released: ids of the runs that went back to the queue.
    :param parked: ids of the runs that still wait for an answer, without an agent.
    """

    finished: int
    released: tuple[str, ...]
    parked: tuple[str, ...] = ()


class Orchestrator:
    """Manages sessions, runs and events in a store, and executes runs while its scope is open.

    It is a :class:`~agent_orchestrator.ports.transport.Transport` for the local principal and a
    :class:`~agent_orchestrator.ports.transport.Gateway` for others. The store must stay open until the scope is
    left. Leaving releases active runs to the queue.
    """

    def __init__(self, store: Store, config: EngineConfig) -> None:
        self.core = Core(
            store=store,
            config=config,
            own_id=config.ids("dmn"),
            started_at=config.clock(),
        )
        self.pool = WorkerPool(self.core)
        self.core.workers = self.pool
        self.drain_report: DrainReport | None = None
        """The result of the first drain."""
        self._stack = AsyncExitStack()
        self._has_tokens = False

    async def __aenter__(self) -> Self:
        name_host(self.core)
        expiry.limit_agents(self.core)
        async with AsyncExitStack() as stack:
            stack.enter_context(self.core.store.listen(self.core.notifier.notify))
            stack.enter_context(self.core.store.listen(self._note))
            for runner in _distinct_runners(self.core.config.providers.values()):
                if isinstance(runner, AbstractAsyncContextManager):
                    await _enter(stack, runner, self.core.config.host)
            channels: list[object] = [self.core.config.push]
            channels += [target.channel for target in self.core.config.targets.values()]
            for channel in channels:
                if isinstance(channel, AbstractAsyncContextManager):
                    await _enter(stack, channel, self.core.config.host)
            if len(self.core.config.routing.prefer) > 1:
                self.core.config = await with_default(self.core.config)
            if isinstance(ids := self.core.config.ids, SortableIds):
                ids.follow(await self.core.store.read(lambda view: view.newest_ids()))
            if isinstance(self.core.store, Synchronizing):
                self.core.store.synchronize(
                    self.core.config.clock, ids if isinstance(ids, SortableIds) else None
                )
            # Before there is a task group, which would wrap the error.
            await self.core.store.join(profile_of(self.core.config))
            self._tasks = await stack.enter_async_context(anyio.create_task_group())
            # After listening, so that no token created meanwhile is missed.
            self._has_tokens |= await self.core.store.read(_has_tokens)
            self._tasks.start_soon(self._look_for_tokens)
            await self._recover_lost_runs()
            self._tasks.start_soon(expiry.keep_agents, self.core)
            self._tasks.start_soon(sharing.keep_lease, self.core, self.pool)
            self._tasks.start_soon(inquiries.answer_inquiries, self.core)
            self._tasks.start_soon(self.pool.serve, self._tasks)
            self._tasks.start_soon(requests.watch_deadlines, self.core)
            self._tasks.start_soon(takeovers.watch_holds, self.core)
            self._tasks.start_soon(retention.delete_expired, self.core)
            self._tasks.start_soon(log_retention.enforce_limits, self.core)
            self._tasks.start_soon(
                last_seen.record_uses, self.core.last_seen, self.core.store, self.core.now
            )
            self._tasks.start_soon(notice_feed.follow_log, self.core)
            self._tasks.start_soon(notice_delivery.deliver, self.core)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        try:
            with anyio.CancelScope(shield=True):
                await self.drain(0)
        finally:
            self._tasks.cancel_scope.cancel()
            # Without the exception, so that the task group does not wrap it.
            await self._stack.aclose()
        return None

    def acting_as(self, principal: Principal) -> "Caller":
        """Return the transport for a caller."""
        return Caller(self.core, principal)

    async def holder(self, token_hash: str) -> Principal | None:
        """Return the caller that a token stands for: a run, or a named token's principal.

        :raises Forbidden: if the token's attempt has ended. Not ``Unauthorized``, because clients of MCP
            would start a login, which cannot help.
        :raises Unauthorized: if the token has expired.
        """
        principal, ended = await self.core.store.read(lambda view: holder(view, token_hash))
        if ended is not None:
            over = Forbidden("the attempt of this token has ended")
            await audit.record_refusal(self.core, ended, "authenticate", ended.id, over)
            raise over
        if principal is not None:
            seconds_left(self.core, principal)
            if principal.run is not None:
                self.pool.note_token(principal.run)
            elif principal.token_id is not None:
                self.core.last_seen.note(principal.token_id, self.core.now())
        return principal

    def has_tokens(self) -> bool:
        """Return True if a named token was ever created, even if it has ended."""
        return self._has_tokens

    def _note(self, topics: frozenset[str]) -> None:
        self._has_tokens |= tokens.MADE_TOPIC in topics

    async def _look_for_tokens(self) -> None:
        """Find the first token of another daemon, also if the store only says that anything may have changed."""
        with self.core.notifier.subscribe(tokens.MADE_TOPIC) as waiter:
            while self.core.store.lease is not None and not self._has_tokens:
                waiter.clear()
                if await read_with_retry(self.core, _has_tokens):
                    self._has_tokens = True
                else:
                    await waiter.wait()

    async def call(self, operation: Operation[Req, Res], request: Req) -> Reply[Res]:
        """Call an operation for the local principal."""
        return await dispatch(self.core, LOCAL, operation, request)

    def download(
        self, operation: Operation[Req, Res], request: Req
    ) -> AbstractAsyncContextManager[Download]:
        """Open the lines of an operation for the local principal."""
        return download(self.core, LOCAL, operation, request)

    async def upload(
        self, operation: Operation[Req, Res], request: Req, data: AsyncIterator[bytes]
    ) -> Reply[Res]:
        """Call an operation that takes lines for the local principal."""
        return await upload(self.core, LOCAL, operation, request, data)

    def subscribe(self, request: StreamRequest) -> AbstractAsyncContextManager[Subscription]:
        """Open a stream for the local principal."""
        return feed.subscribe(self.core, LOCAL, request)

    async def drain(self, grace_s: float, *, stop_s: float = inf) -> DrainReport:
        """Refuse new work, wait for active runs, then release those that have not ended.

        :param grace_s: seconds to wait for active runs.
        :param stop_s: seconds after that until agents that have not stopped are killed, if their runners
            would wait longer.
        """
        self.core.draining = True
        self.core.stop_deadline.move_to(anyio.current_time() + grace_s + stop_s)
        if grace_s:
            self._tasks.start_soon(sharing.tell_draining, self.core)
        await self.pool.stop_starting()
        active = tuple(self.pool.running.values())
        for running in active:
            if running.request_id is not None:
                running.park(self.core.now())  # an answer may take longer
        with anyio.move_on_after(grace_s):
            await self.pool.wait_idle()
        stopped = self.pool.release("the daemon is shutting down")
        await self.pool.wait_idle()
        ended = {running.run.id: running.final_status for running in (*active, *stopped)}
        released = tuple(run_id for run_id, end in ended.items() if end is RunStatus.QUEUED)
        parked = tuple(run_id for run_id, end in ended.items() if end is RunStatus.WAITING)
        report = DrainReport(len(ended) - len(released) - len(parked), released, parked)
        # Leaving the scope drains again, with nothing left to do.
        self.drain_report = self.drain_report or report
        return report

    def force_stop(self) -> None:
        """Kill agents that are being stopped, now and from now on, without waiting for them."""
        self.core.stop_deadline.move_to(anyio.current_time())

    async def _recover_lost_runs(self) -> None:
        """Recover the runs of an earlier engine. What takes long continues in the background."""
        done = anyio.Event()
        self._tasks.start_soon(recovery.recover, self.core, done)
        with anyio.move_on_after(RECOVERY_S):
            await done.wait()


def _has_tokens(view: View) -> bool:
    return bool(view.tokens(limit=1))


def _distinct_runners(providers: Iterable[ProviderConfig]) -> list[Runner]:
    """Return each runner once, because providers may share one."""
    runners: dict[int, Runner] = {id(provider.runner): provider.runner for provider in providers}
    return list(runners.values())


async def _enter(
    stack: AsyncExitStack, runner: AbstractAsyncContextManager[object], host: Host
) -> None:
    """Enter a runner, and have the stack leave it, both on the host."""

    async def leave(*exc: Any) -> bool | None:
        with use_host(host):
            return await runner.__aexit__(*exc)

    with use_host(host):
        await runner.__aenter__()
    stack.push_async_exit(leave)


@frozen
class Caller:
    """A :class:`~agent_orchestrator.ports.transport.Transport` that acts as one principal."""

    core: Core
    principal: Principal

    async def call(self, operation: Operation[Req, Res], request: Req) -> Reply[Res]:
        return await dispatch(self.core, self.principal, operation, request)

    def download(
        self, operation: Operation[Req, Res], request: Req
    ) -> AbstractAsyncContextManager[Download]:
        return download(self.core, self.principal, operation, request)

    async def upload(
        self, operation: Operation[Req, Res], request: Req, data: AsyncIterator[bytes]
    ) -> Reply[Res]:
        return await upload(self.core, self.principal, operation, request, data)

    def subscribe(self, request: StreamRequest) -> AbstractAsyncContextManager[Subscription]:
        return feed.subscribe(self.core, self.principal, request)
