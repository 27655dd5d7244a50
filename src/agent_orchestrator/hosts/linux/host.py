"""The host of Linux."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from typing import Self

from anyio.to_thread import run_sync
from attrs import frozen

from agent_orchestrator.domain.errors import AgentFailed
from agent_orchestrator.domain.model import Attempt
from agent_orchestrator.host import Process, ProcessSpec, Remains
from agent_orchestrator.hosts import scratch
from agent_orchestrator.hosts.files import LocalFiles
from agent_orchestrator.hosts.linux.reaper import reap
from agent_orchestrator.hosts.linux.start import open_process
from agent_orchestrator.hosts.linux.supervisor import fork_server
from agent_orchestrator.hosts.process_tree import process_tree
from agent_orchestrator.operations import ProcessView
from agent_orchestrator.processes import process_start_id


@frozen
class LinuxHost(LocalFiles):
    """A machine under Linux: the one that the calling process is on.

    :param id: see :attr:`agent_orchestrator.host.Host.id`.
    """

    id: str = "local"

    async def __aenter__(self) -> Self:
        held = await fork_server().__aenter__()
        try:
            await run_sync(scratch.remove_stale)
            with suppress(AgentFailed):  # each run reports the failure
                await held.prepare()
        except BaseException:
            await held.__aexit__()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await fork_server().__aexit__()

    def process_start_id(self, pid: int) -> str | None:
        return process_start_id(pid)

    def process_tree(self, pid: int, start_id: str | None, limit: int) -> Sequence[ProcessView]:
        return process_tree(pid, start_id, limit)

    def open_process(self, spec: ProcessSpec) -> AbstractAsyncContextManager[Process]:
        return open_process(spec)

    async def reap(self, attempts: Sequence[Attempt]) -> Mapping[tuple[str, int], Remains]:
        return await reap(attempts)
