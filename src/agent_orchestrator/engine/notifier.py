"""Wake tasks that wait for a change. A notification carries no data: its receiver reads the store.

Subscribe, read, then wait. A commit after the read notifies the waiter, so no change is missed.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import anyio

from agent_orchestrator.ports.store import ANY_TOPIC


class Waiter:
    """Waits for notifications. One that came before :meth:`wait` is not lost."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event = anyio.Event()

    def notify(self) -> None:
        self._event.set()

    def clear(self) -> None:
        """Forget earlier notifications. Call it before reading, never after."""
        if self._event.is_set():
            self._event = anyio.Event()

    async def wait(self) -> None:
        """Wait for a notification since :meth:`clear`."""
        await self._event.wait()


class Notifier:
    """The waiters of this process, by topic."""

    def __init__(self) -> None:
        self._waiters: dict[str, set[Waiter]] = {}

    @contextmanager
    def subscribe(self, *topics: str) -> Iterator[Waiter]:
        """Return a waiter that is notified of these topics while the scope lasts."""
        waiter = Waiter()
        subscribed = frozenset(topics)
        for topic in subscribed:
            self._waiters.setdefault(topic, set()).add(waiter)
        try:
            yield waiter
        finally:
            for topic in subscribed:
                waiters = self._waiters[topic]
                waiters.discard(waiter)
                if not waiters:
                    del self._waiters[topic]

    def notify(self, topics: Collection[str]) -> None:
        """Notify every waiter that is subscribed to one of the topics; all of them of ``ANY_TOPIC``."""
        if ANY_TOPIC in topics:
            topics = tuple(self._waiters)
        for topic in topics:
            for waiter in self._waiters.get(topic, ()):
                waiter.notify()

    def __len__(self) -> int:
        """Return the number of topics with a waiter."""
        return len(self._waiters)
