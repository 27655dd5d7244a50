"""The machines that agents work on: implementations of :class:`agent_orchestrator.host.Host`."""

from agent_orchestrator.host import Host, used_host
from agent_orchestrator.hosts.linux.host import LinuxHost


def this_host() -> Host:
    """Return the host that this process is on."""
    return LinuxHost()


def current_host() -> Host:
    """Return the host of the engine that called this code; without an engine, :func:`this_host`."""
    return used_host() or this_host()
