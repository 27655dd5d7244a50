"""Starts an agent with a supervisor, which adopts all its processes and ends them, even if this process
dies.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import anyio

from agent_orchestrator.host import Process, ProcessSpec
from agent_orchestrator.hosts import process as piped
from agent_orchestrator.hosts.linux.expiry import Expiry
from agent_orchestrator.hosts.linux.orphans import kill_orphans, tag_limit
from agent_orchestrator.hosts.linux.supervisor import SupervisedAgent, fork_server
from agent_orchestrator.ports.runner import TAG_VARIABLE

_START_GRACE: Final = 2.0
"""Seconds that a canceled start has to complete. It usually takes milliseconds."""


@asynccontextmanager
async def open_process(spec: ProcessSpec, expiry: Expiry | None) -> AsyncIterator[Process]:
    """Start a program. Leaving the scope ends it and all processes it started.

    :param expiry: until when they may work; None for ever.

    Its supervisor becomes the parent of every orphan below it, so no process escapes. The scope is
    left when the supervisor has no child any more.
    """
    tag = spec.env.get(TAG_VARIABLE)
    request = piped.encoded(spec)
    async with fork_server() as launcher:
        start = partial(
            launcher.start,
            *request,
            tag_limit=tag_limit(tag) if tag else 0,
            is_resolved=spec.is_cwd_resolved,
            expiry=0 if expiry is None else expiry.number,
        )
        if expiry is not None:
            expiry.begin()

        async def step(stdio: Sequence[int]) -> SupervisedAgent:
            return await _Start(partial(start, stdio=stdio), tag).finish()

        pipes, agent = await piped.start(spec, step)

        async def kill_rest() -> Sequence[int]:
            return (await kill_orphans(tag, agent.pid, agent.start_id)).alive

        process: piped.PipedProcess | None = None
        try:
            async with piped.serving(agent, pipes, spec, kill_rest) as process:
                yield process
        finally:
            if process is not None and process.is_reusable:
                launcher.reuse(agent.supervisor)
            else:
                agent.supervisor.close()


class _Start:
    """A start in progress. It is not canceled midway, because the agent may already run."""

    def __init__(self, step: Callable[[], Awaitable[SupervisedAgent]], tag: str | None) -> None:
        self._step = step
        self._tag = tag
        self._agent: SupervisedAgent | None = None
        self._failure: Exception | None = None
        self._finished = anyio.Event()
        self._shield = anyio.CancelScope(shield=True)

    async def finish(self) -> SupervisedAgent:
        """Return the agent. If canceled, end the agent that was started."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._run)
                try:
                    await self._finished.wait()
                finally:
                    self._shield.deadline = anyio.current_time() + _START_GRACE
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._undo()
            raise
        if self._failure is not None:
            raise self._failure
        assert self._agent is not None
        return self._agent

    async def _run(self) -> None:
        with self._shield:
            try:
                self._agent = await self._step()
            except Exception as failure:  # noqa: BLE001 - the task group would wrap it
                self._failure = failure
        self._finished.set()

    async def _undo(self) -> None:
        if self._failure is not None:
            return
        if self._agent is None:
            await kill_orphans(self._tag)
        else:
            self._agent.supervisor.close()  # which has all of the agent killed
            await kill_orphans(self._tag, self._agent.pid, self._agent.start_id)
