"""Several engines on one PostgreSQL database: what one does for the runs of another, and taking over."""

import json
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from operator import methodcaller
from typing import Any

import anyio
import pytest
from attrs import define, evolve, field
from loops import ON_ONE_LOOP
from shared_daemons import PATIENCE_S, Daemon, check, daemons, heard, until

from agent_orchestrator import Client, Outcome, RunContext, RunStatus
from agent_orchestrator.domain.errors import Conflict
from agent_orchestrator.domain.model import Run, Session
from agent_orchestrator.domain.tokens import AccessToken
from agent_orchestrator.engine import daemons as sharing_daemons
from agent_orchestrator.engine import inquiries
from agent_orchestrator.engine.run_changes import StaleAttempt, require_current_attempt
from agent_orchestrator.ports.store import ANY_TOPIC
from agent_orchestrator.processes import process_start_id
from agent_orchestrator.runners.command import CommandRunner
from agent_orchestrator.testing.scripted import PROVIDER
from agent_orchestrator.testing.stores.samples import NOW

__all__ = ["daemons"]

pytestmark = pytest.mark.anyio


async def test_runs_are_shared_and_each_runs_once(daemons: Any) -> None:
    async with daemons("a", "b", "c", workers=2) as (a, b, c):
        sessions = [await a.client.create_session() for _ in range(30)]
        runs = []
        for session in sessions:
            sent = await a.client.send_message(session.id, "say done")
            runs.append(sent.run.id)
        for run_id in runs:
            ended = (await b.client.wait_run(run_id, timeout_s=PATIENCE_S)).run
            assert (ended.status, ended.attempt) == (RunStatus.COMPLETED, 1)
        prompts = [len(one.runner.prompts) for one in (a, b, c)]
        assert sum(prompts) == len(runs)
        await check(c.client)


async def test_a_full_daemon_leaves_runs_to_another(daemons: Any) -> None:
    async with daemons("a", "b", workers=1) as (a, b):
        session = await a.client.create_session()
        held = (await a.client.send_message(session.id, "hold")).run
        await heard(a.client, session.id, "holding")
        first, second = (a, b) if await a.ran(held.id) else (b, a)
        other = await first.client.create_session()
        sent = await first.client.send_message(other.id, "say here")
        ended = (await first.client.wait_run(sent.run.id, timeout_s=PATIENCE_S)).run
        assert ended.status is RunStatus.COMPLETED
        assert second.runner.prompts == ["say here"]
        status = await second.client.status()
        assert status.daemon_id == second.id
        shown = {one.id: one for one in status.daemons}
        assert shown.keys() == {a.id, b.id}
        assert (shown[first.id].active_count, shown[second.id].active_count) == (1, 0)
        assert shown[first.id].max_concurrency == 1
        assert shown[first.id].providers == (PROVIDER,)
        diagnostics = (await second.client.diagnose_run(held.id)).diagnostics
        assert diagnostics.worker_alive
        assert diagnostics.likely_issue.code == "none"
        await second.client.cancel_run(held.id)
        ended = (await second.client.wait_run(held.id, timeout_s=PATIENCE_S)).run
        assert ended.status is RunStatus.CANCELED


async def test_a_conversation_stays_with_its_daemon_while_that_lives(daemons: Any) -> None:
    """Its agent may keep the conversation open between runs, and would not see what another one adds."""
    async with daemons("b", workers=1) as [b]:
        held = await only_worker_of(b)
        async with daemons("a") as [a]:
            session = await a.client.create_session()
            runs = [(await a.client.send_message(session.id, "thread t\nsay 0")).run]
            await a.client.wait_run(runs[0].id, timeout_s=PATIENCE_S)
            await freed(b, held)
            for number in range(1, 6):
                runs.append((await b.client.send_message(session.id, f"say {number}")).run)
                ended = (await b.client.wait_run(runs[-1].id, timeout_s=PATIENCE_S)).run
                assert ended.status is RunStatus.COMPLETED
            assert all([await a.ran(run.id) for run in runs])
        last = (await b.client.send_message(session.id, "say last")).run
        ended = (await b.client.wait_run(last.id, timeout_s=PATIENCE_S)).run
        assert ended.status is RunStatus.COMPLETED
        assert await b.ran(last.id)
        await check(b.client)


