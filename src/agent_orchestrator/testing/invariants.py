"""Invariants of an engine's records, which hold after any failure.

:func:`history` reads the records and :func:`violations` checks them. Nothing may be recorded meanwhile,
because rows and logs are read one after the other. :func:`stream_violations` checks what a subscriber
received. Only the public client and the public log are used.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal

from attrs import field, frozen

from agent_orchestrator.client import Client
from agent_orchestrator.domain.events import STATE_AFTER, EventType
from agent_orchestrator.domain.lifecycle import ACTIVE, RunStatus, is_terminal
from agent_orchestrator.domain.model import MANUAL, Event, Message, Request, Run, Session
from agent_orchestrator.operations.messages import MessageReply
from agent_orchestrator.wire.codec import to_plain

Kind = Literal["lost", "doubled", "gap", "ending", "stale", "replay", "order", "zombie"]
"""The kind of a violation:

``lost``: an acknowledged message is missing. ``doubled``: something exists twice. ``gap``: a log is not
1 … n, or a reader missed or repeated an event. ``ending``: a run does not have exactly one final event,
or has events after it. ``stale``: an older attempt wrote after a newer one. ``replay``: the log and the
rows differ. ``order``: a message was overtaken by a later one. ``zombie``: a run is shown as active, but
no worker has it."""

PAGE: Final = 1000


@frozen
class Violation:
    kind: Kind
    detail: str


@frozen
class Acknowledged:
    """A message that was acknowledged to its sender."""

    message_id: str
    session_id: str
    run_id: str | None
    text: str

    @classmethod
    def of(cls, reply: MessageReply) -> "Acknowledged":
        message = reply.message
        run_id = reply.run.id if reply.run else None
        return cls(message.id, message.session_id, run_id, message.text)


@frozen
class History:
    """All records of an engine.

    :param logs: events by session id.
    :param zombies: ids of active runs without a worker.
    """

    sessions: Sequence[Session]
    messages: Sequence[Message]
    runs: Sequence[Run]
    requests: Sequence[Request]
    logs: Mapping[str, Sequence[Event]]
    zombies: Collection[str] = field(default=())


async def history(client: Client) -> History:
    """Return all records that a client may read."""
    sessions: list[Session] = []
    cursor: str | None = None
    while True:
        session_page = await client.list_sessions(limit=PAGE, cursor=cursor)
        sessions += session_page.sessions
        if (cursor := session_page.next_cursor) is None:
            break
    messages: list[Message] = []
    for session in sessions:
        while True:
            message_page = await client.list_messages(session.id, limit=PAGE, cursor=cursor)
            messages += message_page.messages
            if (cursor := message_page.next_cursor) is None:
                break
    runs: list[Run] = []
    while True:
        run_page = await client.list_runs(limit=PAGE, cursor=cursor)
        runs += run_page.runs
        if (cursor := run_page.next_cursor) is None:
            break
    requests: list[Request] = []
    while True:
        request_page = await client.requests(limit=PAGE, cursor=cursor)
        requests += request_page.requests
        if (cursor := request_page.next_cursor) is None:
            break
    logs = {session.id: await _log(client, session.id) for session in sessions}
    return History(sessions, messages, runs, requests, logs, await _zombies(client, runs))


async def _log(client: Client, session_id: str) -> list[Event]:
    log: list[Event] = []
    while True:
        page = await client.list_events(session_id, cursor=log[-1].seq if log else 0, limit=PAGE)
        log += page.events
        if not page.has_more:
            return log


async def _zombies(client: Client, runs: Iterable[Run]) -> list[str]:
    zombies = []
    for run in runs:
        if run.status not in ACTIVE or run.provider == MANUAL:
            continue
        if run.status is RunStatus.WAITING and run.worker_id is None:
            continue  # parked: it needs no worker
        diagnosis = await client.diagnose_run(run.id)
        if diagnosis.run.status in ACTIVE and not diagnosis.diagnostics.worker_alive:
            zombies.append(run.id)
    return zombies


def violations(
    records: History,
    *,
    acknowledged: Iterable[Acknowledged] = (),
    unique: Iterable[str] = (),
) -> list[Violation]:
    """Return the violated invariants; an empty list if there are none.

    :param acknowledged: the messages that were acknowledged.
    :param unique: texts that were each sent as a single message, possibly with retries.
    """
    violations = [Violation("zombie", f"run {run_id} has no worker") for run_id in records.zombies]
    violations += _messages(records, acknowledged, unique)
    for session in records.sessions:
        violations += _session(session, records.logs[session.id])
    by_run: dict[str, list[Event]] = defaultdict(list)
    for log in records.logs.values():
        for event in log:
            if event.run_id is not None:
                by_run[event.run_id].append(event)
    for run in records.runs:
        violations += _run(run, by_run.get(run.id, []))
    active = Counter(run.session_id for run in records.runs if run.status in ACTIVE)
    violations += [
        Violation("doubled", f"{count} runs of session {session_id} are active")
        for session_id, count in active.items()
        if count > 1
    ]
    violations += _requests(records)
    violations += _order(records)
    return violations


def _messages(
    records: History, acknowledged: Iterable[Acknowledged], unique: Iterable[str]
) -> Iterator[Violation]:
    rows = {message.id: message for message in records.messages}
    runs = {run.id for run in records.runs}
    created = Counter(
        event.data["message_id"]
        for log in records.logs.values()
        for event in log
        if event.event_type == EventType.MESSAGE_CREATED
    )
    for promise in acknowledged:
        row = rows.get(promise.message_id)
        if row is None or (row.session_id, row.text) != (promise.session_id, promise.text):
            yield Violation("lost", f"message {promise.message_id} was acknowledged")
        if promise.run_id is not None and promise.run_id not in runs:
            yield Violation("lost", f"run {promise.run_id} was acknowledged")
    texts = Counter(message.text for message in records.messages)
    for text in unique:
        if texts[text] > 1:
            yield Violation("doubled", f"{texts[text]} messages say {text[:80]!r}")
    for message_id in rows.keys() | created.keys():
        if created[message_id] != 1 or message_id not in rows:
            presence = "is" if message_id in rows else "is not"
            yield Violation(
                "replay",
                f"message {message_id} has {created[message_id]} events and {presence} there",
            )
    for log in records.logs.values():
        for event in log:
            row = rows.get(event.data.get("message_id", ""))
            if event.event_type == EventType.MESSAGE_CREATED and row is not None:
                stored = (row.session_id, row.role, row.text, to_plain(row.source))
                data = event.data
                if stored != (event.session_id, data["role"], data["text"], data["source"]):
                    yield Violation("replay", f"message {row.id} is not as it was logged")


def _session(session: Session, log: Sequence[Event]) -> Iterator[Violation]:
    seqs = [event.seq for event in log]
    if seqs != list(range(1, len(log) + 1)) or session.last_seq != len(log):
        yield Violation(
            "gap",
            f"the log of {session.id} is not 1 … {session.last_seq}: {_sequence_breaks(seqs)}",
        )
    if any(event.session_id != session.id for event in log):
        yield Violation("replay", f"the log of {session.id} holds another's events")
    title, status, cwd, threads = None, "open", session.cwd, {}
    for event in log:
        match event.event_type:
            case EventType.SESSION_CREATED | EventType.SESSION_UPDATED | EventType.SESSION_CLOSED:
                title = event.data.get("title", title)
                status = event.data.get("status", status)
                cwd = event.data.get("cwd", cwd)
            case EventType.THREAD_STARTED | EventType.THREAD_REPLACED:
                threads[event.data["provider"]] = event.data["thread_id"]
    rows = (session.title, session.status, session.cwd, dict(session.threads))
    if rows != (logged := (title, status, cwd, threads)):
        yield Violation("replay", f"session {session.id} is {rows}, its log says {logged}")


def _sequence_breaks(seqs: Sequence[int]) -> str:
    """Return a description of the first place where a sequence is not 1 … n."""
    for expected, seq in enumerate(seqs, 1):
        if seq != expected:
            return f"{seq} stands where {expected} should"
    return f"it ends with {len(seqs)}"


def _run(run: Run, log: Sequence[Event]) -> Iterator[Violation]:
    newest = ends = 0
    for event in log:
        if ends:
            yield Violation("ending", f"{event.event_type} of run {run.id} after its end")
        if event.attempt is not None and event.attempt < newest:
            yield Violation(
                "stale",
                f"{event.event_type} ({event.seq}) of run {run.id} is of attempt {event.attempt}, "
                f"after one of attempt {newest}",
            )
        newest = max(newest, event.attempt or 0)
        state = STATE_AFTER.get(event.event_type)
        ends += state is not None and is_terminal(state)
    if ends != int(is_terminal(run.status)):
        yield Violation("ending", f"run {run.id} is {run.status} and has {ends} last events")
    started = Counter(e.attempt for e in log if e.event_type == EventType.RUN_STARTED)
    for attempt, count in started.items():
        if count > 1:
            yield Violation("doubled", f"attempt {attempt} of run {run.id} began {count} times")
    for name, logged in _replayed(log).items():
        if (row := to_plain(getattr(run, name))) != logged:
            yield Violation("replay", f"{name} of run {run.id} is {row!r}, its log says {logged!r}")


def _order(records: History) -> Iterator[Violation]:
    """Yield messages whose runs began after the run of a later message.

    Interrupts overtake waiting messages, but are ordered among themselves. A run may return its message
    to the queue, where it is delivered together with a later one. Manual runs may begin at any time.
    """
    runs = {run.id: run for run in records.runs}
    for log in records.logs.values():
        latest = {False: "", True: ""}
        started: set[str] = set()
        for event in log:
            run = runs.get(event.run_id or "")
            if event.event_type != EventType.RUN_STARTED or event.attempt != 1 or run is None:
                continue
            if run.provider == MANUAL or run.message_id is None or run.message_id in started:
                continue
            started.add(run.message_id)
            before = latest[run.priority]
            if run.message_id < before:
                yield Violation("order", f"message {run.message_id} began after {before}")
            latest[run.priority] = max(before, run.message_id)


def _replayed(log: Sequence[Event]) -> dict[str, Any]:
    """Return the fields of a run according to its log."""
    values: dict[str, Any] = dict.fromkeys(("status", "attempt", "result", "error", "usage"))
    for event in log:
        if (state := STATE_AFTER.get(event.event_type)) is not None:
            values["status"], values["attempt"] = str(state), event.attempt
            values["result"], values["error"] = event.data.get("result"), event.data.get("error")
        elif event.event_type == EventType.USAGE_UPDATED:
            values["usage"] = event.data
    return values


def _requests(records: History) -> Iterator[Violation]:
    logged: dict[str, str] = {}
    ended = {run.id for run in records.runs if is_terminal(run.status)}
    for session_id, log in records.logs.items():
        for event in log:
            if event.event_type in (EventType.REQUEST_CREATED, EventType.REQUEST_RESOLVED):
                if event.data["session_id"] != session_id:
                    continue  # a copy in an ancestor's log
                request_id = event.data["id"]
                if logged.get(request_id, "pending") != "pending":
                    yield Violation("doubled", f"request {request_id} was resolved twice")
                logged[request_id] = event.data["status"]
    for request in records.requests:
        if (logged_status := logged.pop(request.id, None)) != request.status:
            yield Violation(
                "replay", f"request {request.id} is {request.status}, its log says {logged_status}"
            )
        if request.is_open and request.run_id in ended:
            yield Violation("ending", f"request {request.id} is open, its run has ended")
    for request_id in logged:
        yield Violation("replay", f"request {request_id} is in the log alone")


def stream_violations(
    seen: Sequence[Event], log: Sequence[Event], *, after: int = 0, complete: bool = True
) -> list[Violation]:
    """Return the violations in the events a subscriber of one session received.

    :param log: the session's whole log.
    :param after: the subscriber's first cursor.
    :param complete: True if the subscriber read to the end of the log.
    """
    due = [event for event in log if event.seq > after]
    seqs = [event.seq for event in seen]
    violations = []
    if seqs != [event.seq for event in due[: len(seqs)]]:
        violations.append(
            Violation(
                "gap", f"a subscriber at {after} was given {_sequence_breaks_after(seqs, after)}"
            )
        )
    elif list(seen) != due[: len(seen)]:
        violations.append(
            Violation("replay", "a subscriber was given other events than the log holds")
        )
    if complete and len(seen) < len(due):
        missing = f"{len(seen)} of the {len(due)} events after {after}"
        violations.append(Violation("gap", f"a subscriber was given {missing}"))
    return violations


def _sequence_breaks_after(seqs: Sequence[int], after: int) -> str:
    return _sequence_breaks([seq - after for seq in seqs]) + f" (counted from {after})"
