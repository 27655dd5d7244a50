"""The memory store and SQLite give the same answers and contents after the same random changes."""

from datetime import timedelta
from operator import methodcaller

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_orchestrator.domain.access import Grant, Visibility
from agent_orchestrator.domain.errors import Conflict, CursorAhead, NotFound
from agent_orchestrator.domain.lifecycle import RunStatus
from agent_orchestrator.domain.model import Attempt, RunError, RunResult, Thread, Usage
from agent_orchestrator.ports.changes import Draft
from agent_orchestrator.stores.memory import MemoryStore
from agent_orchestrator.stores.sqlite import SqliteStore
from agent_orchestrator.testing.stores.samples import NOW, a_message, a_record, a_run, a_session

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
json_objects = st.dictionaries(text, json_values, max_size=3)
number = st.integers(0, 3)
sessions = number.map("ses_{}".format)
runs = number.map("run_{}".format)
messages = number.map("msg_{}".format)
owners = st.sampled_from(["ann", "bob"])
grants = st.builds(Grant, owners, st.sampled_from(["reader", "writer", "owner"]))
providers = st.sampled_from(["codex", "manual"])
times = st.integers(-5, 5).map(lambda hours: NOW + timedelta(hours=hours))
statuses = st.sampled_from(RunStatus)

session_values = st.builds(
    a_session,
    id=sessions,
    owner=owners,
    title=st.none() | text,
    status=st.sampled_from(["open", "closed"]),
    parent_session_id=st.none() | sessions,
    parent_run_id=st.none() | runs,
    root_session_id=sessions,
    notify_parent=st.sampled_from(["record", "wake"]),
    metadata=json_objects,
    updated_at=times,
)
run_values = st.builds(
    a_run,
    session_id=sessions,
    id=runs,
    provider=providers,
    status=statuses,
    parent_run_id=st.none() | runs,
    worker_id=st.none() | st.sampled_from(["dmn_1/1", "dmn_2/1"]),
    result=st.none() | st.builds(RunResult, text),
    error=st.none() | st.builds(RunError, text, text),
    usage=st.none() | st.builds(Usage, number, number, number, st.none() | st.floats(0, 9)),
    started_at=st.none() | times,
    priority=st.booleans(),
)
message_values = st.builds(
    a_message, session_id=sessions, id=messages, text=text, run_id=st.none() | runs
)
draft_values = st.builds(
    Draft,
    event_type=st.sampled_from(["agent.message", "run.queued"]),
    data=json_objects,
    run_id=st.none() | runs,
)
callers = st.sampled_from(["local", "run_1"])
record_values = st.builds(
    a_record, caller=callers, key=st.sampled_from("abcd"), answer=text, created_at=times
)
attempt_values = st.builds(
    Attempt, run_id=runs, attempt=number, worker_id=text, provider=text, started_at=times
)

steps = st.one_of(
    st.tuples(st.just("add_session"), session_values),
    st.tuples(st.just("put_session"), session_values),
    st.tuples(st.just("add_run"), run_values),
    st.tuples(st.just("put_run"), run_values),
    st.tuples(st.just("add_message"), message_values),
    st.tuples(st.just("put_message"), message_values),
    st.tuples(st.just("append"), sessions, st.lists(draft_values, max_size=6), times),
    st.tuples(st.just("put_attempt"), attempt_values),
    st.tuples(st.just("put_thread"), sessions, providers, st.builds(Thread, text, json_objects)),
    st.tuples(
        st.just("add_record"),
        record_values,
        st.fixed_dictionaries({"max_count": st.integers(1, 3), "max_size": st.integers(1, 9)}),
    ),
    st.tuples(
        st.just("delete_records"),
        st.fixed_dictionaries({"before": times, "limit": st.integers(1, 3)}),
    ),
    st.tuples(
        st.just("delete_records_of"),
        callers,
        st.fixed_dictionaries({"limit": st.integers(1, 3)}),
    ),
    st.tuples(st.just("put_grants"), sessions, st.lists(grants, max_size=2)),
    st.tuples(st.just("notify"), text),
)
changes = st.lists(st.tuples(st.lists(steps, max_size=6), st.booleans(), st.booleans()), max_size=8)


REFUSED = "refused"
"""A change with two errors (a missing session, a taken id) may be refused for either."""


TAKE_KEYWORDS = ("add_record", "delete_records", "delete_records_of")


