"""The daemons that share a store."""

from datetime import datetime
from typing import Final

from attrs import frozen

LOCAL_HOST: Final = "local"
"""The host's name if only one machine can use the store."""


@frozen
class DaemonProfile:
    """The properties of a daemon that it publishes to the others.

    :param version: its version of the program.
    :param url: where its own agents call it; None if they cannot.
    :param capacity: the maximum number of runs that it executes at once.
    :param providers: the names of its providers. It starts no runs of others.
    :param host: the host that it serves (:attr:`agent_orchestrator.host.Host.id`). It starts no runs of
        others.
    :param labels: the words by which sessions choose its host.
    :param draining: whether it is about to end, and takes no new work.
    :param spawn_directory: where children work that agents of other hosts spawn here. None if they may not.
    """

    version: str
    url: str | None
    capacity: int
    providers: tuple[str, ...]
    host: str
    labels: tuple[str, ...] = ()
    draining: bool = False
    spawn_directory: str | None = None


@frozen
class DaemonRecord:
    """A daemon of a shared store. It has not ended, or it was lost.

    :param id: the first part of the ``worker_id`` of its runs.
    :param node: the name of its machine, for people.
    :param pid: its process id.
    :param started_at: by the store's clock, like ``expires_at``.
    :param expires_at: when another daemon may take over its runs, unless its lease is extended.
    :param profile: None while it starts.
    :param active_runs: number of its runs that are running, or wait with an agent.
    :param clock_offset_s: seconds that its clock is ahead of the store's; negative if it is behind. None if
        it was not measured.
    :param away_since: its last heartbeat, if later ones are overdue or it was lost; None if it is not away.
    """

    id: str
    node: str
    pid: int
    started_at: datetime
    expires_at: datetime
    profile: DaemonProfile | None
    active_runs: int
    clock_offset_s: float | None = None
    away_since: datetime | None = None


@frozen
class HostRecord:
    """A host that a daemon of the store serves, or has served.

    :param name: the host, see :attr:`DaemonProfile.host`.
    :param away_since: when its last daemon ended, by the store's clock; None while one serves it.
    :param waiting_runs: number of its runs that are queued, or whose daemon has ended. Counted only while no
        daemon serves it.
    """

    name: str
    away_since: datetime | None
    waiting_runs: int
