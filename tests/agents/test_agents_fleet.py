"""A tree of the real codex and Claude Code over two daemons of one database, approved on a third."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import anyio
import pytest
from adapters import AGENTS, Agent
from cases import Case, World, answer, ended, send
from gateway import Daemon
from loops import ON_ONE_LOOP
from real_agents import required
from test_agents_mixed import script, spawn, wait

from agent_orchestrator import Client, RunStatus
from agent_orchestrator.domain.errors import AlreadyResolved

CODEX, CLAUDE = (
    next(one for one in AGENTS if one.name == name) for name in ("codex-app-server", "claude")
)

TURNS: Final = 5
"""Turns within which a child must have worked on the other daemon. A free worker of the first may be sooner."""

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
async def test_a_tree_works_over_two_daemons_and_is_approved_on_a_third(
    agent: Agent, case: Case, world: World, database: Callable[[], str], tmp_path: Path
) -> None:
    required(CLAUDE.program)
    store = ("--store", database())
    agents = (world.directory / "agentd.toml").read_text()
    nothing = "[routing]\ndefault = 'none'\n[providers.none]\nrunner = 'demo'\n"
    with ExitStack() as stack:
        one_run = (*store, "--max-concurrency", "1")
        first = stack.enter_context(started(tmp_path / "first", agents, *one_run))
        second = stack.enter_context(started(tmp_path / "second", agents, *store))
        third = stack.enter_context(started(tmp_path / "third", nothing, *store))
        async with first.client() as here, second.client() as there, third.client() as person:
            workers = {(await here.status()).daemon_id, (await there.status()).daemon_id}
            session = await case.session(here)
            for number in range(TURNS):
                asked = case.workspace / f"child-{number}"
                own = case.workspace / f"parent-{number}"
                task = f"{CLAUDE.asking} sh -c 'echo ran > {asked}'\nsay child"
                text = script(case, spawn(CLAUDE, task), *wait(0, "terminal"))
                text += f"\n{agent.asking} sh -c 'echo ran > {own}'\nsay decided"
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(approve_all, person)
                    run = await ended(there, await send(here, session, text))
                    tasks.cancel_scope.cancel()
                assert answer(run) == "decided"
                assert (asked.read_text(), own.read_text()) == ("ran\n", "ran\n")
                child = (await person.get_tree(session.id)).children[-1].runs[-1]
                assert (child.provider, child.status) == ("claude", RunStatus.COMPLETED)
                used = {str(one.worker_id).partition("/")[0] for one in (run, child)}
                assert used <= workers, "the third has none of their providers"
                if used == workers:
                    break
            assert used == workers, "they never worked on both"
            requests = (await person.requests(root_session_id=session.id)).requests
            assert {one.status for one in requests} == {"approved"}
            assert {one.run_id for one in requests} >= {run.id, child.id}
            report = await person.check_store()
            assert report.ok, report.findings
