"""A simulation on a virtual clock: engines that crash at any await, clients that retry, agents.

Everything random follows from the seed: the scheduler's order, the steps at which engines are lost,
what clients do and agents take. ``python tests/engine/simulation.py --seeds 10000`` runs many
simulations and prints the seeds of those with violations.
"""

import argparse
import logging
import random
import sys
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import anyio
import anyio.abc
import trio
import trio.testing
from anyio._backends._trio import TrioBackend
from attrs import define, field, frozen
from crashing import Crashed, Handle
from trio._core import _run as trio_run

from agent_orchestrator import AgentFailed, Client, Outcome, RunContext
from agent_orchestrator.domain.capabilities import Capabilities
from agent_orchestrator.domain.errors import OrchestratorError, Unavailable
from agent_orchestrator.domain.lifecycle import RunStatus
from agent_orchestrator.domain.model import Attempt, Event
from agent_orchestrator.engine import EngineConfig, Orchestrator, ProviderConfig, Routing
from agent_orchestrator.host import ReapResult
from agent_orchestrator.hosts.linux.host import LinuxHost
from agent_orchestrator.stores.memory import MemoryStore
from agent_orchestrator.testing.invariants import (
    Acknowledged,
    History,
    history,
    stream_violations,
    violations,
)

EPOCH: Final = datetime(2026, 1, 1, tzinfo=UTC)
STEPS: Final = 600
"""Maximum of task steps before an engine is lost."""

DOUBTFUL: Final = 5
"""In one of so many simulations the store sometimes reports a failure after it committed."""

ENOUGH: Final = 10
"""Number of simulations with faults after which the search ends."""

QUIET_S: Final = 100_000.0
"""Virtual seconds after which the last engine must be idle."""


class Ids:
    def __init__(self) -> None:
        self._count = 0

    def __call__(self, kind: str) -> str:
        self._count += 1
        return f"{kind}_{self._count:08d}"


@define
class Agents:
    """The runner of all agents in the simulation, and what they got."""

    seed: int
    name: str = "agent"
    resumes: bool = True
    effects: Counter[str] = field(factory=Counter)
    """By message: how often an agent began to work on it, after the message was durable."""
    answers: Counter[str] = field(factory=Counter)
    """By question: how often an agent got its answer."""
    words: int = 0
    """Number of messages that they emitted."""
    between: set[str] = field(factory=set)
    """The runs whose agent is getting its prompt and has not begun."""
    dead: set[tuple[str, int]] = field(factory=set)
    """The attempts whose processes an engine has ended. Their runner has no further effect."""

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(resume=self.resumes)

    async def reap(self, attempts: Sequence[Attempt]) -> Mapping[tuple[str, int], ReapResult]:
        await anyio.sleep(random.Random(f"{self.seed} {len(self.dead)}").choice((0, 0.5, 3)))
        ended = {(one.run_id, one.attempt) for one in attempts}
        self.dead |= ended
        return dict.fromkeys(ended, ReapResult())

    async def _live(self, context: RunContext) -> None:
        """Return if the agent's process is alive; wait for ever if it was ended."""
        if (context.run.id, context.run.attempt) in self.dead:
            await anyio.sleep_forever()

    async def run(self, context: RunContext) -> Outcome:
        run = context.run
        rng = random.Random(f"{self.seed} {run.id} {run.attempt}")
        try:
            return await self._work(context, rng)
        finally:
            # An agent needs time to end, and may still try to emit something.
            with anyio.CancelScope(shield=True):
                await anyio.sleep(rng.choice((0, 0, 0.1, 3)))
                # An agent that emits has got its prompt.
                if run.id not in self.between:
                    await self._say(context, "late")
                self.between.discard(run.id)

    async def _work(self, context: RunContext, rng: random.Random) -> Outcome:
        await anyio.sleep(rng.random())
        prompts = context.prompt.split("\n\n")
        self.between.add(context.run.id)
        await context.delivered()
        thread = context.thread.id if context.thread else f"thread-{context.run.session_id}"
        await context.set_thread(thread)
        await self._live(context)
        self.between.discard(context.run.id)
        is_noted = any("This is the same conversation" in line for line in prompts)
        for line in prompts:
            if line.startswith("do ") and not (is_noted and self.effects[line]):
                self.effects[line] += 1
            elif line.startswith("Your request was "):
                self.answers[line.partition(": ")[2]] += 1
        said = ""
        tokens = " ".join(line for line in prompts if line.startswith("do ")).split()
        for token in tokens:
            said = await self._do(context, token, rng) or said
        return Outcome(said)

    async def _say(self, context: RunContext, text: str) -> None:
        """Emit a text that is never emitted twice."""
        self.words += 1
        await context.emit("agent.message", {"text": f"{text} ({self.words})"})

    async def _do(self, context: RunContext, token: str, rng: random.Random) -> str | None:
        verb, _, more = token.partition("=")
        match verb:
            case "say":
                for number in range(int(more)):
                    await self._say(context, str(number))
                    if rng.random() < 0.5:
                        await anyio.sleep(rng.random())
                return more
            case "sleep":
                await anyio.sleep(float(more))
            case "ask":
                question = f"{context.run.id}.{context.run.attempt}"
                await context.ask_parent(question, kind="approval_request", expires_in_s=200)
                await self._live(context)
                self.answers[question] += 1
            case "steer":
                async with context.steering() as messages:
                    with anyio.move_on_after(3):
                        text = await anext(messages)
                        await self._live(context)
                        self.effects[text] += 1
            case "fail":
                raise AgentFailed("provider_error", "as told")
        return None


