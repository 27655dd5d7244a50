"""Model and effort that an agent may choose for others: at most what was chosen for its run."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

import anyio
import pytest
from attrs import frozen
from loops import ON_ONE_LOOP

from agent_orchestrator import Client, EngineConfig, Orchestrator, ProviderConfig, Routing
from agent_orchestrator.domain.access import Principal
from agent_orchestrator.domain.capabilities import Capabilities
from agent_orchestrator.domain.errors import Forbidden
from agent_orchestrator.domain.model import MANUAL, ChoiceLimits, Run
from agent_orchestrator.engine.turn_options import combined
from agent_orchestrator.hosts import this_host
from agent_orchestrator.ports.runner import Availability, Outcome, RunContext
from agent_orchestrator.stores.memory import MemoryStore

pytestmark = [pytest.mark.anyio, ON_ONE_LOOP]


class Standing:
    """A runner that takes every option and whose agents work until they are stopped."""

    name = "standing"
    capabilities = Capabilities(models=True, effort=True, output_schema=True)

    async def run(self, context: RunContext) -> Outcome:
        if context.prompt == "by its context":
            child = await context.spawn("x", model="m", effort="low", output_schema={})
            sent = await context.send(child.session.id, "x", model="n")
            assert sent.run is not None
            return Outcome(f"{child.run.id} {sent.run.id}")
        if context.prompt == "be woken":
            child = await context.spawn("x", provider=MANUAL, notify_parent="wake")
            return Outcome(child.run.id)
        async with context.steering():
            await context.emit("agent.message", {"text": "ready"})
            await anyio.sleep_forever()
        raise AssertionError


class Plain(Standing):
    """The same without options."""

    name = "plain"
    capabilities = Capabilities()


class Gone(Standing):
    """The same, and it is not there."""

    name = "gone"

    async def probe(self, env: Mapping[str, str]) -> Availability:
        return Availability(available=False, reason="it is gone")


@frozen
class Desk:
    """A person and, for each run, its agent."""

    engine: Orchestrator
    person: Client

    async def agent(self, **options: Any) -> tuple[Client, Run]:
        """Return the agent of a message with these options, at work."""
        model = options.pop("session_model", None)
        session = await self.person.create_session(model=model)
        sent = await self.person.send_message(session.id, "x", **options)
        assert sent.run is not None
        return await self.of(sent.run), sent.run

    async def of(self, run: Run) -> Client:
        async with self.person.events(run.session_id, follow=True) as events:
            async for event in events:
                if event.event_type == "agent.message" and event.run_id == run.id:
                    break
        return Client(self.engine.acting_as(Principal.of_run(run.id, 1, run.session_id)))


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    config = EngineConfig(
        {
            "standing": ProviderConfig(Standing(), "standing", model="usual"),
            "other": ProviderConfig(Standing(), "other"),
            "plain": ProviderConfig(Plain(), "plain"),
            "gone": ProviderConfig(Gone(), "gone"),
        },
        Routing("standing", {"gone": ("other",)}),
        max_concurrency=8,
        host=this_host(),
    )
    async with MemoryStore() as store, Orchestrator(store, config) as engine:
        yield Desk(engine, Client(engine))


async def test_agent_may_choose_model_and_effort_if_none_was_chosen_for_it(desk: Desk) -> None:
    agent, run = await desk.agent()
    child = await agent.spawn("x", run_id=run.id, model="m", effort="xhigh")
    assert (child.run.model, child.run.effort) == ("m", "xhigh")
    sent = await agent.send(child.session.id, "x", model="n", effort="high")
    assert sent.run is not None
    assert (sent.run.model, sent.run.effort) == ("n", "high")


@pytest.mark.parametrize("chosen", [{"session_model": "mine"}, {"model": "mine"}])
async def test_model_chosen_for_a_run_also_holds_for_runs_that_it_starts(
    desk: Desk, chosen: dict[str, str]
) -> None:
    agent, run = await desk.agent(**chosen)
    child = await agent.spawn("x", run_id=run.id)
    named = await agent.spawn("x", run_id=run.id, model="mine")
    sent = await agent.send(child.session.id, "x")
    assert sent.run is not None
    assert {child.run.model, named.run.model, sent.run.model} == {"mine"}
    for refused in (
        agent.spawn("x", run_id=run.id, model="usual"),
        agent.send(child.session.id, "x", model="usual"),
    ):
        with pytest.raises(Forbidden) as caught:
            await refused
        assert caught.value.details == {"model": "mine"}
    grandchild = await (await desk.of(child.run)).spawn("x", run_id=child.run.id)
    assert grandchild.run.model == "mine"
    elsewhere = await agent.spawn("x", run_id=run.id, provider="other", model="m")
    assert elsewhere.run.model == "m"


async def test_effort_chosen_for_a_run_is_the_maximum_for_runs_that_it_starts(desk: Desk) -> None:
    agent, run = await desk.agent(effort="medium")
    child = await agent.spawn("x", run_id=run.id)
    less = await agent.spawn("x", run_id=run.id, effort="low")
    sent = await agent.send(child.session.id, "x")
    assert sent.run is not None
    assert [child.run.effort, less.run.effort, sent.run.effort] == ["medium", "low", "medium"]
    for effort in ("high", "xhigh", "unheard-of"):
        for refused in (
            agent.spawn("x", run_id=run.id, effort=effort),
            agent.spawn("x", run_id=run.id, provider="other", effort=effort),
            agent.send(child.session.id, "x", effort=effort),
        ):
            with pytest.raises(Forbidden) as caught:
                await refused
            assert caught.value.details == {"effort": "medium"}
    plain = await agent.spawn("x", run_id=run.id, provider="plain")
    assert plain.run.effort is None  # its runner takes none
    assert len((await desk.person.list_sessions(parent_session_id=run.session_id)).sessions) == 3


async def test_person_may_choose_any_model_and_effort_for_a_child(desk: Desk) -> None:
    _, run = await desk.agent(model="mine", effort="low")
    child = await desk.person.spawn("x", run_id=run.id, model="m", effort="high")
    assert (child.run.model, child.run.effort) == ("m", "high")
    sent = await desk.person.send(child.session.id, "x", from_run_id=run.id, effort="high")
    assert sent.run is not None
    assert sent.run.effort == "high"


async def test_run_context_passes_model_effort_and_output_schema(desk: Desk) -> None:
    session = await desk.person.create_session()
    sent = await desk.person.send_message(session.id, "by its context")
    assert sent.run is not None
    ended = (await desk.person.wait_run(sent.run.id)).run
    assert ended.result is not None, ended.error
    child, again = [await desk.person.get_run(one) for one in ended.result.text.split()]
    assert (child.model, child.effort, child.output_schema) == ("m", "low", {})
    assert (again.model, again.effort) == ("n", None)


async def test_chosen_limits_pass_through_providers_without_these_options(desk: Desk) -> None:
    agent, run = await desk.agent(model="small", effort="low")
    for between in ("plain", "other"):
        child = await agent.spawn("x", run_id=run.id, provider=between)
        below = await desk.of(child.run)
        again = await below.spawn("x", run_id=child.run.id, provider="standing")
        assert (again.run.model, again.run.effort) == ("small", "low")
        for asked in ({"model": "big"}, {"effort": "xhigh"}):
            with pytest.raises(Forbidden):
                await below.spawn("x", run_id=child.run.id, provider="standing", **asked)


async def test_woken_run_has_the_model_and_effort_of_the_run_before(desk: Desk) -> None:
    session = await desk.person.create_session()
    sent = await desk.person.send_message(session.id, "be woken", model="small", effort="low")
    assert sent.run is not None
    run = (await desk.person.wait_run(sent.run.id)).run
    assert run.result is not None, run.error
    await desk.person.transition_run(run.result.text, "running")
    await desk.person.transition_run(run.result.text, "completed", result={"text": "done"})
    runs = (await desk.person.list_runs(session_id=run.session_id)).runs
    woken = next(one for one in runs if one.id != run.id)
    assert (woken.model, woken.effort, woken.chosen) == ("small", "low", run.chosen)
    with pytest.raises(Forbidden):
        await (await desk.of(woken)).spawn("x", run_id=woken.id, model="big")


async def test_agent_cannot_steer_a_run_with_a_higher_effort_than_its_own(desk: Desk) -> None:
    agent, run = await desk.agent()
    child = await agent.spawn("x", run_id=run.id, model="big", effort="xhigh")
    await desk.of(child.run)
    joined = await agent.send(child.session.id, "joins", when_busy="steer")
    assert joined.run is not None
    assert joined.run.id == child.run.id
    await desk.person.cancel_run(run.id, cascade=False)
    limited = await desk.person.send_message(run.session_id, "x", model="small", effort="low")
    assert limited.run is not None
    sender = await desk.of(limited.run)
    sent = await sender.send(child.session.id, "x", when_busy="steer")
    assert sent.run is not None
    assert sent.run.id != child.run.id
    assert (sent.run.model, sent.run.effort) == ("small", "low")


async def test_model_of_a_message_overrides_its_sessions(desk: Desk) -> None:
    agent, run = await desk.agent(session_model="big", model="small")
    assert run.model == "small"
    child = await agent.spawn("x", run_id=run.id)
    assert child.run.model == "small"
    with pytest.raises(Forbidden):
        await agent.spawn("x", run_id=run.id, model="big")


async def test_choosing_the_providers_own_model_limits_the_agent_too(desk: Desk) -> None:
    agent, run = await desk.agent(model="usual")
    with pytest.raises(Forbidden):
        await agent.spawn("x", run_id=run.id, model="big")
    free, other = await desk.agent()
    assert (await free.spawn("x", run_id=other.id, model="big")).run.model == "big"


async def test_fallback_does_not_change_the_chosen_model(desk: Desk) -> None:
    agent, run = await desk.agent(provider="gone", model="small")
    assert (await desk.person.get_run(run.id)).provider == "other"
    with pytest.raises(Forbidden):
        await agent.spawn("x", run_id=run.id, provider="gone", model="big")
    assert (await desk.person.get_run(run.id)).chosen.models == {"gone": "small"}


@pytest.mark.parametrize(
    ("first", "second", "both"),
    [
        (ChoiceLimits("low"), ChoiceLimits("high"), ChoiceLimits("low")),
        (ChoiceLimits("high"), ChoiceLimits("low"), ChoiceLimits("low")),
        (ChoiceLimits(), ChoiceLimits("low", {"a": "m"}), ChoiceLimits("low", {"a": "m"})),
        (
            ChoiceLimits(None, {"a": "m"}),
            ChoiceLimits(None, {"a": "n", "b": "o"}),
            ChoiceLimits(None, {"a": "m", "b": "o"}),
        ),
    ],
)
def test_combined_choice_limits_are_the_stricter_ones(
    first: ChoiceLimits, second: ChoiceLimits, both: ChoiceLimits
) -> None:
    assert combined(first, second) == both