async def test_the_end_of_a_daemon_wakes_those_that_wait_for_its_conversation(
    daemons: Any,
) -> None:
    async with daemons("b", workers=1) as [b]:
        held = await only_worker_of(b)
        async with daemons("a") as [a]:
            session = await a.client.create_session()
            first = (await a.client.send_message(session.id, "thread t\nsay 0")).run
            await a.client.wait_run(first.id, timeout_s=PATIENCE_S)
            await freed(b, held)
            await a.engine.pool.stop_starting()
            queued = (await b.client.send_message(session.id, "say next")).run
            assert await _is(b.client, queued.id, RunStatus.QUEUED)
        # It had no run, so nothing went back to the queue.
        ended = (await b.client.wait_run(queued.id, timeout_s=PATIENCE_S)).run
        assert ended.status is RunStatus.COMPLETED


async def only_worker_of(daemon: Daemon) -> Run:
    """Occupy the only worker of a daemon that is alone, and return the run.

    Whoever accepts a message usually starts its run, but while it looks at the queue, another one may be faster.
    """
    session = await daemon.client.create_session()
    run = (await daemon.client.send_message(session.id, "hold")).run
    assert run is not None
    await heard(daemon.client, session.id, "holding")
    return run


async def freed(daemon: Daemon, run: Run) -> None:
    """Free the worker of a run."""
    await daemon.client.cancel_run(run.id)
    await until(lambda: _is_idle(daemon))


async def with_conversation(daemon: Daemon) -> Session:
    """Return a session whose conversation a daemon has."""
    session = await daemon.client.create_session()
    run = (await daemon.client.send_message(session.id, "thread t\nsay 0")).run
    assert run is not None
    await daemon.client.wait_run(run.id, timeout_s=PATIENCE_S)
    return session


def this_process() -> dict[str, Any]:
    """Return what names this process where a person's program takes over."""
    pid = os.getpid()
    return {"pid": pid, "process_start_id": process_start_id(pid)}


async def test_a_conversation_is_handed_over_only_by_the_daemon_that_has_it(daemons: Any) -> None:
    """Only that one can end its agent, which would not see what is said in the person's program."""
    holder = this_process()
    async with daemons("a") as [a]:
        session = await with_conversation(a)
        async with daemons("b") as [b]:
            with pytest.raises(
                Conflict, match=rf"daemon \(process {os.getpid()} on .*: attach there"
            ):
                await b.client.attach_session(session.id, **holder)
            attached = (await a.client.attach_session(session.id, **holder)).run
            assert attached.kind == "attach"
            await a.client.cancel_run(attached.id)
            # The agent has ended, so any daemon may have the conversation.
            again = (await b.client.attach_session(session.id, **holder)).run
            await b.client.cancel_run(again.id)


async def test_canceled_messages_do_not_hide_which_daemon_has_a_conversation(
    daemons: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing_daemons, "NEWEST_RUNS", 3)
    holder = this_process()
    async with daemons("a") as [a]:
        session = await with_conversation(a)
        await a.engine.pool.stop_starting()
        async with daemons("b") as [b]:
            for number in range(4):
                queued = (await b.client.send_message(session.id, f"say {number}")).run
                await b.client.cancel_run(queued.id)
            with pytest.raises(Conflict, match="attach there"):
                await b.client.attach_session(session.id, **holder)


async def test_streams_answers_cancels_and_steering_work_from_another_daemon(daemons: Any) -> None:
    async with daemons("a") as [a]:
        session = await a.client.create_session()
        asked = (await a.client.send_message(session.id, "say begun\nask May I?\nsteered")).run
        await heard(a.client, session.id, "begun")
        assert await a.ran(asked.id)
        async with daemons("b") as [b]:
            await until(lambda: _has_request(b.client))
            await heard(b.client, session.id, "begun")
            [request] = (await b.client.requests(status="pending")).requests
            await b.client.resolve_request(request.id, "approve", text="yes")
            await heard(b.client, session.id, "approved yes")
            await heard(b.client, session.id, "listening")
            await b.client.send_message(session.id, "quickly", when_busy="steer")
            ended = (await b.client.wait_run(asked.id, timeout_s=PATIENCE_S)).run
            assert ended.status is RunStatus.COMPLETED
            assert await a.ran(asked.id)
            assert b.runner.prompts == []
            await check(b.client)


