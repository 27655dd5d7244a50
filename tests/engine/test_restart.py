"""Runs after an engine has closed or was lost, and the next one has started."""

from functools import partial
from pathlib import Path

import anyio
import pytest

from agent_orchestrator import Client, RunStatus, open_embedded
from agent_orchestrator.domain.lifecycle import is_terminal
from agent_orchestrator.domain.model import Source
from agent_orchestrator.engine import EngineConfig, Orchestrator, ProviderConfig, Routing, questions
from agent_orchestrator.hosts import this_host
from agent_orchestrator.stores.memory import MemoryStore
from agent_orchestrator.testing.scripted import ScriptedRunner
from agent_orchestrator.testing.stores.samples import a_request

pytestmark = pytest.mark.anyio


async def said(client: Client, session_id: str, text: str, *, attempt: int = 1) -> None:
    """Wait until an agent has emitted a text in an attempt."""
    with anyio.fail_after(45):
        async with client.events(session_id, follow=True) as events:
            async for event in events:
                if (event.data.get("text"), event.attempt) == (text, attempt):
                    return


async def test_queue_survives_a_restart_and_a_released_run_is_tried_again(tmp_path: Path) -> None:
    first, second = ScriptedRunner(), ScriptedRunner()
    async with open_embedded(tmp_path / "d.db", runners=[first], max_concurrency=1) as client:
        session = await client.create_session()
        held = await client.send_message(session.id, "hold")
        queued = await client.send_message(session.id, "say after")
        await said(client, session.id, "holding")
    assert held.run is not None
    assert queued.run is not None
    async with open_embedded(tmp_path / "d.db", runners=[second], max_concurrency=1) as client:
        await said(client, session.id, "holding", attempt=2)
        again = await client.get_run(held.run.id)
        assert (again.status, again.attempt) == (RunStatus.RUNNING, 2)
        await client.cancel_run(held.run.id)
        done = (await client.wait_run(queued.run.id, timeout_s=60)).run
        assert done.status is RunStatus.COMPLETED
        log = [event async for event in client.events(session.id)]
        outcomes = [
            one.outcome for one in (await client.diagnose_run(again.id)).diagnostics.attempts
        ]
    assert second.prompts == ["hold", "say after"]
    assert outcomes == ["queued", "canceled"]
    assert [event.seq for event in log] == list(range(1, len(log) + 1))
    ends = [event for event in log if event.event_type in ("run.completed", "run.canceled")]
    assert len(ends) == 2


async def test_running_run_fails_and_the_queue_is_kept_after_a_lost_engine() -> None:
    """The store survives an engine that could not record its end."""

    class Survivor(MemoryStore):
        async def __aexit__(self, *exc: object) -> None:
            pass

        def lose(self) -> None:
            """From here on the engine's writes go nowhere, as after a kill."""
            self.transact = self._lost  # type: ignore[method-assign]

        async def _lost(self, change: object) -> object:
            raise anyio.BrokenResourceError

    store = Survivor()
    try:
        async with open_embedded(store, runners=[ScriptedRunner()], max_concurrency=1) as client:
            session = await client.create_session()
            held = await client.send_message(session.id, "hold")
            queued = await client.send_message(session.id, "say after")
            await said(client, session.id, "holding")
            store.lose()
    except* anyio.BrokenResourceError:
        pass
    del store.transact
    assert held.run is not None
    assert queued.run is not None
    async with open_embedded(store, runners=[ScriptedRunner()], max_concurrency=1) as client:
        lost = (await client.wait_run(held.run.id, timeout_s=60)).run
        assert lost.status is RunStatus.FAILED
        assert lost.error is not None
        assert lost.error.code == "worker_lost"
        assert (await client.wait_run(queued.run.id)).run.status is RunStatus.COMPLETED
        issue = (await client.diagnose_run(lost.id)).diagnostics.likely_issue
        assert issue.code == "worker_lost"


