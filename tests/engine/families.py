"""Random trees of agents on a virtual clock: they spawn, wait, ask, answer, fail, are canceled.

Everything random follows from the seed, as in :mod:`simulation`, which loses engines; here they only
stop in good order. ``python tests/engine/families.py --seeds 10000`` simulates many trees.
"""

import argparse
import logging
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, Final

import anyio
import trio
import trio.testing
from attrs import define, field
from crashing import Handle
from simulation import EPOCH, Ids, predictable

from agent_orchestrator import AgentFailed, Client, Outcome, RunContext
from agent_orchestrator.domain.capabilities import Capabilities, InputLimit
from agent_orchestrator.domain.errors import OrchestratorError
from agent_orchestrator.domain.events import EventType
from agent_orchestrator.domain.lifecycle import RunStatus, is_terminal
from agent_orchestrator.domain.model import Approvals, Event, Request, Run
from agent_orchestrator.engine import EngineConfig, Orchestrator, ProviderConfig, Routing
from agent_orchestrator.engine.config import TreeLimits
from agent_orchestrator.engine.questions import has_active_agent
from agent_orchestrator.hosts import this_host
from agent_orchestrator.operations.messages import SpawnReply
from agent_orchestrator.ports.queries import View
from agent_orchestrator.stores.memory import MemoryStore
from agent_orchestrator.testing.invariants import History, history, violations

SPAWNS: Final = 8
"""Maximum of children in one simulation; without it, woken parents would spawn for ever."""

QUIET_S: Final = 100_000.0
"""Virtual seconds after which every run must have ended by itself."""

ENOUGH: Final = 10
"""Number of trees with faults after which the search ends."""

ASK_TIMEOUTS_S: Final = (0.5, 20.0)
"""Seconds after which agents abandon a question."""

LIMITS: Final = ("max_depth", "max_children", "max_descendants")

GRANTS: Final = {"approve": "approved", "deny": "denied", "answer": "answered"}


