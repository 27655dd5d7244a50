"""The machines that agents work on: implementations of :class:`agent_orchestrator.host.Host`."""

from agent_orchestrator.host import Host
from agent_orchestrator.hosts.linux.host import LinuxHost


def this_host() -> Host:
    """Return the host that this process is on."""
    return LinuxHost()
