"""The number of free file descriptors, and a reserve of them."""

import logging
import os
import sys
import time
from collections.abc import Callable
from typing import Final

from agent_orchestrator.descriptors import RateLimitedWarning, descriptor_limit
from agent_orchestrator.domain.errors import Unavailable

RESERVE: Final = 128
"""Descriptors reserved for new connections, the store and runs; at most a quarter of the limit."""

_OPEN_FILES: Final = "/proc/self/fd" if sys.platform == "linux" else "/dev/fd"

COUNT_INTERVAL_S: Final = 1.0
"""Minimum seconds between two counts of the open descriptors."""

RETRY_S: Final = 5
"""Seconds after which a refused reader may retry."""

_log = logging.getLogger("agentd.server")


class Descriptors:
    """Counts this process's open file descriptors against its limit.

    :param limit: maximum number of open descriptors; None means the process's soft limit.
    :param count: returns the number of open descriptors.
    :param clock: monotonic time in seconds.
    """

    def __init__(
        self,
        limit: int | None = None,
        *,
        count: Callable[[], int] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limit = limit or descriptor_limit()
        self.reserve = min(RESERVE, self.limit // 4)
        self.connections = 0
        """Open connections; the server updates this."""
        self._count = count or _open_now
        self._clock = clock
        self._others = 0
        self._counted_at: float | None = None
        self._warning = RateLimitedWarning(clock=clock)

    @property
    def free(self) -> int:
        """The number of descriptors that can still be opened."""
        now = self._clock()
        if self._counted_at is None or now - self._counted_at >= COUNT_INTERVAL_S:
            self._others = self._count() - self.connections
            self._counted_at = now
        return self.limit - self._others - self.connections

    @property
    def is_short(self) -> bool:
        """Whether only the reserve is free."""
        return self.free < self.reserve

    def check_stream(self) -> None:
        """Raise :class:`Unavailable` if a stream would use a descriptor of the reserve."""
        if self.is_short:
            self.warn("refused a stream")
            raise Unavailable(
                f"the daemon is near its limit of {self.limit:,} open files: close a stream, or "
                "raise its limit (ulimit -n)",
                retry_after_s=RETRY_S,
            )

    def warn(self, consequence: str) -> None:
        """Log a shortage, at most once a minute, with the number of shortages since the last line."""
        if count := self._warning.due():
            _log.warning(
                "few file descriptors are left: %s; raise the limit (ulimit -n, LimitNOFILE=)",
                consequence,
                extra={"fields": {"limit": self.limit, "count": count}},
            )


def _open_now() -> int:
    try:
        return len(os.listdir(_OPEN_FILES)) - 1  # noqa: PTH208 - minus the one of listdir
    except OSError:  # no descriptor is free for listdir
        return descriptor_limit()