def play(transaction, change):
    """Take the steps. A refusal ends the change, or is caught and the change goes on."""
    taken, fails, catches = change
    answers = []
    for name, *values in taken:
        keywords = values.pop() if name in TAKE_KEYWORDS else {}
        try:
            answers.append(getattr(transaction, name)(*values, **keywords))
        except (Conflict, NotFound):
            if not catches:
                raise
            answers.append(REFUSED)
    if fails:
        raise LookupError("undo")
    return answers


REACHES = [Visibility(owner, tree) for owner in (None, "ann", "nobody") for tree in (None, "ses_1")]


def everything(view):
    """Return the result of every query for every id there may be."""
    ids = [f"{kind}_{n}" for kind in ("ses",) for n in range(4)]
    run_ids = [f"run_{n}" for n in range(4)]
    stored_runs = view.runs(limit=99)
    return {
        "sessions": [
            view.sessions(within=w, status=s, parent_session_id=p, after=a, limit=2)
            for w in REACHES
            for s in (None, "open")
            for p in (None, "ses_1")
            for a in (None, "ses_0")
        ],
        "runs": [
            view.runs(within=w, session_id=i, status=s, after=a, limit=2)
            for w in REACHES
            for i in (None, "ses_1")
            for s in (None, RunStatus.QUEUED)
            for a in (None, "run_0")
        ],
        "session": [
            (
                view.session(i),
                view.messages(i, limit=99),
                view.messages(i, after="msg_0", limit=1),
                view.active_run(i),
                view.waiting_messages(i, limit=99),
                view.live_children(i, None),
                view.live_children(i, "run_1"),
                view.live_descendants(i),
                view.events(i, after=0, limit=99),
                view.events(i, after=2, limit=2),
                view.thread(i, "codex"),
                view.thread(i, "manual"),
                view.grants(i),
                view.role(i, "ann"),
            )
            for i in ids
        ],
        "run": [
            (
                view.run(i),
                view.run_messages(i),
                view.child_message_count(i, limit=2),
                view.child_runs(i),
                view.attempts(i),
            )
            for i in run_ids
        ],
        "queue": [
            (
                view.queue_position(run),
                view.queued_before(run),
                view.queue_is_full(n + 1),
                view.last_event_at(run),
                view.last_output_at(run),
            )
            for n, run in enumerate(stored_runs)
        ],
        "next": [view.next_runs(n) for n in (1, 9)],
        "counts": (view.live_runs(), view.event_count(), position(view.feed_head())),
        # No run has a worker of this instance. A shared store does not leave out those of one.
        "lost": view.lost_runs("dmn"),
        "message": [view.message(f"msg_{n}") for n in range(4)],
        "feed": [
            feed(view, after=a, within=w, sessions=s)
            for a in (None, "0", "3")
            for w in REACHES
            for s in ((), ("ses_0",), ("ses_1", "ses_2"))
        ],
        "records": [
            view.idempotency(caller, "POST /sessions", key)
            for caller in ("local", "run_1")
            for key in "abcd"
        ],
        "oldest record": view.oldest_record_at(),
        "ended callers": [view.ended_callers(limit=n) for n in (1, 9)],
    }


def position(cursor):
    """Return a cursor without the epoch, which differs between stores."""
    return cursor.partition(".")[0]


def feed(view, **asked):
    try:
        found = view.feed(**asked, limit=4)
        return [(position(item.cursor), item.event) for item in found]
    except CursorAhead as error:
        return type(error)


async def outcome(store, change):
    notified = []
    with store.listen(notified.append):
        try:
            return await store.transact(lambda tx: play(tx, change)), notified
        except (Conflict, NotFound):
            return REFUSED, notified
        except LookupError as error:
            return type(error), notified


async def compare(directory, played):
    with anyio.fail_after(60):
        async with MemoryStore() as memory, SqliteStore(directory / "data.db") as sqlite:
            for change in played:
                assert await outcome(memory, change) == await outcome(sqlite, change)
            expected = await memory.read(everything)
            found = await sqlite.read(everything)
            for question, answer in expected.items():
                assert found[question] == answer, question
            lost = methodcaller("lost_runs", "dmn_1")
            assert await sqlite.read(lost) == await memory.read(lost)
        async with SqliteStore(directory / "data.db") as reopened:
            assert await reopened.read(everything) == expected


@pytest.mark.timeout(300)
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(played=changes)
def test_memory_and_sqlite_stores_give_the_same_answers(tmp_path_factory, played):
    anyio.run(compare, tmp_path_factory.mktemp("agree"), played)
