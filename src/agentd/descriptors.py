"""How many file descriptors are left, and what is kept back of them."""

import logging
import os
import time
from collections.abc import Callable
from typing import Final

from agent_orchestrator.descriptors import RateLimitedWarning, descriptor_limit
from agent_orchestrator.domain.errors import Unavailable

RESERVE: Final = 128
"""Descriptors kept back for new connections, the store and runs; of a low limit, a quarter."""

COUNTED_S: Final = 1.0
"""Seconds for which a count of what is open beside the connections holds."""

RETRY_S: Final = 5
"""Seconds after which a reader that was refused may come again."""

_log = logging.getLogger("agentd.server")


class Descriptors:
    """Counts what is open in this process against its limit.

    :param limit: how many may be open; the process's soft limit without it.
    :param count: returns how many are open.
    :param clock: seconds that only go up.
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
        """Connections that are open: kept up to date by the server."""
        self._count = count or _open_now
        self._clock = clock
        self._others = 0
        self._counted_at: float | None = None
        self._warning = RateLimitedWarning(clock=clock)

    @property
    def left(self) -> int:
        """How many more may be opened."""
        now = self._clock()
        if self._counted_at is None or now - self._counted_at >= COUNTED_S:
            self._others = self._count() - self.connections
            self._counted_at = now
        return self.limit - self._others - self.connections

    @property
    def short(self) -> bool:
        """Whether only the reserve is left."""
        return self.left < self.reserve

    def check_stream(self) -> None:
        """Refuse a stream that would use up the reserve.

        :raises Unavailable: if only the reserve is left.
        """
        if self.short:
            self.warn("refused a stream")
            raise Unavailable(
                f"the daemon is near its limit of {self.limit:,} open files: close a stream, or "
                "raise its limit (ulimit -n)",
                retry_after_s=RETRY_S,
            )

    def warn(self, what: str) -> None:
        """Log a shortage, at most once a minute, with how often it came to that since."""
        if count := self._warning.due():
            _log.warning(
                "few file descriptors are left: %s; raise the limit (ulimit -n, LimitNOFILE=)",
                what,
                extra={"fields": {"limit": self.limit, "count": count}},
            )


def _open_now() -> int:
    try:
        return len(os.listdir("/proc/self/fd")) - 1  # noqa: PTH208 - less the one it is read with
    except OSError:  # none is left to look with
        return descriptor_limit()
