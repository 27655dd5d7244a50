"""Clients that never give up, and subscribers that always come back: what they were told is kept."""

import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final, Literal, TypeVar

import anyio
import anyio.abc
import websockets
from attrs import define, field, frozen
from tests.chaos.outcome import Effort, Outcome

from agent_orchestrator import Client, Run, connect
from agent_orchestrator.domain.errors import (
    AlreadyResolved,
    Internal,
    OrchestratorError,
    Unavailable,
    Unreachable,
)
from agent_orchestrator.operations.events import StreamItem, StreamRequest
from agent_orchestrator.operations.runs import StatusName

T = TypeVar("T")

PROVIDERS: Final = ("manual", "manual", "manual", "inside", "program")
VERBS: Final = ("say", "say", "talk 5", "slow 0.1", "child 0.2", "ask")

REAL_VERBS: Final = (
    "say {key}",
    "stream 30 30 {key}-",
    "say {key}\nshell setsid sleep 600 >/dev/null 2>&1 & sleep 0.3\nsay done",
)
"""What real agents are asked, in the language of their scripted models."""

_PAUSE_S: Final = 0.02
"""Between tries where nobody answers."""


@frozen
class Ack:
    """A message the daemon said it has."""

    key: str
    text: str
    message_id: str
    session_id: str
    run_id: str | None


@define
class Subscriber:
    """What one reader saw, by session, in the order it came."""

    name: str
    sessions: tuple[str, ...]
    """Empty means all there are."""
    cursor: str | None = None
    seen: dict[str, list[tuple[int, str]]] = field(factory=dict)
    connects: int = 0

    def take(self, cursor: str, session_id: str, seq: int, event_type: str) -> None:
        """Note an event; from here on the reader would resume behind it."""
        self.cursor = cursor
        self.seen.setdefault(session_id, []).append((seq, event_type))

    @property
    def position(self) -> int:
        return sum(len(events) for events in self.seen.values())


