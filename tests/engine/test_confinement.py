"""What agents may do without approval: who may change it, and what children inherit."""

from collections.abc import Mapping

import pytest
from attrs import evolve
from loops import ON_ONE_LOOP

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
from agent_orchestrator.domain.capabilities import Capabilities
from agent_orchestrator.domain.errors import Forbidden
from agent_orchestrator.domain.model import MANUAL, Sandbox
from agent_orchestrator.hosts import this_host
from agent_orchestrator.ports.runner import Availability, Outcome, RunContext
from agent_orchestrator.runners.function import FunctionRunner
from agent_orchestrator.stores.memory import MemoryStore
from agent_orchestrator.testing import ScriptedRunner

pytestmark = [pytest.mark.anyio, ON_ONE_LOOP]


class Confining:
    """A runner that confines its agents, and says how."""

    name = "confining"
    capabilities = Capabilities(confine=True, models=True, effort=True)

    def __init__(self, *, available: bool = True) -> None:
        self._available = available

    async def probe(self, env: Mapping[str, str]) -> Availability:
        return Availability(available=self._available, reason="it is not there")

    async def run(self, context: RunContext) -> Outcome:
        return Outcome(f"{context.run.approval_policy} {context.run.sandbox}")


async def test_runner_gets_the_sandbox_and_approval_policy() -> None:
    providers = {"confining": ProviderConfig(Confining(), "confining")}
    async with open_embedded(":memory:", providers=providers) as client:
        session = await client.create_session(approval_policy="untrusted")
        sent = await client.send_message(session.id, "x", sandbox="read-only")
        assert sent.run is not None
        ended = (await client.wait_run(sent.run.id)).run
    assert ended.result is not None
    assert ended.result.text == "untrusted read-only"


async def test_fallback_without_sandbox_support_is_not_used_for_a_confined_run() -> None:
    providers = {
        "confining": ProviderConfig(Confining(available=False), "confining"),
        "scripted": ProviderConfig(ScriptedRunner(), "scripted"),
    }
    routing = Routing(default="confining", fallback={"confining": ("scripted",)})
    async with open_embedded(":memory:", providers=providers, routing=routing) as client:
        session = await client.create_session()
        free = await client.send_message(session.id, "say hi")
        bound = await client.send_message(session.id, "say hi", sandbox="read-only")
        reasoning = await client.send_message(session.id, "say hi", effort="high")
        assert free.run is not None
        assert bound.run is not None
        assert reasoning.run is not None
        assert (await client.wait_run(free.run.id)).run.status is RunStatus.COMPLETED
        ended = (await client.wait_run(bound.run.id)).run
        unreasoned = (await client.wait_run(reasoning.run.id)).run
    assert unreasoned.error is not None
    assert "effort" in unreasoned.error.message
    assert ended.error is not None
    assert ended.error.code == "invalid_config"
    assert "sandbox" in ended.error.message


async def test_agent_cannot_change_the_sandbox_of_its_child() -> None:
    config = EngineConfig(
        {"scripted": ProviderConfig(ScriptedRunner(), "scripted")},
        Routing("scripted"),
        host=this_host(),
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


class Boxed(Confining):
    """An agent with a sandbox that spawns a child with the provider its prompt names."""

    def __init__(self, sandbox: Sandbox | None) -> None:
        super().__init__()
        self.sandbox = sandbox
        self.capabilities = evolve(Confining.capabilities, sandbox=sandbox)

    async def run(self, context: RunContext) -> Outcome:
        if context.prompt == "go":
            return Outcome(str(context.run.sandbox or self.sandbox))
        try:
            child = await context.spawn("go", provider=context.prompt)
        except Forbidden:
            return Outcome("refused")
        ended = (await context.wait(child.run.id)).run
        return Outcome(ended.result.text if ended.result else str(ended.error))


BOXES: dict[str, Sandbox | None] = {
    "reader": "read-only",
    "writer": "workspace-write",
    "free": "danger-full-access",
    "unknown": None,
}


@pytest.mark.parametrize(
    ("agent", "said", "child", "expected"),
    [
        # The child's provider decides, within the agent's sandbox.
        ("writer", None, "writer", "workspace-write"),
        ("writer", None, "reader", "read-only"),
        ("free", None, "writer", "workspace-write"),
        ("free", None, "bare", "hi"),
        ("free", None, "free", "danger-full-access"),
        # Limited to the agent's sandbox.
        ("reader", None, "writer", "read-only"),
        ("reader", None, "free", "read-only"),
        ("writer", None, "free", "workspace-write"),
        ("writer", None, "bare", "refused"),
        ("reader", None, "bare", "refused"),
        ("writer", None, "unknown", "workspace-write"),
        ("unknown", None, "free", "read-only"),
        ("unknown", None, "bare", "refused"),
        # A message overrides the provider.
        ("free", "read-only", "free", "read-only"),
        ("free", "read-only", "writer", "read-only"),
        ("reader", "danger-full-access", "writer", "danger-full-access"),
        # The configuration may open a provider to agents.
        ("reader", None, "open", "hi"),
    ],
)
async def test_child_with_another_provider_gets_no_wider_sandbox(
    agent: str, said: Sandbox | None, child: str, expected: str
) -> None:
    providers = {name: ProviderConfig(Boxed(box), "boxed") for name, box in BOXES.items()}
    providers["bare"] = ProviderConfig(FunctionRunner("bare", _hi), "function")
    providers["open"] = ProviderConfig(FunctionRunner("open", _hi), "function", open_to_agents=True)
    async with open_embedded(":memory:", providers=providers) as client:
        session = await client.create_session(provider=agent, sandbox=said)
        sent = await client.send_message(session.id, child)
        assert sent.run is not None
        ended = (await client.wait_run(sent.run.id)).run
    assert ended.result is not None
    assert ended.result.text == expected


async def _hi(_: RunContext) -> str:
    return "hi"


async def test_person_may_spawn_a_child_with_a_wider_sandbox() -> None:
    providers = {name: ProviderConfig(Boxed(box), "boxed") for name, box in BOXES.items()}
    async with open_embedded(":memory:", providers=providers) as client:
        session = await client.create_session(provider="reader")
        made = await client.spawn("go", session_id=session.id, provider="free")
        ended = (await client.wait_run(made.run.id)).run
    assert ended.result is not None
    assert ended.result.text == "danger-full-access"
