"""The listeners of one process: who is called after a commit."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Bell = Callable[[frozenset[str]], None]


class Bells:
    """Calls every listener with the topics of a commit."""

    def __init__(self) -> None:
        self._bells: dict[object, Bell] = {}

    @contextmanager
    def listen(self, bell: Bell) -> Iterator[None]:
        """Call the bell for each commit while the scope is open."""
        key = object()
        self._bells[key] = bell
        try:
            yield
        finally:
            del self._bells[key]

    def ring(self, topics: frozenset[str]) -> None:
        """Call every bell, if there is anything to tell."""
        if topics:
            for bell in tuple(self._bells.values()):
                bell(topics)
