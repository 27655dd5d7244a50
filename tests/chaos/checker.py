"""What must hold after any fault, looked up in a copy of the database by plain SQL."""

import json
import shutil
from collections import Counter, defaultdict
from pathlib import Path
from typing import Final

import apsw
from tests.chaos.daemon import Daemon
from tests.chaos.outcome import Outcome
from tests.chaos.traffic import Traffic

from agent_orchestrator.stores.sqlite.schema import schema_version

TERMINAL: Final = {
    "run.completed": "completed",
    "run.failed": "failed",
    "run.canceled": "canceled",
}
STATES: Final = TERMINAL | {
    "run.queued": "queued",
    "run.started": "running",
    "run.waiting": "waiting",
    "run.resumed": "running",
}


def copied(db: Path, place: Path) -> Path:
    """Copy a database nobody has open, its log with it, so that a look changes nothing."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    for name in (db.name, db.name + "-wal"):
        if (db.parent / name).exists():
            shutil.copy2(db.parent / name, place / name)
    return place / db.name


def check_killed(one: Daemon, traffic: Traffic, outcome: Outcome) -> None:
    """Check a daemon that is dead: its processes are gone, and the store holds what was told."""
    if left := one.orphans():
        outcome.fault("orphans", f"alive: {', '.join(left[:5])}", len(left))
    check_store(one.db, one, traffic, outcome)


def check_store(db: Path, one: Daemon, traffic: Traffic, outcome: Outcome) -> None:
    """Check a database nobody has open."""
    copy = copied(db, one.directory / "copy")
    if not copy.exists() or not copy.stat().st_size:
        if traffic.acks or traffic.sessions:
            outcome.fault("lost", "there is no database", max(1, len(traffic.acks)))
        return
    connection = apsw.Connection(str(copy), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        if connection.pragma("user_version") < schema_version():
            # It was never served from: a fault ended the first start between two steps of its schema.
            if traffic.acks or traffic.sessions:
                outcome.fault("lost", "the database is not ready", max(1, len(traffic.acks)))
            return
        check_contents(connection, one, traffic, outcome)
    finally:
        connection.close()
        shutil.rmtree(copy.parent, ignore_errors=True)


def check_contents(
    connection: apsw.Connection, one: Daemon, traffic: Traffic, outcome: Outcome
) -> None:
    _check_acknowledged(connection, traffic, outcome)
    runs = _check_logs(connection, outcome)
    _check_trace(connection, one, outcome, runs)


def _check_acknowledged(connection: apsw.Connection, traffic: Traffic, outcome: Outcome) -> None:
    messages = {
        row[0]: row[1:]
        for row in connection.execute("SELECT id, session_id, run_id, text FROM messages")
    }
    runs = {
        row[0]: row[1:]
        for row in connection.execute(
            "SELECT id, status, cancel_requested_at, session_id FROM runs"
        )
    }
    lost = [
        ack
        for ack in traffic.acks.values()
        if messages.get(ack.message_id) != (ack.session_id, ack.run_id, ack.text)
        or (ack.run_id is not None and ack.run_id not in runs)
    ]
    if lost:
        outcome.fault("lost", f"{len(lost)} acknowledged messages, as {lost[0]}", len(lost))
    times = Counter(
        text.split(" ", 1)[0]
        for (text,) in connection.execute(
            "SELECT text FROM messages WHERE role = 'user' AND source_kind = 'client'"
            " AND text GLOB 'k[0-9]*-[0-9]* *' AND text NOT GLOB '*Your request was*'"
        )
    )
    if twice := [key for key, count in times.items() if count > 1]:
        outcome.fault("doubled", f"messages {twice[:3]}", len(twice))
    if unknown := [key for key in times if key not in traffic.sent]:
        outcome.fault("broken", f"messages nobody sent: {unknown[:3]}")
    titles = Counter(row[0] for row in connection.execute("SELECT title FROM sessions"))
    if twice := [str(title) for title, count in titles.items() if title and count > 1]:
        outcome.fault("doubled", f"sessions {twice[:3]}", len(twice))
    ids = {row[0] for row in connection.execute("SELECT id FROM sessions")}
    if gone := [key for key, session_id in traffic.sessions.items() if session_id not in ids]:
        outcome.fault("lost", f"acknowledged sessions {gone[:3]}", len(gone))
    for run_id in traffic.canceled:
        status, asked_at = runs.get(run_id, ("gone", None))[:2]
        if status in ("queued", "running", "waiting") and asked_at is None:
            outcome.fault("lost", f"the acknowledged cancel of {run_id}")
    stored = dict(connection.execute("SELECT id, status FROM requests"))
    for request_id, status in traffic.resolved.items():
        if stored.get(request_id) != status:
            outcome.fault("lost", f"a decision: {request_id} is {stored.get(request_id)}")


def _check_logs(connection: apsw.Connection, outcome: Outcome) -> dict[str, tuple[str, int]]:
    """Check every session's log, and that it leads to the rows; return status and attempt of runs."""
    runs = {
        row[0]: (row[1], row[2])
        for row in connection.execute("SELECT id, status, attempt FROM runs")
    }
    expected: dict[int, int] = defaultdict(int)
    ended: dict[str, str] = {}
    states: dict[str, str] = {}
    attempts: dict[str, int] = {}
    opened: dict[str, str] = {}
    positions = 0
    rows = connection.execute(
        "SELECT position, session, seq, run_id, attempt, event_type,"
        " coalesce(CAST(long_data AS TEXT), data) FROM events"
        " ORDER BY position"
    )
    for position, session, seq, run_id, attempt, event_type, data in rows:
        positions += 1
        if position != positions:
            outcome.fault("gaps", f"event {position} of all where {positions} was due")
            positions = position
        expected[session] += 1
        if seq != expected[session]:
            outcome.fault("gaps", f"session {session}: {seq} where {expected[session]} was due")
            expected[session] = seq
        if event_type.startswith("request."):
            opened[json.loads(data)["id"]] = event_type
        if run_id is None:
            continue
        if run_id in ended:
            kind = "doubled" if event_type in TERMINAL else "broken"
            outcome.fault(kind, f"{run_id}: {event_type} after {ended[run_id]}")
        if event_type in TERMINAL:
            ended[run_id] = event_type
        if event_type in STATES:
            states[run_id] = STATES[event_type]
        if attempt is not None:
            if attempt < attempts.get(run_id, 0):
                outcome.fault("broken", f"{run_id}: {event_type} of attempt {attempt} is stale")
            attempts[run_id] = max(attempt, attempts.get(run_id, 0))
    heads = dict(connection.execute("SELECT number, last_seq FROM sessions"))
    for number, last_seq in heads.items():
        if expected[number] != last_seq:
            outcome.fault("gaps", f"session {number} ends at {expected[number]}, not {last_seq}")
    for run_id, (status, _) in runs.items():
        if states.get(run_id) != status:
            outcome.fault("broken", f"{run_id} is {status}, its log says {states.get(run_id)}")
    for request_id, status in connection.execute("SELECT id, status FROM requests"):
        told = opened.get(request_id)
        if (told == "request.created") != (status == "pending"):
            outcome.fault("broken", f"{request_id} is {status}, its log says {told}")
    return runs


