"""Access of a caller that is a run: with each store, on each event loop."""

from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest

from agent_orchestrator import Client
from agent_orchestrator.domain.access import Principal
from agent_orchestrator.domain.errors import Forbidden, NotFound
from agent_orchestrator.domain.model import MANUAL, Option, Run
from agent_orchestrator.engine import EngineConfig, Orchestrator, ProviderConfig, Routing
from agent_orchestrator.hosts import this_host
from agent_orchestrator.operations.events import StreamRequest
from agent_orchestrator.ports.store import Store
from agent_orchestrator.stores.memory import MemoryStore
from agent_orchestrator.stores.sqlite import SqliteStore
from agent_orchestrator.testing.scripted import ScriptedRunner

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["memory", "sqlite"])
async def engine(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Orchestrator]:
    provider = ProviderConfig(ScriptedRunner(), "scripted")
    config = EngineConfig({"scripted": provider}, Routing(MANUAL), host=this_host())
    kept: Store = MemoryStore() if request.param == "memory" else SqliteStore(tmp_path / "data.db")
    async with kept as store, Orchestrator(store, config) as engine:
        yield engine


async def started(engine: Orchestrator, run: Run) -> Client:
    """Return the client of a manual run that has begun."""
    await Client(engine).transition_run(run.id, "running")
    return acting_as(engine, run)


def acting_as(engine: Orchestrator, run: Run, attempt: int = 1) -> Client:
    return Client(engine.acting_as(Principal.of_run(run.id, attempt, run.session_id)))


async def a_run(engine: Orchestrator) -> Run:
    client = Client(engine)
    return await client.create_run((await client.create_session()).id)


async def test_run_may_act_on_its_descendants_but_not_on_other_sessions(
    engine: Orchestrator,
) -> None:
    run, other = await a_run(engine), await a_run(engine)
    agent = await started(engine, run)
    child = await agent.spawn("help", run_id=run.id)
    grandchild = await Client(engine).spawn("help", run_id=child.run.id)
    family = [run.session_id, child.session.id, grandchild.session.id]
    hidden = await Client(engine).create_session(title="A secret that may help")
    assert [one.id for one in (await agent.list_sessions()).sessions] == family
    assert [one.session_id for one in (await agent.list_runs()).runs] == family
    everyone = await Client(engine).search("help")
    assert {hit.session_id for hit in everyone.hits} == {*family[1:], hidden.id}
    assert {hit.session_id for hit in (await agent.search("help")).hits} == {*family[1:]}
    assert (await agent.search("secret")).hits == ()
    with pytest.raises(NotFound):
        await agent.search("secret", session_id=hidden.id)
    sent = await agent.send(grandchild.session.id, "hello")
    assert sent.message.source.run_id == run.id
    assert (await agent.cancel_run(grandchild.run.id)).canceled == (grandchild.run.id,)
    with pytest.raises(NotFound) as unseen:
        await agent.get_run(other.id)
    with pytest.raises(NotFound) as missing:
        await agent.get_run("run_none")
    assert str(unseen.value) == str(missing.value).replace("run_none", other.id)
    for refused in (
        agent.create_session(),
        agent.send_message(run.session_id, "x"),
        agent.send_message(child.session.id, "x"),
        agent.update_session(run.session_id, title="x"),
        agent.cancel_run(run.id),
        agent.transition_run(child.run.id, "running"),
        agent.status(),
        agent.list_audit(),
    ):
        with pytest.raises(Forbidden):
            await refused


async def test_calls_of_a_run_are_forbidden_before_and_after_its_attempt(
    engine: Orchestrator,
) -> None:
    run = await a_run(engine)
    early = acting_as(engine, run)
    with pytest.raises(Forbidden):
        await early.get_run(run.id)
    agent = await started(engine, run)
    spawned = await agent.spawn("help", run_id=run.id, idempotency_key="k")
    await Client(engine).transition_run(run.id, "queued")
    await Client(engine).transition_run(run.id, "running")
    for call in (
        agent.get_run(run.id),
        agent.list_sessions(),
        agent.requests(),
        agent.search("help"),
        agent.create_session(),
        agent.spawn("help", run_id=run.id),
        agent.spawn("help", run_id=run.id, idempotency_key="k"),
        agent.reply_parent(run.id, "x"),
        agent.cancel_run(spawned.run.id),
    ):
        with pytest.raises(Forbidden):
            await call
    # A key of the run still holds in its next attempt.
    again = await acting_as(engine, run, 2).spawn("help", run_id=run.id, idempotency_key="k")
    assert again == spawned
    children = await Client(engine).list_sessions(parent_session_id=run.session_id)
    assert children.sessions == (spawned.session,)


@pytest.mark.parametrize("sessions", ["own", "child", "all"])
async def test_open_streams_and_waits_of_a_run_end_with_its_attempt(
    engine: Orchestrator, sessions: str
) -> None:
    run = await a_run(engine)
    agent = await started(engine, run)
    child = await agent.spawn("help", run_id=run.id)
    wanted = {"own": (run.session_id,), "child": (child.session.id,), "all": ()}[sessions]
    over: list[str] = []

    async def follow() -> None:
        async with agent.transport.subscribe(StreamRequest(wanted)) as subscription:
            following.set()
            with suppress(Forbidden):
                while True:
                    await subscription.receive()
        over.append("stream")

    async def wait() -> None:
        with pytest.raises(Forbidden):
            await agent.wait_run(child.run.id, timeout_s=60)
        over.append("wait")

    with anyio.fail_after(45):
        async with anyio.create_task_group() as tasks:
            following = anyio.Event()
            tasks.start_soon(follow)
            tasks.start_soon(wait)
            await following.wait()
            await Client(engine).transition_run(run.id, "completed")
    assert sorted(over) == ["stream", "wait"]


@pytest.mark.parametrize(
    ("given", "recorded"),
    [
        ({"option": "always"}, ("approve", "always", None, "all of it")),
        ({"decision": "answer", "text": "For good"}, ("approve", "always", None, "all of it")),
        (
            {"decision": "approve", "scope": "session"},
            ("approve", "session", "session", "the same again"),
        ),
        ({"decision": "approve", "text": "For good"}, ("approve", "once", "once", None)),
        ({"decision": "answer", "text": "Why?"}, ("answer", None, None, None)),
        ({"decision": "deny"}, ("deny", None, None, None)),
    ],
)
async def test_audit_entry_records_the_chosen_option_and_what_it_reaches(
    engine: Orchestrator, given: dict[str, Any], recorded: tuple[str | None, ...]
) -> None:
    agent = await started(engine, run := await a_run(engine))
    reply = await agent.reply_parent(
        run.id,
        "may I?",
        request_kind="approval_request",
        options=[
            Option("always", "For good", "allow_always", "all of it"),
            Option("once", "Once", "allow_once"),
            Option("session", "For this session", "allow_session", "the same again"),
        ],
    )
    assert reply.request is not None
    await Client(engine).resolve_request(reply.request.id, **given)
    entry = (await Client(engine).list_audit()).entries[-1]
    assert entry.operation == "resolve_request"
    names = ("decision", "option", "scope", "reaches")
    assert tuple(entry.detail.get(name) for name in names) == recorded
