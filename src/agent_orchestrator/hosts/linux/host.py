"""The host of Linux."""

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from typing import Self

import anyio
from anyio.to_thread import run_sync
from attrs import evolve, frozen

from agent_orchestrator.domain.errors import AgentFailed
from agent_orchestrator.domain.model import Attempt
from agent_orchestrator.host import Process, ProcessSpec, ReapResult
from agent_orchestrator.hosts import scratch
from agent_orchestrator.hosts.linux.expiry import Expiry
from agent_orchestrator.hosts.linux.orphans import (
    kill_by_variable,
    kill_orphans,
    tags_with_processes,
)
from agent_orchestrator.hosts.linux.start import open_process
from agent_orchestrator.hosts.linux.supervisor import fork_server
from agent_orchestrator.hosts.local import LocalHost
from agent_orchestrator.operations.daemon import Finding
from agent_orchestrator.processes import is_running, live_process, process_start_id

_HIDDEN = "/proc does not show the processes of this machine"


@frozen
class LinuxHost(LocalHost):
    """A Linux machine. No process of an agent outlives its attempt, whatever the agent does.

    :param expiry: until when the agents may work; None for ever.
    """

    expiry: Expiry | None = None

    def limited(self, ends_at: Callable[[], float]) -> Self:
        expiry = Expiry(ends_at)
        expiry.update()
        return evolve(self, expiry=expiry)

    def extend(self) -> bool:
        return self.expiry is None or self.expiry.extend()

    async def __aenter__(self) -> Self:
        server = await fork_server().__aenter__()
        try:
            await run_sync(scratch.remove_stale)
            with suppress(AgentFailed):  # each run reports the failure
                await server.prepare()
        except BaseException:
            await server.__aexit__()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await fork_server().__aexit__()

    def process_start_id(self, pid: int) -> str | None:
        return process_start_id(pid)

    async def process_end(self, pid: int, start_id: str) -> None:
        try:
            fd = os.pidfd_open(pid)
        except OSError:  # it has ended, or there are no descriptors or no pidfd_open
            await super().process_end(pid, start_id)
            return
        try:
            if is_running(pid, start_id):
                await anyio.wait_readable(fd)
        finally:
            os.close(fd)

    def open_process(self, spec: ProcessSpec) -> AbstractAsyncContextManager[Process]:
        return open_process(spec, self.expiry)

    async def kill_by_variable(self, name: str, values: Collection[str]) -> Sequence[int]:
        return await kill_by_variable(name, values)

    def _findings(self) -> Iterator[Finding]:
        if live_process(os.getpid()) is None:
            yield Finding(
                "warning",
                "processes",
                f"{_HIDDEN}: runs of a lost daemon wait until it does",
                "mount /proc, without hidepid for the user of agentd",
            )
        try:
            os.close(os.pidfd_open(os.getpid()))
        except OSError as error:
            yield Finding(
                "error",
                "processes",
                f"the kernel has no pidfd_open, which the supervisors of agents need: {error.strerror}",
                "use Linux 5.3 or newer, and allow pidfd_open in the seccomp profile",
            )

    async def reap(self, attempts: Sequence[Attempt]) -> Mapping[tuple[str, int], ReapResult]:
        if live_process(os.getpid()) is None:
            return await super().reap(attempts)  # which answers that for each
        ours = [attempt for attempt in attempts if attempt.host in (None, self.id)]
        # Most attempts have no processes left, because their supervisors have ended them.
        tags = await tags_with_processes(ours)
        gone = {(one.run_id, one.attempt): ReapResult() for one in ours if one.tag not in tags}
        others = [one for one in attempts if (one.run_id, one.attempt) not in gone]
        return gone | {**await super().reap(others)}

    async def _reap_one(self, attempt: Attempt) -> ReapResult:
        if live_process(os.getpid()) is None:
            return ReapResult("unknown", reason=_HIDDEN)
        return await kill_orphans(attempt.tag, attempt.pid, attempt.process_start_id)
