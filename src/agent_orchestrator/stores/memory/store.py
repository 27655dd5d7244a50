"""The reference store: dictionaries in memory, changed in the caller's task."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Self, TypeVar

import anyio.lowlevel

from agent_orchestrator.domain.daemons import DaemonProfile
from agent_orchestrator.domain.errors import Unavailable
from agent_orchestrator.operations.daemon import Problem
from agent_orchestrator.ports.changes import Transaction
from agent_orchestrator.ports.queries import View
from agent_orchestrator.stores.listeners import CommitListeners
from agent_orchestrator.stores.memory.state import State
from agent_orchestrator.stores.memory.transaction import MemoryTransaction
from agent_orchestrator.stores.memory.view import MemoryView

T = TypeVar("T")


class MemoryStore:
    """A store in memory, for tests and experiments.

    The data lives as long as the object: opening it again simulates a restart.
    """

    def __init__(self) -> None:
        self._state = State()
        self._listeners = CommitListeners()
        self._open = False

    @property
    def backend(self) -> str:
        return "memory"

    @property
    def location(self) -> str | None:
        return None

    @property
    def schema_version(self) -> int:
        return 1

    @property
    def lease(self) -> None:
        return None

    async def join(self, profile: DaemonProfile) -> None:
        """Do nothing: no other daemon can use the store."""

    async def __aenter__(self) -> Self:
        self._open = True
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._open = False

    async def transact(
        self,
        change: Callable[[Transaction], T],
        *,
        reserve: bool = False,  # noqa: ARG002 - there is no disk that fills up
    ) -> T:
        # There is no checkpoint after the change: its result cannot be lost in a cancellation.
        await anyio.lowlevel.checkpoint()
        self._check_open()
        transaction = MemoryTransaction(self._state)
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
        return query(MemoryView(self._state))

    async def problems(self) -> Sequence[Problem]:
        return ()

    def listen(self, listener: Callable[[frozenset[str]], None]) -> AbstractContextManager[None]:
        return self._listeners.listen(listener)

    def _check_open(self) -> None:
        if not self._open:
            raise Unavailable("the store is not open")
