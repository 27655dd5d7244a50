"""Deletion of old events: what goes first, what stays, who does it, and what the audit trail says of it."""

import hashlib
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from operator import methodcaller
from pathlib import Path
from typing import Any

import anyio
import apsw
import pytest
from attrs import define
from loops import ON_ONE_LOOP

from agent_orchestrator import Client, Outcome, RunContext
from agent_orchestrator.configuration import EngineOptions
from agent_orchestrator.domain.access import Principal
from agent_orchestrator.domain.audit import AuditEntry
from agent_orchestrator.domain.errors import Forbidden, Unavailable
from agent_orchestrator.domain.model import Event, PrunedLog
from agent_orchestrator.engine import (
    EngineConfig,
    Orchestrator,
    ProviderConfig,
    Routing,
    audit,
    doctor,
    log_retention,
    pruning,
)
from agent_orchestrator.engine.core import Core
from agent_orchestrator.engine.orchestrator import Caller
from agent_orchestrator.hosts import this_host
from agent_orchestrator.ports.queries import Growth
from agent_orchestrator.runners.function import FunctionRunner
from agent_orchestrator.stores.memory import MemoryStore
from agent_orchestrator.stores.postgres import PostgresStore
from agent_orchestrator.stores.sqlite import SqliteStore
from agent_orchestrator.wire.codec import event_to_json

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@define
class Clock:
    now: datetime = NOW

    def __call__(self) -> datetime:
        return self.now


async def talk(context: RunContext) -> Outcome:
    """Say each line in two pieces and as a whole; a line in brackets is never complete."""
    for number, line in enumerate(context.prompt.splitlines()):
        item = {"item_id": f"item{number}"}
        for piece in (line[:3], line[3:]):
            await context.emit("agent.message.delta", {"text": piece, **item})
            await context.emit("tool.output", {"text": piece, "tool_id": f"tool{number}"})
        if not line.startswith("["):
            await context.emit("agent.message", {"text": line, **item})
            done = {"kind": "function", "name": "x", "input": {}, "status": "completed"}
            await context.emit(
                "tool.completed", {"tool_id": f"tool{number}", "output": line, **done}
            )
    await context.emit("agent.message.delta", {"text": "odd", "item_id": ["a", {}]})
    await context.emit("agent.message", {"text": "odd", "item_id": ["a", {}]})
    await context.emit("agent.message", {"text": "whole"})
    if context.prompt.endswith("hold"):
        await anyio.sleep_forever()
    return Outcome(context.prompt)


