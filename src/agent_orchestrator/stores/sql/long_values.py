"""A cache of long event data and long results."""

import threading
from collections.abc import Callable, Hashable
from typing import Any, TypeVar
from weakref import WeakValueDictionary

T = TypeVar("T")


class LongValues:
    """A cache of the values that readers are using, so that they share one copy of each value.

    It keeps only weak references. It reads one value at a time, so that concurrent readers of a value
    cause one read. Thread-safe.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: WeakValueDictionary[Hashable, Any] = WeakValueDictionary()

    def get(self, key: Hashable, read: Callable[[], T]) -> T:
        """Return a committed value that never changes.

        :param key: the position of an event, or the id of a run.
        :param read: reads the value from the database, if it is not in the cache.
        """
        with self._lock:
            value: T | None = self._values.get(key)
            if value is None:
                value = self._values[key] = read()
            return value
