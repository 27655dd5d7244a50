"""The daemons that share the store."""

import sys
from collections.abc import Iterable
from typing import Final

from attrs import evolve

from agent_orchestrator.domain.daemons import DaemonProfile, DaemonRecord, HostRecord
from agent_orchestrator.domain.errors import InvalidRequest
from agent_orchestrator.domain.lifecycle import RunStatus
from agent_orchestrator.domain.model import Run, Session
from agent_orchestrator.engine.config import EngineConfig
from agent_orchestrator.engine.core import MAX_READ_ROWS, Core
from agent_orchestrator.operations.daemon import Problem
from agent_orchestrator.ports.queries import QueueQueries, View


def profile_of(config: EngineConfig, *, draining: bool = False) -> DaemonProfile:
    """Return what an engine tells the other daemons."""
    return DaemonProfile(
        config.version,
        config.url,
        config.max_concurrency,
        tuple(sorted(config.providers)),
        config.host.id,
        tuple(sorted(set(config.host_labels))),
        draining,
        config.spawn_directory,
    )


CLOCK_LIMIT_S: Final = 1.0
"""Seconds that a daemon's clock may differ from the store's without being a problem."""


def clock_problems(daemons: Iterable[DaemonRecord]) -> list[Problem]:
    """Return a problem for each daemon that is there and whose clock is wrong."""
    return [
        Problem(
            "clock_skew",
            f"the clock of {daemon.node} (process {daemon.pid}) is {_offset_text(daemon.clock_offset_s)} that"
            " of the database's server",
        )
        for daemon in daemons
        if daemon.away_since is None
        and daemon.clock_offset_s is not None
        and abs(daemon.clock_offset_s) > CLOCK_LIMIT_S
    ]


def _offset_text(offset_s: float) -> str:
    return f"{abs(offset_s):.1f} s {'ahead of' if offset_s > 0 else 'behind'}"


def name_host(core: Core) -> None:
    """Give the host its name in the store. Call it before any agent is started."""
    host = core.config.host
    name = core.config.host_name
    if name is None and core.store.lease is not None:
        name = host.machine_name()
    if name is not None:
        core.config = evolve(core.config, host=host.named(name))


def daemon_of(view: QueueQueries, run: Run) -> DaemonRecord | None:
    """Return the daemon that executes a run, if it shares the store and has not ended."""
    daemon_id = (run.worker_id or "").partition("/")[0]
    return next((daemon for daemon in view.daemons() if daemon.id == daemon_id), None)


NEWEST_RUNS: Final = 100
"""Started runs of a session among which the one is looked for that was started last: interrupting messages are started
before older ones."""


def other_daemon_with_conversation(
    core: Core, view: View, session: Session, provider: str
) -> DaemonRecord | None:
    """Return the other daemon that continued a session's conversation last, if it has not ended.

    Its agent may keep the conversation open between runs.
    """
    others = {daemon.id: daemon for daemon in view.daemons() if daemon.id != core.instance}
    if not others:
        return None
    newest, _ = view.latest_runs(session.id, limit=MAX_READ_ROWS, cut=0, size=sys.maxsize)
    started = [run for run in newest if run.started_at is not None or run.attempt > 1]
    attempts = [
        attempt
        for run in started[-NEWEST_RUNS:]
        for attempt in view.attempts(run.id)
        if provider in (run.provider, attempt.provider)
    ]
    last = max(attempts, key=lambda one: (one.started_at, one.attempt), default=None)
    return None if last is None else others.get(last.worker_id.partition("/")[0])


def has_provider(view: QueueQueries, provider: str, host: str | None) -> bool:
    """Return whether one of the daemons of a host has a provider."""
    return any(
        daemon.profile.host == host and provider in daemon.profile.providers
        for daemon in view.daemons()
        if daemon.profile is not None
    )


def known_provider(core: Core, view: QueueQueries, name: str, host: str | None) -> str:
    """Return a provider's name unchanged, if this daemon has it, or one of a host.

    :raises InvalidRequest: if there is no such provider.
    """
    try:
        return core.known_provider(name)
    except InvalidRequest:
        if core.store.lease is not None and has_provider(view, name, host):
            return name
        raise


def provider_for(core: Core, view: QueueQueries, session: Session, requested: str | None) -> str:
    """Return the provider of a message: its own, else its session's, else the default.

    :raises InvalidRequest: if the provider is unknown. That of a session may be one that only daemons have which
        are away.
    """
    name = requested or session.provider or core.config.routing.default
    if name == session.provider and core.store.lease is not None:
        return name
    return known_provider(core, view, name, session.host)


def workers_elsewhere(core: Core, view: View, provider: str, host: str | None) -> tuple[int, int]:
    """Return the number of workers of the other daemons of a host that may start runs of a provider, and how many of
    them execute a run. Runs whose agents wait in a call count, as the store does not tell them apart.
    """
    capacities = {
        daemon.id: daemon.profile.capacity
        for daemon in view.daemons()
        if daemon.id != core.instance
        and daemon.profile is not None
        and daemon.profile.host == host
        and provider in daemon.profile.providers
        and not daemon.profile.draining
    }
    if not capacities:
        return 0, 0
    running = view.runs(status=RunStatus.RUNNING, limit=MAX_READ_ROWS)
    busy = sum((run.worker_id or "").partition("/")[0] in capacities for run in running)
    return sum(capacities.values()), busy


def absent_host(core: Core, view: QueueQueries, host: str | None) -> HostRecord | None:
    """Return a host if no daemon serves it now.

    :param host: that of a session or attempt. None, from an earlier version, is this one's.
    """
    if host is None or core.is_here(host):
        return None
    found = next((one for one in view.hosts() if one.name == host), None)
    if found is None:
        return HostRecord(host, away_since=None, waiting_runs=0)
    return None if found.away_since is None else found
