"""The imports of an engine that are going on."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from attrs import define, field

from agent_orchestrator.domain.errors import RateLimited, Unavailable

MAX_IMPORTS: Final = 4
"""Maximum number of imports at a time, because each needs memory for its longest line."""

RETRY_S: Final = 5


@define
class Imports:
    """Counts the imports, and limits them."""

    _counts: Counter[str] = field(factory=Counter)

    @property
    def count(self) -> int:
        """The number of imports that are going on."""
        return self._counts.total()

    @contextmanager
    def slot(self, principal: str) -> Iterator[None]:
        """Take part while the scope is open.

        :raises RateLimited: if the principal has one already.
        :raises Unavailable: if there are too many.
        """
        if self._counts[principal]:
            raise RateLimited("an import of this principal is going on: wait for its end")
        if self.count >= MAX_IMPORTS:
            raise Unavailable(
                f"{MAX_IMPORTS} imports are going on, the maximum", retry_after_s=RETRY_S
            )
        self._counts[principal] += 1
        try:
            yield
        finally:
            del self._counts[principal]
