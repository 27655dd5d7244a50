"""The host of a session: whether it may be another one, and its directory there."""

import posixpath
from collections.abc import Collection, Mapping

from attrs import define, frozen

from agent_orchestrator.domain.access import Principal
from agent_orchestrator.domain.errors import Conflict, Forbidden, InvalidRequest
from agent_orchestrator.domain.model import MANUAL, Session
from agent_orchestrator.engine.core import Core
from agent_orchestrator.operations.options import Placement, SpawnOptions
from agent_orchestrator.ports.queries import View


@frozen
class Place:
    """Where a new session works. None means: where its parent does."""

    host: str | None = None
    cwd: str | None = None


def is_chosen(command: Placement) -> bool:
    """Return whether a command chooses a host."""
    return bool(command.host or command.labels or command.preferred_labels)


def chosen_host(core: Core, view: View, command: Placement, own: str | None, provider: str) -> str:
    """Return the host of a new session of a person.

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
    return _best(_hosts(core, view, provider), command, default, provider)


def place_of_agents_child(
    core: Core, view: View, command: SpawnOptions, parent: Session, provider: str
) -> Place:
    """Return the place of a child for which an agent chooses a host.

    It is the agent's own host, or one that lets in children of others, in the directory that it gives them.

    :param provider: as for :func:`chosen_host`.
    :raises Conflict: if there is no such host with the labels.
    :raises Forbidden: if the agent chooses the directory on another host.
    """
    own = str(core.config.host.id if core.is_here(parent.host) else parent.host)
    hosts = _hosts(core, view, provider)
    open_hosts = {name: host for name, host in hosts.items() if name == own or host.directory}
    name = _best(open_hosts, command, own, provider, "lets agents of other hosts in")
    if name == own:
        return Place()
    if command.cwd is not None:
        raise Forbidden(
            f"on the host {name} your children work in the directory that it gives them: leave out `cwd`",
            {"cwd": command.cwd},
        )
    return Place(name, open_hosts[name].directory)


def _best(
    hosts: "Mapping[str, _Host]", command: Placement, default: str, provider: str, is_open: str = ""
) -> str:
    """Return the host that fits a command best.

    :param is_open: what these hosts have in common besides the labels, for the error message.
    """
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
        also = f" and {is_open}" if is_open else ""
        raise Conflict(
            f"no host{where} with {provider} that is there{also} has {_listed(required)}: {there or 'there is none'}",
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
    :param directory: where children of agents of other hosts work; None unless all its daemons say the same.
    """

    labels: frozenset[str]
    free_workers: int
    directory: str | None


def _hosts(core: Core, view: View, provider: str) -> dict[str, _Host]:
    """Return the hosts that have a provider, by name. Daemons that are about to end do not count."""
    if core.store.lease is None:
        free = core.workers.alive_workers - core.workers.busy_workers
        return {core.config.host.id: _Host(frozenset(core.config.host_labels), free, None)}
    hosts: dict[str, _Host] = {}
    for daemon in view.daemons():
        profile = daemon.profile
        if profile is None or profile.draining or daemon.away_since is not None:
            continue
        if provider not in (MANUAL, *profile.providers):
            continue
        labels, free = frozenset(profile.labels), profile.capacity - daemon.active_runs
        if (known := hosts.get(profile.host)) is None:
            hosts[profile.host] = _Host(labels, free, profile.spawn_directory)
        else:
            known.labels &= labels
            known.free_workers += free
            if known.directory != profile.spawn_directory:
                known.directory = None
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
