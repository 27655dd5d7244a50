"""Trees in pages: every session once, in order, whatever their number and size."""

from collections.abc import Iterator
from typing import Any, cast

import pytest
from attrs import define
from loops import ON_ONE_LOOP

from agent_orchestrator import Client, open_embedded
from agent_orchestrator.domain.errors import InvalidRequest
from agent_orchestrator.domain.model import MANUAL
from agent_orchestrator.engine.summaries import MAX_SUMMARY
from agent_orchestrator.engine.trees import MAX_RUNS
from agent_orchestrator.operations.sessions import SessionTree, TreePage
from agent_orchestrator.testing import ScriptedRunner
from agent_orchestrator.tools.agent import Agent, calls_over
from agent_orchestrator.tools.toolbox import AgentTools
from agentctl.connection import DaemonConnection
from agentctl.paging import tree_pages

pytestmark = [pytest.mark.anyio, ON_ONE_LOOP]


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: object) -> str:
    return ":memory:" if request.param == "memory" else f"{tmp_path}/a.db"


def shown(tree: SessionTree) -> Iterator[SessionTree]:
    for child in tree.children:
        if not child.repeated:
            yield child
        yield from shown(child)


async def ended_child(client: Client, parent: str) -> str:
    child = await client.spawn("x", session_id=parent)
    await client.cancel_run(child.run.id)
    return child.session.id


async def pages(client: Client, root: str, limit: int) -> list[TreePage]:
    found = [await client.get_tree(root, limit=limit)]
    while found[-1].next_cursor is not None:
        found.append(await client.get_tree(root, limit=limit, cursor=found[-1].next_cursor))
    return found


async def test_pages_of_a_tree_have_each_session_once_in_order(store: str) -> None:
    async with open_embedded(store, runners=[ScriptedRunner()]) as client:
        root = (await client.create_session(provider=MANUAL)).id
        expected: list[str] = []
        for _ in range(3):
            expected.append(child := await ended_child(client, root))
            for _ in range(2):
                expected.append(inner := await ended_child(client, child))
                expected.extend([await ended_child(client, inner) for _ in range(2)])
        whole = await client.get_tree(root)
        assert [node.session.id for node in shown(whole)] == expected
        assert whole.next_cursor is None
        for limit in range(1, len(expected) + 2):
            found = await pages(client, root, limit)
            assert all(sum(1 for _ in shown(page)) <= limit for page in found)
            assert [n.session.id for page in found for n in shown(page)] == expected
            for page in found:
                assert (page.session.id, page.children_count, page.runs_count) == (root, 3, 0)
                assert all(node.runs_count == 1 for node in shown(page))
            # A page repeats a session only above one that is new.
            for page in found:
                leaves = [n for n in _all(page) if not n.children]
                assert not any(leaf.repeated for leaf in leaves if leaf is not page)


def _all(tree: SessionTree) -> Iterator[SessionTree]:
    yield tree
    for child in tree.children:
        yield from _all(child)


async def test_children_beyond_a_page_are_counted_and_on_later_pages(store: str) -> None:
    async with open_embedded(store, runners=[ScriptedRunner()]) as client:
        root = (await client.create_session(provider=MANUAL)).id
        expected = [await ended_child(client, root) for _ in range(230)]
        found = await pages(client, root, 100)
        assert [len(page.children) for page in found] == [100, 100, 30]
        assert {page.children_count for page in found} == {230}
        assert [child.session.id for page in found for child in page.children] == expected


async def test_tree_cuts_long_results_and_counts_runs(store: str) -> None:
    async with open_embedded(store, runners=[ScriptedRunner()]) as client:
        session = (await client.create_session(provider=MANUAL)).id
        ids = []
        for number in range(MAX_RUNS + 5):
            run = await client.create_run(session)
            ids.append(run.id)
            await client.transition_run(run.id, "running")
            if number % 2:
                error = {"code": "denied", "message": "é" * 500_000}
                await client.transition_run(run.id, "failed", error=error)
            else:
                text = "r" * 500_000 if number else "short"
                await client.transition_run(run.id, "completed", result={"text": text})
        waiting = [(await client.create_run(session)).id for _ in range(MAX_RUNS)]
        tree = await client.get_tree(session)
        assert [run.id for run in tree.runs] == waiting
        assert tree.runs_count == len(ids) + len(waiting)
        await client.transition_run(waiting[0], "running")
        for run_id in waiting[2:]:
            await client.cancel_run(run_id)
        await client.create_run(session)
        tree = await client.get_tree(session)
        assert tree.runs[0].id == waiting[0]  # at work, so it is there, however old
        assert len(tree.runs) == MAX_RUNS
        for run_id in waiting:
            await client.cancel_run(run_id)
        session = (await client.create_session(provider=MANUAL)).id
        run = await client.create_run(session)
        await client.transition_run(run.id, "running")
        await client.transition_run(run.id, "completed", result={"text": "r" * 500_000})
        short = await client.create_run(session)
        await client.transition_run(short.id, "running")
        await client.transition_run(short.id, "completed", result={"text": "short"})
        tree = await client.get_tree(session)
        first, second = tree.runs
        assert first.result is not None
        assert len(first.result.text) == MAX_SUMMARY + 1
        assert tree.cut == (run.id,)
        assert second == await client.get_run(short.id)


