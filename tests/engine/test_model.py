"""Sessions, runs, requests and idempotency keys: both stores behave as a small model does.

The same steps go to an engine over each store; the answers must be the same, and as the model says.
"""

import os
import re
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
from attrs import define, field
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from agent_orchestrator import Client, RunStatus, open_embedded
from agent_orchestrator.domain.errors import (
    AlreadyResolved,
    IdempotencyConflict,
    InvalidTransition,
    OrchestratorError,
    SessionClosed,
)
from agent_orchestrator.domain.lifecycle import ACTIVE, STEPS, is_terminal
from agent_orchestrator.domain.model import MANUAL
from agent_orchestrator.operations.messages import MessageReply
from agent_orchestrator.testing import ScriptedRunner
from agent_orchestrator.testing.invariants import History, history, violations

EXAMPLES = int(os.environ.get("MODEL_EXAMPLES", "40"))

small = st.integers(0, 2)
keys = st.none() | st.sampled_from(["a", "b"])
texts = st.sampled_from(["one", "two"])
states = st.sampled_from(RunStatus)
decisions = st.sampled_from(["approve", "deny"])

steps = st.one_of(
    st.tuples(st.just("create"), texts, keys),
    st.tuples(st.just("send"), small, texts, keys),
    st.tuples(st.just("send"), small, texts, keys),
    st.tuples(st.just("close"), small, st.sampled_from(["open", "closed"]), keys),
    st.tuples(st.just("move"), st.integers(0, 5), states, keys),
    st.tuples(st.just("move"), st.integers(0, 5), st.just(RunStatus.RUNNING), keys),
    st.tuples(st.just("ask"), st.integers(0, 5), texts, st.booleans(), keys),
    st.tuples(st.just("resolve"), small, decisions, keys),
    st.tuples(st.just("cancel"), st.integers(0, 5), keys),
    st.tuples(st.just("restart")),
)


@define
class Ids:
    """The same names for the same things in every engine."""

    counts: Counter[str] = field(factory=Counter)

    def __call__(self, prefix: str) -> str:
        self.counts[prefix] += 1
        return f"{prefix}_{self.counts[prefix]:06}"


@define
class Clock:
    """Advances by a millisecond with each call."""

    looks: int = 0

    def __call__(self) -> datetime:
        self.looks += 1
        return datetime(2030, 1, 1, tzinfo=UTC) + timedelta(milliseconds=self.looks)


@define
class Model:
    """The expected state, from the answers so far."""

    sessions: dict[str, str] = field(factory=dict)
    runs: dict[str, RunStatus] = field(factory=dict)
    session_of: dict[str, str] = field(factory=dict)
    requests: dict[str, str] = field(factory=dict)
    asked_by: dict[str, str] = field(factory=dict)
    waits_on: dict[str, str] = field(factory=dict)
    """By request: the run that waits for it."""
    first: dict[tuple[str, str, str], tuple[Any, Any]] = field(factory=dict)
    """By call, thing and key: the content and the answer."""

    def moved(self, run_id: str, to: RunStatus) -> None:
        """Put a run into another state, and close its requests if it ends or waits no longer."""
        if self.runs[run_id] is RunStatus.WAITING and to is RunStatus.QUEUED:
            for request_id in self.waited_for(run_id):
                self._close(request_id)
        if is_terminal(to):
            for request_id, asker in self.asked_by.items():
                if asker == run_id:
                    self._close(request_id)
        self.runs[run_id] = to

    def waited_for(self, run_id: str) -> list[str]:
        """Return the open requests that the run cannot go on without."""
        return [
            request_id
            for request_id, waiter in self.waits_on.items()
            if waiter == run_id and self.requests[request_id] == "pending"
        ]

    def _close(self, request_id: str) -> None:
        if self.requests[request_id] == "pending":
            self.requests[request_id] = "canceled"

    def active(self, session_id: str) -> list[str]:
        return [
            run_id
            for run_id, status in self.runs.items()
            if self.session_of[run_id] == session_id
            and status in (RunStatus.RUNNING, RunStatus.WAITING)
        ]


def nth(things: dict[str, Any], place: int) -> str | None:
    names = list(things)
    return names[place % len(names)] if names else None