@define
class Agents:
    """The runner of all agents in a simulation, and what they learned."""

    seed: int
    name: str = "agent"
    resumes: bool = True
    max_input: InputLimit = InputLimit(characters=450)
    """So small that results of children often need several turns."""
    spawned: int = 0
    asked: int = 0
    received: dict[tuple[str, str], list[tuple[str, int] | None]] = field(factory=dict)
    """By question and outcome: each time an agent got it, by the attempt whose prompt had it."""
    known: dict[str, list[str]] = field(factory=dict)
    """By session: the children its runs have spawned."""
    excesses: list[str] = field(factory=list)
    heard: Counter[str] = field(factory=Counter)
    """By child's result: how many runs had it in their prompt."""

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(resume=self.resumes, max_input=self.max_input)

    async def run(self, context: RunContext) -> Outcome:
        run = context.run
        rng = random.Random(f"{self.seed} {run.id} {run.attempt}")
        if excess := self.max_input.excess(context.prompt):
            self.excesses.append(f"size: {run.id} was given more than it takes: {excess}")
        for line in context.prompt.splitlines():
            if line.startswith("Your request was "):
                status, _, question = line.removeprefix("Your request was ").partition(": ")
                self.received.setdefault((question, status), []).append((run.id, run.attempt))
            elif line.startswith("result of ") and run.attempt == 1:
                self.heard[line] += 1
        await context.delivered()
        # A later attempt gets only the messages that the thread may not have yet.
        await context.set_thread(f"thread-{run.session_id}")
        await context.emit("agent.message", {"text": "at work"})
        # Its steps do not depend on the attempt, so that the next one finds its children.
        life = random.Random(f"{self.seed} {run.id}")
        children: list[SpawnReply] = []
        for number in range(life.randrange(1, 5)):
            await anyio.sleep(rng.choice((0, 0, 0.1, 2)))
            verb = life.choices(
                ("spawn", "wait", "ask", "send", "fail", "say"), (6, 5, 5, 2, 0.4, 1)
            )[0]
            # Refused: a limit, a cancel, a closed session.
            with suppress(OrchestratorError):
                await self._do(context, verb, children, number, rng)
        return Outcome(f"result of {run.id}")

    async def _do(
        self,
        context: RunContext,
        verb: str,
        children: list[SpawnReply],
        number: int,
        rng: random.Random,
    ) -> None:
        match verb:
            case "spawn" if self.spawned < SPAWNS:
                self.spawned += 1
                policies: Sequence[Approvals | None] = (None, None, "ask-human", "deny")
                child = await context.spawn(
                    f"task {number}",
                    notify_parent=rng.choice(("record", "wake")),
                    approvals=rng.choice(policies),
                    idempotency_key=str(number),
                    **self._limits(context, number),
                )
                children.append(child)
                self.known.setdefault(context.session.id, []).append(child.session.id)
            case "wait" if children:
                run_id = rng.choice(children).run.id
                if rng.random() < 0.5:
                    await context.wait(run_id, timeout_s=rng.choice((None, None, 5.0)))
                else:
                    await context.wait(run_id, until="attention")
            case "send" if known := self.known.get(context.session.id):
                await context.send(rng.choice(known), "more")
            case "ask":
                await self._ask(context, rng)
            case "fail":
                raise AgentFailed("provider_error", "as it does")
            case _:
                await context.emit("agent.message", {"text": "hm"})

    def _limits(self, context: RunContext, number: int) -> dict[str, int]:
        """Return limits for a child, the same for each attempt; none in every other simulation."""
        rng = random.Random(f"limits {self.seed} {context.run.id} {number}")
        if self.seed % 2 == 0 or rng.random() < 0.5:
            return {}
        return {rng.choice(LIMITS): rng.randrange(3)}

    async def _ask(self, context: RunContext, rng: random.Random) -> None:
        self.asked += 1
        question = f"question {self.asked}"
        with anyio.move_on_after(rng.choice((float("inf"), float("inf"), *ASK_TIMEOUTS_S))):
            request = await context.ask_parent(
                question,
                kind=rng.choice(("approval_request", "permission_request", "input_request")),
                expires_in_s=rng.choice((1.0, 30.0, 200.0)),
            )
            self.received.setdefault((question, request.status), []).append(None)