def _check_trace(
    connection: apsw.Connection, one: Daemon, outcome: Outcome, runs: dict[str, tuple[str, int]]
) -> None:
    """Compare what agents were asked, by their own account, with what is recorded of them."""
    if not one.trace.exists():
        return
    recorded = {(run, n) for run, n in connection.execute("SELECT run_id, attempt FROM attempts")}
    times: Counter[str] = Counter()
    done: dict[str, int] = {}
    for line in one.trace.read_text().splitlines():
        step = json.loads(line)
        run_id, _, number = step["mark"].rpartition(".")
        attempt = int(number)
        if run_id not in runs:
            outcome.fault("lost", f"{run_id}, which an agent was started for")
            continue
        if step["what"] == "asked":
            times[step["mark"]] += 1
            if (run_id, attempt) not in recorded:
                outcome.fault("broken", f"attempt {attempt} of {run_id} is not recorded")
        else:
            done[run_id] = attempt
    if twice := [tag for tag, count in times.items() if count > 1]:
        outcome.fault("doubled", f"attempts executed twice: {twice[:3]}", len(twice))


def check_subscribers(db: Path, one: Daemon, traffic: Traffic, outcome: Outcome) -> None:
    """Compare what readers saw with the log, to its end. For a settled daemon that has stopped."""
    copy = copied(db, one.directory / "copy")
    connection = apsw.Connection(str(copy), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        log: dict[str, list[tuple[int, str]]] = defaultdict(list)
        for session_id, seq, event_type in connection.execute(
            "SELECT sessions.id, seq, event_type FROM events"
            " JOIN sessions ON sessions.number = events.session ORDER BY session, seq"
        ):
            log[session_id].append((seq, event_type))
    finally:
        connection.close()
    for reader in traffic.subscribers:
        wrong, first = 0, ""
        for session_id in reader.sessions or log:
            seen, kept = reader.seen.get(session_id, []), log[session_id]
            if seen == kept:
                continue
            wrong += sum(a != b for a, b in zip(seen, kept, strict=False))
            wrong += abs(len(seen) - len(kept))
            place = next(
                (n for n, (a, b) in enumerate(zip(seen, kept, strict=False)) if a != b), -1
            )
            first = first or (
                f"{len(seen)} of {len(kept)} events of {session_id}, and first another one at {place}"
            )
        if wrong:
            outcome.fault("gaps", f"{reader.name} saw {first}", wrong)
