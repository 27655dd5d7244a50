"""Limits of the whole daemon: changes in progress, and streams.

A store commits some hundred changes a second. If callers send more, the changes wait, each caller longer than the
one before. Beyond a limit agentd therefore refuses changes at once: those that came before are made in the order
in which they came, and take no longer.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import anyio

from agent_orchestrator.domain.access import Principal
from agent_orchestrator.domain.errors import Unavailable
from agentd.lockout import Peer

MAX_CHANGES: Final = 1000
"""Maximum number of changes in progress. A daemon on two cores commits as many in about a second and a half."""

RETRY_S: Final = 1
"""Seconds after which a refused caller should try again. Until then its connection is not read."""

MAX_ALL_STREAMS: Final = 5000
"""Maximum number of open streams of all principals."""

STREAM_RETRY_S: Final = 5
"""Seconds after which a refused reader should try again."""


class Admission:
    """Counts the changes in progress.

    :param maximum: maximum number of them. Calls of agents at work are not refused, but counted.
    """

    def __init__(self, maximum: int = MAX_CHANGES) -> None:
        self._maximum = maximum
        self._count = 0

    @contextmanager
    def change(self, caller: Principal, peer: Peer) -> Iterator[None]:
        """Count a change while the scope is open.

        :raises Unavailable: if there are too many. The connection is then not read for a while, so that a
            caller who ignores ``Retry-After`` does not take the processor from the others.
        """
        if self._count >= self._maximum and caller.run is None:
            if not peer.is_forwarded:  # the connection of a proxy is also that of others
                peer.quiet_until = anyio.current_time() + RETRY_S
            raise Unavailable(
                f"the daemon is overloaded: {self._count:,} changes are in progress",
                {"max_changes": self._maximum},
                retry_after_s=RETRY_S,
            )
        self._count += 1
        try:
            yield
        finally:
            self._count -= 1
