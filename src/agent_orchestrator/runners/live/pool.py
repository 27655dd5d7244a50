"""The live processes of a runner."""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Generic, Self, TypeVar

import anyio
from anyio.abc import TaskGroup
from attrs import define, field

from agent_orchestrator.domain.errors import AgentFailed
from agent_orchestrator.runners.live.process import LiveProcess

logger = logging.getLogger(__name__)

P = TypeVar("P", bound=LiveProcess)


class NotStarted(AgentFailed):
    """A process ended before it was ready.

    :ivar is_incompatible: whether it did not understand the protocol.
    """

    is_incompatible = False


@define(eq=False)
class ProcessPool(Generic[P]):
    """Processes that live until they are idle too long. An async context manager: leaving it ends them all.

    :param max_idle: maximum number of processes without a run. Those longest without one are ended.
    """

    max_idle: int | None = None
    _processes: list[P] = field(factory=list, init=False)
    """Those that have been without a run for longest come first."""
    _by_key: dict[str, P] = field(factory=dict, init=False)
    _tasks: TaskGroup | None = field(default=None, init=False)

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

    @property
    def serving(self) -> list[P]:
        return [one for one in self._processes if one.failure is None]

    @property
    def ending(self) -> list[P]:
        """Processes that have stopped serving but have not ended, so they may still use their threads."""
        return [one for one in self._processes if one.failure is not None]

    def start(self, process: P) -> P:
        """Start a process. Lease it before the next await, so that it is not ended as idle."""
        if self._tasks is None:
            raise RuntimeError("the runner is not open: use `async with runner`")
        self._processes.append(process)
        self._tasks.start_soon(self._serve, process)
        return process

    async def _serve(self, process: P) -> None:
        try:
            await process.run()
        except Exception:
            # The failure of one process must not end the others. Its runs report the error.
            logger.exception("%s failed", process.protocol.agent)
        finally:
            self._processes.remove(process)
            self._by_key = {key: one for key, one in self._by_key.items() if one is not process}

    @asynccontextmanager
    async def lease(self, process: P) -> AsyncIterator[P]:
        """Use a process. Entering waits until it is ready.

        If it fails meanwhile, leaving waits until it and all its child processes have ended.

        :raises NotStarted: if it does not start.
        """
        process.lease()
        try:
            try:
                await process.ready()
            except AgentFailed as failure:
                problem = NotStarted(failure.code, failure.message)
                problem.is_incompatible = process.is_incompatible
                raise problem from failure
            yield process
        finally:
            process.release()
            if process.failure is not None:
                with anyio.CancelScope(shield=True):
                    await process.ended.wait()
            else:
                self._processes.remove(process)
                self._processes.append(process)
                self._retire_idle()

    def _retire_idle(self) -> None:
        idle = [one for one in self.serving if not one.leases]
        if self.max_idle is not None:
            for process in idle[: max(len(idle) - self.max_idle, 0)]:
                process.retire(f"{process.protocol.agent} was idle")

    async def end(self, key: str, reason: str) -> None:
        """End the process of a key once no run uses it, and wait until it has ended."""
        if (current := self._by_key.get(key)) is not None:
            current.retire(reason)
            await current.ended.wait()

    @asynccontextmanager
    async def lease_by_key(
        self, key: str, is_usable: Callable[[P], bool], make: Callable[[], P]
    ) -> AsyncIterator[P]:
        """Use the process of a key, for agents with one process per session.

        A process that the run cannot use, or that is ending, is replaced after its end. The caller must not use
        a key twice at the same time.

        :param is_usable: whether the run can use the current process.
        :param make: returns a new process.
        """
        current = self._by_key.get(key)
        if current is not None and not (current.failure is None and is_usable(current)):
            await self.end(key, f"{current.protocol.agent} had other settings")
            current = None
        if current is None:
            current = self._by_key[key] = self.start(make())
        async with self.lease(current) as process:
            yield process
