"""A tree of the real codex and Claude Code over two hosts with one database, approved on a third."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import anyio
import pytest
from adapters import AGENTS, Agent
from cases import Case, World, answer, ended, log, send, until
from gateway import Daemon
from loops import ON_ONE_LOOP
from real_agents import required
from test_agents_mixed import script, spawn, wait

from agent_orchestrator import Client, Run, RunStatus
from agent_orchestrator.domain.errors import AlreadyResolved

CODEX, CLAUDE = (
    next(one for one in AGENTS if one.name == name) for name in ("codex-app-server", "claude")
)

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.timeout(300),
    ON_ONE_LOOP,
    CODEX.mark,
    CLAUDE.mark,
]


@contextmanager
def started(directory: Path, settings: str, *arguments: str) -> Iterator[Daemon]:
    directory.mkdir()
    daemon = Daemon(directory, *arguments)
    daemon.configure(settings)
    daemon.start()
    try:
        yield daemon
    finally:
        daemon.stop()


async def approve_all(client: Client) -> None:
    """Approve whatever is asked, until cancelled."""
    while True:
        for request in (await client.requests(status="pending")).requests:
            try:
                await client.resolve_request(request.id, "approve")
            except AlreadyResolved:
                continue
        await anyio.sleep(0.1)


@pytest.mark.parametrize("agent", [CODEX], ids=lambda one: one.name)
async def test_a_tree_works_over_two_hosts_and_is_approved_on_a_third(
    agent: Agent, case: Case, world: World, database: Callable[[], str], tmp_path: Path
) -> None:
    """The parent's agent chooses the host of its child with its own tool, and gets the result."""
    required(CLAUDE.program)
    store = ("--store", database())
    agents = (world.directory / "agentd.toml").read_text()
    nothing = "[routing]\ndefault = 'none'\n[providers.none]\nrunner = 'demo'\n"
    visitors = tmp_path / "visitors"
    visitors.mkdir()
    lets_in = ("--spawn-directory", str(visitors), "--host-label", "gpu")
    with ExitStack() as stack:
        first = stack.enter_context(
            started(tmp_path / "first", agents, *store, "--host-name", "first")
        )
        second = stack.enter_context(
            started(tmp_path / "second", agents, *store, "--host-name", "second", *lets_in)
        )
        third = stack.enter_context(
            started(tmp_path / "third", nothing, *store, "--host-name", "third")
        )
        async with first.client() as here, second.client() as there, third.client() as person:
            session = await case.session(here)
            asked, own = visitors / "child", case.workspace / "parent"
            task = f"{CLAUDE.asking} sh -c 'echo ran > {asked}'\nsay result-of-the-child"
            text = script(case, spawn(CLAUDE, task, host="second"), *wait(0, "terminal"))
            text += f"\n{agent.asking} sh -c 'echo ran > {own}'\nsay decided"
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(approve_all, person)
                # Sent through the third, which has none of their providers.
                run = await ended(person, await send(person, session, text))
                tasks.cancel_scope.cancel()
            assert answer(run) == "decided"
            assert (asked.read_text(), own.read_text()) == ("ran\n", "ran\n")
            [child] = (await person.get_tree(session.id)).children
            assert (child.session.host, child.session.cwd) == ("second", str(visitors))
            assert (child.runs[-1].provider, child.runs[-1].status) == (
                "claude",
                RunStatus.COMPLETED,
            )
            assert worker_of(run) == (await here.status()).daemon_id
            assert worker_of(child.runs[-1]) == (await there.status()).daemon_id
            told = [
                json.dumps(event.data)
                for event in await log(person, session)
                if event.event_type == "tool.completed" and event.session_id == session.id
            ]
            assert any("result-of-the-child" in one and "session_wait" in one for one in told)
            requests = (await person.requests(root_session_id=session.id)).requests
            assert {one.status for one in requests} == {"approved"}
            assert {one.run_id for one in requests} >= {run.id, child.runs[-1].id}
            # The result of a child there starts a turn of its parent here.
            wakes = spawn(CLAUDE, "say woken-from-there", labels=["gpu"], notify_parent="wake")
            run = await ended(
                person, await send(person, session, f"{script(case, wakes)}\nsay sent")
            )
            assert answer(run) == "sent"
            await until(lambda: any("woken-from-there" in one for one in case.prompts[-1:]))
            [woken] = (await person.list_runs(session_id=session.id, status="running")).runs or [
                None
            ]
            if woken is not None:
                await ended(person, woken.id)
            report = await person.check_store()
            assert report.ok, report.findings


def worker_of(run: Run) -> str:
    """Return the id of the daemon that has executed a run."""
    return str(run.worker_id).partition("/")[0]
