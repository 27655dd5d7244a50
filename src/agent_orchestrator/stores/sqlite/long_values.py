"""Long data of events and long results, read once for all readers."""

import threading
from collections.abc import Callable, Hashable
from typing import Any, TypeVar
from weakref import WeakValueDictionary

T = TypeVar("T")


class LongValues:
    """The long values that readers of an open store hold.

    Slow readers of one value then hold it once, not once each. Values are read one at a time: otherwise
    readers that ask at the same moment would each read it. May be used in any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: WeakValueDictionary[Hashable, Any] = WeakValueDictionary()

    def get(self, key: Hashable, read: Callable[[], T]) -> T:
        """Return a committed value that never changes.

        :param key: the position of an event, or the id of a run.
        :param read: reads the value from the database, if no reader holds it.
        """
        with self._lock:
            held: T | None = self._held.get(key)
            if held is None:
                held = self._held[key] = read()
            return held