async def _has_request(client: Client, count: int = 1) -> bool:
    return len((await client.requests(status="pending")).requests) >= count


async def _is(client: Client, run_id: str, status: RunStatus) -> bool:
    return (await client.get_run(run_id)).status is status


async def test_a_run_waits_for_a_daemon_with_its_provider(daemons: Any) -> None:
    async with daemons("a", providers=("first",)) as [a]:
        session = await a.client.create_session()
        async with daemons("b", providers=("second", "first")) as [b]:
            sent = await b.client.create_session(provider="second")
        run = None
        async with daemons("b", providers=("second",), workers=1) as [b]:
            held = (await b.client.send_message(sent.id, "hold")).run
            await heard(a.client, sent.id, "holding")
            run = (await b.client.send_message(sent.id, "say later", when_busy="queue")).run
            await b.client.cancel_run(held.id)
            await b.client.wait_run(held.id, timeout_s=PATIENCE_S)
            await until(lambda: _is(a.client, run.id, RunStatus.COMPLETED))
            again = (await b.client.send_message(sent.id, "hold")).run
            await until(lambda: _is(a.client, again.id, RunStatus.RUNNING))
        # It has left, and its run went back to the queue.
        await until(lambda: _is(a.client, again.id, RunStatus.QUEUED))
        assert a.runner.prompts == []
        issue = (await a.client.diagnose_run(again.id)).diagnostics.likely_issue
        assert issue.code == "provider_unavailable"
        other = (await a.client.send_message(session.id, "say meanwhile")).run
        ended = (await a.client.wait_run(other.id, timeout_s=PATIENCE_S)).run
        assert ended.status is RunStatus.COMPLETED
        await check(a.client)


async def test_messages_keep_their_order_although_the_clocks_of_two_daemons_differ(
    daemons: Any,
) -> None:
    async with daemons("a", workers=1, clock_off_s=3600) as [a]:
        session = await a.client.create_session()
        held = (await a.client.send_message(session.id, "hold")).run
        await heard(a.client, session.id, "holding")
        async with daemons("b", clock_off_s=-3600) as [b]:
            sent = [
                await one.client.send_message(session.id, f"say {number}", when_busy="queue")
                for number, one in enumerate((a, b, a, b))
            ]
            ids = [one.run.id for one in sent]
            assert ids == sorted(ids)
            position = (await b.client.diagnose_run(ids[1])).diagnostics.queue_position
            assert position == 2
            await b.client.cancel_run(held.id)
            for one in sent:
                await b.client.wait_run(one.run.id, timeout_s=PATIENCE_S)
            log = [event async for event in a.client.events(session.id)]
            begun = [event.run_id for event in log if event.event_type == "run.started"]
            assert begun == [held.id, *ids]
            await check(b.client)


async def test_ids_are_in_the_order_of_the_changes_also_without_events(daemons: Any) -> None:
    async with daemons("a", clock_off_s=3600) as [a], daemons("b") as [b]:
        made = [await one.client.create_token(f"t{n}") for n, one in enumerate((a, b, a, b))]
        ids = [one.token.id for one in made]
        assert ids == sorted(ids)


async def test_the_times_of_two_daemons_agree_although_their_clocks_differ(daemons: Any) -> None:
    async with daemons("a") as [a], daemons("b", clock_off_s=7200) as [b]:
        session = await a.client.create_session()
        before = datetime.now(UTC)
        asked = (await a.client.send_message(session.id, "ask May I?")).run
        await until(lambda: _has_request(b.client))
        steered = await b.client.send_message(session.id, "say more", when_busy="queue")
        assert abs(steered.message.created_at - before) < timedelta(seconds=60)
        # By b's own clock, the request has expired.
        [request] = (await b.client.requests(status="pending")).requests
        assert request.expires_at < datetime.now(UTC) + timedelta(hours=2)
        answered = await b.client.resolve_request(request.id, "approve")
        assert answered.status == "approved"
        ended = (await b.client.wait_run(asked.id, timeout_s=PATIENCE_S)).run
        assert ended.status is RunStatus.COMPLETED


