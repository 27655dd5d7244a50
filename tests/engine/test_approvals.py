"""Who resolves agents' requests: policies, parents that do not answer, agents without permission."""

from datetime import timedelta
from pathlib import Path

import anyio
import pytest

from agent_orchestrator import (
    Client,
    ConfigError,
    EngineConfig,
    Orchestrator,
    ProviderConfig,
    Routing,
    Run,
    RunStatus,
    open_embedded,
)
from agent_orchestrator.domain.access import Principal
from agent_orchestrator.domain.errors import Conflict, Forbidden
from agent_orchestrator.domain.model import MANUAL, Approvals, Request
from agent_orchestrator.engine.core import MAX_READ_ROWS
from agent_orchestrator.engine.requests import MAX_PENDING
from agent_orchestrator.hosts import this_host
from agent_orchestrator.stores.memory import MemoryStore
from agent_orchestrator.testing import ScriptedRunner

pytestmark = pytest.mark.anyio

TIMEOUT_S = 60.0


def providers(**policies: Approvals | None) -> dict[str, ProviderConfig]:
    return {
        name: ProviderConfig(ScriptedRunner(name=name), name, approvals=policy)
        for name, policy in policies.items()
    }


async def family(client: Client) -> tuple[Run, Run]:
    """Return a parent's run that is under way and its child's."""
    parent = await client.create_session(provider=MANUAL)
    run = await client.create_run(parent.id)
    await client.transition_run(run.id, "running")
    return run, (await client.spawn("ask May I?", run_id=run.id, provider="scripted")).run


async def asked(client: Client, run: Run) -> Request:
    reply = await client.wait_run(run.id, timeout_s=TIMEOUT_S, until="attention")
    assert reply.request is not None, reply
    return reply.request


async def wait_until_escalated(client: Client, request: Request) -> Request:
    """Wait until a request is escalated to a human."""
    with anyio.fail_after(TIMEOUT_S):
        async with client.events(request.session_id, follow=True) as events:
            async for event in events:
                if event.event_type == "request.updated" and event.data["id"] == request.id:
                    break
    return await client.get_request(request.id)


async def test_approval_policy_of_a_provider_applies_to_its_runs() -> None:
    policies = providers(free="allow", plain=None, closed="deny")
    async with open_embedded(":memory:", providers=policies) as client:
        session = await client.create_session()
        for provider, said in (("free", "approved"), ("closed", "denied")):
            sent = await client.send_message(session.id, "ask May I?", provider=provider)
            assert sent.run is not None
            run = (await client.wait_run(sent.run.id, timeout_s=TIMEOUT_S)).run
            assert run.result is not None
            assert run.result.text == said
        sent = await client.send_message(session.id, "ask May I?", provider="plain")
        assert sent.run is not None
        assert (await asked(client, sent.run)).audience == "human"


async def test_stricter_approval_policy_of_session_and_provider_applies() -> None:
    policies = providers(free="allow", people="ask-human")
    async with open_embedded(":memory:", providers=policies) as client:
        loose = await client.create_session(approvals="allow")
        strict = await client.create_session(approvals="deny")
        expected = {
            (loose.id, "free"): "allow",
            (loose.id, "people"): "ask-human",
            (strict.id, "free"): "deny",
            (strict.id, "people"): "deny",
        }
        for (session_id, provider), policy in expected.items():
            run = await client.create_run(session_id, text="hold", provider=provider)
            reply = await client.reply_parent(run.id, "?", request_kind="approval_request")
            assert reply.request is not None
            assert reply.request.approvals == policy
            await client.cancel_run(run.id)


async def test_child_inherits_the_stricter_policy_of_its_parents_provider() -> None:
    policies = providers(people="ask-human", free="allow")
    async with open_embedded(":memory:", providers=policies) as client:
        parent = await client.create_session(provider="people")
        child = await client.spawn("ask May I?", session_id=parent.id, provider="free")
        assert child.session.approvals == "ask-human"
        assert (await asked(client, child.run)).approvals == "ask-human"
        run = await client.create_run(parent.id, text="hold", provider="free")
        loose = await client.spawn("x", run_id=run.id)
        assert loose.session.approvals == "allow"


