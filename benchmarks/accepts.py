"""Measure durable accepts of messages over HTTP, compared with requests that do nothing."""

import json
import sys
from functools import partial
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

import anyio

from agent_orchestrator import connect
from benchmarks.figures import Effort, Figure, check
from benchmarks.load import Plan, generate, request
from benchmarks.processes import server

CONNECTIONS = 50
MANUAL = json.dumps({"text": "Say in one line what this is for.", "provider": "manual"})
"""Nobody executes a manual run: what is measured is the accepting alone."""


def measure(effort: Effort, directory: Path) -> list[Figure]:
    pairs = effort.of(full=9, quick=3, smoke=1)
    each = effort.of(full=40, quick=30, smoke=2)
    db = str(directory / "db.sqlite")
    argv = [sys.executable, "-m", "benchmarks.accepting", "--db", db]
    with server(directory, argv=argv) as running:
        port = urlsplit(running.url).port
        assert port is not None
        sessions = anyio.run(partial(_make_sessions, running.url, CONNECTIONS))
        accepting = [_accepts(sessions, each, number) for number in range(pairs + 1)]
        nothing = [[request("/nothing", MANUAL)] * each] * CONNECTIONS
        rounds = [kind for accepts in accepting for kind in (accepts, nothing)]
        taken = generate(Plan(port, rounds))
        anyio.run(partial(_check_sessions, running.url, sessions, each * (pairs + 1)))
    count = each * CONNECTIONS
    accepted = count / median(taken[2::2])  # the first pair warms up
    idle = count / median(taken[3::2])
    return [
        Figure(
            name="durable accepts over HTTP / a POST that does nothing",
            value=accepted / idle,
            bound=0.5,
            limit="at least",
            detail=f"{accepted:,.0f}/s / {idle:,.0f}/s, {CONNECTIONS} connections",
        )
    ]


def _accepts(sessions: list[str], each: int, number: int) -> list[list[str]]:
    return [
        [
            request(
                f"/sessions/{session_id}/messages",
                MANUAL,
                f"idempotency-key: {session_id}-{number}-{count}",
            )
            for count in range(each)
        ]
        for session_id in sessions
    ]


async def _make_sessions(url: str, count: int) -> list[str]:
    async with connect(url) as client:
        return [(await client.create_session()).id for _ in range(count)]


async def _check_sessions(url: str, sessions: list[str], each: int) -> None:
    async with connect(url) as client:
        for session_id in sessions:
            events = [event async for event in client.events(session_id)]
            numbers = [event.seq for event in events]
            check(numbers == list(range(1, len(events) + 1)), f"{session_id} has a gap")
            queued = {event.run_id for event in events if event.event_type == "run.queued"}
            check(len(queued) == each, f"{len(queued)} runs in {session_id}, not {each}")
