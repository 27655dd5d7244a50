"""One scan of the processes serves all connections that wait for one."""

import os
import socket
from collections.abc import Sequence
from contextlib import ExitStack

import anyio
import anyio.from_thread
import pytest

from agentd import callers
from agentd.caller_scans import MAX_SCANS, CallerScans
from agentd.callers import Ends, ends_of, which_may_be_agents

pytestmark = pytest.mark.anyio


def ends(number: int) -> Ends:
    return (("127.0.0.1", number), ("127.0.0.1", 80))


class Search:
    """Answers True for even ports; each call waits until it may go on."""

    def __init__(self) -> None:
        self.calls: list[Sequence[Ends]] = []
        self.begun = anyio.Event()
        self.go_on = anyio.Event()

    def __call__(self, connections: Sequence[Ends]) -> list[bool]:
        self.calls.append(connections)
        anyio.from_thread.run_sync(self.begun.set)
        anyio.from_thread.run(self.go_on.wait)
        return [theirs[1] % 2 == 0 for theirs, _ in connections]


async def test_connections_that_wait_share_the_next_scan() -> None:
    search = Search()
    scans = CallerScans(search)
    answers: dict[int, bool] = {}

    async def ask(number: int) -> None:
        answers[number] = await scans.may_be_agents(ends(number))

    async with anyio.create_task_group() as tasks:
        for number in range(MAX_SCANS):
            tasks.start_soon(ask, number)
            await anyio.wait_all_tasks_blocked()
        for number in range(MAX_SCANS, 1000):
            tasks.start_soon(ask, number)
        await anyio.wait_all_tasks_blocked()
        search.go_on.set()
    assert answers == {number: number % 2 == 0 for number in range(1000)}
    assert len(search.calls) == MAX_SCANS + 1


async def test_connection_of_a_canceled_scan_is_still_answered() -> None:
    search = Search()
    scans = CallerScans(search)
    answers: list[bool] = []

    async def ask() -> None:
        answers.append(await scans.may_be_agents(ends(8)))

    async with anyio.create_task_group() as tasks:
        for number in range(MAX_SCANS):
            tasks.start_soon(scans.may_be_agents, ends(number))
            await anyio.wait_all_tasks_blocked()
        with anyio.CancelScope() as canceled:
            async with anyio.create_task_group() as one:
                one.start_soon(scans.may_be_agents, ends(7))
                await anyio.wait_all_tasks_blocked()
                tasks.start_soon(ask)
                await anyio.wait_all_tasks_blocked()
                canceled.cancel()
        search.go_on.set()
    assert answers == [True]


def test_one_scan_reads_each_process_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    targets = callers._descriptor_targets

    def counted(directory: str) -> list[str]:
        read.append(directory)
        return list(targets(directory))

    monkeypatch.setattr(callers, "_descriptor_targets", counted)
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        connections = []
        for _ in range(20):
            stack.enter_context(socket.create_connection(listener.getsockname()))
            other, _ = listener.accept()
            stack.enter_context(other)
            found = ends_of(other.getpeername(), other.getsockname())
            assert found is not None
            connections.append(found)
        assert which_may_be_agents(connections) == [False] * 20
        assert read.count(f"/proc/{os.getpid()}/fd") == 1
        assert which_may_be_agents(connections, root=os.getppid()) == [True] * 20
