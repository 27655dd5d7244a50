"""The checker of invariants: it accepts a busy engine's records and finds each kind of violation."""

from collections.abc import AsyncIterator, Callable
from itertools import pairwise
from typing import Any

import pytest
from attrs import evolve
from loops import ON_ONE_LOOP

from agent_orchestrator import Client, open_embedded
from agent_orchestrator.domain.model import Event
from agent_orchestrator.testing import ScriptedRunner
from agent_orchestrator.testing.invariants import (
    Acknowledged,
    History,
    history,
    stream_violations,
    violations,
)

pytestmark = [pytest.mark.anyio, ON_ONE_LOOP]


async def busy(client: Client) -> tuple[History, list[Acknowledged]]:
    """Make all kinds of calls, and return the records."""
    sent = []
    session = await client.create_session(title="busy")
    for text in ("say one\nusage 3 4", "thread t-1", "fail provider_error no", "crash", "which"):
        sent.append(await client.send_message(session.id, text))
    question = await client.send_message(session.id, "ask May I?")
    sent.append(question)
    assert question.run is not None
    asked = await client.wait_run(question.run.id, until="attention")
    assert asked.request is not None
    await client.resolve_request(asked.request.id, "approve")
    child = await client.spawn("say built", session_id=session.id, notify_parent="wake")
    await client.wait_run(child.run.id)
    held = await client.send_message(session.id, "hold")
    assert held.run is not None
    await client.cancel_run(held.run.id)
    sent.append(held)
    await client.send_message(session.id, "noted", role="system")
    for run in (await client.list_runs()).runs:
        assert not (await client.wait_run(run.id)).timed_out
    await client.update_session(session.id, title="done", status="closed")
    return await history(client), [Acknowledged.of(one) for one in sent]


async def test_a_busy_engine_keeps_the_invariants() -> None:
    async with open_embedded(":memory:", runners=[ScriptedRunner()]) as client:
        records, sent = await busy(client)
    assert len(records.runs) == 9
    assert violations(records, acknowledged=sent, unique=[one.text for one in sent]) == []


def _log(records: History) -> tuple[str, list[Event]]:
    session_id = records.sessions[0].id
    return session_id, list(records.logs[session_id])


def _with_log(records: History, change: Callable[[list[Event]], Any]) -> History:
    session_id, log = _log(records)
    change(log)
    renumbered = [evolve(event, seq=seq) for seq, event in enumerate(log, 1)]
    sessions = [
        evolve(one, last_seq=len(log)) if one.id == session_id else one for one in records.sessions
    ]
    return evolve(records, sessions=sessions, logs={**records.logs, session_id: renumbered})


def _place(log: list[Event], event_type: str) -> int:
    return next(place for place, event in enumerate(log) if event.event_type == event_type)


def _again(event_type: str) -> Callable[[History], History]:
    return lambda records: _with_log(
        records, lambda log: log.insert(_place(log, event_type), log[_place(log, event_type)])
    )


def _gone(event_type: str) -> Callable[[History], History]:
    return lambda records: _with_log(records, lambda log: log.pop(_place(log, event_type)))


def _torn(records: History) -> History:
    session_id, log = _log(records)
    return evolve(records, logs={**records.logs, session_id: log[:3] + log[4:]})


def _stale(records: History) -> History:
    def change(log: list[Event]) -> None:
        place = _place(log, "run.started")
        log[place] = evolve(log[place], attempt=2)

    return _with_log(records, change)


def _overtaken(records: History) -> History:
    started = [run for run in records.runs if run.started_at and run.message_id]
    first, second = next(
        pair for pair in pairwise(started) if pair[0].session_id == pair[1].session_id
    )
    swapped = {first.id: second.message_id, second.id: first.message_id}
    runs = [evolve(run, message_id=swapped.get(run.id, run.message_id)) for run in records.runs]
    return evolve(records, runs=runs)