async def test_request_goes_to_a_human_if_the_parent_does_not_answer_in_time() -> None:
    async with open_embedded(
        ":memory:", runners=[ScriptedRunner()], parent_answer_s=0.05
    ) as client:
        _, child = await family(client)
        request = await asked(client, child)
        passed = await wait_until_escalated(client, request)
        assert (passed.status, passed.audience) == ("pending", "human")
        assert passed.human_at is not None
        assert passed.human_at - passed.created_at >= timedelta(seconds=0.05)
        assert (await client.get_run(child.id)).status is RunStatus.WAITING
        await client.resolve_request(request.id, "approve")
        run = (await client.wait_run(child.id, timeout_s=TIMEOUT_S)).run
        assert run.result is not None
        assert run.result.text == "approved"


async def test_parent_has_half_the_lifetime_of_a_short_request_to_answer() -> None:
    async with open_embedded(":memory:", runners=[ScriptedRunner()]) as client:
        _, child = await family(client)
        reply = await client.reply_parent(
            # A busy engine must not come to the first time only after the second.
            child.id,
            "?",
            request_kind="approval_request",
            expires_in_s=4,
        )
        assert reply.request is not None
        assert reply.request.human_at is not None
        assert reply.request.human_at - reply.request.created_at == timedelta(seconds=2)
        assert (await wait_until_escalated(client, reply.request)).audience == "human"
        assert (await client.get_request(reply.request.id, wait_s=TIMEOUT_S)).status == "expired"


async def test_request_answered_in_time_is_not_escalated_to_a_human() -> None:
    async with open_embedded(":memory:", runners=[ScriptedRunner()], parent_answer_s=30) as client:
        _, child = await family(client)
        request = await asked(client, child)
        other = await client.reply_parent(child.id, "?", request_kind="input_request")
        await client.resolve_request(request.id, "approve")
        assert other.request is not None
        await client.wait_run(child.id, timeout_s=TIMEOUT_S)
        assert (await client.get_request(request.id)).audience == "parent"
        log = [event async for event in client.events(child.session_id)]
        assert "request.updated" not in [event.event_type for event in log]


async def test_time_until_escalation_survives_a_restart(tmp_path: Path) -> None:
    async with open_embedded(
        tmp_path / "d.db", runners=[ScriptedRunner()], parent_answer_s=0.2
    ) as client:
        _, child = await family(client)
        request = await asked(client, child)
    async with open_embedded(tmp_path / "d.db", runners=[ScriptedRunner()]) as client:
        passed = await wait_until_escalated(client, request)
        assert (passed.audience, passed.status) == ("human", "pending")


async def test_request_goes_to_a_human_if_the_parent_is_canceled() -> None:
    async with open_embedded(":memory:", runners=[ScriptedRunner()]) as client:
        parent, child = await family(client)
        request = await asked(client, child)
        assert request.audience == "parent"
        await client.cancel_run(parent.id, cascade=False)
        assert (await client.get_request(request.id)).audience == "human"


async def test_request_goes_to_an_idle_parent_that_it_can_wake() -> None:
    async with open_embedded(":memory:", runners=[ScriptedRunner()]) as client:
        parent = await client.create_session(provider=MANUAL)
        audiences = []
        for policy in ("ask-parent", "ask-human"):
            child = await client.spawn(
                "ask May I?",
                session_id=parent.id,
                provider="scripted",
                notify_parent="wake",
                approvals=policy,
            )
            audiences.append((await asked(client, child.run)).audience)
        assert audiences == ["parent", "human"]
        # A request for a human wakes no agent.
        assert len((await client.list_runs(session_id=parent.id)).runs) == 1


