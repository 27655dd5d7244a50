import pytest

from agent_orchestrator.host import Host
from agent_orchestrator.hosts.linux.host import LinuxHost
from agent_orchestrator.testing import HostContract

pytestmark = pytest.mark.anyio


class TestLinuxHost(HostContract):
    def make_host(self) -> Host:
        return LinuxHost()