@define
class Traffic:
    """Clients and subscribers of one daemon, and what they were told.

    :param effort: how many of the clients there are, and how long they rest between two messages.
    :param outcome: where a wrong answer is counted.
    """

    url: str
    effort: Effort
    chance: random.Random
    outcome: Outcome
    clients: int = 50
    providers: tuple[str, ...] = PROVIDERS
    verbs: tuple[str, ...] = VERBS
    agents: tuple[str, ...] = ()
    """Providers of real agents. Each has two clients of its own."""
    first_client: int = 0
    """The number of the first client. Clients of one database need different numbers."""
    padding: int = 0
    """Characters a message has beside what it says."""
    further_urls: tuple[str, ...] = ()
    """Other daemons of the same database: each message and cancel goes to any of them."""
    token: str | None = None
    """What all these daemons ask for."""
    acks: dict[str, Ack] = field(factory=dict)
    sessions: dict[str, str] = field(factory=dict)
    """The sessions that were acknowledged, by key."""
    canceled: set[str] = field(factory=set)
    resolved: dict[str, str] = field(factory=dict)
    """Decisions that were acknowledged, by request."""
    sent: set[str] = field(factory=set)
    """Keys that were sent, acknowledged or not."""
    refusals: Counter[str] = field(factory=Counter)
    """How often who asked was put off, by the error; an ``Internal`` one is no good answer."""
    subscribers: list[Subscriber] = field(factory=list)
    stopping: bool = False
    unsettled: str = ""
    """What :meth:`settled` waits for."""
    _others: list[Client] = field(factory=list)
    _talking: int = 0
    _count: int = 0

    def __attrs_post_init__(self) -> None:
        self.clients = self.effort.clients(self.clients)

    # --- clients ------------------------------------------------------------------------------

    async def until_told(self, ask: Callable[[], Awaitable[T]], *, always: bool = False) -> T:
        """Ask until there is an answer.

        :param always: also when the clients are to stop.
        :raises Stopped: if they are to stop before there is one.
        """
        while True:
            if self.stopping and not always:
                raise Stopped
            try:
                return await ask()
            except (Unreachable, Unavailable, Internal) as error:
                self.refusals[type(error).__name__] += 1
                await anyio.sleep(_PAUSE_S * (0.5 + self.chance.random()))

    async def client(self, number: int, provider: str, http: Client) -> None:
        """Send messages until told to stop."""
        self._talking += 1
        try:
            await self._talk(number, provider, http)
        except Stopped:
            pass
        except OrchestratorError as error:
            self.outcome.fault("broken", f"client {number}: {type(error).__name__}: {error}")
        finally:
            self._talking -= 1

    async def _talk(self, number: int, provider: str, http: Client) -> None:
        approvals: Literal["allow"] | None = "allow" if provider in self.agents else None
        key = f"session-{number}"
        self.sent.add(key)

        async def make() -> str:
            made = await http.create_session(
                title=key, provider=provider, approvals=approvals, idempotency_key=key
            )
            return made.id

        session_id = await self.until_told(make)
        self.sessions[key] = session_id
        while not self.stopping:
            self._count += 1
            await self._message(f"k{number}-{self._count}", session_id, provider, http)
            await anyio.sleep(self.effort.rest_s)

    async def _message(self, key: str, session_id: str, provider: str, http: Client) -> None:
        verbs = self.verbs if provider == "inside" else [v for v in self.verbs if v != "ask"]
        text = f"{key} {self.chance.choice(verbs)}" + " " * bool(self.padding) + "x" * self.padding
        if provider in self.agents:
            text = self.chance.choice(REAL_VERBS).format(key=key)
        self.sent.add(key)

        async def send() -> Ack:
            # Also when it asks again: the key is known to all daemons.
            any_of_them = self.chance.choice([http, *self._others])
            reply = await any_of_them.send_message(session_id, text, idempotency_key=key)
            run_id = reply.run.id if reply.run else None
            return Ack(key, reply.message.text, reply.message.id, session_id, run_id)

        ack = await self.until_told(send)
        self.acks[key] = ack
        self.outcome.acknowledged += 1
        drawn = self.chance.random()
        if drawn < 0.15:
            again = await self.until_told(send)
            if again != ack:
                self.outcome.fault("doubled", f"{key} again gave {again}, not {ack}")
        elif drawn < 0.25 and ack.run_id is not None:
            run_id = ack.run_id
            canceler = self.chance.choice([http, *self._others])
            await self.until_told(lambda: canceler.cancel_run(run_id, idempotency_key=f"x{key}"))
            self.canceled.add(run_id)
        elif provider != "manual" and ack.run_id is not None and drawn < 0.9:
            # Otherwise the next message has to wait for this one's run. If no client waited, a busy
            # machine would queue more than it ever works off.
            run_id = ack.run_id
            reply = await self.until_told(lambda: http.wait_run(run_id, timeout_s=1))
            while reply.timed_out:
                reply = await self.until_told(lambda: http.wait_run(run_id, timeout_s=1))

    async def answerer(self, http: Client) -> None:
        """Answer what agents ask."""
        self._talking += 1
        try:
            while not self.stopping:
                page = await self.until_told(lambda: http.requests(status="pending"))
                for request in page.requests:
                    await self._resolve(request.id, http)
                await anyio.sleep(0.1)
        except Stopped:
            pass
        except OrchestratorError as error:
            self.outcome.fault("broken", f"answerer: {type(error).__name__}: {error}")
        finally:
            self._talking -= 1

    async def _resolve(self, request_id: str, http: Client, *, always: bool = False) -> None:
        # The same whoever answers, and however often.
        decision: Literal["approve", "deny"] = "approve" if ord(request_id[-1]) % 2 else "deny"

        async def resolve() -> str:
            found = await http.resolve_request(request_id, decision, idempotency_key=request_id)
            return str(found.status)

        try:
            status = await self.until_told(resolve, always=always)
        except AlreadyResolved:
            return  # canceled with its run meanwhile
        self.resolved[request_id] = status

    # --- subscribers --------------------------------------------------------------------------

    async def sse(self, one: Subscriber, http: Client) -> None:
        """Follow by server-sent events, from the cursor again whenever the stream breaks."""
        while True:
            try:
                one.connects += 1
                asked = StreamRequest(list(one.sessions), one.cursor)
                async with http.transport.subscribe(asked) as subscription:
                    while True:
                        for item in await subscription.receive():
                            if isinstance(item, StreamItem):
                                event = item.event
                                one.take(item.cursor, event.session_id, event.seq, event.event_type)
            except (Unreachable, Unavailable, Internal) as error:
                self.refusals[type(error).__name__] += 1
                await anyio.sleep(_PAUSE_S)
            except OrchestratorError as error:
                self.outcome.fault("gaps", f"{one.name}: {type(error).__name__}: {error}")
                return

    async def websocket(self, one: Subscriber) -> None:
        """Follow by WebSocket."""
        base = self.url.replace("http:", "ws:") + "/stream?"
        while True:
            one.connects += 1
            query = [f"sessionId={session_id}" for session_id in one.sessions]
            query += [f"cursor={one.cursor}"] if one.cursor is not None else []
            headers = {"Authorization": f"Bearer {self.token}"} if self.token is not None else {}
            try:
                async with websockets.connect(
                    base + "&".join(query),
                    additional_headers=headers,
                    max_size=None,
                    proxy=None,
                    open_timeout=60,
                ) as socket:
                    async for text in socket:
                        frame: dict[str, Any] = json.loads(text)
                        if frame["type"] == "event":
                            event = frame["event"]
                            one.take(
                                frame["cursor"],
                                event["session_id"],
                                event["seq"],
                                event["event_type"],
                            )
                        elif frame["type"] == "error":
                            if frame["error"]["code"] not in ("unavailable", "internal"):
                                self.outcome.fault("gaps", f"{one.name}: {frame['error']}")
                                return
                            self.refusals[frame["error"]["code"].capitalize()] += 1
            except (OSError, websockets.WebSocketException, TimeoutError, EOFError):
                pass
            await anyio.sleep(_PAUSE_S)

    # --- all of it ----------------------------------------------------------------------------

    @asynccontextmanager
    async def going(self, *, subscribed: bool = True) -> AsyncIterator[None]:
        """Keep them going inside the scope; at its end clients stop and readers read to the end.

        The daemon must be up, or come up, when the scope is left.
        """
        self.stopping = False
        async with AsyncExitStack() as stack:
            http = await stack.enter_async_context(connect(self.url, token=self.token))
            self._others = [
                await stack.enter_async_context(connect(url, token=self.token))
                for url in self.further_urls
            ]
            readers = await stack.enter_async_context(anyio.create_task_group())
            async with anyio.create_task_group() as tasks:
                real = [name for name in self.agents for _ in range(2)]
                others = [self.providers[n % len(self.providers)] for n in range(self.clients)]
                for number, provider in enumerate([*others, *real], self.first_client):
                    tasks.start_soon(self.client, number, provider, http)
                tasks.start_soon(self.answerer, http)
                if subscribed:
                    tasks.start_soon(self._subscribe, http, readers)
                try:
                    yield
                finally:
                    self.stopping = True
            readers.cancel_scope.cancel()

    async def _subscribe(self, http: Client, readers: anyio.abc.TaskGroup) -> None:
        if not self.subscribers:
            # Which sessions to follow is known once there are some.
            while len(self.sessions) < min(5, self.clients):
                if self.stopping:
                    return
                await anyio.sleep(_PAUSE_S)
            ids = list(self.sessions.values())[:5]
            self.subscribers = [
                Subscriber("SSE of all", ()),
                Subscriber("SSE of one", (ids[0],)),
                Subscriber("SSE of three", tuple(ids[:3])),
                Subscriber("WebSocket of all", ()),
                Subscriber("WebSocket of one", (ids[-1],)),
            ]
        for one in self.subscribers:
            if one.name.startswith("SSE"):
                readers.start_soon(self.sse, one, http)
            else:
                readers.start_soon(self.websocket, one)

    async def settled(self, seconds: float = 60) -> None:
        """Return when no run is at work or queued and every reader is at the head of its log.

        To be called inside the scope, the daemon up.

        :param seconds: how long it may see no change.
        """
        self.stopping = True
        async with connect(self.url, token=self.token) as http:
            with anyio.move_on_after(seconds) as waiting:
                before = self.unsettled
                while not await self._is_settled(http):
                    if self.unsettled != before:
                        before = self.unsettled
                        waiting.deadline = anyio.current_time() + seconds
                    await anyio.sleep(0.2)
        if waiting.cancelled_caught:
            self.outcome.fault("broken", f"not settled after {seconds:g} s: {self.unsettled}")

    async def _is_settled(self, http: Client) -> bool:
        if self._talking:
            self.unsettled = f"{self._talking} clients still ask"
            return False

        async def query() -> bool:
            for request in (await http.requests(status="pending")).requests:
                await self._resolve(request.id, http, always=True)
            busy: list[Run] = []
            states: tuple[StatusName, ...] = ("queued", "running", "waiting")
            for status in states:
                cursor = None
                while True:
                    page = await http.list_runs(status=status, limit=1000, cursor=cursor)
                    busy += [run for run in page.runs if run.provider != "manual"]
                    cursor = page.next_cursor
                    if cursor is None:
                        break
            if busy:
                self.unsettled = f"{len(busy)} runs, {busy[0].id} {busy[0].status}"
                return False
            heads: dict[str, int] = {}
            while True:
                sessions = await http.list_sessions(limit=500, cursor=cursor)
                heads |= {session.id: session.last_seq for session in sessions.sessions}
                cursor = sessions.next_cursor
                if cursor is None:
                    break
            for one in self.subscribers:
                want = {s: heads[s] for s in (one.sessions or heads) if s in heads}
                have = {s: events[-1][0] for s, events in one.seen.items()}
                if any(have.get(s, 0) < n for s, n in want.items()):
                    self.unsettled = f"{one.name} is behind"
                    return False
            return True

        return await self.until_told(query, always=True)


class Stopped(Exception):
    """The clients are to stop."""
