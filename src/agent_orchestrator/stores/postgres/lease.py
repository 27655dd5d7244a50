"""The lease of this daemon, as far as its process knows."""

from typing import Self

import anyio
import anyio.from_thread
from attrs import define

from agent_orchestrator.stores.postgres import daemons


@define(eq=False)
class DaemonLease:
    """See :class:`agent_orchestrator.ports.store.Lease`."""

    daemon_id: str
    lost: anyio.Event
    expires_at: float = 0.0
    clock_offset_s: float = 0.0

    @classmethod
    def of(cls, daemon: daemons.Daemon, lost: anyio.Event) -> Self:
        """Return the lease of a daemon that has just joined."""
        lease = cls(daemon.id, lost)
        lease.extend(daemon.joined_at)
        return lease

    def extend(self, asked_at: float) -> None:
        """Note that the server has extended the lease.

        :param asked_at: the time before it was asked to, by :func:`time.monotonic`.
        """
        self.expires_at = max(self.expires_at, asked_at + daemons.LEASE_S)

    def lose(self) -> None:
        """Set :attr:`lost`. Must be called in a worker thread of the event loop."""
        anyio.from_thread.run_sync(self.lost.set)