async def test_agent_cannot_resolve_or_wait_for_a_request_for_a_human() -> None:
    config = EngineConfig(providers(scripted=None), Routing("scripted"), host=this_host())
    async with MemoryStore() as store, Orchestrator(store, config) as engine:
        client = Client(engine)
        parent, child = await family(client)
        agent = Client(engine.acting_as(Principal.of_run(parent.id, 1, parent.session_id)))
        request = await asked(agent, parent)
        strict = await client.spawn("ask Sure?", run_id=parent.id, approvals="ask-human")
        reply = await client.reply_parent(strict.run.id, "Sure?", request_kind="approval_request")
        assert reply.request is not None
        await agent.resolve_request(request.id, "approve")
        with pytest.raises(Forbidden):
            await agent.resolve_request(reply.request.id, "approve")
        assert (await client.get_request(reply.request.id)).status == "pending"
        assert (await agent.wait_run(parent.id, timeout_s=0, until="attention")).timed_out
        assert (await asked(client, parent)).id == reply.request.id
        assert (await client.resolve_request(reply.request.id, "deny")).status == "denied"
        assert child.status is RunStatus.QUEUED


async def test_wait_of_an_agent_ignores_its_childs_request_for_a_human() -> None:
    config = EngineConfig(providers(scripted=None), Routing("scripted"), host=this_host())
    async with MemoryStore() as store, Orchestrator(store, config) as engine:
        client = Client(engine)
        parent, _ = await family(client)
        agent = Client(engine.acting_as(Principal.of_run(parent.id, 1, parent.session_id)))
        strict = await client.spawn("hold", run_id=parent.id, approvals="ask-human")
        asked_people = await client.reply_parent(
            strict.run.id, "Sure?", request_kind="approval_request"
        )
        assert (await agent.wait_run(strict.run.id, timeout_s=0, until="attention")).timed_out
        assert (await asked(client, strict.run)) == asked_people.request


async def test_open_requests_of_a_run_are_limited_and_closed_when_it_ends() -> None:
    async with open_embedded(":memory:", runners=[ScriptedRunner()]) as client:
        run, _ = await family(client)
        for _ in range(MAX_PENDING):
            await client.reply_parent(run.id, "?", request_kind="input_request")
        with pytest.raises(Conflict, match=str(MAX_PENDING)) as refused:
            await client.reply_parent(run.id, "?", request_kind="approval_request")
        assert refused.value.details == {"limit": "requests", "most": MAX_PENDING}
        pending = (await client.requests(session_id=run.session_id, status="pending")).requests
        assert len(pending) == MAX_PENDING
        await client.resolve_request(pending[0].id, "answer", text="this")
        await client.reply_parent(run.id, "?", request_kind="input_request")
        await client.transition_run(run.id, "completed")
        left = await client.requests(session_id=run.session_id, status="pending")
        assert left.requests == ()


async def test_request_of_a_descendant_is_found_among_many_others_in_the_tree() -> None:
    async with open_embedded(":memory:", runners=[ScriptedRunner()]) as client:
        root = await client.create_session(provider=MANUAL)
        for _ in range(MAX_READ_ROWS // MAX_PENDING + 1):
            run = await client.create_run(root.id)
            for _ in range(MAX_PENDING):
                await client.reply_parent(run.id, "?", request_kind="input_request")
        child = await client.spawn("hold", session_id=root.id, provider=MANUAL)
        below = await client.spawn("hold", session_id=child.session.id, provider=MANUAL)
        reply = await client.reply_parent(below.run.id, "?", request_kind="input_request")
        waited = await client.wait_run(child.run.id, timeout_s=0, until="attention")
        assert waited.request == reply.request


@pytest.mark.parametrize("seconds", [-1.0, float("inf"), float("nan")])
def test_parent_answer_s_must_be_finite_and_not_negative(seconds: float) -> None:
    with pytest.raises(ConfigError, match="parent_answer_s"):
        EngineConfig(
            providers(scripted=None), Routing("scripted"), parent_answer_s=seconds, host=this_host()
        )
