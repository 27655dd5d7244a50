"""An attempt that is over cannot write anything."""

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from attrs import define, field
from crashing import Crashed, Handle

from agent_orchestrator import Client, Outcome, RunContext, RunStatus, Usage, open_embedded
from agent_orchestrator.domain.model import Invocation, Run
from agent_orchestrator.stores.memory import MemoryStore
from agent_orchestrator.testing import ScriptedRunner
from agent_orchestrator.testing.invariants import history, violations

pytestmark = pytest.mark.anyio

TIMEOUT_S = 60.0


async def says(context: RunContext) -> None:
    await context.emit("agent.message", {"text": "stale"})


async def sets_thread(context: RunContext) -> None:
    await context.set_thread("t-stale")


async def reports(context: RunContext) -> None:
    await context.report_usage(Usage(input_tokens=999))


async def reports_process(context: RunContext) -> None:
    await context.report_process(1, Invocation("stale", ("stale",), "/"))


async def asks(context: RunContext) -> None:
    await context.ask_parent("stale?")


async def is_steered(context: RunContext) -> None:
    async with context.steering() as messages:
        await anext(messages)


async def fails(context: RunContext) -> None:
    raise RuntimeError("stale")


async def ends(context: RunContext) -> None:
    pass


WRITES = [says, sets_thread, reports, reports_process, asks, is_steered, fails, ends]


@define
class Late:
    """A runner that makes its write when ``go`` is set, even if it was cancelled."""

    write: Callable[[RunContext], Awaitable[None]]
    name: str = "scripted"
    ready: anyio.Event = field(factory=anyio.Event)
    go: anyio.Event = field(factory=anyio.Event)
    over: anyio.Event = field(factory=anyio.Event)

    async def run(self, context: RunContext) -> Outcome:
        await context.delivered()
        await context.set_thread("t-1")
        self.ready.set()
        try:
            with anyio.CancelScope(shield=True):
                await self.go.wait()
            # As a reader of an old process's pipe would, in the middle of its clean-up.
            with anyio.move_on_after(0.2, shield=True):
                await self.write(context)
            return Outcome("stale")
        finally:
            self.over.set()


@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
async def test_worker_resumed_after_its_attempt_was_replaced_writes_nothing(
    write: Callable[[RunContext], Awaitable[None]],
) -> None:
    store, late = MemoryStore(), Late(write)
    handle = Handle(store)
    runs: list[Run] = []
    stopped, goes_on, done = anyio.Event(), anyio.Event(), anyio.Event()

    async def first_engine() -> None:
        try:
            async with open_embedded(handle, runners=[late]) as client:
                session = await client.create_session()
                sent = await client.send_message(session.id, "say hello")
                assert sent.run is not None
                runs.append(sent.run)
                await late.ready.wait()
                handle.stop()
                stopped.set()
                await goes_on.wait()
                handle.go_on()
                late.go.set()
                await late.over.wait()
                with anyio.fail_after(TIMEOUT_S):
                    while client.transport.engine.pool.running:  # type: ignore[attr-defined]
                        await anyio.sleep(0.001)
                done.set()
                handle.crashed = True
        except* Crashed:
            pass

    with anyio.fail_after(TIMEOUT_S):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(first_engine)
            await stopped.wait()
            async with open_embedded(Handle(store), runners=[ScriptedRunner()]) as client:
                reply = await client.wait_run(runs[0].id, timeout_s=TIMEOUT_S)
                assert (reply.run.status, reply.run.attempt) == (RunStatus.COMPLETED, 2)
                before = await kept(client, store, reply.run)
                goes_on.set()
                await done.wait()
                assert await kept(client, store, reply.run) == before
                assert violations(await history(client)) == []


async def kept(client: Client, store: MemoryStore, run: Run) -> Any:
    """Return all that is recorded of a run and its session."""

    def look(view: Any) -> Any:
        return (
            view.run(run.id),
            view.attempts(run.id),
            view.thread(run.session_id, run.provider),
            view.requests(run_id=run.id, limit=100),
            view.messages(run.session_id, limit=100),
            view.session(run.session_id),
        )

    return await store.read(look), (await history(client)).logs[run.session_id]
