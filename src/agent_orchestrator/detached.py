"""Scopes that may be entered in one task and left in another."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from contextvars import copy_context
from types import TracebackType
from typing import Any, Final, ParamSpec, TypeVar

import anyio

from agent_orchestrator.domain.errors import Unavailable

Value = TypeVar("Value")
Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

_tasks: Final[set["asyncio.Task[None]"]] = set()
"""Running tasks on asyncio, whose event loop keeps only weak references to them."""


class DetachedScope(AbstractAsyncContextManager[Value]):
    """Enter and leave an async context manager in one background task.

    A scope with a task group or a cancel scope inside must be left by the task that entered it.
    pytest-asyncio's fixtures, notebook cells and the ``start`` and ``stop`` hooks of applications may
    use two tasks. Works on asyncio and trio.

    ``async with`` returns the value of the scope. The scope itself is always left without an
    exception. If it fails while it is open, calls made through :meth:`call` raise ``Unavailable``,
    and leaving raises the failure.

    :param scope: the context manager. It is used once.
    """

    def __init__(self, scope: AbstractAsyncContextManager[Value]) -> None:
        self._scope = scope
        self._task_scope = anyio.CancelScope()
        self._leave = anyio.Event()
        self._opened = anyio.Event()
        self._ended = anyio.Event()
        self._failure: BaseException | None = None
        self._value: Value
        self._calls: set[anyio.CancelScope] = set()
        self._closing = False

    async def __aenter__(self) -> Value:
        """Start the background task and wait until it has entered the scope.

        Cancellation cancels the background task and waits for its end.
        """
        _start(self._run)
        try:
            await self._opened.wait()
        except BaseException:
            self._task_scope.cancel()
            await self._wait_for_end()
            raise
        if self._failure is not None:
            await self._wait_for_end()
            raise self._failure
        return self._value

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave the scope and wait until it is left, even if the caller is cancelled."""
        self._leave.set()
        await self._wait_for_end()
        if self._failure is not None:
            raise self._failure

    async def call(
        self,
        function: Callable[Parameters, Awaitable[Result]],
        *args: Parameters.args,
        **kwargs: Parameters.kwargs,
    ) -> Result:
        """Await a function in the caller's task, until the scope is left or fails.

        :raises Unavailable: if the scope ended before the function did.
        """
        if not self._closing:
            with anyio.CancelScope() as scope:
                self._calls.add(scope)
                try:
                    return await function(*args, **kwargs)
                finally:
                    self._calls.discard(scope)
        raise Unavailable("it was closed")

    async def _run(self) -> None:
        try:
            with self._task_scope:
                async with self._scope as self._value:
                    self._opened.set()
                    try:
                        await self._leave.wait()
                    finally:
                        self._end_calls()
        except BaseException as failure:
            self._failure = failure
            if not isinstance(failure, Exception):  # cancelled with the event loop, or an interrupt
                self._failure = Unavailable("its event loop was stopped")
                self._failure.__cause__ = failure
                raise
        finally:
            self._opened.set()
            self._ended.set()

    def _end_calls(self) -> None:
        self._closing = True
        for scope in tuple(self._calls):
            scope.cancel()

    async def _wait_for_end(self) -> None:
        """Wait for the background task. Re-raise a cancellation only after its end."""
        cancelled: BaseException | None = None
        with anyio.CancelScope(shield=True):
            while not self._ended.is_set():
                try:
                    await self._ended.wait()
                except anyio.get_cancelled_exc_class() as error:
                    cancelled = error  # asyncio's native cancellation, which ignores shields
        if cancelled is not None:
            raise cancelled


def _start(function: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Start a task of the event loop with a copy of the caller's context variables.

    anyio has no such tasks: a task belongs to a group, and the group to the task that created it.
    """
    trio: Any = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_task():
        trio.lowlevel.spawn_system_task(function, context=copy_context())
        return
    task = asyncio.get_running_loop().create_task(function())
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)
