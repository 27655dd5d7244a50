"""The warm processes, with their threads.

In codex 0.169 only one process can write a thread, until that process exits. So a session stays with
the process that has loaded its thread.
"""

import logging
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self

import anyio
from anyio.abc import TaskGroup
from attrs import define, field

from agent_orchestrator.domain.errors import AgentFailed
from agent_orchestrator.runners.codex.appserver.server import Lease, Server, Spec

logger = logging.getLogger(__name__)


class NotStarted(AgentFailed):
    """A process ended before it served.

    :ivar is_unknown: whether it did not understand the protocol.
    """

    is_unknown = False


@define(eq=False)
class ServerPool:
    """Starts processes when they are needed. An async context manager, which ends them all.

    :param max_threads: maximum number of threads of one process.
    :param idle_s: seconds after which a process without a run is ended.
    :param thread_idle_s: seconds after which a thread without a run is unloaded.
    """

    max_threads: int
    idle_s: float
    thread_idle_s: float
    servers: list[Server] = field(factory=list, init=False)
    _tasks: TaskGroup | None = field(default=None, init=False)
    _stopping: list[Server] = field(factory=list, init=False)
    """Processes that are ending. They keep their threads until they have ended."""

    async def __aenter__(self) -> Self:
        if self._tasks is not None:
            raise RuntimeError(
                "the runner already belongs to an engine: create another runner for this one"
            )
        self._tasks = await anyio.create_task_group().__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._tasks is not None
        self._tasks.cancel_scope.cancel()
        try:
            await self._tasks.__aexit__(None, None, None)
        finally:
            self._tasks = None

    def has(self, spec: Spec, thread_id: str | None) -> bool:
        """Return whether a process has loaded the thread."""
        return any(one.spec == spec and thread_id in one.threads for one in self.servers)

    def serves(self, env: frozenset[tuple[str, str]]) -> bool:
        """Return whether a process with this environment is running."""
        return any(one.spec.env == env and one.is_ready for one in self.servers)

    @asynccontextmanager
    async def lease(self, spec: Spec, thread_id: str | None) -> AsyncIterator[Lease]:
        """Lease a process: the one that has the thread, or one with room, or a new one.

        On leaving, a process that has ended meanwhile is cleaned up with all its processes.

        :raises NotStarted: if none can be started.
        """
        for stale in [one for one in self.servers if one.spec.matches(spec) and one.spec != spec]:
            stale.retire()
        for other in [one for one in self.servers if one.is_retired or not one.spec.matches(spec)]:
            if thread_id is not None and thread_id in other.threads:
                await other.unload(thread_id)
        if thread_id is not None:
            for server in [one for one in self.servers if thread_id in one.threads]:
                await server.keep_loaded(thread_id)
        for leaving in [server for server in self._stopping if thread_id in server.threads]:
            await leaving.ended.wait()
        server = self._suitable(spec, thread_id) or self._started(spec)
        lease = server.lease(is_opening=thread_id not in server.threads)
        try:
            try:
                await server.ready()
            except AgentFailed as failure:
                problem = NotStarted(failure.code, failure.message)
                problem.is_unknown = server.is_unknown
                raise problem from failure
            yield lease
        finally:
            lease.end()
            if server.failure is not None:
                with anyio.CancelScope(shield=True):
                    await server.ended.wait()

    def _suitable(self, spec: Spec, thread_id: str | None) -> Server | None:
        for server in self.servers:
            # Even with another login: codex does not let a second process have the thread.
            if server.spec.matches(spec) and thread_id in server.threads:
                return server
        suitable = [one for one in self.servers if one.spec == spec and not one.is_retired]
        # The fullest one, so that the others may become idle.
        with_room = [server for server in suitable if server.thread_count < self.max_threads]
        return max(with_room, key=lambda server: server.thread_count, default=None)

    def _started(self, spec: Spec) -> Server:
        if self._tasks is None:
            raise RuntimeError("the runner is not open: use `async with runner`")
        tag = f"codex-app-server.{uuid.uuid4().hex}"
        server = Server(spec, tag, self.idle_s, self.thread_idle_s, self._ended)
        self.servers.append(server)
        self._tasks.start_soon(self._serve, server)
        return server

    def _ended(self, server: Server) -> None:
        if server in self.servers:
            self.servers.remove(server)
            self._stopping.append(server)

    async def _serve(self, server: Server) -> None:
        try:
            await server.run()
        except Exception:
            # The failure of one process must not end the others. Its runs have the error.
            logger.exception("a codex app-server failed")
        finally:
            self._stopping = [one for one in self._stopping if one is not server]