BROKEN: dict[str, tuple[str, Callable[[History], History]]] = {
    "a message is lost": ("lost", lambda records: evolve(records, messages=records.messages[1:])),
    "a run is lost": ("lost", lambda records: evolve(records, runs=records.runs[1:])),
    "a message is there twice": (
        "doubled",
        lambda records: evolve(
            records, messages=[*records.messages, evolve(records.messages[0], id="msg_2")]
        ),
    ),
    "a run began twice": ("doubled", _again("run.started")),
    "a request was resolved twice": ("doubled", _again("request.resolved")),
    "a line is missing": ("gap", _torn),
    "a run ended twice": ("ending", _again("run.completed")),
    "a run has no end": ("ending", _gone("run.failed")),
    "an older attempt wrote": ("stale", _stale),
    "a message has no event": ("replay", _gone("message.created")),
    "usage is not logged": ("replay", _gone("usage.updated")),
    "a thread is not logged": ("replay", _gone("thread.started")),
    "a closing is not logged": ("replay", _gone("session.closed")),
    "a request is not logged": (
        "replay",
        lambda records: evolve(records, requests=records.requests[1:]),
    ),
    "a message was overtaken": ("order", _overtaken),
    "a run has no worker": (
        "zombie",
        lambda records: evolve(records, zombies=[records.runs[0].id]),
    ),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_checker_finds_each_kind_of_violation(name: str) -> None:
    kind, broken = BROKEN[name]
    async with open_embedded(":memory:", runners=[ScriptedRunner()]) as client:
        records, sent = await busy(client)
    found = violations(broken(records), acknowledged=sent, unique=[one.text for one in sent])
    assert kind in {violation.kind for violation in found}


async def test_a_subscribers_events_are_compared_with_the_log() -> None:
    async with open_embedded(":memory:", runners=[ScriptedRunner()]) as client:
        records, _ = await busy(client)
    _, log = _log(records)
    assert stream_violations(log, log) == []
    assert stream_violations(log[4:], log, after=4) == []
    assert stream_violations(log[:4], log, complete=False) == []
    for seen in ([*log[:3], *log[2:]], [*log[:3], *log[4:]], log[:-1], [log[1], log[0], *log[2:]]):
        assert {one.kind for one in stream_violations(seen, log)} == {"gap"}
    other = [evolve(log[0], data={"title": "other"}), *log[1:]]
    assert [one.kind for one in stream_violations(other, log)] == ["replay"]


async def test_a_pruned_log_keeps_the_invariants_and_a_hole_in_it_does_not() -> None:
    async with open_embedded(":memory:", runners=[ScriptedRunner()]) as client:
        before, _ = await busy(client)
        session_id = before.sessions[0].id
        whole = len(before.logs[session_id])
        for kept in range(whole - 1, 0, -7):
            await client.prune_session(session_id, retain_events=kept)
            records = await history(client, may_lack_pieces=True)
            assert violations(records) == [], kept
            if records.sessions[0].oldest_cursor and kept > 2:
                log = [*records.logs[session_id]]
                for gone in (log[:-1], log[1:], [*log[:-2], log[-1]]):
                    holed = evolve(records, logs={**records.logs, session_id: gone})
                    assert "gap" in {
                        one.kind for one in violations(evolve(holed, may_lack_pieces=False))
                    }
                cut = evolve(records, logs={**records.logs, session_id: log[:-1]})
                assert "gap" in {one.kind for one in violations(cut)}
        assert records.sessions[0].oldest_cursor


async def test_an_imported_session_keeps_the_invariants() -> None:
    async with open_embedded(":memory:", runners=[ScriptedRunner()]) as client:
        before, _ = await busy(client)
        async with client.export_session(before.sessions[0].id) as parts:
            file = [part async for part in parts]
    async with open_embedded(":memory:", runners=[ScriptedRunner()]) as other:

        async def again() -> AsyncIterator[bytes]:
            for part in file:
                yield part

        await other.import_session(again())
        found = {
            (one.kind, one.detail.partition(" is not as")[0])
            for one in violations(await history(other))
        }
        # Only the sessions and runs that sent a message are left out.
        assert {kind for kind, _ in found} <= {"replay"}
        assert all(detail.startswith("message ") for _, detail in found)