async def test_page_of_a_tree_ends_at_the_size_limit(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent_orchestrator.engine.trees.PAGE_SIZE", 20_000)
    monkeypatch.setattr("agent_orchestrator.engine.trees.MAX_READ", 100_000)
    async with open_embedded(store, runners=[ScriptedRunner()]) as client:
        root = (await client.create_session(provider=MANUAL)).id
        expected = [await ended_child(client, root) for _ in range(12)]
        found = await pages(client, root, 100)
        assert 1 < len(found) < 12
        assert [n.session.id for page in found for n in shown(page)] == expected
        wordy = (await client.create_session(provider=MANUAL)).id
        for _ in range(4):
            run = await client.create_run(wordy)
            await client.transition_run(run.id, "running")
            await client.transition_run(run.id, "completed", result={"text": "r" * 60_000})
        tree = await client.get_tree(wordy)
        assert ([one.id for one in tree.runs][-1], len(tree.runs)) == (run.id, 2)
        assert tree.runs_count == 4


async def test_a_cursor_of_another_tree_is_refused() -> None:
    async with open_embedded(":memory:", runners=[ScriptedRunner()]) as client:
        root = (await client.create_session(provider=MANUAL)).id
        other = (await client.create_session(provider=MANUAL)).id
        stranger = await ended_child(client, other)
        for cursor in (stranger, other, "ses_none", "x"):
            with pytest.raises(InvalidRequest) as refused:
                await client.get_tree(root, cursor=cursor)
            assert [*refused.value.details["fields"]] == ["cursor"]


@define
class Bounded:
    """A connection to an engine that gives small pages where none is asked for."""

    client: Client
    calls: int = 0

    async def call(self, _: object, **given: Any) -> TreePage:
        self.calls += 1
        return await self.client.get_tree(given.pop("session_id"), **{"limit": 2, **given})


async def test_agentctl_joins_the_pages_of_a_tree() -> None:
    async with open_embedded(":memory:", runners=[ScriptedRunner()]) as client:
        root = (await client.create_session(provider=MANUAL)).id
        for _ in range(3):
            child = await ended_child(client, root)
            for _ in range(3):
                await ended_child(client, await ended_child(client, child))
        connection = Bounded(client)
        whole = await tree_pages(cast(DaemonConnection, connection), root, None, None)
        assert connection.calls == 11  # of 21 sessions
        assert whole == await client.get_tree(root)
        page = await tree_pages(cast(DaemonConnection, connection), root, 3, None)
        assert page == await client.get_tree(root, limit=3)


async def test_an_agent_lists_its_children_in_pages() -> None:
    async with open_embedded(":memory:", runners=[ScriptedRunner()]) as client:
        root = (await client.create_session(provider=MANUAL)).id
        run = await client.create_run(root)
        for _ in range(2):
            child = await client.spawn("x", session_id=root)
            await client.transition_run(child.run.id, "running")
            inner = await client.spawn("x", session_id=child.session.id)
            await client.transition_run(inner.run.id, "running")
            await client.reply_parent(
                inner.run.id, "q" * 5_000, request_kind="input_request", wait=True
            )
        tools = AgentTools(Agent(calls_over(client.transport), run.id, root))
        listed: list[dict[str, Any]] = []
        cursor: str | None = None
        for _ in range(4):
            given = {"limit": 1, "cursor": cursor}
            result = await tools.call("session_list", given)
            assert not result.is_error, result.text
            answer = result.content
            assert answer["children_count"] == 2
            listed += answer["children"]
            cursor = answer["next_cursor"]
        assert cursor is None
        whole = (await tools.call("session_list", {})).content
        assert whole["children"] == listed
        assert [child["children_count"] for child in listed] == [1, 0, 1, 0]
        assert [len(child["request"]["text"]) for child in listed[1::2]] == [1000, 1000]
