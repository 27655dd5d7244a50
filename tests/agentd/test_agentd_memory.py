"""Memory of connections that have ended is returned to the system."""

import gc
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
from serving import serving, sse_reader, until

from agentd import memory
from agentd.memory import MANY_CONNECTIONS, RECLAIM_AFTER_S, Reclaimer

COUNT = 3 * MANY_CONNECTIONS


class Later:
    """Keeps what is to be called later."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []

    def __call__(self, seconds: float, function: Callable[[], None]) -> None:
        assert seconds == RECLAIM_AFTER_S
        self.calls.append(function)


def test_memory_is_reclaimed_once_when_most_of_many_connections_have_ended() -> None:
    later, done = Later(), []
    reclaimer = Reclaimer(later, lambda: done.append(True))
    for count in (*range(COUNT + 1), *range(COUNT, COUNT // 2, -1)):
        reclaimer.update(count)
    assert not later.calls
    for count in range(COUNT // 2, -1, -1):
        reclaimer.update(count)
    assert len(later.calls) == 1
    later.calls.pop()()
    assert done == [True]
    reclaimer.update(0)
    assert not later.calls


def test_it_is_reclaimed_again_when_the_rest_has_ended() -> None:
    later = Later()
    reclaimer = Reclaimer(later, lambda: None)
    reclaimer.update(COUNT)
    reclaimer.update(COUNT // 2)
    later.calls.pop()()
    reclaimer.update(COUNT // 2)
    reclaimer.update(0)
    assert len(later.calls) == 1


def test_few_connections_are_not_worth_it() -> None:
    later = Later()
    reclaimer = Reclaimer(later, lambda: None)
    for _ in range(10):
        reclaimer.update(MANY_CONNECTIONS - 1)
        reclaimer.update(0)
    assert not later.calls


def test_reclaiming_frees_objects_that_refer_to_each_other() -> None:
    class Node:
        me: object = None

    node = Node()
    node.me = node
    found = weakref.ref(node)
    gc.disable()
    try:
        del node
        assert found() is not None
        memory.reclaim()
        assert found() is None
    finally:
        gc.enable()


@pytest.mark.anyio
async def test_the_server_reports_its_connections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    monkeypatch.setattr(Reclaimer, "update", lambda _, count: counts.append(count))
    async with serving(tmp_path) as server:
        async with sse_reader(server.client, f"/stream?sessionId={await server.session()}") as one:
            await anext(one)
            assert max(counts) >= 1
        await server.client.aclose()
        await until(lambda: counts[-1] == 0, "all connections have ended")
