"""An embedded engine is opened in one task and closed in another."""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import ContextVar
from pathlib import Path

import anyio
import pytest

from agent_orchestrator import open_embedded
from agent_orchestrator.detached import DetachedScope
from agent_orchestrator.domain.errors import StoreOpenError, Unavailable
from agent_orchestrator.testing.scripted import ScriptedRunner

pytestmark = pytest.mark.anyio


async def in_another_task(function: Callable[[], Awaitable[object]]) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(function)


async def test_engine_can_be_opened_in_one_task_and_closed_in_another(tmp_path: Path) -> None:
    async def open_and_close() -> None:
        stack = AsyncExitStack()
        scope = open_embedded(tmp_path / "data.db", runners=[ScriptedRunner()])

        async def start() -> None:
            await stack.enter_async_context(scope)

        await in_another_task(start)
        await in_another_task(stack.aclose)

    await open_and_close()
    await open_and_close()  # shows that the first one closed the database


async def test_failed_opening_raises_its_cause(tmp_path: Path) -> None:
    with pytest.raises(StoreOpenError):
        async with open_embedded(tmp_path, runners=[ScriptedRunner()]):
            raise AssertionError


async def test_error_of_the_body_is_raised_unchanged(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        async with open_embedded(tmp_path / "data.db", runners=[ScriptedRunner()]):
            raise ZeroDivisionError


async def test_calls_end_when_the_engine_is_closed(tmp_path: Path) -> None:
    stack = AsyncExitStack()
    scope = open_embedded(tmp_path / "data.db", runners=[ScriptedRunner()])
    client = await stack.enter_async_context(scope)
    session = await client.create_session()
    refused: list[str] = []
    waiting = anyio.Event()

    async def follow() -> None:
        try:
            async with client.events(session.id, follow=True) as events:
                async for _ in events:
                    waiting.set()
        except Unavailable as error:
            refused.append(str(error))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(follow)
        await waiting.wait()
        await stack.aclose()
    with pytest.raises(Unavailable):
        await client.get_session(session.id)
    assert len(refused) == 1


async def test_calls_end_when_the_scope_fails_and_its_exit_raises_the_error() -> None:
    fail = anyio.Event()

    async def breaks() -> None:
        await fail.wait()
        raise ZeroDivisionError

    @asynccontextmanager
    async def fails() -> AsyncIterator[str]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(breaks)
            yield "value"

    scope = DetachedScope(fails())
    assert await scope.__aenter__() == "value"
    await scope.call(anyio.sleep, 0)
    fail.set()
    for _ in range(2):  # a call in progress, and a later one
        with pytest.raises(Unavailable):
            await scope.call(anyio.sleep_forever)
    with pytest.raises(ExceptionGroup) as caught:
        await scope.__aexit__(None, None, None)
    assert caught.group_contains(ZeroDivisionError)


async def test_a_cancelled_opening_is_undone() -> None:
    undone = False

    @asynccontextmanager
    async def slow() -> AsyncIterator[None]:
        nonlocal undone
        try:
            await anyio.sleep_forever()
        finally:
            undone = True
        yield

    with anyio.move_on_after(0.01) as limit:
        async with DetachedScope(slow()):
            raise AssertionError
    assert limit.cancelled_caught
    assert undone


async def test_exit_of_a_cancelled_body_still_waits_for_the_scope_to_close() -> None:
    ended = False

    @asynccontextmanager
    async def slow_to_end() -> AsyncIterator[None]:
        nonlocal ended
        yield
        await anyio.lowlevel.checkpoint()
        ended = True

    with anyio.CancelScope() as scope:
        async with DetachedScope(slow_to_end()):
            scope.cancel()
            await anyio.sleep_forever()
    assert ended


async def test_context_variables_are_visible_in_the_scope() -> None:
    variable: ContextVar[str] = ContextVar("variable", default="unset")
    variable.set("set")

    @asynccontextmanager
    async def scope() -> AsyncIterator[str]:
        yield variable.get()

    async with DetachedScope(scope()) as value:
        assert value == "set"


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_scope_can_be_opened_and_closed_by_asyncio_wait_for(tmp_path: Path) -> None:
    stack = AsyncExitStack()
    scope = open_embedded(tmp_path / "data.db", runners=[ScriptedRunner()])
    client = await asyncio.wait_for(stack.enter_async_context(scope), 60)
    assert (await client.status()).daemon_health == "ok"
    await asyncio.wait_for(stack.aclose(), 60)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_task_cancelled_while_closing_is_cancelled_after_the_close() -> None:
    closing, go_on, ended = anyio.Event(), anyio.Event(), False

    @asynccontextmanager
    async def slow_to_end() -> AsyncIterator[None]:
        nonlocal ended
        yield
        closing.set()
        await go_on.wait()
        ended = True

    async def body() -> None:
        async with DetachedScope(slow_to_end()):
            pass

    task = asyncio.create_task(body())
    await closing.wait()
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended


def test_end_of_the_event_loop_closes_an_engine_left_open(tmp_path: Path) -> None:
    async def forget() -> None:
        scope = open_embedded(tmp_path / "data.db", runners=[ScriptedRunner()])
        kept.append(scope)
        await scope.__aenter__()

    async def open_again() -> None:
        async with open_embedded(tmp_path / "data.db", runners=[ScriptedRunner()]):
            pass

    kept: list[object] = []
    asyncio.run(forget())
    asyncio.run(open_again())


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
def test_engine_works_with_eager_tasks(tmp_path: Path) -> None:
    async def body() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]
        async with open_embedded(tmp_path / "data.db", runners=[ScriptedRunner()]) as client:
            assert (await client.status()).daemon_health == "ok"

    asyncio.run(body())
