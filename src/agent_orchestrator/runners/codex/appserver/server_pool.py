"""The warm processes, with their threads.

In codex 0.169 only one process can write a thread, until that process exits. So a session stays with
the process that has loaded its thread.
"""

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from attrs import define, field

from agent_orchestrator.domain.errors import AgentFailed
from agent_orchestrator.runners.codex.appserver.server import (
    ANOTHER_LOGIN,
    PROTOCOL,
    Lease,
    Server,
    Spec,
)
from agent_orchestrator.runners.live.pool import ProcessPool


@define(eq=False)
class ServerPool(ProcessPool[Server]):
    """Starts processes when they are needed.

    :param max_threads: maximum number of threads of one process.
    :param idle_s: seconds after which a process without a run is ended.
    :param thread_idle_s: seconds after which a thread without a run is unloaded.
    """

    max_threads: int = field(kw_only=True)
    idle_s: float = field(kw_only=True)
    thread_idle_s: float = field(kw_only=True)

    def has(self, spec: Spec, thread_id: str | None) -> bool:
        """Return whether a process has loaded the thread."""
        return any(one.spec == spec and thread_id in one.threads for one in self.serving)

    def serves(self, env: frozenset[tuple[str, str]]) -> bool:
        """Return whether a process with this environment is running."""
        return any(one.spec.env == env and one.is_ready for one in self.serving)

    @asynccontextmanager
    async def lease_for(self, spec: Spec, thread_id: str | None) -> AsyncIterator[Lease]:
        """Lease a process: the one that has the thread, or one with room, or a new one.

        :raises NotStarted: if none can be started.
        """
        for stale in [one for one in self.serving if one.spec.matches(spec) and one.spec != spec]:
            stale.retire(ANOTHER_LOGIN)
        for other in [one for one in self.serving if one.is_retired or not one.spec.matches(spec)]:
            if thread_id is not None and thread_id in other.threads:
                await other.unload(thread_id)
        if thread_id is not None:
            for server in [one for one in self.serving if thread_id in one.threads]:
                await server.keep_loaded(thread_id)
        for leaving in [server for server in self.ending if thread_id in server.threads]:
            await leaving.ended.wait()
        server = self._suitable(spec, thread_id) or self._started(spec)
        lease = Lease(server, is_opening=thread_id not in server.threads)
        try:
            async with self.lease(server):
                yield lease
        finally:
            lease.end()

    async def release_thread(self, thread_id: str) -> None:
        """Unload a thread that no run uses, so that another process can have it.

        :raises AgentFailed: if codex keeps it.
        """
        for server in [one for one in self.serving if thread_id in one.threads]:
            await server.keep_loaded(thread_id)  # it may be unloading already
            if thread_id in server.threads:
                await server.unload(thread_id)
            if thread_id in server.threads and server.failure is None:
                raise AgentFailed(
                    "provider_error", "codex has not released the thread yet: try again"
                )
        for leaving in [one for one in self.ending if thread_id in one.threads]:
            await leaving.ended.wait()

    def _suitable(self, spec: Spec, thread_id: str | None) -> Server | None:
        for server in self.serving:
            # Even with another login: codex does not let a second process have the thread.
            if server.spec.matches(spec) and thread_id in server.threads:
                return server
        suitable = [one for one in self.serving if one.spec == spec and not one.is_retired]
        # The fullest one, so that the others may become idle.
        with_room = [server for server in suitable if server.thread_count < self.max_threads]
        return max(with_room, key=lambda server: server.thread_count, default=None)

    def _started(self, spec: Spec) -> Server:
        tag = f"codex-app-server.{uuid.uuid4().hex}"
        return self.start(Server(PROTOCOL, tag, self.idle_s, spec, self.thread_idle_s))