async def test_a_wrong_clock_is_a_problem_with_its_size(daemons: Any) -> None:
    async with daemons("a") as [a], daemons("b", clock_off_s=-90) as [b]:
        for one in (a, b):
            status = await one.client.status()
            problems = [problem for problem in status.problems if problem.code == "clock_skew"]
            assert len(problems) == 1
            assert _is_behind(problems[0].message)
            offsets = {row.id: row.clock_offset_s for row in status.daemons}
            assert -90.1 < offsets[b.id] < -60
            assert abs(offsets[a.id]) < 1
            await until(partial(_is_nobody_away, one.client))
        findings = (await a.client.doctor()).findings
        assert [_is_behind(one.message) for one in findings if one.about == "clock"] == [True]


async def _is_nobody_away(client: Client) -> bool:
    return all(row.away_since is None for row in (await client.status()).daemons)


def _is_behind(message: str) -> bool:
    """Return whether a clock is said to be up to 90 s behind: for as long as an answer took, that is not certain."""
    found = re.search(r"(\d+\.\d) s behind", message)
    return found is not None and 60 < float(found[1]) <= 90


SLEEPING = ("/bin/sh", "-c", "read -r prompt; sleep 600 & wait")


@asynccontextmanager
async def working_elsewhere(daemons: Any) -> AsyncIterator[tuple[Daemon, Daemon, Any]]:
    """Return a daemon whose agent is a program at work, one on another host, and the run."""
    async with daemons("a", host_name="here") as [a]:
        use_runner(a, CommandRunner("agent", SLEEPING, stop_grace_s=0.1))
        session = await a.client.create_session()
        run = (await a.client.send_message(session.id, "go")).run
        await until(lambda: _is_asleep(a.client, run.id))
        async with daemons("b", host_name="there") as [b]:
            yield a, b, run


async def _is_asleep(client: Client, run_id: str) -> bool:
    tree = (await client.diagnose_run(run_id)).diagnostics.process_tree
    return "sleep 600" in [one.command for one in tree]  # a shell forks before it is one


async def test_a_daemon_is_asked_for_the_processes_on_its_machine(
    daemons: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inquiries, "ANSWER_S", PATIENCE_S)
    async with working_elsewhere(daemons) as (a, b, run):
        found = (await b.client.diagnose_run(run.id)).diagnostics
        own = (await a.client.diagnose_run(run.id)).diagnostics
        assert [one.pid for one in found.process_tree] == [one.pid for one in own.process_tree]
        assert "sleep 600" in [one.command for one in found.process_tree]
        assert found.active_pid == found.attempts[-1].pid
        assert (found.worker_alive, found.processes_unknown) == (True, None)
        await b.client.cancel_run(run.id)
        await b.client.wait_run(run.id, timeout_s=PATIENCE_S)
        found = (await b.client.diagnose_run(run.id)).diagnostics
        assert (found.process_tree, found.processes_unknown) == ((), None)


async def test_a_daemon_that_does_not_answer_is_told_in_words(
    daemons: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*_: Any) -> None:
        await anyio.sleep_forever()

    async with working_elsewhere(daemons) as (a, b, run):
        monkeypatch.setattr(inquiries, "processes_here", never)
        monkeypatch.setattr(inquiries, "ANSWER_S", 0.3)
        found = (await b.client.diagnose_run(run.id)).diagnostics
        assert a.id in found.processes_unknown
        assert "did not answer" in found.processes_unknown
        assert found.process_tree == ()
        assert found.likely_issue.code == "none", "nothing shows that its agent has ended"