@define
class Family:
    """A simulation of one tree, or a few."""

    seed: int
    rng: random.Random
    agents: Agents
    settings: dict[str, Any]
    store: MemoryStore = field(factory=MemoryStore)
    ids: Ids = field(factory=Ids)
    roots: list[str] = field(factory=list)
    refused: set[str] = field(factory=set)
    """The requests whose answer came too late."""
    decided: dict[str, str] = field(factory=dict)
    """By request: the status after its first answer."""
    faults: list[str] = field(factory=list)
    records: History | None = None

    def _config(self) -> EngineConfig:
        return EngineConfig(
            providers={"agent": ProviderConfig(self.agents, "agent", max_attempts=100)},
            routing=Routing("agent"),
            limits=TreeLimits(children=4, descendants=7, depth=3),
            cwd="/",
            environ={},
            ids=self.ids,
            clock=lambda: EPOCH + timedelta(seconds=trio.current_time()),
            **self.settings,
            host=this_host(),
        )

    async def live(self) -> None:
        stops = self.rng.choice((0, 0, 1, 2))
        for _ in range(stops):
            async with Handle(self.store) as store, Orchestrator(store, self._config()) as engine:
                with anyio.move_on_after(self.rng.choice((0.1, 1, 5, 20))):
                    await self._people(Client(engine))
                await engine.drain(self.rng.choice((0, 0, 3)))
        async with Handle(self.store) as store, Orchestrator(store, self._config()) as engine:
            client = Client(engine)
            with anyio.fail_after(QUIET_S):
                await self._people(client)
                # From here on no person acts: all runs must end by themselves.
                while await self._is_busy(client):
                    await anyio.sleep(50)
            self.records = await history(client)
        self._judge(self.records)

    async def _is_busy(self, client: Client) -> bool:
        self.faults += await self.store.read(unsound)
        counts = (await client.status()).queue_counts
        return bool(counts.queued_count or counts.running_count or counts.waiting_count)

    async def _people(self, client: Client) -> None:
        """Act as two people for a while, at random times."""
        async with anyio.create_task_group() as tasks:
            for _ in range(2):
                tasks.start_soon(self._person, client, random.Random(self.rng.random()))

    async def _person(self, client: Client, rng: random.Random) -> None:
        if not self.roots:
            self.roots.append((await client.create_session(approvals=rng.choice(LOOSE))).id)
            await client.send_message(self.roots[0], "task of the root")
        for _ in range(rng.randrange(2, 9)):
            await anyio.sleep(rng.choice((0, 0.01, 0.3, 2, 9)))
            self.faults += await self.store.read(unsound)
            with suppress(OrchestratorError):
                await self._act(client, rng)

    async def _act(self, client: Client, rng: random.Random) -> None:
        runs = (await client.list_runs()).runs
        match rng.choices(("answer", "cancel", "send", "close"), (8, 3, 1, 1))[0]:
            case "answer":
                open_ = (await client.requests(status="pending")).requests
                if open_:
                    await self._answer(client, rng.choice(open_), rng)
            case "cancel" if runs:
                await client.cancel_run(
                    rng.choice(runs).id,
                    reason="cascade" if (deep := rng.random() < 0.7) else None,
                    cascade=deep,
                )
            case "send" if runs:
                how: Any = rng.choice(("queue", "interrupt"))
                await client.send_message(rng.choice(runs).session_id, "by hand", when_busy=how)
            case "close" if runs:
                session_id = rng.choice(runs).session_id
                await client.update_session(session_id, status="closed")
                await anyio.sleep(rng.choice((0, 1, 10)))
                await client.update_session(session_id, status="open")

    async def _answer(self, client: Client, request: Request, rng: random.Random) -> None:
        decision: Any = rng.choice(tuple(GRANTS))
        await anyio.sleep(rng.choice((0, 0, 1)))
        closed = await client.resolve_request(request.id, decision, text="so")
        if self.decided.setdefault(request.id, closed.status) != GRANTS[decision]:
            self.faults.append(f"doubled: {request.id} was {closed.status}, then {decision}")

    # --- what must hold -----------------------------------------------------------------------

    def _judge(self, records: History) -> None:
        self.faults += [f"{one.kind}: {one.detail}" for one in violations(records)]
        self.faults += self.agents.excesses
        runs = {run.id: run for run in records.runs}
        self.faults += [
            f"stuck: run {run.id} is {run.status}"
            for run in records.runs
            if not is_terminal(run.status)
        ]
        self._judge_limits(records)
        self._judge_outcomes(records, runs)
        self._judge_requests(records, runs)
        self._judge_cancels(records, runs)

    def _judge_limits(self, records: History) -> None:
        sessions = {session.id: session for session in records.sessions}
        for session in records.sessions:
            parent = sessions.get(session.parent_session_id or "")
            if parent is None:
                continue
            for name in LIMITS:
                above, own = getattr(parent, name), getattr(session, name)
                if above is not None and (own is None or own > above - (name == "max_depth")):
                    self.faults.append(f"limits: {name} {own} of {session.id} below {above}")
                if above == 0:
                    self.faults.append(f"limits: {session.id} is below one with {name} 0")

    def _judge_outcomes(self, records: History, runs: dict[str, Run]) -> None:
        sessions = {session.id: session for session in records.sessions}
        messages = {message.id: message for message in records.messages}
        finished: Counter[str] = Counter()
        for session in records.sessions:
            for event in _of(records.logs[session.id], EventType.CHILD_FINISHED):
                finished[event.data["run_id"]] += 1
                message = messages.get(event.data["message_id"])
                child = sessions[event.data["session_id"]]
                if message is None or message.source.run_id != event.data["run_id"]:
                    self.faults.append(f"lost: the message of {event.data}")
                elif child.parent_session_id != session.id != message.session_id:
                    self.faults.append(f"lost: {message.id} is not in its child's parent")
        for run in records.runs:
            expected = int(sessions[run.session_id].parent_session_id is not None)
            if finished[run.id] != expected:
                self.faults.append(f"outcome: {run.id} was told of {finished[run.id]} times")
        at_rest = _canceled_last(records.runs)
        for message in records.messages:
            waits = message.source.kind == "child" and message.delivery == "queued"
            is_open = sessions[message.session_id].status == "open"
            if waits and is_open and message.session_id not in at_rest:
                self.faults.append(f"lost: {message.id} waits for nobody")
            if message.source.kind == "child" and message.run_id is not None:
                carrier = runs[message.run_id]
                if carrier.session_id != message.session_id:
                    self.faults.append(f"lost: {message.id} was handed to {carrier.id}")
        self.faults += [
            f"doubled: {count} runs were told {text!r}"
            for text, count in self.agents.heard.items()
            if count > 1
        ]

    def _judge_requests(self, records: History, runs: dict[str, Run]) -> None:
        # An attempt that emitted nothing may not have read its prompt: the next one gets it again.
        at_work = {
            (event.run_id, event.attempt)
            for log in records.logs.values()
            for event in _of(log, EventType.AGENT_MESSAGE)
        }
        for request in records.requests:
            if request.is_open:
                self.faults.append(f"stuck: request {request.id} is open")
            decided = self.decided.get(request.id)
            if decided is not None and decided != request.status:
                self.faults.append(f"lost: {request.id} was {decided} and is {request.status}")
            times = self.agents.received.get((request.text, request.status), [])
            count = sum(one is None or one in at_work for one in times)
            if count > 1:
                self.faults.append(f"doubled: {request.text} was told {count} times")
            completed = runs[request.run_id].status is RunStatus.COMPLETED
            tells = request.status in (*GRANTS.values(), "expired")
            if completed and tells and count != 1 and not _gave_up_then(request):
                self.faults.append(f"lost: {request.text}, {request.status}, told {count}")

    def _judge_cancels(self, records: History, runs: dict[str, Run]) -> None:
        start_id = {session.id: session.created_at for session in records.sessions}
        for session in records.sessions:
            parent = runs.get(session.parent_run_id or "")
            if (
                parent is not None
                and parent.cancel_requested_at is not None
                and start_id[session.id] > parent.cancel_requested_at
            ):
                self.faults.append(f"spawned: {session.id} after the cancel of {parent.id}")
        setters = {
            message.run_id: message.source.run_id
            for message in records.messages
            if message.source.kind == "parent" and message.source.run_id is not None
        }
        for run in records.runs:
            if run.cancel_requested_at is None or run.cancel_reason != "cascade":
                continue
            for child in records.runs:
                lived = child.finished_at is None or child.finished_at > run.cancel_requested_at
                if (
                    setters.get(child.id, child.parent_run_id) == run.id
                    and child.created_at < run.cancel_requested_at
                    and lived
                    and child.cancel_requested_at is None
                ):
                    self.faults.append(f"cascade: {child.id} outlived the cancel of {run.id}")


