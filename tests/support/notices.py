"""An engine whose notices a test can follow: its clock, and a channel that keeps what it was given."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
from attrs import define, field, frozen

from agent_orchestrator import Client
from agent_orchestrator.domain.model import Request, Run
from agent_orchestrator.domain.notices import Notice
from agent_orchestrator.domain.tokens import token_hash
from agent_orchestrator.engine import EngineConfig, Orchestrator, ProviderConfig, Routing
from agent_orchestrator.hosts import this_host
from agent_orchestrator.notice_settings import NotifyOptions
from agent_orchestrator.notifiers.webpush import WebPush
from agent_orchestrator.ports.channel import NoticeContent, Target
from agent_orchestrator.ports.store import Store
from agent_orchestrator.testing.scripted import ScriptedRunner

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@define
class Clock:
    now: datetime = NOON

    def __call__(self) -> datetime:
        return self.now


@define
class Recorder:
    """A channel that keeps what it was given, and then does what the test says."""

    withdraws: bool = True
    given: list[NoticeContent] = field(factory=list)
    then: Callable[[NoticeContent], Awaitable[None]] | None = None

    async def send(self, content: NoticeContent) -> None:
        self.given.append(content)
        if self.then is not None:
            await self.then(content)

    @property
    def actions(self) -> list[tuple[str, str]]:
        return [(content.action, content.subject) for content in self.given]


def target(channel: Any, **fields: Any) -> Target:
    return Target(channel=channel, kind="recorder", **({"timeout_s": 60.0} | fields))


@frozen
class World:
    engine: Orchestrator
    client: Client
    clock: Clock

    async def acting_as(self, name: str, **fields: Any) -> tuple[Client, str]:
        """Return a client with a new named token, and the token's id."""
        made = await self.client.create_token(name, **fields)
        principal = await self.engine.holder(token_hash(made.secret))
        assert principal is not None
        return Client(self.engine.acting_as(principal)), made.token.id

    def pass_time(self, seconds: float) -> None:
        """Set the clock forward, and let the engine look at it."""
        self.clock.now += timedelta(seconds=seconds)
        self.engine.core.notifier.notify(["notices", "requests"])

    async def notices(self, subject: str | None = None) -> list[Notice]:
        found = await self.engine.core.store.read(lambda view: view.notices(limit=999))
        return [notice for notice in found if subject in (None, notice.subject)]

    async def states(self, subject: str | None = None) -> list[str]:
        return [notice.state for notice in await self.notices(subject)]

    async def until_states(self, *states: str, subject: str | None = None) -> list[Notice]:
        """Wait until the notices have these states, in order of their creation."""
        await until(lambda: self._has(list(states), subject), lambda: self.states(subject))
        return await self.notices(subject)

    async def _has(self, states: list[str], subject: str | None) -> bool:
        return await self.states(subject) == states

    async def ask(self, *, expires_in_s: float = 3600.0, **fields: Any) -> Request:
        """Ask people from a session of its own."""
        session = await self.client.create_session(provider="manual", **fields)
        run = await self.client.create_run(session.id)
        await self.client.transition_run(run.id, "running")
        return await self.ask_from(run, expires_in_s=expires_in_s)

    async def ask_from(self, run: Run, *, expires_in_s: float = 3600.0) -> Request:
        reply = await self.client.reply_parent(
            run.id, "rm -rf ./cache?", request_kind="approval_request", expires_in_s=expires_in_s
        )
        assert reply.request is not None
        return reply.request

    async def receipts(self, request: Request) -> list[tuple[str, str]]:
        """Return the targets and states that the session's log has of a request's notices."""
        log = (await self.client.list_events(request.session_id, limit=1000)).events
        return [
            (event.data["target"], event.data["state"])
            for event in log
            if event.event_type == "request.notified" and event.data["request_id"] == request.id
        ]


async def until(
    check: Callable[[], Awaitable[bool]], shown: Callable[[], Awaitable[object]] | None = None
) -> None:
    """Wait until a check holds; a failure shows what there is instead."""
    with anyio.move_on_after(60):
        while not await check():
            await anyio.sleep(0.005)
        return
    raise AssertionError(f"waited in vain: {None if shown is None else await shown()}")


@asynccontextmanager
async def world(
    store: Store,
    targets: dict[str, Any],
    *,
    clock: Clock | None = None,
    key_file: Path | None = None,
    **options: Any,
) -> AsyncIterator[World]:
    """Run an engine with some targets over an open store."""
    clock = clock or Clock()
    notify = NotifyOptions(**options)
    config = EngineConfig(
        {"scripted": ProviderConfig(ScriptedRunner(), "scripted")},
        Routing("scripted"),
        host=this_host(),
        clock=clock,
        notify=notify,
        push=WebPush(options=notify, key_file=key_file),
        targets={
            name: one if isinstance(one, Target) else target(one) for name, one in targets.items()
        },
    )
    async with Orchestrator(store, config) as engine:
        yield World(engine, Client(engine), clock)
