"""Waking those who wait: a bell carries no data, whoever hears it reads the store.

Take the bell, read, wait: what is committed after the read rings a bell that is already taken, so
that nothing falls between.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import anyio


class Bell:
    """Rings for the topics it was taken for. Rings before :meth:`wait` are not lost."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event = anyio.Event()

    def ring(self) -> None:
        self._event.set()

    def hush(self) -> None:
        """Forget the rings so far. Call it before reading, never after."""
        if self._event.is_set():
            self._event = anyio.Event()

    async def wait(self) -> None:
        """Wait until it has rung since :meth:`hush`."""
        await self._event.wait()


class Bells:
    """The bells taken in this process, by topic."""

    def __init__(self) -> None:
        self._taken: dict[str, set[Bell]] = {}

    @contextmanager
    def take(self, *topics: str) -> Iterator[Bell]:
        """Take a bell for some topics while the scope lasts."""
        bell = Bell()
        heard = frozenset(topics)
        for topic in heard:
            self._taken.setdefault(topic, set()).add(bell)
        try:
            yield bell
        finally:
            for topic in heard:
                taken = self._taken[topic]
                taken.discard(bell)
                if not taken:
                    del self._taken[topic]

    def ring(self, topics: Iterable[str]) -> None:
        """Ring every bell taken for one of the topics."""
        for topic in topics:
            for bell in self._taken.get(topic, ()):
                bell.ring()

    def __len__(self) -> int:
        """Return how many topics someone listens for."""
        return len(self._taken)
