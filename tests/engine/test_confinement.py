"""What agents may do without asking: nobody but those who may say so changes it, and it is kept."""

from collections.abc import Mapping

import pytest

from agent_orchestrator import (
    Client,
    EngineConfig,
    Orchestrator,
    ProviderConfig,
    Routing,
    RunStatus,
    open_embedded,
)
from agent_orchestrator.domain.access import Principal
from agent_orchestrator.domain.errors import Forbidden
from agent_orchestrator.domain.model import MANUAL
from agent_orchestrator.ports import Availability, Outcome, RunContext
from agent_orchestrator.stores.memory import MemoryStore
from agent_orchestrator.testing import ScriptedRunner

pytestmark = pytest.mark.anyio


class Confining:
    """A runner that confines its agents, and says how."""

    name = "confining"
    confines = True

    def __init__(self, *, available: bool = True) -> None:
        self._available = available

    async def probe(self, env: Mapping[str, str]) -> Availability:
        return Availability(available=self._available, reason="it is not there")

    async def run(self, context: RunContext) -> Outcome:
        return Outcome(f"{context.run.approval_policy} {context.run.sandbox}")


async def test_the_runner_is_told() -> None:
    providers = {"confining": ProviderConfig(Confining(), "confining")}
    async with open_embedded(":memory:", providers=providers) as client:
        session = await client.create_session(approval_policy="untrusted")
        sent = await client.send_message(session.id, "x", sandbox="read-only")
        assert sent.run is not None
        ended = (await client.wait_run(sent.run.id)).run
    assert ended.result is not None
    assert ended.result.text == "untrusted read-only"


async def test_nobody_takes_the_place_of_one_who_confines() -> None:
    providers = {
        "confining": ProviderConfig(Confining(available=False), "confining"),
        "scripted": ProviderConfig(ScriptedRunner(), "scripted"),
    }
    routing = Routing(default="confining", fallback={"confining": ("scripted",)})
    async with open_embedded(":memory:", providers=providers, routing=routing) as client:
        session = await client.create_session()
        free = await client.send_message(session.id, "say hi")
        bound = await client.send_message(session.id, "say hi", sandbox="read-only")
        assert free.run is not None
        assert bound.run is not None
        assert (await client.wait_run(free.run.id)).run.status is RunStatus.COMPLETED
        ended = (await client.wait_run(bound.run.id)).run
    assert ended.error is not None
    assert ended.error.code == "invalid_config"
    assert "sandbox" in ended.error.message


async def test_an_agent_confines_nobody_otherwise() -> None:
    config = EngineConfig(
        {"scripted": ProviderConfig(ScriptedRunner(), "scripted")}, Routing("scripted")
    )
    async with MemoryStore() as store, Orchestrator(store, config) as engine:
        client = Client(engine)
        parent = await client.create_session(provider=MANUAL)
        sent = await client.send_message(parent.id, "x", sandbox="read-only")
        assert sent.run is not None
        await client.transition_run(sent.run.id, "running")
        agent = Client(engine.acting_as(Principal.of_run(sent.run.id, 1, parent.id)))
        child = (await agent.spawn("x", run_id=sent.run.id)).session
        assert child.sandbox == "read-only"
        with pytest.raises(Forbidden):
            await agent.update_session(child.id, sandbox="workspace-write")
        with pytest.raises(Forbidden):
            await agent.send_message(child.id, "x", sandbox="read-only")
        assert (await client.get_session(child.id)).sandbox == "read-only"
