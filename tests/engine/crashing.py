"""Engines that die: nothing they do afterwards is recorded."""

from collections.abc import Awaitable, Callable
from typing import Any, Self, TypeVar

import anyio
import anyio.lowlevel

from agent_orchestrator import Client, open_embedded
from agent_orchestrator.domain.errors import Unavailable
from agent_orchestrator.ports.changes import Transaction
from agent_orchestrator.ports.queries import View
from agent_orchestrator.ports.store import Store

T = TypeVar("T")


class Crashed(Exception):
    """Raised in an engine that has crashed."""


class Handle:
    """The store of one engine. After that engine crashed, its writes fail.

    The engine can be paused, too: its calls then wait until :meth:`go_on`.

    :param closes: whether leaving the scope closes the store; False if others use it.
    :param doubts: called after each commit; if it returns True, the commit is reported as failed.
    """

    def __init__(
        self, store: Store, *, closes: bool = False, doubts: Callable[[], bool] = lambda: False
    ) -> None:
        self._store = store
        self._closes = closes
        self._doubts = doubts
        self.crashed = False
        self._going = anyio.Event()
        self._going.set()

    def stop(self) -> None:
        self._going = anyio.Event()

    def go_on(self) -> None:
        self._going.set()

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the store."""
        return getattr(self._store, name)

    async def __aenter__(self) -> Self:
        await self._store.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._closes:
            await self._store.__aexit__(None, None, None)

    async def transact(self, change: Callable[[Transaction], T], **options: Any) -> T:
        def unless_crashed(tx: Transaction) -> T:
            if self.crashed:
                raise Crashed
            return change(tx)

        await self._going.wait()
        value = await self._store.transact(unless_crashed, **options)
        # A crash can come between a commit and its answer.
        with anyio.CancelScope(shield=True):
            await anyio.lowlevel.checkpoint()
        await self._going.wait()
        if self.crashed:
            raise Crashed
        if self._doubts():
            raise Unavailable("committed, and then told otherwise")
        return value

    async def read(self, query: Callable[[View], T]) -> T:
        await self._going.wait()
        return await self._store.read(query)


async def lose(store: Store, body: Callable[[Client], Awaitable[None]], **settings: Any) -> None:
    """Run an engine on a store until the body returns, then crash it."""
    handle = Handle(store)
    with anyio.CancelScope() as scope:
        try:
            async with open_embedded(handle, **settings) as client:
                await body(client)
                handle.crashed = True
                scope.cancel()
                await anyio.sleep_forever()
        except* Crashed:
            pass