@pytest.fixture(autouse=True)
def _by_hand(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no engine begin a pass by itself."""

    async def never(_: Core) -> None:
        await anyio.sleep_forever()

    if "by_itself" not in request.node.name:
        monkeypatch.setattr(log_retention, "enforce_limits", never)


@define
class Opened:
    client: Client
    core: Core
    clock: Clock

    async def turn(self, session_id: str, text: str) -> str:
        sent = await self.client.send_message(session_id, text)
        assert sent.run is not None
        with anyio.fail_after(60):
            await self.client.wait_run(sent.run.id)
        return sent.run.id

    async def log(self, session_id: str) -> list[Event]:
        return [event async for event in self.client.events(session_id)]

    async def pruned(self, session_id: str) -> PrunedLog:
        return await self.core.store.read(lambda view: view.pruned_log(session_id))

    async def prunings(self) -> list[Any]:
        entries = (await self.client.list_audit(limit=1000)).entries
        return [entry for entry in entries if entry.operation == "prune_session"]


@asynccontextmanager
async def opened(store: Any, clock: Clock | None = None, **settings: Any) -> AsyncIterator[Opened]:
    clock = clock or Clock()
    if isinstance(store, Path):
        store = SqliteStore(store)
    provider = ProviderConfig(FunctionRunner("talk", talk), "function")
    config = EngineConfig(
        host=this_host(),
        providers={"talk": provider},
        routing=Routing("talk"),
        clock=clock,
        **settings,
    )
    async with store, Orchestrator(store, config) as engine:
        yield Opened(Client(engine), engine.core, clock)


@pytest.fixture(params=["memory", "sqlite"])
async def here(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Opened]:
    store = MemoryStore() if request.param == "memory" else SqliteStore(tmp_path / "data.db")
    async with opened(store) as one:
        yield one


async def test_pieces_of_ended_runs_go_first_and_what_is_whole_stays(here: Opened) -> None:
    session = await here.client.create_session()
    await here.turn(session.id, "hello there\n[incomplete")
    before = await here.log(session.id)
    live = await here.client.send_message(session.id, "still here\nhold")
    assert live.run is not None
    with anyio.fail_after(60):
        async with here.client.events(session.id, follow=True, cursor=before[-1].seq) as events:
            async for event in events:
                if event.data.get("text") == "whole":
                    break
    whole = await here.log(session.id)

    reply = await here.client.prune_session(session.id, retain_events=len(whole) - 1)
    left = await here.log(session.id)
    gone = [event for event in whole if event not in left]
    assert [(e.event_type, e.data["text"]) for e in gone] == [
        ("agent.message.delta", "hel"),
        ("tool.output", "hel"),
        ("agent.message.delta", "lo there"),
        ("tool.output", "lo there"),
    ]
    assert {event.run_id for event in gone} != {live.run.id}
    assert reply.deleted_count == 4
    assert reply.session.oldest_cursor == 0  # that was enough
    texts = [event.data.get("text") for event in left]
    assert "hello there" in texts
    assert "[in" in texts
    assert (await here.client.check_store()).findings == ()
    # The live run keeps its pieces, however little is to be kept.
    reply = await here.client.prune_session(session.id, retain_bytes=1)
    assert reply.kept_by == live.run.id
    left = await here.log(session.id)
    assert left == [event for event in whole if event.seq > before[-1].seq]
    await here.client.cancel_run(live.run.id)
    await here.client.wait_run(live.run.id)
    assert (await here.client.check_store()).findings == ()


async def test_events_of_an_open_request_stay_here_and_with_the_ancestors(here: Opened) -> None:
    parent = await here.client.create_session(provider="manual")
    child = (await here.client.spawn("x", session_id=parent.id, provider="manual")).session
    run = (await here.client.list_runs(session_id=child.id)).runs[0]
    await here.client.transition_run(run.id, "running")
    asked = await here.client.reply_parent(
        run.id, "may I?", request_kind="approval_request", wait=True
    )
    assert asked.request is not None
    for session in (parent, child):
        reply = await here.client.prune_session(session.id, retain_events=1)
        assert reply.kept_by == (run.id if session is child else None)  # the parent's is the newest
        types = [event.event_type for event in await here.log(session.id)]
        assert "request.created" in types
    await here.client.resolve_request(asked.request.id, "approve")
    await here.client.transition_run(run.id, "completed", result={"text": "done"})
    for session in (parent, child):
        reply = await here.client.prune_session(session.id, retain_events=1)
        assert reply.kept_by is None
        assert len(await here.log(session.id)) == 1
    assert (await here.client.check_store()).findings == ()


async def test_days_events_and_bytes(here: Opened) -> None:
    session = await here.client.create_session()
    for _ in range(4):
        await here.turn(session.id, "x" * 300)
        here.clock.now += timedelta(days=1)
    whole = await here.log(session.id)
    assert (await here.client.prune_session(session.id, retain_days=4)).deleted_count == 0
    reply = await here.client.prune_session(session.id, retain_days=3)
    left = await here.log(session.id)
    assert left == [event for event in whole if event.created_at >= NOW + timedelta(days=1)]
    assert reply.session.oldest_cursor == left[0].seq - 1
    assert any(
        event.event_type == "agent.message.delta" for event in left
    )  # age is no matter of size

    size = await here.core.store.read(lambda view: view.log_size(session.id))
    await here.client.prune_session(session.id, retain_bytes=size // 2)
    smaller = await here.core.store.read(lambda view: view.log_size(session.id))
    assert size // 2 - 1500 < smaller <= size // 2
    await here.client.prune_session(session.id, retain_events=3)
    assert await here.log(session.id) == whole[-3:]
    assert (await here.client.check_store()).findings == ()


async def test_the_audit_trail_has_a_digest_of_what_was_deleted(here: Opened) -> None:
    session = await here.client.create_session()
    await here.turn(session.id, "one")
    whole = await here.log(session.id)
    assert await here.prunings() == []
    for through in (2, 5, 5):
        await here.client.prune_session(session.id, through=through)
    first, second = await here.prunings()
    digest = b""
    for event in whole[:5]:
        digest = hashlib.sha256(digest + b"".join(event_to_json(event))).digest()
        if event.seq == 2:
            assert first.detail["sha256"] == digest.hex()
    assert second.detail == {
        "events": 3,
        "oldest_cursor": 5,
        "sha256": digest.hex(),
        "through": 5,
    }
    assert (second.principal, second.target) == ("local", session.id)
    assert (await here.client.check_store()).findings == ()


async def test_only_owners_prune_and_agents_never(here: Opened) -> None:
    session = await here.client.create_session()
    run_id = await here.turn(session.id, "one")
    for caller in (
        Principal("bob"),
        Principal.of_run(run_id, 1, session.id),
    ):
        with pytest.raises(Exception, match=r"no session|not allowed"):
            await Client(Caller(here.core, caller)).prune_session(session.id, retain_events=1)
    link = Principal("x", session_id=session.id, scopes=frozenset({"read", "write"}))
    with pytest.raises(Forbidden):
        await Client(Caller(here.core, link)).prune_session(session.id, retain_events=1)
    assert (await here.pruned(session.id)).count == 0


async def test_the_engine_prunes_what_exceeds_the_limits(tmp_path: Path) -> None:
    clock = Clock()
    store = tmp_path / "data.db"
    async with opened(store, clock, retain_days=2) as here:
        assert await log_retention.run_if_due(here.core) == NOW + log_retention.INTERVAL
        sessions = [
            (await here.client.create_session(**own)).id
            for own in ({}, {"retain_days": 0}, {"retain_days": 9}, {"retain_events": 5})
        ]
        for session_id in sessions:
            await here.turn(session_id, "one")
        clock.now += timedelta(days=3)
        for session_id in sessions:
            await here.turn(session_id, "two")
        clock.now += log_retention.INTERVAL
        due = await log_retention.run_if_due(here.core)
        assert due == clock.now + log_retention.INTERVAL
        by_days, by_none, by_nine, by_events = [await here.log(one) for one in sessions]
        assert {event.created_at for event in by_days} == {NOW + timedelta(days=3)}
        assert by_none[0].seq == by_nine[0].seq == 1
        assert len(by_events) == 5
        entries = await here.prunings()
        assert [(entry.principal, entry.target) for entry in entries] == [
            ("engine", sessions[0]),
            ("engine", sessions[3]),
        ]
        # Not again before its time, and then nothing is left to do.
        await here.client.update_session(sessions[2], retain_events=1)
        assert await log_retention.run_if_due(here.core) == due
        assert len(await here.log(sessions[2])) == len(by_nine) + 1
        clock.now = due
        await log_retention.run_if_due(here.core)
        assert len(await here.log(sessions[2])) == 1
        assert len(await here.prunings()) == 3
        assert (await here.client.check_store()).findings == ()


@ON_ONE_LOOP
async def test_a_pass_records_all_that_was_deleted_without_a_record(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(log_retention, "PAGE", 2)
    async with opened(MemoryStore(), Clock()) as here:
        for _ in range(5):
            session = await here.client.create_session()
            await here.turn(session.id, "one")
            delete = methodcaller("delete_events", session.id, through=1, digest="x")
            await here.core.store.transact(delete)  # as of a daemon that was killed then
        await log_retention.run_if_due(here.core)
        assert await here.core.store.read(lambda view: view.unaudited_logs(limit=10)) == []


@ON_ONE_LOOP
async def test_a_clock_that_was_ahead_keeps_no_later_pass_from_its_time() -> None:
    clock = Clock(NOW + timedelta(days=3650))
    async with opened(MemoryStore(), clock, retain_events=1) as here:
        await log_retention.run_if_due(here.core)
        clock.now = NOW
        session = await here.client.create_session()
        await here.turn(session.id, "one")
        due = await log_retention.run_if_due(here.core)
        assert due == NOW + log_retention.INTERVAL
        assert len(await here.log(session.id)) == 1


@ON_ONE_LOOP
async def test_doctor_says_what_a_year_of_events_weighs(tmp_path: Path) -> None:
    options = EngineOptions()
    few = Growth(1000, 1_000_000, NOW - timedelta(hours=1))  # of a log that is an hour old
    [finding] = doctor.growth_findings(few, options, NOW)
    assert (finding.level, "423 MB" in finding.message) == ("ok", True)
    many = Growth(doctor.MAX_SAMPLE, 10_000_000, NOW - timedelta(hours=2))
    [finding] = doctor.growth_findings(many, options, NOW)
    assert (finding.level, "51 GB" in finding.message) == ("note", True)
    assert finding.hint is not None
    assert "retain_days" in finding.hint
    [finding] = doctor.growth_findings(many, EngineOptions(retain_events=9), NOW)
    assert finding.level == "ok"
    assert list(doctor.growth_findings(Growth(0, 0, NOW), options, NOW)) == []
    async with opened(tmp_path / "data.db") as here:
        session = await here.client.create_session()
        await here.turn(session.id, "one")
        messages = [finding.message for finding in (await here.client.doctor()).findings]
        assert any("a year of events weighs" in message for message in messages)


async def test_the_engine_does_it_by_itself(tmp_path: Path) -> None:
    async with opened(tmp_path / "data.db") as here:
        session = await here.client.create_session()
        await here.turn(session.id, "one")
    async with opened(tmp_path / "data.db", retain_events=2) as here:
        with anyio.fail_after(60):
            while len((await here.client.list_events(session.id)).events) != 2:
                await anyio.sleep(0.01)
            while not await here.prunings():
                await anyio.sleep(0.01)


@ON_ONE_LOOP
async def test_without_limits_nothing_is_written(tmp_path: Path) -> None:
    async with opened(tmp_path / "data.db") as here:
        session = await here.client.create_session()
        await here.turn(session.id, "one")
        await log_retention.run_if_due(here.core)
        assert await here.core.store.read(lambda view: view.job_due(log_retention.JOB)) is None
        await here.client.update_session(session.id, retain_events=1)
        await log_retention.run_if_due(here.core)
        assert len(await here.log(session.id)) == 1


@ON_ONE_LOOP
async def test_two_at_once_delete_each_event_once(
    here: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "BATCH", 2)
    session = await here.client.create_session()
    for _ in range(3):
        await here.turn(session.id, "one\ntwo")
    whole = await here.log(session.id)
    counts = []

    async def prune() -> None:
        reply = await here.client.prune_session(session.id, retain_events=4)
        counts.append(reply.deleted_count)

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(prune)
    assert await here.log(session.id) == whole[-4:]
    assert sum(counts) == len(whole) - 4
    trail = await here.prunings()
    assert sum(entry.detail["events"] for entry in trail) == len(whole) - 4
    assert (await here.client.check_store()).findings == ()


@ON_ONE_LOOP
async def test_what_a_failing_store_interrupts_is_in_the_trail_later(
    here: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "BATCH", 2)
    session = await here.client.create_session()
    await here.turn(session.id, "one\ntwo")
    last = (await here.log(session.id))[-1].seq
    transact = here.core.store.transact
    left = 3

    async def failing(change: Any, **options: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise Unavailable("the disk is full")
        return await transact(change, **options)

    with monkeypatch.context() as patch:
        patch.setattr(type(here.core.store), "transact", lambda _, *a, **b: failing(*a, **b))
        with pytest.raises(Unavailable):
            await here.client.prune_session(session.id, through=last)
    pruned = await here.pruned(session.id)
    assert (pruned.count, pruned.audited_count) == (6, 0)
    assert (await here.client.check_store()).findings == ()
    await log_retention.run_if_due(here.core)
    [entry] = await here.prunings()
    assert entry.detail == {"events": 6, "oldest_cursor": 6, "sha256": pruned.digest}


KILLED = """
import sys, anyio
from agent_orchestrator import open_embedded
from agent_orchestrator.engine import pruning
from agent_orchestrator.hosts import this_host
from agent_orchestrator.runners.function import FunctionRunner
pruning.BATCH = 5
async def main():
    async with open_embedded(sys.argv[1], runners=[FunctionRunner("talk", None)]) as client:
        change = pruning.Pruner._change
        async def noted(self, *a):
            count = await change(self, *a)
            print(count, flush=True)
            return count
        pruning.Pruner._change = noted
        await client.prune_session(sys.argv[2], retain_events=1)
anyio.run(main)
"""


@ON_ONE_LOOP
async def test_a_kill_in_the_middle_leaves_a_sound_store(tmp_path: Path) -> None:
    path = tmp_path / "data.db"
    async with opened(path) as here:
        session = await here.client.create_session()
        await here.turn(session.id, "\n".join(f"line {n}" for n in range(60)))
        whole = await here.log(session.id)

    def kill_after_three_changes() -> None:
        command = [sys.executable, "-c", KILLED, str(path), session.id]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            try:
                for _ in range(3):
                    assert process.stdout.readline()
            finally:
                process.send_signal(signal.SIGKILL)

    await anyio.to_thread.run_sync(kill_after_three_changes)
    async with opened(path) as here:
        check = await here.client.check_store()
        assert check.findings == ()
        pruned = await here.pruned(session.id)
        assert pruned.count >= 15
        left = await here.log(session.id)
        assert len(left) == len(whole) - pruned.count
        assert left == [event for event in whole if event in left]
        await log_retention.run_if_due(here.core)
        [entry] = await here.prunings()
        assert entry.detail["events"] == pruned.count
        await here.client.prune_session(session.id, retain_events=1)
        assert await here.log(session.id) == whole[-1:]
        assert (await here.client.check_store()).findings == ()


@ON_ONE_LOOP
@pytest.mark.parametrize(
    ("tampering", "finding"),
    [
        ("DELETE FROM events WHERE seq = 9", "were deleted"),
        ("UPDATE pruned_logs SET count = count + 1, audited_count = count + 1", "were deleted"),
        ("UPDATE pruned_logs SET digest = 'ab'", "another digest"),
    ],
)
async def test_check_finds_what_was_deleted_otherwise(
    tmp_path: Path, tampering: str, finding: str
) -> None:
    path = tmp_path / "data.db"
    async with opened(path) as here:
        session = await here.client.create_session()
        await here.turn(session.id, "one\ntwo")
        await here.client.prune_session(session.id, through=4)
        connection = apsw.Connection(str(path))
        connection.execute(tampering)
        connection.close()
        found = (await here.client.check_store()).findings
    assert any(finding in one for one in found), found


@ON_ONE_LOOP
async def test_check_finds_nothing_while_events_are_deleted() -> None:
    class Busy(MemoryStore):
        """Does something after a reader has read the audit trail to its end."""

        meanwhile: Callable[[], Any] | None = None
        is_read = False

        async def read(self, query: Callable[[Any], Any]) -> Any:
            found = await super().read(query)
            if isinstance(found, list) and found and isinstance(found[0], AuditEntry):
                self.is_read = True
            elif found == [] and self.is_read and self.meanwhile is not None:
                meanwhile, self.meanwhile = self.meanwhile, None
                await meanwhile()
            return found

    store = Busy()
    async with opened(store) as here:
        session = await here.client.create_session()
        await here.turn(session.id, "one")
        await here.client.prune_session(session.id, through=2)
        store.meanwhile = lambda: here.client.prune_session(session.id, through=4)
        assert await audit.check(here.core) == []
        assert store.meanwhile is None
        assert (await here.pruned(session.id)).seq == 4


@ON_ONE_LOOP
async def test_of_two_daemons_on_postgresql_one_makes_a_pass(
    database: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, clock, passes = database(), Clock(), list[Core]()
    prune_all = log_retention.prune_all

    async def counted(core: Core, claim: Any) -> None:
        passes.append(core)
        await prune_all(core, claim)

    monkeypatch.setattr(log_retention, "prune_all", counted)
    async with (
        opened(PostgresStore(url), clock, retain_events=5) as one,
        opened(PostgresStore(url), clock, retain_events=5) as two,
    ):
        session = await one.client.create_session()
        await one.turn(session.id, "one\ntwo")
        whole = await two.log(session.id)
        for number in (1, 2):
            clock.now += log_retention.INTERVAL
            async with anyio.create_task_group() as tasks:
                for core in (one.core, two.core):
                    tasks.start_soon(log_retention.run_if_due, core)
            # Whoever comes later sees when it is due again.
            assert len(passes) == number
        assert [event.seq for event in await two.log(session.id)] == [
            event.seq for event in whole[-5:]
        ]
        assert [entry.detail["events"] for entry in await two.prunings()] == [len(whole) - 5]
        assert (await two.client.check_store()).findings == ()


@ON_ONE_LOOP
async def test_a_daemon_whose_pass_took_too_long_leaves_the_rest_to_the_one_that_has_begun_another(
    database: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, clock = database(), Clock()
    prune = log_retention._prune
    pruned = list[tuple[Core, str]]()
    async with (
        opened(PostgresStore(url), clock, retain_events=5) as one,
        opened(PostgresStore(url), clock, retain_events=5) as two,
    ):
        sessions = [(await one.client.create_session()).id for _ in range(3)]
        for session_id in sessions:
            await one.turn(session_id, "one\ntwo")

        async def slow(core: Core, session_id: str, *limits: Any) -> None:
            pruned.append((core, session_id))
            await prune(core, session_id, *limits)
            if core is one.core:
                # More, as each daemon corrects its clock by the server's, some seconds after the other one.
                clock.now += log_retention.CLAIM + timedelta(minutes=1)
                await log_retention.run_if_due(two.core)

        monkeypatch.setattr(log_retention, "_prune", slow)
        await log_retention.run_if_due(one.core)
        first, *others = sessions
        assert pruned == [(one.core, first), *((two.core, other) for other in others)]
        # The other one says when the next pass is due.
        due = await one.core.store.read(lambda view: view.job_due(log_retention.JOB))
        assert due is not None
        assert abs(due - two.core.now() - log_retention.INTERVAL) < timedelta(minutes=1)
        assert (await two.client.check_store()).findings == ()
