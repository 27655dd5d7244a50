"""Expiry of requests: one warning before the end, and extensions."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import get_args

import anyio
import pytest
from loops import ON_ONE_LOOP
from test_clock import Clock, opened

from agent_orchestrator import Client, Routing
from agent_orchestrator.domain.access import Principal
from agent_orchestrator.domain.approvals import RESOLUTIONS
from agent_orchestrator.domain.errors import Forbidden
from agent_orchestrator.domain.model import Decision, Request, RequestKind
from agent_orchestrator.engine import EngineConfig, Orchestrator, ProviderConfig, requests
from agent_orchestrator.hosts import this_host
from agent_orchestrator.stores.memory import MemoryStore
from agent_orchestrator.testing.scripted import ScriptedRunner

pytestmark = [pytest.mark.anyio, ON_ONE_LOOP]


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "LONGEST_PAUSE_S", 0.02)


async def ask(client: Client, *, expires_in_s: float) -> Request:
    session = await client.create_session(provider="manual")
    child = await client.spawn("x", session_id=session.id, provider="manual")
    await client.transition_run(child.run.id, "running")
    reply = await client.reply_parent(
        child.run.id, "May I?", request_kind="approval_request", expires_in_s=expires_in_s
    )
    assert reply.request is not None
    return reply.request


async def events(client: Client, request: Request) -> list[str]:
    """Return the request's events in the log of the root session."""
    log = (await client.list_events(request.root_session_id, limit=1000)).events
    mine = [event.event_type for event in log if event.data.get("id") == request.id]
    return [name for name in mine if name != "request.updated"]


async def until(look: Callable[[list[str]], bool], client: Client, request: Request) -> list[str]:
    while not look(found := await events(client, request)):
        await anyio.sleep(0.01)
    return found


async def test_request_warns_once_before_it_expires_and_again_after_an_extension(
    tmp_path: Path,
) -> None:
    clock = Clock()
    created, expiring, extended, expired = (
        f"request.{name}" for name in ("created", "expiring", "extended", "resolved")
    )
    with anyio.fail_after(60):
        async with opened(tmp_path / "data.db", clock) as client:
            request = await ask(client, expires_in_s=1000)
            clock.jump = timedelta(seconds=740)
            assert await events(client, request) == [created]
            clock.jump = timedelta(seconds=760)
            await until(lambda found: found == [created, expiring], client, request)
        async with opened(tmp_path / "data.db", clock) as client:
            assert (await client.get_request(request.id)).warned
            await client.extend_request(request.id, 1000)
            clock.jump += timedelta(seconds=760)  # past its first end
            logged = [created, expiring, extended, expiring]
            await until(lambda found: found == logged, client, request)
            clock.jump += timedelta(seconds=300)
            await until(lambda found: found == [*logged, expired], client, request)
            assert (await client.get_request(request.id)).status == "expired"


async def test_tiny_extensions_are_not_recorded(tmp_path: Path) -> None:
    async with opened(tmp_path / "data.db", Clock()) as client:
        request = await ask(client, expires_in_s=1000)
        for tenths in range(200):
            await client.extend_request(request.id, 1000 + tenths / 10)
        logged = await events(client, request)
        assert logged.count("request.extended") <= 2
        ends = (await client.get_request(request.id)).expires_at
        assert ends - request.expires_at >= timedelta(seconds=9)
        again = await client.extend_request(request.id, 500)
        assert again.expires_at == ends


async def test_long_request_warns_an_hour_before_it_expires(tmp_path: Path) -> None:
    async with opened(tmp_path / "data.db", Clock()) as client:
        request = await ask(client, expires_in_s=10 * 86_400)
        assert request.warn_at is not None
        assert request.expires_at - request.warn_at == timedelta(hours=1)


async def test_overdue_request_expires_without_a_warning(tmp_path: Path) -> None:
    clock = Clock()
    with anyio.fail_after(60):
        async with opened(tmp_path / "data.db", clock) as client:
            request = await ask(client, expires_in_s=1000)
            clock.jump = timedelta(seconds=5000)
            await client.get_request(request.id, wait_s=60)
            assert await events(client, request) == ["request.created", "request.resolved"]


async def test_agent_may_extend_only_requests_that_it_may_resolve() -> None:
    providers = {"scripted": ProviderConfig(ScriptedRunner(), "scripted")}
    async with (
        MemoryStore() as store,
        Orchestrator(
            store, EngineConfig(providers, Routing("scripted"), host=this_host())
        ) as engine,
    ):
        client = Client(engine)
        session = await client.create_session(provider="manual")
        parent = await client.create_run(session.id)
        await client.transition_run(parent.id, "running")
        above = Client(engine.acting_as(Principal.of_run(parent.id, 1, session.id)))
        for approvals, may in (("ask-parent", True), ("ask-human", False)):
            child = await client.spawn("x", run_id=parent.id, approvals=approvals)  # type: ignore[arg-type]
            await client.transition_run(child.run.id, "running")
            asked = await client.reply_parent(
                child.run.id, "May I?", request_kind="approval_request", expires_in_s=60
            )
            assert asked.request is not None
            itself = Client(engine.acting_as(Principal.of_run(child.run.id, 1, child.session.id)))
            with pytest.raises(Forbidden):
                await itself.extend_request(asked.request.id, 600)
            if may:
                extended = await above.extend_request(asked.request.id, 600)
                assert extended.expires_at > asked.request.expires_at
            else:
                with pytest.raises(Forbidden):
                    await above.extend_request(asked.request.id, 600)


def test_every_kind_and_decision_has_its_resolution() -> None:
    assert set(RESOLUTIONS) == {
        (kind, decision) for kind in get_args(RequestKind) for decision in get_args(Decision)
    }