async def taken(client: Client, model: Model, step: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Take a step; return the call, the thing, the key, the content and the answer."""
    match step:
        case ("create", title, key):
            asked = client.create_session(title=title, provider=MANUAL, idempotency_key=key)
            thing, content = "", title
        case ("send", place, text, key) if thing := nth(model.sessions, place):
            asked = client.send_message(thing, text, idempotency_key=key)
            content = text
        case ("close", place, status, key) if thing := nth(model.sessions, place):
            asked = client.update_session(thing, status=status, idempotency_key=key)
            content = status
        case ("move", place, status, key) if thing := nth(model.runs, place):
            result = {"text": "done"} if status is RunStatus.COMPLETED else None
            failure = {"code": "provider_error", "message": "no"}
            error = failure if status is RunStatus.FAILED else None
            asked = client.transition_run(
                thing, str(status), result=result, error=error, idempotency_key=key
            )
            content = status
        case ("ask", place, text, wait, key) if thing := nth(model.runs, place):
            asked = client.reply_parent(
                thing, text, request_kind="input_request", wait=wait, idempotency_key=key
            )
            content = (text, wait)
        case ("resolve", place, decision, key) if thing := nth(model.requests, place):
            # A question can be approved only with a text.
            asked = client.resolve_request(thing, decision, text="so", idempotency_key=key)
            content = decision
        case ("cancel", place, key) if thing := nth(model.runs, place):
            asked = client.cancel_run(thing, idempotency_key=key)
            content = None
        case _:
            return None
    with anyio.fail_after(45):
        try:
            answer: Any = await asked
        except OrchestratorError as error:
            answer = type(error)
    return step[0], thing, step[-1], content, answer


def judge(model: Model, call: str, thing: str, key: str | None, content: Any, answer: Any) -> None:
    """Compare an answer with what the model says, and let the model follow it."""
    refused = isinstance(answer, type)
    if key is not None and (earlier := model.first.get((call, thing, key))) is not None:
        if earlier[0] != content:
            assert answer is IdempotencyConflict, (call, answer)
        else:
            assert answer == earlier[1], (call, answer)
        return
    assert answer is not IdempotencyConflict, call
    if key is not None and not refused:
        model.first[call, thing, key] = content, answer
    match call:
        case "create":
            assert not refused
            model.sessions[answer.id] = "open"
        case "send":
            assert (answer is SessionClosed) == (model.sessions[thing] == "closed"), answer
            if isinstance(answer, MessageReply):
                assert answer.run is not None
                assert answer.run.status is RunStatus.QUEUED
                model.runs[answer.run.id] = RunStatus.QUEUED
                model.session_of[answer.run.id] = thing
        case "close":
            assert not refused
            model.sessions[thing] = content
        case "move":
            _moved(model, thing, content, answer)
        case "ask":
            if not refused and answer.request is not None:
                model.requests[answer.request.id] = "pending"
                model.asked_by[answer.request.id] = thing
                if content[1]:
                    assert model.runs[thing] in ACTIVE
                    model.runs[thing] = RunStatus.WAITING
                    model.waits_on[answer.request.id] = thing
            else:
                assert model.runs[thing] not in ACTIVE
        case "resolve":
            wanted = {"approve": "approved", "deny": "denied"}[content]
            there = model.requests[thing]
            if there == "pending":
                assert answer.status == wanted
                model.requests[thing] = wanted
                run_id = model.waits_on.get(thing)
                if run_id is not None and not model.waited_for(run_id):
                    model.runs[run_id] = RunStatus.RUNNING
            elif there == wanted:
                assert answer.status == wanted
            else:
                assert answer is AlreadyResolved
        case "cancel":
            assert not refused
            if not is_terminal(model.runs[thing]):
                model.moved(thing, RunStatus.CANCELED)
            assert answer.run.status is model.runs[thing]


def _moved(model: Model, run_id: str, to: RunStatus, answer: Any) -> None:
    before = model.runs[run_id]
    possible = to in {after for (start, _), after in STEPS.items() if start is before}
    if to is RunStatus.CANCELED and is_terminal(before):
        assert answer is InvalidTransition or answer.status is before
        return
    if not possible:
        assert answer is InvalidTransition, (before, to, answer)
    elif to is RunStatus.RUNNING and before is RunStatus.QUEUED:
        if model.active(model.session_of[run_id]):
            assert isinstance(answer, type), (before, to, answer)
        elif not isinstance(answer, type):  # it may be refused because other runs are before it
            model.runs[run_id] = to
    elif isinstance(answer, type):
        # Its holder may always end it.
        assert not (before is RunStatus.RUNNING and is_terminal(to)), (before, to, answer)
    else:
        model.moved(run_id, to)
        assert answer.status is to


async def final(client: Client, model: Model) -> History:
    records = await history(client)
    assert violations(records) == []
    assert {run.id: run.status for run in records.runs} == model.runs
    assert {one.id: one.status for one in records.sessions} == model.sessions
    assert {one.id: one.status for one in records.requests} == model.requests
    return records


async def compare(directory: Path, played: list[tuple[Any, ...]]) -> None:
    memory_model, sqlite_model = Model(), Model()
    common: list[dict[str, Any]] = [
        {"runners": [ScriptedRunner()], "ids": Ids(), "clock": Clock(), "cwd": "/"}
        for _ in range(2)
    ]
    async with open_embedded(":memory:", **common[0]) as memory:
        left = list(played)
        while True:
            async with open_embedded(directory / "data.db", **common[1]) as sqlite:
                while left and left[0] != ("restart",):
                    step = left.pop(0)
                    first = await taken(memory, memory_model, step)
                    second = await taken(sqlite, sqlite_model, step)
                    assert timeless(first) == timeless(second)
                    if first is not None and second is not None:
                        judge(memory_model, *first)
                        judge(sqlite_model, *second)
                if not left:
                    one, other = (
                        await final(memory, memory_model),
                        await final(sqlite, sqlite_model),
                    )
                    assert timeless(one) == timeless(other)
                    return
            left.pop(0)


def timeless(records: Any) -> str:
    """Return a text without times, which depend on the number of clock reads, and without
    the names of engines, as one store had more of them.
    """
    return re.sub(r"datetime\.datetime\([^)]*\)|'2030-[^']*Z'|dmn_[0-9]+", "", repr(records))


@pytest.mark.timeout(3600)
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(played=st.lists(steps, max_size=25))
@example(
    played=[
        ("create", "one", None),
        ("send", 0, "one", None),
        ("move", 0, RunStatus.RUNNING, None),
        ("ask", 0, "one", True, None),
        ("cancel", 0, None),
        ("resolve", 0, "approve", None),
    ]
)
@example(
    played=[
        ("create", "one", None),
        ("send", 0, "one", None),
        ("move", 0, RunStatus.RUNNING, None),
        ("ask", 0, "one", False, None),
        ("resolve", 0, "approve", None),
    ]
)
def test_memory_and_sqlite_stores_behave_as_the_model(tmp_path_factory, played) -> None:
    anyio.run(compare, tmp_path_factory.mktemp("model"), played)
