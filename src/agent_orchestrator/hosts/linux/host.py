"""The host of Linux."""

from collections.abc import Mapping, Sequence

from attrs import frozen

from agent_orchestrator.domain.model import Attempt
from agent_orchestrator.host import Remains
from agent_orchestrator.hosts.files import LocalFiles
from agent_orchestrator.hosts.process_tree import process_tree
from agent_orchestrator.operations import ProcessView
from agent_orchestrator.processes import process_start_id
from agent_orchestrator.runners.reaper import reap


@frozen
class LinuxHost(LocalFiles):
    """A machine under Linux: the one that the calling process is on.

    :param id: see :attr:`agent_orchestrator.host.Host.id`.
    """

    id: str = "local"

    def process_start_id(self, pid: int) -> str | None:
        return process_start_id(pid)

    def process_tree(self, pid: int, start_id: str | None, limit: int) -> Sequence[ProcessView]:
        return process_tree(pid, start_id, limit)

    async def reap(self, attempts: Sequence[Attempt]) -> Mapping[tuple[str, int], Remains]:
        return await reap(attempts)
