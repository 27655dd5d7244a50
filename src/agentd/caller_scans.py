"""Scans of the processes of this machine, each for all connections that wait for one.

A scan takes some milliseconds, also if it looks for one connection only. Without sharing, a thousand clients that
connect at once would wait for a thousand scans.
"""

from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

import anyio
import anyio.to_thread
from attrs import define, field

from agentd.callers import Ends

MAX_SCANS: Final = 2
"""Maximum number of concurrent scans."""

Search: TypeAlias = Callable[[Sequence[Ends]], Sequence[bool]]
"""Returns for each connection whether it may be an agent's; see :func:`agentd.callers.which_may_be_agents`."""


@define(eq=False)
class _Scan:
    connections: list[Ends]
    answers: dict[Ends, bool] = field(factory=dict)
    done: anyio.Event = field(factory=anyio.Event)


class CallerScans:
    """Runs scans in threads. A connection joins a scan that has not begun.

    :param search: the search, called in a thread.
    """

    def __init__(self, search: Search) -> None:
        self._search = search
        self._begin = anyio.Semaphore(MAX_SCANS)
        self._threads = anyio.CapacityLimiter(MAX_SCANS)
        self._next: _Scan | None = None

    async def may_be_agents(self, ends: Ends) -> bool:
        """Return whether a connection may be an agent's."""
        if (scan := self._next) is None:
            scan = self._next = _Scan([ends])
            await self._perform(scan)
        else:
            scan.connections.append(ends)
            await scan.done.wait()
        if (answer := scan.answers.get(ends)) is None:
            # The request that began the scan was canceled before.
            (answer,) = await self._run([ends])
        return answer

    async def _perform(self, scan: _Scan) -> None:
        try:
            async with self._begin:
                self._next = None
                answers = await self._run(scan.connections)
                scan.answers = dict(zip(scan.connections, answers, strict=True))
        finally:
            if self._next is scan:
                self._next = None
            scan.done.set()

    async def _run(self, connections: Sequence[Ends]) -> Sequence[bool]:
        return await anyio.to_thread.run_sync(
            self._search, tuple(connections), limiter=self._threads
        )
