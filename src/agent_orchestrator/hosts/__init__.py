"""The machines that agents work on: implementations of :class:`agent_orchestrator.host.Host`."""

import sys

from agent_orchestrator.host import Host, used_host


def this_host() -> Host:
    """Return the host for this machine: the one for Linux, or the one for development on other systems."""
    if sys.platform != "linux":
        from agent_orchestrator.hosts.posix.host import PosixHost

        return PosixHost()
    from agent_orchestrator.hosts.linux.host import LinuxHost

    return LinuxHost()


def current_host() -> Host:
    """Return the host of the engine in whose scope this code runs, or :func:`this_host` if there is none."""
    return used_host() or this_host()