def _canceled_last(runs: Sequence[Run]) -> set[str]:
    """Return the sessions whose last run was canceled; results of children may wait in them."""
    last: dict[str, tuple[Any, bool]] = {}
    for run in runs:
        end = run.finished_at, run.status is RunStatus.CANCELED
        last[run.session_id] = max(end, last.get(run.session_id, end))
    return {session_id for session_id, (_, is_canceled) in last.items() if is_canceled}


def _gave_up_then(request: Request) -> bool:
    """Return whether its agent may have stopped waiting when the request was resolved."""
    assert request.resolved_at is not None
    return (request.resolved_at - request.created_at).total_seconds() in ASK_TIMEOUTS_S


LOOSE: Final[Sequence[Approvals | None]] = (None, None, "allow", "ask-human")


def _of(log: Sequence[Event], event_type: str) -> list[Event]:
    return [event for event in log if event.event_type == event_type]


def unsound(view: View) -> list[str]:
    """Return violations of what must hold after every commit."""
    found = []
    for run in view.runs(limit=1000):
        request = view.request(run.waiting_on) if run.waiting_on else None
        waits = request is not None and request.is_open
        if (run.status is RunStatus.WAITING) != waits:
            found.append(f"waiting: {run.id} is {run.status}, its request {request}")
    for request in view.requests(status="pending", limit=1000):
        asker = view.run(request.run_id)
        if asker is None or is_terminal(asker.status):
            found.append(f"open: {request.id} of a run that ended")
        if request.approvals in ("allow", "deny"):
            found.append(f"open: {request.id}, which a policy decides")
        if request.audience == "parent":
            parent = view.session(request.parent_session_id or "")
            if parent is None or not has_active_agent(view, parent):
                found.append(f"unheard: {request.id} is for a parent that is not there")
    return found


