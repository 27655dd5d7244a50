"""The host of systems without Linux's subreapers, such as macOS."""

from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Self

from anyio.to_thread import run_sync
from attrs import frozen

from agent_orchestrator.domain.model import Attempt
from agent_orchestrator.host import Process, ProcessSpec, ReapResult
from agent_orchestrator.hosts import process as piped
from agent_orchestrator.hosts import scratch
from agent_orchestrator.hosts.local import LocalHost
from agent_orchestrator.hosts.posix.group import start
from agent_orchestrator.hosts.posix.processes import is_alive, kill_processes, possible_escapes
from agent_orchestrator.operations.daemon import Finding
from agent_orchestrator.ports.runner import TAG_VARIABLE
from agent_orchestrator.processes import portable_start_id

_MAX_NAMED = 3
"""Maximum number of processes that a reason names."""


@frozen
class PosixHost(LocalHost):
    """A machine with process groups only, for development.

    An agent's process survives the daemon if that is killed, until the next daemon starts. A process that
    leaves its group and drops its tag survives its run.
    """

    async def __aenter__(self) -> Self:
        await run_sync(scratch.remove_stale)
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Do nothing. This host has no helper process."""

    def process_start_id(self, pid: int) -> str | None:
        return portable_start_id(pid)

    def open_process(self, spec: ProcessSpec) -> AbstractAsyncContextManager[Process]:
        return _open_process(spec)

    async def kill_by_variable(self, name: str, values: Collection[str]) -> Sequence[int]:
        return (await kill_processes(name, values)).ended

    def _findings(self) -> Iterator[Finding]:
        yield Finding(
            "warning",
            "processes",
            "this system cannot guarantee that an agent's processes end with its run: one that leaves its "
            "process group and drops its tag survives, and all survive a killed agentd until its next start",
            "use this system for development, and Linux for other work",
            security=True,
        )

    async def _reap_one(self, attempt: Attempt) -> ReapResult:
        group = None
        if attempt.pid is not None and is_alive(attempt.pid):
            current, recorded = portable_start_id(attempt.pid), attempt.process_start_id
            if current is None or recorded is None:
                reason = f"it is not known whether process {attempt.pid} is its agent"
                return ReapResult("unknown", reason=reason)
            group = attempt.pid if current == recorded else None
        result = await kill_processes(TAG_VARIABLE, [attempt.tag], group)
        escapes = () if result.alive else await run_sync(possible_escapes, attempt.started_at)
        if not escapes:
            return result
        more = ", …" if len(escapes) > _MAX_NAMED else ""
        named = ", ".join(escapes[:_MAX_NAMED])
        reason = (
            f"these may be processes of it, which this kind of host cannot find out: {named}{more}"
        )
        return ReapResult("unknown", result.ended, reason=reason)


@asynccontextmanager
async def _open_process(spec: ProcessSpec) -> AsyncIterator[Process]:
    piped.encoded(spec)  # raises where these arguments cannot be given
    pipes, agent = await piped.start(spec, partial(start, spec))
    async with piped.serving(agent, pipes, spec, agent.supervisor.kill_rest) as process:
        yield process
