"""A store in memory that several engines share, each with a lease, as daemons share a PostgreSQL database.

The times are those of the simulated clock. An engine that is paused sends no heartbeat, so its lease ends.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Self, TypeVar

import anyio
import anyio.lowlevel
from attrs import define, field
from crashing import Crashed, Handle

from agent_orchestrator.domain.daemons import DaemonProfile, DaemonRecord
from agent_orchestrator.domain.errors import Unavailable
from agent_orchestrator.domain.lifecycle import ACTIVE
from agent_orchestrator.domain.model import MANUAL, Run
from agent_orchestrator.operations.daemon import Problem
from agent_orchestrator.ports.changes import Transaction
from agent_orchestrator.ports.queries import View
from agent_orchestrator.ports.store import DAEMONS_TOPIC
from agent_orchestrator.stores.memory.store import MemoryStore
from agent_orchestrator.stores.memory.transaction import MemoryTransaction
from agent_orchestrator.stores.memory.view import MemoryView

T = TypeVar("T")

LEASE_S: Final = 10.0
HEARTBEAT_S: Final = LEASE_S / 4


@define(eq=False)
class Row:
    """A daemon's row, which is its lease as well."""

    daemon_id: str
    expires_at: float
    lost: anyio.Event = field(factory=anyio.Event)
    clock_offset_s: float = 0.0
    profile: DaemonProfile | None = None
    is_gone: bool = False
    """Whether its process has certainly ended."""
    has_ended: bool = False
    """Whether another daemon may have its runs."""

    @property
    def is_expired(self) -> bool:
        return anyio.current_time() >= self.expires_at


@define
class Fleet:
    """The rows of all daemons of a store."""

    rows: list[Row] = field(factory=list)

    def join(self) -> Row:
        row = Row(f"dmn{len(self.rows)}", anyio.current_time() + LEASE_S)
        self.rows.append(row)
        return row

    def row(self, worker_id: str | None) -> Row | None:
        daemon_id = (worker_id or "").partition("/")[0]
        return next((row for row in self.rows if row.daemon_id == daemon_id), None)

    def may_work(self, worker_id: str | None) -> bool:
        """Return whether a daemon's agents are alive: they end with its process, or its lease."""
        row = self.row(worker_id)
        return row is not None and not (row.is_gone or row.has_ended or row.is_expired)


class _SharedView(MemoryView):
    fleet: Fleet

    def daemons(self) -> list[DaemonRecord]:
        moment = datetime(2026, 1, 1, tzinfo=UTC)
        return [
            DaemonRecord(
                row.daemon_id,
                "node",
                1,
                moment,
                moment + timedelta(seconds=row.expires_at),
                row.profile,
                0,
            )
            for row in self.fleet.rows
            if not row.has_ended
        ]

    def _is_executed(self, worker_id: str | None) -> bool:
        row = self.fleet.row(worker_id)
        return row is not None and not row.has_ended

    def lost_runs(self, instance: str) -> list[Run]:
        lost = [
            run
            for status in ACTIVE
            for run in self._state.runs.find("status", status)
            if run.provider != MANUAL
            and run.worker_id is not None
            and not self._is_executed(run.worker_id)
        ]
        return sorted(lost, key=lambda run: run.id)

    def next_runs(self, limit: int, *, daemon_id: str | None = None, **options: Any) -> list[Run]:
        found = super().next_runs(1000, **options)
        return [run for run in found if self._is_free(run, daemon_id)][:limit]

    def _is_free(self, run: Run, daemon_id: str | None) -> bool:
        """Return whether no other daemon has the session's conversation."""
        if daemon_id is None or self.thread(run.session_id, run.provider) is None:
            return True
        attempts = [
            attempt
            for other in self._state.runs.rows.values()
            if other.session_id == run.session_id
            for attempt in self.attempts(other.id)
        ]
        last = max(attempts, key=lambda one: (one.started_at, one.attempt), default=None)
        if last is None or last.worker_id.partition("/")[0] == daemon_id:
            return True
        return not self._is_executed(last.worker_id)


class _SharedTransaction(_SharedView, MemoryTransaction):
    pass


class SharedMemory(MemoryStore):
    """A :class:`MemoryStore` whose views know the daemons."""

    def __init__(self) -> None:
        super().__init__()
        self.fleet = Fleet()

    async def transact(self, change: Callable[[Transaction], T], **_: Any) -> T:
        await anyio.lowlevel.checkpoint()
        self._check_open()
        transaction = _SharedTransaction(self._state)
        transaction.fleet = self.fleet
        try:
            value = change(transaction)
        except BaseException:
            transaction.undo()
            raise
        self._listeners.notify(frozenset(transaction.topics))
        return value

    async def read(self, query: Callable[[View], T]) -> T:
        await anyio.lowlevel.checkpoint()
        self._check_open()
        view = _SharedView(self._state)
        view.fleet = self.fleet
        return query(view)

    def notify_daemons(self) -> None:
        self._listeners.notify(frozenset({DAEMONS_TOPIC}))


class SharedHandle(Handle):
    """The store of one engine of several. Its commits are refused once its row has an end."""

    def __init__(self, store: SharedMemory, **options: Any) -> None:
        super().__init__(store, **options)
        self.shared = store
        self.lease = store.fleet.join()

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        self.shared.notify_daemons()
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Leave: as a process that has ended, or in good order."""
        self.lease.is_gone = True
        if not self.crashed:
            self.lease.has_ended = True
            self.shared.notify_daemons()
        await super().__aexit__(*exc)

    async def join(self, profile: DaemonProfile) -> Row:
        await self._going.wait()
        await anyio.lowlevel.checkpoint()
        if self.crashed:
            raise Crashed
        if self.lease.lost.is_set():
            self.lease = self.shared.fleet.join()
        self.lease.profile = profile
        self.shared.notify_daemons()
        return self.lease

    async def transact(self, change: Callable[[Transaction], T], **options: Any) -> T:
        def with_lease(tx: Transaction) -> T:
            if self.lease.has_ended:
                self.lease.lost.set()
                raise Unavailable(
                    "another daemon has taken over", details={"problem": "lease_lost"}
                )
            value = change(tx)
            self.lease.expires_at = anyio.current_time() + LEASE_S
            return value

        return await super().transact(with_lease, **options)

    async def problems(self) -> Sequence[Problem]:
        return ()

    async def send_heartbeats(self) -> None:
        """Send heartbeats, and end the rows of others that are gone or expired, until cancelled."""
        while not self.crashed:
            await anyio.sleep(HEARTBEAT_S)
            await self._going.wait()
            own = self.lease
            if own.has_ended:
                own.lost.set()
                continue
            own.expires_at = anyio.current_time() + LEASE_S
            ended = [
                row
                for row in self.shared.fleet.rows
                if row is not own and not row.has_ended and (row.is_gone or row.is_expired)
            ]
            for row in ended:
                row.has_ended = True
            if ended:
                self.shared.notify_daemons()
