"""The machines that agents work on: implementations of :class:`agent_orchestrator.host.Host`."""

import sys

from agent_orchestrator.host import Host, used_host


def this_host() -> Host:
    """Return the host that this process is on: of Linux, or one for development on other systems."""
    if sys.platform != "linux":
        from agent_orchestrator.hosts.posix.host import PosixHost

        return PosixHost()
    from agent_orchestrator.hosts.linux.host import LinuxHost

    return LinuxHost()


def current_host() -> Host:
    """Return the host of the engine that called this code; without an engine, :func:`this_host`."""
    return used_host() or this_host()