async def test_a_daemon_that_is_away_is_not_asked(
    daemons: Any, postgres: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with working_elsewhere(daemons) as (a, b, run):
        monkeypatch.setattr(a.store, "_send_heartbeat", lambda: True)
        silent = "UPDATE agent_orchestrator.daemons SET expires_at = now() + interval '4.9 s'"
        where = f"WHERE id = '{a.id}'"
        database = a.store.location.rpartition("/")[2]

        async def is_away() -> bool:
            await anyio.to_thread.run_sync(postgres.run, f"{silent} {where}", database)
            found = (await b.client.diagnose_run(run.id)).diagnostics
            return "is away since" in (found.processes_unknown or "")

        await until(is_away)


async def test_an_unreadable_question_of_another_daemon_is_answered(daemons: Any) -> None:
    async with daemons("a", "b") as (a, b):
        for question in ("{", '{"run_id": 7}', '{"run_id": "run_none", "attempt": 1}'):
            inquiry_id = await b.store.ask(a.id, question)

            async def is_answered(inquiry_id: str = inquiry_id) -> bool:
                answer = await b.store.take_answer(inquiry_id)
                assert answer is None or json.loads(answer)["problem"]
                return answer is not None

            await until(is_answered)


@define
class Stuck:
    """A runner that says something when it is told to, even if it was cancelled."""

    resumes: bool = False
    begun: anyio.Event = field(factory=anyio.Event)
    go: anyio.Event = field(factory=anyio.Event)
    failure: BaseException | None = None

    async def run(self, context: RunContext) -> Outcome:
        await context.delivered()
        await context.emit("agent.message", {"text": "begun"})
        self.begun.set()
        with anyio.CancelScope(shield=True):
            await self.go.wait()
            await context.emit("agent.message", {"text": "late"})
        return Outcome("late")


def use_runner(one: Any, runner: Any) -> None:
    providers = one.engine.core.config.providers
    providers[PROVIDER] = evolve(providers[PROVIDER], runner=runner)


@define
class Asking:
    """A runner that asks a question when it is told to."""

    go: anyio.Event = field(factory=anyio.Event)

    async def run(self, context: RunContext) -> Outcome:
        await context.delivered()
        await context.emit("agent.message", {"text": "begun"})
        await self.go.wait()
        await context.ask_parent("May I?", kind="approval_request")
        return Outcome("asked")


async def test_the_requests_of_two_daemons_are_in_the_order_of_their_changes(daemons: Any) -> None:
    """A reader that has the newest request would not see a later one with an earlier id."""
    async with (
        daemons("a", host_name="x") as [a],
        daemons("b", host_name="y", clock_off_s=-3600) as [b],
    ):
        asking = Asking()
        use_runner(b, asking)
        session = await b.client.create_session()
        later = (await b.client.send_message(session.id, "go")).run
        await heard(a.client, session.id, "begun")
        other = await a.client.create_session()
        earlier = (await a.client.send_message(other.id, "ask May I?")).run
        await until(lambda: _has_request(a.client))
        asking.go.set()
        await until(lambda: _has_request(a.client, 2))
        page = await a.client.requests(status="pending")
        assert [request.run_id for request in page.requests] == [earlier.id, later.id]


async def stuck_run(one: Any) -> tuple[Stuck, Any]:
    """Start a run of a daemon whose agent does not end when it is cancelled."""
    stuck = Stuck()
    use_runner(one, stuck)
    session = await one.client.create_session()
    run = (await one.client.send_message(session.id, "work")).run
    with anyio.fail_after(PATIENCE_S):
        await stuck.begun.wait()
    return stuck, run


async def test_a_daemon_that_lost_its_lease_begins_anew_and_its_late_words_are_refused(
    daemons: Any, postgres: Any, database: Any
) -> None:
    async with daemons("a") as [a]:
        stuck, run = await stuck_run(a)
        await heard(a.client, run.session_id, "begun")
        former = a.id
        async with daemons("b") as [b]:
            await anyio.to_thread.run_sync(end_daemon, postgres, a.store.location, former)
            # The other one takes over, because no process of the agent is left.
            await until(lambda: _is(b.client, run.id, RunStatus.FAILED))
            await until(lambda: _goes_on(a, former))
            stuck.go.set()
            await until(lambda: _is_idle(a))
            texts = [event.data.get("text") async for event in b.client.events(run.session_id)]
            assert "late" not in texts
            use_runner(a, a.runner)
            sent = (await a.client.send_message(run.session_id, "say again")).run
            ended = (await b.client.wait_run(sent.id, timeout_s=PATIENCE_S)).run
            assert ended.status is RunStatus.COMPLETED
            status = await a.client.status()
            assert "lease_lost" not in [problem.code for problem in status.problems]
            await check(b.client)


async def test_a_lease_is_lost_again_before_the_agents_have_ended(
    daemons: Any, postgres: Any
) -> None:
    async with daemons("a") as [a]:
        stuck, run = await stuck_run(a)
        for _ in range(2):
            former = a.id
            await anyio.to_thread.run_sync(end_daemon, postgres, a.store.location, former)
            await until(lambda former=former: _goes_on(a, former))
        stuck.go.set()
        await until(lambda: _is_idle(a))
        await until(lambda: _is(a.client, run.id, RunStatus.FAILED))
        await check(a.client)


async def test_writes_of_another_daemons_attempt_are_refused(daemons: Any) -> None:
    async with daemons("a") as [a]:
        session = await a.client.create_session()
        held = (await a.client.send_message(session.id, "hold")).run
        await heard(a.client, session.id, "holding")
        async with daemons("b") as [b]:
            fence = partial(require_current_attempt, run_id=held.id, attempt=held.attempt)
            await a.store.read(lambda view: fence(a.engine.core, view))
            with pytest.raises(StaleAttempt, match=a.id):
                await b.store.read(lambda view: fence(b.engine.core, view))
        await a.client.cancel_run(held.id)


def end_daemon(server: Any, url: str, daemon_id: str) -> None:
    """End a daemon's lease, as another one does that has waited for its end."""
    sql = f"UPDATE agent_orchestrator.daemons SET ended_at = now() WHERE id = '{daemon_id}'"
    server.run(
        f"{sql}; SELECT pg_notify('agent_orchestrator', '[\"\", \"daemons\"]')",
        url.rpartition("/")[2],
    )


async def _goes_on(daemon: Daemon, former: str) -> bool:
    return daemon.id != former


async def _is_idle(daemon: Daemon) -> bool:
    return not daemon.engine.pool.running


@ON_ONE_LOOP
async def test_the_lease_of_a_silent_daemon_ends_and_another_takes_over(
    daemons: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from agent_orchestrator.stores.postgres import daemons as rows
    from agent_orchestrator.stores.postgres.store import PostgresStore

    monkeypatch.setattr(rows, "LEASE_S", 5.0)
    monkeypatch.setattr(rows, "HEARTBEAT_S", 0.2)
    async with daemons("a") as [a]:
        session = await a.client.create_session()
        held = (await a.client.send_message(session.id, "thread t\nhold")).run
        await heard(a.client, session.id, "holding")
        former = a.id
        async with daemons("b") as [b]:
            # It sends no heartbeat, as if it was stopped.
            monkeypatch.setattr(a.store, "_send_heartbeat", lambda: True)
            expires_at = a.store.lease.expires_at
            await until(lambda: _is_ended(b, former))
            assert anyio.current_time() >= expires_at - 0.1
            # The conversation is resumed, here or there; the script is not repeated then.
            ended = (await b.client.wait_run(held.id, timeout_s=PATIENCE_S)).run
            assert ended.status is RunStatus.COMPLETED
            assert ended.attempt > 1
            monkeypatch.setattr(
                a.store, "_send_heartbeat", lambda: PostgresStore._send_heartbeat(a.store)
            )
            await until(lambda: _goes_on(a, former))
            log = [event async for event in a.client.events(session.id)]
            assert [event.seq for event in log] == list(range(1, len(log) + 1))
            ends = [one for one in log if one.event_type == "run.completed"]
            assert [one.attempt for one in ends] == [ended.attempt]
            await check(a.client)


async def _is_ended(daemon: Daemon, other: str) -> bool:
    alive = await daemon.store.read(lambda view: view.daemons())
    return other not in [one.id for one in alive]


async def test_the_first_token_of_another_daemon_is_noticed_whatever_was_missed(
    daemons: Any,
) -> None:
    """From then on its own callers need one, too."""
    async with daemons("a", "b") as (a, b):
        assert not b.engine.has_tokens()
        token = AccessToken("tok_1", "phone", "bob", ("read",), "local", NOW, None)
        await a.store.transact(methodcaller("add_token", token, "hash"))
        # What another daemon hears after it lost its connection, or of a commit with too many topics.
        await a.store.transact(methodcaller("notify", ANY_TOPIC))
        await until(lambda: _has_tokens(b))


async def _has_tokens(daemon: Daemon) -> bool:
    return daemon.engine.has_tokens()