def grow(seed: int, **settings: Any) -> Family:
    """Run one simulation; violations are in its ``faults``."""
    rng = random.Random(f"family {seed}")
    settings = {
        "max_concurrency": rng.choice((1, 1, 2, 8)),
        "parent_answer_s": rng.choice((0.0, 0.5, 120.0)),
    } | settings
    family = Family(seed, rng, Agents(seed), settings)
    with predictable(seed):
        trio.run(family.live, clock=trio.testing.MockClock(autojump_threshold=0))
    return family


def many(start: int, count: int) -> tuple[Counter[str], dict[int, list[str]]]:
    """Run simulations; return what happened in them, and the faults by seed."""
    logging.disable(logging.CRITICAL)  # stopped runs log a lot
    faults: dict[int, list[str]] = {}
    seen: Counter[str] = Counter()
    try:
        for seed in range(start, start + count):
            try:
                family = grow(seed)
                found = family.faults
            except Exception as error:  # noqa: BLE001 - a crash is a fault
                found = [f"it broke: {error!r}"]
            else:
                seen += census(family)
            if found:
                faults[seed] = found
                if len(faults) == ENOUGH:
                    break
    finally:
        logging.disable(logging.NOTSET)
    return seen, faults


def census(family: Family) -> Counter[str]:
    """Count what happened in a simulation, so that a test can check that all of it does."""
    records = family.records
    assert records is not None
    kinds = Counter(event.event_type for log in records.logs.values() for event in log)
    return (
        Counter({str(kind): count for kind, count in kinds.items()})
        + Counter(f"request {request.status}" for request in records.requests)
        + Counter(f"run {run.status}" for run in records.runs)
        + Counter(f"depth {session.depth}" for session in records.sessions)
        + Counter(
            "smaller limits"
            for session in records.sessions
            if any(getattr(session, name) is not None for name in LIMITS)
        )
        + Counter("a later attempt" for run in records.runs if run.attempt > 1)
        + Counter("decided by policy" for one in records.requests if one.decided_by == "policy")
        + Counter("woken" for one in records.messages if one.source.kind == "child" and one.run_id)
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--start", type=int, default=0)
    given = parser.parse_args()
    began = time.monotonic()
    seen, faults = many(given.start, given.seeds)
    for kind, count in sorted(seen.items()):
        print(f"{count:8} {kind}")
    for seed, found in faults.items():
        print(f"seed {seed}:", *found, sep="\n    ")
    print(f"{len(faults)} with faults, {time.monotonic() - began:.1f} s")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