async def test_running_run_is_released_if_the_embedding_code_is_canceled(tmp_path: Path) -> None:
    with anyio.move_on_after(60) as scope:
        async with open_embedded(tmp_path / "d.db", runners=[ScriptedRunner()]) as client:
            session = await client.create_session()
            held = await client.send_message(session.id, "hold")
            await said(client, session.id, "holding")
            scope.cancel()
            await anyio.sleep_forever()
    assert held.run is not None
    other = ScriptedRunner(name="other")
    async with open_embedded(
        tmp_path / "d.db", runners=[other, ScriptedRunner()], max_concurrency=1
    ) as client:
        run = await client.get_run(held.run.id)
        assert not is_terminal(run.status)
        assert run.attempt == 2
        await client.cancel_run(run.id)
        assert (await client.wait_run(run.id)).run.status is RunStatus.CANCELED


@pytest.mark.parametrize("thread", ["thread t-1\n", ""], ids=["resumes", "has-no-thread"])
async def test_open_request_survives_a_restart(tmp_path: Path, thread: str) -> None:
    first, second = ScriptedRunner(), ScriptedRunner()
    async with open_embedded(tmp_path / "d.db", runners=[first], max_concurrency=1) as client:
        session = await client.create_session()
        sent = await client.send_message(session.id, f"{thread}ask May I?")
        assert sent.run is not None
        run_id = sent.run.id
        reply = await client.wait_run(run_id, timeout_s=60, until="attention")
        assert reply.request is not None
    async with open_embedded(tmp_path / "d.db", runners=[second], max_concurrency=1) as client:
        parked = await client.get_run(run_id)
        assert (parked.status, parked.worker_id, parked.attempt) == (RunStatus.WAITING, None, 2)
        assert (await client.requests(status="pending")).requests == (reply.request,)
        await client.resolve_request(reply.request.id, "approve")
        if not thread:
            # Without a thread the agent begins again, so it asks again.
            again = await client.wait_run(run_id, timeout_s=60, until="attention")
            assert again.request is not None
            await client.resolve_request(again.request.id, "approve")
        run = (await client.wait_run(run_id, timeout_s=60)).run
        messages = (await client.list_messages(session.id)).messages
    assert run.status is RunStatus.COMPLETED, run.error
    answer = "Your request was approved: May I?"
    assert second.prompts == [answer if thread else f"ask May I?\n\n{answer}"]
    assert [message.delivery for message in messages] == ["delivered", "delivered"]
    assert [(message.role, message.request_id) for message in messages] == [
        ("user", None),
        ("system", reply.request.id),
    ]
    assert messages[1].source == Source("client", principal="local")


async def test_queued_answer_has_who_resolved_the_request_as_its_source() -> None:
    config = EngineConfig(
        {"s": ProviderConfig(ScriptedRunner("s"), "scripted")}, Routing("s"), host=this_host()
    )
    async with MemoryStore() as store, Orchestrator(store, config) as engine:
        client = Client(engine)
        above = await client.send_message((await client.create_session(provider="manual")).id, "a")
        asked = await client.send_message((await client.create_session(provider="manual")).id, "b")
        assert above.run is not None
        assert asked.run is not None
        for decided_by in (above.run.id, "ann", None):
            request = a_request(asked.run, status="expired", decided_by=decided_by)
            owe = partial(questions.queue_answer, engine.core, run=asked.run, request=request)
            await store.transact(owe)
        _, *answers = (await client.list_messages(asked.run.session_id)).messages
        logged = [
            event.data
            async for event in client.events(asked.run.session_id)
            if event.event_type == "message.created" and "request_id" in event.data
        ]
    assert [answer.source for answer in answers] == [
        Source("parent", session_id=above.run.session_id, principal=above.run.id),
        Source("client", principal="ann"),
        Source("client"),
    ]
    assert {answer.role for answer in answers} == {"system"}
    assert [data["request_id"] for data in logged] == [answer.request_id for answer in answers]
