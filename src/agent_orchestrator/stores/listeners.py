"""Callbacks that a store calls after each commit."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

CommitListener = Callable[[frozenset[str]], None]


class CommitListeners:
    """A set of callbacks that receive the topics of each commit."""

    def __init__(self) -> None:
        self._listeners: dict[object, CommitListener] = {}

    @contextmanager
    def listen(self, listener: CommitListener) -> Iterator[None]:
        """Call the listener after each commit while the scope is open."""
        key = object()
        self._listeners[key] = listener
        try:
            yield
        finally:
            del self._listeners[key]

    def notify(self, topics: frozenset[str]) -> None:
        """Call every listener, unless ``topics`` is empty."""
        if topics:
            for listener in tuple(self._listeners.values()):
                listener(topics)