@frozen(kw_only=True)
class SimulatedHost(LinuxHost):
    """A machine whose processes are the simulated agents'."""

    agents: Agents

    async def reap(self, attempts: Sequence[Attempt]) -> Mapping[tuple[str, int], ReapResult]:
        return await self.agents.reap(attempts)


@frozen
class Plan:
    """One call of a client, retried until it is answered."""

    verb: str
    key: str
    text: str = ""
    how: Any = None


@define
class Actor:
    """A client: its calls, how many are done, and what it has seen."""

    number: int
    plans: list[Plan]
    sessions: list[str] = field(factory=list)
    runs: list[str] = field(factory=list)
    acknowledged: list[Acknowledged] = field(factory=list)
    done: int = 0
    unanswered: list[str] = field(factory=list)
    """The repeated keys that did not get the first answer."""
    seen: dict[str, list[Event]] = field(factory=lambda: defaultdict(list))

    async def work(self, client: Client, rng: random.Random) -> None:
        while self.done < len(self.plans):
            await anyio.sleep(rng.choice((0, 0.01, 1, 5)))
            try:
                await self._carry_out(client, self.plans[self.done])
            except Unavailable:
                await anyio.sleep(1)
                continue
            except OrchestratorError as error:  # refused: that is an answer
                if "key" in error.details:
                    self.unanswered.append(self.plans[self.done].key)
            self.done += 1

    async def _carry_out(self, client: Client, plan: Plan) -> None:
        session = self.sessions[-1] if self.sessions else ""
        key = plan.key
        match plan.verb:
            case "session":
                made = await client.create_session(idempotency_key=key)
                if made.id not in self.sessions:
                    self.sessions.append(made.id)
            case "send":
                sent = await client.send_message(
                    session, plan.text, when_busy=plan.how, idempotency_key=key
                )
                self.acknowledged.append(Acknowledged.of(sent))
                if sent.run is not None:
                    self.runs.append(sent.run.id)
            case "spawn" if self.runs:
                child = await client.spawn(
                    plan.text, run_id=self.runs[-1], notify_parent=plan.how, idempotency_key=key
                )
                self.runs.append(child.run.id)
            case "cancel" if self.runs:
                target = self.runs[plan.how % len(self.runs)]
                await client.cancel_run(target, idempotency_key=key)

    async def follow(self, client: Client) -> None:
        """Go on reading the log of the first session."""
        while not self.sessions:
            await anyio.sleep(1)
        session = self.sessions[0]
        seen = self.seen[session]
        async with client.events(session, cursor=len(seen), follow=True) as events:
            async for event in events:
                seen.append(event)


def _plans(rng: random.Random, actor: int) -> list[Plan]:
    plans = [Plan("session", f"{actor}.s")]
    for number in range(rng.randrange(2, 7)):
        key = f"{actor}.{number}"
        verb = rng.choices(("send", "spawn", "cancel", "session"), (8, 2, 3, 1))[0]
        tokens = rng.choices(
            ("say=3", "say=40", "sleep=2", "sleep=30", "ask", "steer", "fail"),
            (5, 1, 3, 1, 3, 1, 1),
            k=rng.randrange(1, 4),
        )
        how: Any = rng.choices(("queue", "interrupt", "steer"), (4, 1, 2))[0]
        if verb == "spawn":
            how = rng.choice(("record", "wake"))
        elif verb == "cancel":
            how = rng.randrange(100)
        plans.append(Plan(verb, key, f"do #{key} {' '.join(tokens)}", how))
    return plans


class After(trio.abc.Instrument):
    """Calls a function once, after a number of task steps."""

    def __init__(self, steps: int, what: Callable[[], None]) -> None:
        self._left = steps
        self._text = what

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self._left -= 1
        if self._left == 0:
            self._text()


