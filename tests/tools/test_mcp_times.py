"""How long a tool call is held, measured on a virtual clock."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import trio
import trio.testing
from attrs import evolve

from agent_orchestrator import Client, EngineConfig, Orchestrator, ProviderConfig, Routing
from agent_orchestrator.domain.access import Principal
from agent_orchestrator.domain.model import MANUAL
from agent_orchestrator.hosts import this_host
from agent_orchestrator.stores.memory import MemoryStore
from agent_orchestrator.testing import ScriptedRunner
from agent_orchestrator.tools.agent import Agent, calls_over
from agent_orchestrator.tools.toolbox import AgentTools

CUT_S = 60.0
"""Seconds after which many clients time out (the SDKs' default)."""

Body = Callable[[Client, Agent, Agent], Awaitable[None]]


def with_parent_and_child(body: Body) -> None:
    """Run the body with the tools of a parent at work and of its child."""

    async def live() -> None:
        config = EngineConfig(
            {"s": ProviderConfig(ScriptedRunner(), "s")}, Routing("s"), host=this_host()
        )
        async with MemoryStore() as store, Orchestrator(store, config) as engine:
            people = Client(engine)

            async def agent(run_id: str, session_id: str) -> Agent:
                await people.transition_run(run_id, "running")
                acting = engine.acting_as(Principal.of_run(run_id, 1, session_id))
                return Agent(calls_over(acting), run_id, session_id)

            session = await people.create_session(provider=MANUAL)
            run = await people.create_run(session.id)
            parent = await agent(run.id, session.id)
            child = await people.spawn("work", run_id=run.id)
            await body(people, parent, await agent(child.run.id, child.session.id))

    trio.run(live, clock=trio.testing.MockClock(autojump_threshold=0))


async def held(agent: Agent, name: str, **arguments: Any) -> tuple[Mapping[str, Any], float]:
    """Return a tool's answer and the seconds it took."""
    began = trio.current_time()
    result = await AgentTools(agent).call(name, arguments)
    assert not result.is_error, result.text
    return result.content, round(trio.current_time() - began, 6)  # the clock is a sum of floats


def test_session_wait_returns_before_clients_time_out_and_can_be_repeated() -> None:
    async def body(people: Client, parent: Agent, child: Agent) -> None:
        for _ in range(200):
            reply, seconds = await held(parent, "session_wait", run_id=child.run_id)
            assert reply["timed_out"] is True
            assert 40 <= seconds < CUT_S
        assert trio.current_time() > 2 * 3600
        await people.transition_run(child.run_id, "completed", result={"text": "at last"})
        reply, seconds = await held(parent, "session_wait", run_id=child.run_id)
        assert (reply["run"]["result"]["text"], seconds) == ("at last", 0)

    with_parent_and_child(body)


def test_session_reply_parent_returns_before_clients_time_out() -> None:
    async def body(people: Client, parent: Agent, child: Agent) -> None:
        question = {"text": "May I?", "request_kind": "approval_request", "expires_in_s": 86_400}
        reply, seconds = await held(child, "session_reply_parent", **question)
        assert (reply["timed_out"], 40 <= seconds < CUT_S) == (True, True)
        request_id = reply["request"]["id"]
        for again in [{"request_id": request_id}, question] * 100:
            reply, seconds = await held(child, "session_reply_parent", **again)
            assert (reply["timed_out"], reply["request"]["id"]) == (True, request_id)
            assert 40 <= seconds < CUT_S
        assert trio.current_time() > 2 * 3600
        await held(parent, "request_resolve", request_id=request_id, decision="deny")
        reply, _ = await held(child, "session_reply_parent", request_id=request_id)
        assert (reply["decision"], reply["timed_out"]) == ("deny", False)
        assert len((await people.requests()).requests) == 1

    with_parent_and_child(body)


def test_session_wait_lasts_hours_if_the_client_has_no_timeout() -> None:
    async def body(people: Client, parent: Agent, child: Agent) -> None:
        parent = evolve(parent, hold_s=86_400)

        async def end() -> None:
            await trio.sleep(5 * 3600)
            await people.transition_run(child.run_id, "completed")

        async with trio.open_nursery() as tasks:
            tasks.start_soon(end)
            reply, seconds = await held(parent, "session_wait", run_id=child.run_id)
        assert (reply["timed_out"], seconds) == (False, 5 * 3600)

    with_parent_and_child(body)
