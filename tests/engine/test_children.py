"""What an agent function can do with other sessions through its context, and the limits."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from agent_orchestrator import (
    Client,
    EngineConfig,
    Orchestrator,
    Outcome,
    ProviderConfig,
    Routing,
    Run,
    RunContext,
    RunStatus,
    TreeLimits,
    open_embedded,
)
from agent_orchestrator.domain.access import Principal
from agent_orchestrator.domain.errors import (
    ConfigError,
    Conflict,
    InvalidRequest,
    NotFound,
    OrchestratorError,
)
from agent_orchestrator.domain.model import Request
from agent_orchestrator.hosts import this_host
from agent_orchestrator.runners.function import FunctionRunner
from agent_orchestrator.stores.memory import MemoryStore
from agent_orchestrator.stores.sqlite import SqliteStore
from agent_orchestrator.testing import ScriptedRunner

pytestmark = pytest.mark.anyio

TIMEOUT_S = 60.0

Agent = Callable[[RunContext], Awaitable[str | Outcome | None]]


async def end_of(client: Client, run: Run | None) -> Run:
    assert run is not None
    reply = await client.wait_run(run.id, timeout_s=TIMEOUT_S)
    assert not reply.timed_out, reply.run
    return reply.run


async def asked(client: Client, run: Run | None) -> Request:
    assert run is not None
    reply = await client.wait_run(run.id, timeout_s=TIMEOUT_S, until="attention")
    assert reply.request is not None, reply
    return reply.request


async def led(agent: Agent, **settings: Any) -> Run:
    """Run an agent to its end, with scripted ones to spawn."""
    runners = [FunctionRunner("lead", agent), ScriptedRunner()]
    async with open_embedded(":memory:", runners=runners, **settings) as client:
        session = await client.create_session()
        sent = await client.send_message(session.id, "lead")
        return await end_of(client, sent.run)


def text_of(run: Run) -> str:
    assert run.result is not None, run.error
    return run.result.text


@pytest.mark.parametrize("depth", [1, 4])
async def test_chain_of_agents_waiting_for_children_needs_one_worker(depth: int) -> None:
    async def agent(context: RunContext) -> str:
        if context.session.depth == depth:
            return "deep"
        child = await context.spawn("go", provider="lead")
        return f"{context.session.depth} {text_of((await context.wait(child.run.id)).run)}"

    with anyio.fail_after(TIMEOUT_S):
        run = await led(agent, max_concurrency=1)
    assert text_of(run) == " ".join([*map(str, range(depth)), "deep"])


async def test_waiting_for_the_own_run_does_not_release_the_worker() -> None:
    async def agent(context: RunContext) -> str:
        child = await context.spawn("say x", provider="scripted")
        with pytest.raises(InvalidRequest, match="your own run"):
            await context.wait(context.run.id, timeout_s=0.3)
        reply = await context.wait(context.run.id, timeout_s=0.3, until="attention")
        assert reply.timed_out
        return (await context.wait(child.run.id, timeout_s=0)).run.status

    assert text_of(await led(agent, max_concurrency=1)) == RunStatus.QUEUED


async def test_waiting_for_the_own_request_releases_the_worker() -> None:
    """Also if the question was asked without `wait`, so that the run stays `running`."""

    async def agent(context: RunContext) -> str:
        child = await context.spawn("say x", provider="scripted")
        me = Client(engine.acting_as(Principal.of_run(context.run.id, 1, context.session.id)))
        asked = await me.reply_parent(context.run.id, "?", request_kind="input_request")
        assert asked.request is not None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(answer, child.run.id, asked.request.id)
            request = await me.get_request(asked.request.id, wait_s=TIMEOUT_S)
        return f"{request.answer}"

    async def answer(run_id: str, request_id: str) -> None:
        ended = (await outside.wait_run(run_id, timeout_s=TIMEOUT_S)).run
        assert text_of(ended) == "x"
        await outside.resolve_request(request_id, "answer", text="with one worker")

    runners = [FunctionRunner("lead", agent), ScriptedRunner()]
    agents = {runner.name: ProviderConfig(runner, runner.name) for runner in runners}
    config = EngineConfig(agents, Routing("lead"), max_concurrency=1, host=this_host())
    async with MemoryStore() as store, Orchestrator(store, config) as engine:
        outside = Client(engine)
        session = await outside.create_session()
        sent = await outside.send_message(session.id, "lead")
        assert text_of(await end_of(outside, sent.run)) == "with one worker"


async def test_wait_returns_timed_out_after_its_timeout() -> None:
    async def agent(context: RunContext) -> str:
        child = await context.spawn("hold", provider="scripted")
        reply = await context.wait(child.run.id, timeout_s=0.05)
        assert reply.timed_out
        return str(reply.run.id == child.run.id)

    assert text_of(await led(agent)) == "True"


async def test_parent_waiting_for_attention_can_answer_its_childs_request() -> None:
    async def agent(context: RunContext) -> str:
        child = await context.spawn("ask May I?", provider="scripted")
        reply = await context.wait(child.run.id, until="attention")
        assert reply.request is not None
        await context.send(child.session.id, "say more")
        return reply.request.text

    assert text_of(await led(agent)) == "May I?"


async def test_context_refuses_sessions_and_runs_outside_its_subtree() -> None:
    async with open_embedded(":memory:", runners=[ScriptedRunner()], max_concurrency=4) as outside:
        foreign = await outside.create_session()
        (sent, refused) = await outside.send_message(foreign.id, "hold"), []
        assert sent.run is not None

        async def agent(context: RunContext) -> str:
            for session_id in (foreign.id, context.session.id, "ses_none"):
                try:
                    await context.send(session_id, "hi")
                except OrchestratorError as error:
                    refused.append(type(error).__name__)
            with pytest.raises(NotFound):
                await context.wait("run_none")
            return "end"

        assert text_of(await led(agent)) == "end"
    assert refused == ["NotFound", "Forbidden", "NotFound"]


async def test_canceled_run_cannot_spawn_children() -> None:
    reached: list[str] = []

    async def agent(context: RunContext) -> str:
        with anyio.CancelScope(shield=True):
            await context.emit("agent.message", {"text": "ready"})
            await go_on.wait()
            try:
                await context.spawn("x")
            except Conflict as error:
                reached.append(error.code)
        return "end"

    go_on = anyio.Event()
    async with open_embedded(":memory:", runners=[FunctionRunner("lead", agent)]) as client:
        session = await client.create_session()
        sent = await client.send_message(session.id, "lead")
        assert sent.run is not None
        async with client.events(session.id, follow=True) as events:
            with anyio.fail_after(TIMEOUT_S):
                async for event in events:
                    if event.data.get("text") == "ready":
                        break
        await client.cancel_run(sent.run.id)
        go_on.set()
        await end_of(client, sent.run)
        assert (await client.get_tree(session.id)).children == ()
    assert reached == ["conflict"]


async def test_next_attempt_gets_the_same_children_by_idempotency_key(tmp_path: Path) -> None:
    async def agent(context: RunContext) -> str:
        children = [await context.spawn(f"say {n}", provider="scripted", idempotency_key=f"{n}")
                    for n in range(2)]  # fmt: skip
        if context.run.attempt == 1:
            await context.emit("agent.message", {"text": "spawned"})
            await anyio.sleep_forever()
        return " ".join([text_of((await context.wait(one.run.id)).run) for one in children])

    def runners() -> list[Any]:
        return [FunctionRunner("lead", agent), ScriptedRunner()]

    async with open_embedded(tmp_path / "d.db", runners=runners()) as client:
        session = await client.create_session()
        sent = await client.send_message(session.id, "lead")
        async with client.events(session.id, follow=True) as events:
            with anyio.fail_after(TIMEOUT_S):
                async for event in events:
                    if event.data.get("text") == "spawned":
                        break
    async with open_embedded(tmp_path / "d.db", runners=runners()) as client:
        run = await end_of(client, sent.run)
        assert (text_of(run), run.attempt) == ("0 1", 2)
        assert len((await client.get_tree(session.id)).children) == 2


async def test_run_that_spawns_during_a_drain_is_queued_again(tmp_path: Path) -> None:
    go_on, spawning = anyio.Event(), anyio.Event()

    async def agent(context: RunContext) -> str:
        await context.emit("agent.message", {"text": "ready"})
        await go_on.wait()
        spawning.set()
        child = await context.spawn("say built", provider="scripted")
        return text_of((await context.wait(child.run.id)).run)

    providers = {
        "lead": ProviderConfig(FunctionRunner("lead", agent), "function"),
        "scripted": ProviderConfig(ScriptedRunner(), "scripted"),
    }
    config = EngineConfig(providers, Routing("lead"), host=this_host())
    async with SqliteStore(tmp_path / "d.db") as store, Orchestrator(store, config) as engine:
        client = Client(engine)
        session = await client.create_session()
        sent = await client.send_message(session.id, "lead")
        async with client.events(session.id, follow=True) as events:
            async for event in events:
                if event.data.get("text") == "ready":
                    break
        with anyio.fail_after(TIMEOUT_S):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(engine.drain, 0.2)
                while not engine.core.draining:
                    await anyio.lowlevel.checkpoint()
                go_on.set()
                await spawning.wait()
        assert sent.run is not None
        assert (await client.get_run(sent.run.id)).status is RunStatus.QUEUED
    async with open_embedded(tmp_path / "d.db", providers=providers) as client:
        assert text_of(await end_of(client, sent.run)) == "built"


# --- requests that an agent abandons -------------------------------------------------------------


async def test_request_is_canceled_if_its_agent_stops_waiting() -> None:
    quick, resumed = anyio.CancelScope(), anyio.Event()

    async def agent(context: RunContext) -> str:
        with quick:
            await context.ask_parent("Quick?")
        await resumed.wait()
        request = await context.ask_parent("Again?", kind="approval_request")
        return f"{request.status} {request.answer}"

    async with open_embedded(":memory:", runners=[FunctionRunner("lead", agent)]) as client:
        session = await client.create_session()
        sent = await client.send_message(session.id, "lead")
        first = await asked(client, sent.run)
        assert first.text == "Quick?"
        quick.cancel()
        assert sent.run is not None
        closed = await client.get_request(first.id, wait_s=TIMEOUT_S)
        assert (closed.status, closed.decided_by) == ("canceled", None)
        assert (await client.get_run(sent.run.id)).status is RunStatus.RUNNING
        resumed.set()
        second = await asked(client, sent.run)
        assert second.text == "Again?"
        await client.resolve_request(second.id, "answer", text="yes")
        assert text_of(await end_of(client, sent.run)) == "answered yes"
        log = [event.event_type async for event in client.events(session.id)]
    assert log.count("run.waiting") == log.count("run.resumed") == 2


async def test_agent_may_stop_waiting_and_ask_again_immediately() -> None:
    async def agent(context: RunContext) -> str:
        for number in range(20):
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(_cancel_when_asked, context, scope)
                    await context.ask_parent(f"{number}?")
        return (await context.ask_parent("Last?", kind="approval_request")).status

    async def _cancel_when_asked(context: RunContext, scope: anyio.CancelScope) -> None:
        while (await client.get_run(context.run.id)).status is not RunStatus.WAITING:
            await anyio.lowlevel.checkpoint()
        scope.cancel()

    async with open_embedded(":memory:", runners=[FunctionRunner("lead", agent)]) as client:
        session = await client.create_session()
        sent = await client.send_message(session.id, "lead")
        with anyio.fail_after(TIMEOUT_S):
            while (request := await asked(client, sent.run)).text != "Last?":
                await client.get_request(request.id, wait_s=TIMEOUT_S)
        await client.resolve_request(request.id, "approve")
        assert text_of(await end_of(client, sent.run)) == "approved"
        closed = (await client.requests()).requests
    assert [one.status for one in closed] == ["canceled"] * 20 + ["approved"]


async def test_request_stays_open_if_its_agent_is_stopped(tmp_path: Path) -> None:
    async def agent(context: RunContext) -> str:
        if "approved" in context.prompt:
            return context.prompt
        return (await context.ask_parent("May I?", kind="approval_request")).status

    runner = FunctionRunner("lead", agent)
    with anyio.CancelScope() as scope:
        async with open_embedded(tmp_path / "d.db", runners=[runner]) as client:
            session = await client.create_session()
            sent = await client.send_message(session.id, "lead")
            request = await asked(client, sent.run)
            scope.cancel()
            await anyio.sleep_forever()
    async with open_embedded(tmp_path / "d.db", runners=[runner]) as client:
        assert (await client.get_request(request.id)).status == "pending"
        await client.resolve_request(request.id, "approve")
        assert "Your request was approved: May I?" in text_of(await end_of(client, sent.run))


# --- an answer while its agent is being stopped --------------------------------------------------


@pytest.mark.parametrize("answered_in_time", [False, True])
async def test_answer_not_read_before_a_drain_is_given_to_the_next_attempt(
    tmp_path: Path, *, answered_in_time: bool
) -> None:
    """The agent asks and waits by API calls, so the engine cannot know what it has read."""
    prompts: list[str] = []
    waiting, stopping, decided = anyio.Event(), anyio.Event(), anyio.Event()

    async def agent(context: RunContext) -> str:
        prompts.append(context.prompt)
        if context.run.attempt == 2:
            return "end"
        await context.set_thread("t-1")
        reply = await client.reply_parent(
            context.run.id, "May I?", request_kind="approval_request", wait=True
        )
        requests.append(reply.request)
        waiting.set()
        try:
            if answered_in_time:
                assert reply.request is not None
                await client.get_request(reply.request.id, wait_s=TIMEOUT_S)
                await context.emit("agent.message", {"text": "thanks"})
                decided.set()
            await anyio.sleep_forever()
        finally:
            stopping.set()
            with anyio.CancelScope(shield=True):
                await decided.wait()
                await context.emit("agent.message", {"text": "I am stopped"})
        return "never"

    requests: list[Any] = []
    config = EngineConfig(
        {"lead": ProviderConfig(FunctionRunner("lead", agent), "function")},
        Routing("lead"),
        host=this_host(),
    )
    path = tmp_path / "d.db"
    async with SqliteStore(path) as store, Orchestrator(store, config) as engine:
        client = Client(engine)
        session = await client.create_session()
        sent = await client.send_message(session.id, "lead")
        with anyio.fail_after(TIMEOUT_S):
            await waiting.wait()
            if answered_in_time:
                await client.resolve_request(requests[0].id, "approve")
                await decided.wait()
                await until_said(client, session.id, "thanks")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(engine.drain, 0)
                await stopping.wait()
                if not answered_in_time:
                    await client.resolve_request(requests[0].id, "approve")
                    decided.set()
    async with open_embedded(path, runners=[FunctionRunner("lead", agent)]) as client:
        run = await end_of(client, sent.run)
    assert run.attempt == 2
    assert ("Your request was approved: May I?" in prompts[1]) is not answered_in_time


async def until_said(client: Client, session_id: str, text: str) -> None:
    async with client.events(session_id, follow=True) as events:
        async for event in events:
            if event.data.get("text") == text:
                return


# --- limits, models -------------------------------------------------------------------------------


async def test_finished_child_counts_against_limits_when_it_gets_a_new_run() -> None:
    limits = TreeLimits(children=2, descendants=2)
    async with open_embedded(
        ":memory:", runners=[ScriptedRunner()], limits=limits, max_concurrency=8
    ) as client:
        session = await client.create_session()
        first = await client.spawn("say done", session_id=session.id)
        await end_of(client, first.run)
        for _ in range(2):
            await client.spawn("hold", session_id=session.id)
        with pytest.raises(Conflict) as caught:
            await client.send(first.session.id, "hold")
        assert caught.value.details["limit"] == "children"
        # A child at work is counted already. A person's message is not limited.
        busy = (await client.get_tree(session.id)).children[1].session
        await client.send(busy.id, "say later")
        assert (await client.send_message(first.session.id, "say mine")).run is not None


@pytest.mark.parametrize("name", ["depth", "children", "descendants"])
async def test_tree_limits_may_be_zero_but_not_negative(name: str) -> None:
    async with open_embedded(
        ":memory:", runners=[ScriptedRunner()], limits=TreeLimits(**{name: 0})
    ) as client:
        session = await client.create_session()
        with pytest.raises(Conflict) as caught:
            await client.spawn("hold", session_id=session.id)
        assert caught.value.details == {"limit": name, "most": 0}
    with pytest.raises(ConfigError, match=f"^limits.{name}: must be between 0 and 1"):
        async with open_embedded(
            ":memory:", runners=[ScriptedRunner()], limits=TreeLimits(**{name: -1})
        ):
            pass


@pytest.mark.parametrize("asked_for", [None, "lead", "other"])
async def test_child_inherits_the_model_of_a_parent_with_the_default_provider(
    asked_for: str | None,
) -> None:
    models: list[str | None] = []

    async def agent(context: RunContext) -> str:
        models.append(context.model)
        if context.session.depth == 0:
            child = await context.spawn("go", provider=asked_for)
            await context.wait(child.run.id)
        return "end"

    providers = {
        name: ProviderConfig(FunctionRunner(name, agent), "function", model=f"{name}-model")
        for name in ("lead", "other")
    }
    async with open_embedded(":memory:", providers=providers) as client:
        session = await client.create_session(model="m-1")
        await end_of(client, (await client.send_message(session.id, "go")).run)
        child = await client.spawn("go", session_id=session.id, provider=asked_for)
        await end_of(client, child.run)
    other = "other-model" if asked_for == "other" else "m-1"
    assert models == ["m-1", other, other]
