"""The host of a session: whether it may be another one, and its directory there."""

import posixpath
from collections.abc import Collection

from attrs import define

from agent_orchestrator.domain.access import Principal
from agent_orchestrator.domain.errors import Conflict, Forbidden, InvalidRequest
from agent_orchestrator.domain.model import MANUAL, Session
from agent_orchestrator.engine.access import forbid_runs
from agent_orchestrator.engine.core import Core
from agent_orchestrator.operations.options import Placement
from agent_orchestrator.ports.queries import View


def forbid_choice(caller: Principal, *choices: object) -> None:
    """Raise ``Forbidden`` if an agent chooses a host: that may give it more than it has.

    :param choices: the values of fields that choose one.
    """
    if any(choices):
        forbid_runs(caller)


def chosen_host(core: Core, view: View, command: Placement, own: str | None, provider: str) -> str:
    """Return the host of a new session.

    :param own: the host without a choice.
    :param provider: the provider of its runs, which a daemon of the host must have.
    :raises InvalidRequest: naming ``host``, if it is unknown.
    :raises Conflict: if no host that is there has the labels.
    """
    default = own or core.config.host.id
    if command.host is not None:
        require_known(core, view, command.host)
    if not command.labels and not command.preferred_labels:
        return command.host or default
    hosts = _hosts(core, view, provider)
    required = frozenset(command.labels)
    fitting = {
        name: host
        for name, host in hosts.items()
        if required <= host.labels and command.host in (None, name)
    }
    if not fitting:
        # The session could wait for such a host, but its directory has no meaning without one.
        there = "; ".join(
            f"{name} has {_listed(host.labels)}" for name, host in sorted(hosts.items())
        )
        where = "" if command.host is None else f" {command.host}"
        raise Conflict(
            f"no host{where} with {provider} that is there has {_listed(required)}: {there or 'there is none'}",
            {"labels": sorted(required)},
        )
    preferred = frozenset(command.preferred_labels)

    def rank(name: str) -> tuple[int, bool, bool, int, str]:
        host = fitting[name]
        is_full = host.free_workers <= 0
        return -len(preferred & host.labels), is_full, name != default, -host.free_workers, name

    return min(fitting, key=rank)


@define
class _Host:
    """A host that daemons serve now.

    :param labels: those that all its daemons have.
    :param free_workers: number of their workers that execute no run.
    """

    labels: frozenset[str]
    free_workers: int


def _hosts(core: Core, view: View, provider: str) -> dict[str, _Host]:
    """Return the hosts that have a provider, by name. Daemons that are about to end do not count."""
    if core.store.lease is None:
        free = core.workers.alive_workers - core.workers.busy_workers
        return {core.config.host.id: _Host(frozenset(core.config.host_labels), free)}
    hosts: dict[str, _Host] = {}
    for daemon in view.daemons():
        profile = daemon.profile
        if profile is None or profile.draining or daemon.away_since is not None:
            continue
        if provider not in (MANUAL, *profile.providers):
            continue
        labels, free = frozenset(profile.labels), profile.capacity - daemon.active_runs
        if (known := hosts.get(profile.host)) is None:
            hosts[profile.host] = _Host(labels, free)
        else:
            known.labels &= labels
            known.free_workers += free
    return hosts


def _listed(labels: Collection[str]) -> str:
    return f"the labels {', '.join(sorted(labels))}" if labels else "no labels"


def require_directory(command: Placement, cwd: str | None) -> None:
    """Raise ``InvalidRequest`` if labels choose the host and no directory is given."""
    if (command.labels or command.preferred_labels) and cwd is None:
        raise InvalidRequest.of(
            {"cwd": "is needed with labels: a directory of the host that they choose"}
        )


def require_known(core: Core, view: View, host: str) -> None:
    """Raise ``InvalidRequest`` if the host is not this one, and no daemon serves it or has served it."""
    known = {core.config.host.id, *(one.name for one in view.hosts())}
    if host not in known:
        names = ", ".join(sorted(known))
        raise InvalidRequest.of({"host": f"unknown host {host!r}; choose from: {names}"})


def directory_elsewhere(host: str | None, cwd: str | None) -> str:
    """Return a directory of another host, which only a daemon there can check. It does when a run starts.

    :raises InvalidRequest: naming ``cwd``, if there is none.
    """
    if cwd is None:
        raise InvalidRequest.of({"cwd": f"is needed: a directory of the host {host}"})
    return "/" + posixpath.normpath(cwd).lstrip("/")


def child_directory_elsewhere(caller: Principal, cwd: str, parent: Session) -> str:
    """Return the directory of a child on its parent's host, which is not this one.

    :raises Forbidden: if an agent chooses another one than its parent's. Whether that is within the parent's can
        only be seen there, because of symbolic links.
    """
    directory = directory_elsewhere(parent.host, cwd)
    if caller.run is not None and directory != parent.cwd:
        raise Forbidden(
            f"the directory is on the host {parent.host}, which only its daemon can check: leave out `cwd`",
            {"cwd": cwd},
        )
    return directory
