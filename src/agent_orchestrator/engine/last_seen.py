"""When tokens were used last.

Uses are noted in memory. A task writes them in groups, because a write for each call would cost more than
most calls.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Final

import anyio
from attrs import define, field

from agent_orchestrator.domain.errors import OrchestratorError
from agent_orchestrator.ports.changes import Transaction
from agent_orchestrator.ports.store import Store

logger = logging.getLogger("agent_orchestrator.engine")

INTERVAL_S: Final = 60.0
"""Seconds between two writes."""


@define
class LastSeen:
    """The tokens that were used since the last write."""

    _used: dict[str, datetime] = field(factory=dict)
    _streams: Counter[str] = field(factory=Counter)
    """The number of open streams, by token."""
    _changed: anyio.Event = field(factory=anyio.Event)
    """Set by a use, or when a stream begins."""

    def note(self, token_id: str, at: datetime) -> None:
        """Note that a token is used."""
        self._used[token_id] = at
        self._changed.set()

    @contextmanager
    def during(self, token_id: str | None) -> Iterator[None]:
        """Count a token as used for as long as this scope is open.

        :param token_id: None for a caller without a token of the store.
        """
        if token_id is None:
            yield
            return
        self._streams[token_id] += 1
        self._changed.set()
        try:
            yield
        finally:
            self._streams[token_id] -= 1
            if not self._streams[token_id]:
                del self._streams[token_id]

    async def wait(self) -> None:
        """Wait until a token is used. Return at once while a stream is open."""
        if not self._streams:
            await self._changed.wait()

    def take(self, now: datetime) -> dict[str, datetime]:
        """Return when tokens were used since the last call of this method."""
        used, self._used = self._used | dict.fromkeys(self._streams, now), {}
        self._changed = anyio.Event()
        return used


async def record_uses(uses: LastSeen, store: Store, clock: Callable[[], datetime]) -> None:
    """Write when tokens were used last, as long as the engine runs."""
    while True:
        await uses.wait()
        used = uses.take(clock())

        def change(tx: Transaction, used: dict[str, datetime] = used) -> None:
            for token_id, at in used.items():
                tx.mark_token_used(token_id, at)

        try:
            await store.transact(change)
        except OrchestratorError as error:  # the next write is soon enough
            logger.info("the last uses of tokens are not recorded: %s", error)
        await anyio.sleep(INTERVAL_S)