@contextmanager
def _after(steps: int, what: Callable[[], None]) -> Iterator[None]:
    instrument = After(steps, what)
    trio.lowlevel.add_instrument(instrument)
    try:
        yield
    finally:
        trio.lowlevel.remove_instrument(instrument)


@contextmanager
def _until_crashed() -> Iterator[None]:
    try:
        yield
    except* Crashed:
        pass


@define
class World:
    seed: int
    rng: random.Random
    actors: list[Actor]
    agents: Agents
    store: MemoryStore = field(factory=MemoryStore)
    ids: Ids = field(factory=Ids)
    settings: dict[str, Any] = field(factory=dict)
    faults: list[str] = field(factory=list)
    records: History | None = None

    def _config(self) -> EngineConfig:
        provider = ProviderConfig(
            self.agents, "agent", max_attempts=100, silence_timeout_s=20, run_timeout_s=200
        )
        return EngineConfig(
            providers={"agent": provider},
            routing=Routing("agent"),
            cwd="/",
            environ={},
            ids=self.ids,
            clock=lambda: EPOCH + timedelta(seconds=trio.current_time()),
            **self.settings,
            host=SimulatedHost(agents=self.agents),
        )

    async def live(self) -> None:
        """Run one engine after another on the store, the last one until all is done."""
        async with anyio.create_task_group() as stopped:
            for _ in range(self.rng.randrange(1, 6)):
                steps = self.rng.randrange(1, STEPS)
                match self.rng.choices(("lost", "drained", "stopped"), (5, 2, 2))[0]:
                    case "lost":
                        await self._lost(steps)
                    case "drained":
                        await self._drained()
                    case "stopped":
                        await stopped.start(self._stopped, steps)
        handle = Handle(self.store)
        async with self._engine(handle) as client, self._actors(client):
            with anyio.fail_after(QUIET_S):
                await self._until_quiet(client)
        await self._judge()

    async def _lost(self, steps: int) -> None:
        """Lose an engine at some await."""
        handle = self._handle()

        def lose() -> None:
            handle.crashed = True
            scope.cancel()

        with anyio.CancelScope() as scope, _after(steps, lose), _until_crashed():
            async with self._engine(handle) as client, self._actors(client):
                await anyio.sleep_forever()

    async def _drained(self) -> None:
        """Drain an engine."""
        async with self._engine(self._handle()) as client, self._actors(client):
            await anyio.sleep(self.rng.random() * 50)
            await client.transport.drain(self.rng.choice((0, 5)))  # type: ignore[attr-defined]

    async def _stopped(self, steps: int, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        """Pause an engine at some await, resume it while others are at work, then lose it."""
        handle = self._handle()
        clients = anyio.CancelScope()

        def stop() -> None:
            handle.stop()
            clients.cancel()

        with anyio.CancelScope() as scope, _until_crashed(), _after(steps, stop):
            async with self._engine(handle) as client:
                with clients:
                    async with self._actors(client):
                        await anyio.sleep_forever()
                task_status.started()
                await anyio.sleep(self.rng.random() * 20)
                handle.go_on()
                await anyio.sleep(self.rng.random() * 20)
                handle.crashed = True
                scope.cancel()
                await anyio.sleep_forever()

    def _handle(self) -> Handle:
        """Return the store for the next engine; in some simulations it reports failures after commits."""
        rng = random.Random(f"doubts {self.seed} {self.agents.dead}")
        rate = rng.choice((0.02, 0.1, 0.4)) if self.seed % DOUBTFUL == DOUBTFUL - 1 else 0.0
        return Handle(self.store, doubts=lambda: rng.random() < rate)

    @asynccontextmanager
    async def _engine(self, handle: Handle) -> AsyncIterator[Client]:
        async with handle, Orchestrator(handle, self._config()) as engine:
            yield Client(engine)

    @asynccontextmanager
    async def _actors(self, client: Client) -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:
            for actor in self.actors:
                tasks.start_soon(actor.work, client, random.Random(self.rng.random()))
                tasks.start_soon(actor.follow, client)
            tasks.start_soon(self._resolve, client)
            yield
            tasks.cancel_scope.cancel()

    async def _resolve(self, client: Client) -> None:
        """Approve requests at random times; some never."""
        while True:
            await anyio.sleep(self.rng.choice((0.1, 1, 10)))
            for request in (await client.requests(status="pending")).requests:
                if self.rng.random() < 0.4:
                    with suppress(OrchestratorError):
                        await client.resolve_request(request.id, "approve")

    async def _until_quiet(self, client: Client) -> None:
        while any(actor.done < len(actor.plans) for actor in self.actors):
            await anyio.sleep(10)
        counts = (await client.status()).queue_counts
        while counts.queued_count or counts.running_count or counts.waiting_count:
            await anyio.sleep(10)
            counts = (await client.status()).queue_counts
        await anyio.sleep(1)  # subscribers read to the end

    async def _judge(self) -> None:
        async with self.store, Orchestrator(self.store, self._config()) as engine:
            records = self.records = await history(Client(engine))
        acknowledged = [one for actor in self.actors for one in actor.acknowledged]
        texts = [plan.text for actor in self.actors for plan in actor.plans if plan.text]
        found = violations(records, acknowledged=acknowledged, unique=texts)
        for actor in self.actors:
            for session, seen in actor.seen.items():
                found += stream_violations(seen, records.logs[session])
        self.faults += [f"{one.kind}: {one.detail}" for one in found]
        # An agent works on a message at most once, and exactly once if its run completed.
        self.faults += [
            f"doubled: {count} agents worked on {text!r}"
            for text, count in self.agents.effects.items()
            if count > 1
        ]
        said = Counter(
            event.data["text"]
            for log in records.logs.values()
            for event in log
            if event.event_type == "agent.message"
        )
        self.faults += [
            f"doubled: {count} events say {text!r}" for text, count in said.items() if count > 1
        ]
        self.faults += [
            f"lost: the first answer to {key}" for actor in self.actors for key in actor.unanswered
        ]
        completed = {run.id for run in records.runs if run.status is RunStatus.COMPLETED}
        self.faults += [
            f"lost: no agent worked on {message.text!r}, and run {message.run_id} completed"
            for message in records.messages
            if message.run_id in completed
            and message.text.startswith("do ")
            and not self.agents.effects[message.text]
        ]
        self.faults += [
            f"lost: run {request.run_id} was never told that {request.id} was {request.status}"
            for request in records.requests
            if request.status == "approved"
            and request.run_id in completed
            and not self.agents.answers[request.text]
        ]
        if any(run.status not in ("completed", "failed", "canceled") for run in records.runs):
            self.faults.append("a run did not come to its end")


async def _at_once(func: Any, args: Any, *_: Any, **__: Any) -> Any:
    await trio.lowlevel.checkpoint()
    return func(*args)


@contextmanager
def predictable(seed: int) -> Iterator[None]:
    """Have trio schedule by the seed, and run the work of threads at once: their timing is not
    predictable.
    """
    state = trio_run._r.getstate()
    threads = TrioBackend.__dict__["run_sync_in_worker_thread"]
    trio_run._r.seed(seed)
    trio_run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
    TrioBackend.run_sync_in_worker_thread = _at_once  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        TrioBackend.run_sync_in_worker_thread = threads  # type: ignore[method-assign]
        trio_run._ALLOW_DETERMINISTIC_SCHEDULING = False  # type: ignore[misc]
        trio_run._r.setstate(state)


def simulate(seed: int, **settings: Any) -> World:
    """Run one simulation; violations are in its ``faults``."""
    rng = random.Random(seed)
    actors = [Actor(n, _plans(rng, n)) for n in range(rng.randrange(1, 4))]
    settings = {
        "max_concurrency": rng.choice((1, 2, 8)),
        "park_after_s": rng.choice((0, 0.1, 5, 600)),
    } | settings
    world = World(seed, rng, actors, Agents(seed), settings=settings)
    with predictable(seed):
        trio.run(world.live, clock=trio.testing.MockClock(autojump_threshold=0))
    return world


def many(
    start: int, count: int, seconds: float, run: Callable[[int], World] = simulate
) -> tuple[int, dict[int, list[str]]]:
    """Run simulations until a limit is reached; return how many, and the faults by seed."""
    logging.disable(logging.CRITICAL)  # crashed engines log a lot
    faults: dict[int, list[str]] = {}
    end = time.monotonic() + seconds
    done = 0
    try:
        for seed in range(start, start + count):
            if time.monotonic() > end or len(faults) == ENOUGH:
                break
            try:
                found = run(seed).faults
            except Exception as error:  # noqa: BLE001 - a crash is a fault
                found = [f"it broke: {error!r}"]
            if found:
                faults[seed] = found
            done += 1
    finally:
        logging.disable(logging.NOTSET)
    return done, faults


def main(description: str | None = __doc__, run: Callable[[int], World] = simulate) -> int:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    given = parser.parse_args()
    began = time.monotonic()
    done, faults = many(given.start, given.seeds, given.seconds, run)
    for seed, found in faults.items():
        print(f"seed {seed}:")
        for fault in found:
            print(f"    {fault}")
    print(f"{done} worlds, {len(faults)} with faults, {time.monotonic() - began:.1f} s")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
