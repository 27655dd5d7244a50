"""Views of sessions, messages, runs, access and the daemon for people. No I/O."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Final

import attrs

from agent_orchestrator.domain.access import Grant
from agent_orchestrator.domain.audit import DONE, AuditEntry
from agent_orchestrator.domain.daemons import LOCAL_HOST
from agent_orchestrator.domain.lifecycle import RunStatus
from agent_orchestrator.domain.model import MANUAL, Message, Run, Session
from agent_orchestrator.domain.tokens import AccessToken
from agent_orchestrator.operations.access import NewToken
from agent_orchestrator.operations.daemon import (
    CheckReply,
    DaemonStatus,
    DaemonView,
    Finding,
    ProviderStatus,
)
from agent_orchestrator.operations.devices import NewInvitation
from agent_orchestrator.operations.messages import MessageReply, SpawnReply
from agent_orchestrator.operations.retention import PruneReply
from agent_orchestrator.operations.runs import CancelReply, DiagnosisReply
from agent_orchestrator.operations.search import SearchHit, SearchPage
from agent_orchestrator.operations.sessions import CloseSessionReply, SessionTree
from agentctl.document import Block, Card, Column, Markdown, Table, Text
from agentctl.event_text import image_count, usage_parts
from agentctl.times import ago, between, clock, counted, duration

STYLES: Final[Mapping[str, str]] = {
    "queued": "dim",
    "running": "blue",
    "waiting": "yellow",
    "completed": "green",
    "failed": "red",
    "canceled": "yellow",
    "open": "green",
    "closed": "dim",
    "ok": "green",
    "degraded": "yellow",
    "draining": "yellow",
    "delivered": "green",
    "undeliverable": "red",
    "pending": "bold yellow",
    "approved": "green",
    "answered": "green",
    "denied": "red",
    "expired": "red",
}

MARKS: Final[Mapping[str, str]] = {
    "queued": "·",
    "running": "●",
    "waiting": "?",
    "completed": "✓",
    "failed": "✗",
    "canceled": "■",
}


def state(status: str) -> Text:
    """Return a status in its colour."""
    return Text(status, STYLES.get(status, ""))


def _when(moment: datetime | None, now: datetime) -> str | None:
    return None if moment is None else f"{ago(moment, now)}  ({clock(moment)})"


def took(run: Run, now: datetime) -> str:
    """Return the duration of a run until its end or ``now``."""
    time_taken = between(run.started_at, run.finished_at or now)
    return duration(time_taken.total_seconds()) if time_taken is not None else ""


def _outcome(run: Run) -> Text:
    text = "cancel requested" if run.cancel_requested_at and run.finished_at is None else ""
    if run.error is not None:
        text = f"{run.error.code}: {run.error.message[:500]}"
    elif run.result is not None:
        text = run.result.text[:500]
    return Text(text, fit=True)


# --- sessions and messages ----------------------------------------------------------------------


def session_card(session: Session, now: datetime) -> list[Block]:
    limits = [
        (session.max_depth, "generations"),
        (session.max_children, "of a run"),
        (session.max_descendants, "in all"),
    ]
    children = ", ".join(f"{most} {name}" for most, name in limits if most is not None)
    return [
        Card(
            Text(f"session {session.id}", "bold"),
            [
                ("title", session.title),
                ("status", state(session.status)),
                ("provider", session.provider or "(default)"),
                ("model", session.model),
                ("directory", session.cwd),
                ("host", None if session.host == LOCAL_HOST else session.host),
                ("approvals", session.approvals),
                ("asks", session.approval_policy),
                ("sandbox", session.sandbox),
                ("notices", None if session.notices == "default" else session.notices),
                ("children", children and f"at most {children}"),
                ("parent", session.parent_session_id),
                (
                    "threads",
                    ", ".join(f"{name} {thread}" for name, thread in session.threads.items()),
                ),
                ("owner", session.owner),
                ("events", _event_count(session)),
                ("created", _when(session.created_at, now)),
                ("updated", _when(session.updated_at, now)),
            ],
        )
    ]


def session_table(sessions: Sequence[Session], now: datetime) -> list[Block]:
    columns = [
        Column("SESSION", lambda one: one.id),
        Column("STATUS", lambda one: state(one.status)),
        Column("PROVIDER", lambda one: one.provider or "(default)"),
        Column("EVENTS", lambda one: f"{one.last_seq:,}", right=True),
        Column("UPDATED", lambda one: ago(one.updated_at, now), right=True),
        Column("TITLE", lambda one: one.title, flexible=True),
        Column("DIRECTORY", lambda one: one.cwd, flexible=True),
    ]
    return [Table(columns, sessions, "no sessions", "TITLE STATUS PROVIDER UPDATED SESSION")]


def moved_line(session: Session, _: datetime) -> list[Block]:
    on = "" if session.host in (None, LOCAL_HOST) else f" on {session.host}"
    return [f"session {session.id} works in {session.cwd}{on}"]


def _event_count(session: Session) -> str:
    oldest = session.oldest_cursor
    return f"{session.last_seq}, kept from {oldest + 1} on" if oldest else str(session.last_seq)


def closed_line(reply: CloseSessionReply, _: datetime) -> list[Block]:
    line = f"session {reply.session.id} is closed"
    if not reply.at_work_count:
        more = f", with all below it; {counted(len(reply.canceled), 'run')} canceled"
        return [line + (more if reply.canceled or reply.closed_count > 1 else "")]
    sessions = counted(reply.at_work_count, "session")
    return [
        line,
        f"{sessions} below it still at work; to end them too:",
        f"  agentctl session close {reply.session.id} --cascade",
    ]


def retention_line(session: Session, _: datetime) -> list[Block]:
    own = (
        ("days", session.retain_days),
        ("events", session.retain_events),
        ("bytes", session.retain_bytes),
    )
    limits = [
        f"{value:,} {unit}" if value else f"any number of {unit}"
        for unit, value in own
        if value is not None
    ]
    kept = f"keeps {', '.join(limits)}" if limits else "keeps what the daemon's settings say"
    return [f"session {session.id} {kept}"]


def pruned_lines(reply: PruneReply, _: datetime) -> list[Block]:
    session = reply.session
    first = f"; the oldest is now {session.oldest_cursor + 1:,}" if session.oldest_cursor else ""
    lines = [f"session {session.id}: {counted(reply.deleted_count, 'event')} deleted{first}"]
    if reply.kept_by is not None:
        lines.append(f"more exceed the limits, but {reply.kept_by} has not ended")
    return [*lines]


def message_table(messages: Sequence[Message], now: datetime) -> list[Block]:
    def text(message: Message) -> Text:
        images = image_count(message.images)
        return Text((f"[{images}] " if images else "") + message.text[:2000], fit=True)

    def source(message: Message) -> str:
        kind = "" if message.source.kind == "client" else message.source.kind
        return "decision" if message.request_id is not None else kind

    columns = [
        Column("MESSAGE", lambda one: one.id),
        Column("ROLE", lambda one: one.role),
        Column("FROM", source),
        Column("DELIVERY", lambda one: state(one.delivery)),
        Column("SENT", lambda one: ago(one.created_at, now), right=True),
        Column("TEXT", text, flexible=True),
    ]
    return [Table(columns, messages, "no messages", "TEXT ROLE FROM DELIVERY SENT MESSAGE")]


_BEFORE_MARK: Final = 8
"""Characters of a hit before the found words, so that a narrow table shows these."""


@attrs.frozen
class _HitRow:
    """A hit of a search. The row number in the table selects its session."""

    id: str
    hit: SearchHit


def search_table(reply: SearchPage, now: datetime) -> list[Block]:
    """Return the hits of a search, with the found words emphasised."""
    columns = [
        Column("FOUND", lambda one: _found(one.hit), flexible=True),
        Column("IN", lambda one: one.hit.kind),
        Column("WHEN", lambda one: ago(one.hit.created_at, now), right=True),
        Column("TITLE", lambda one: one.hit.session_title, flexible=True),
        Column("SESSION", lambda one: one.hit.session_id),
        Column("EVENT", lambda one: f"{one.hit.seq}", right=True),
        Column("RUN", lambda one: one.hit.run_id),
    ]
    return [
        Table(
            columns,
            [_HitRow(hit.session_id, hit) for hit in reply.hits],
            "nothing found",
            "FOUND IN WHEN TITLE SESSION",
        )
    ]


def search_hints(reply: SearchPage) -> Iterator[str]:
    """Yield the commands that show the first hit."""
    if not reply.hits:
        return
    hit = reply.hits[0]
    yield f"the first one: agentctl events list {hit.session_id} --cursor {hit.seq - 1} --limit 20"
    if hit.run_id is not None:
        yield f"               agentctl run get {hit.run_id}"


def _found(hit: SearchHit) -> Text:
    text, marks = hit.snippet.text, hit.snippet.marks
    start = marks[0].start - _BEFORE_MARK if marks else 0
    if start <= 0:
        return Text(text, marks=tuple((one.start, one.end) for one in marks))
    start = text.find(" ", start, marks[0].start) + 1 or start
    moved = tuple((one.start - start + 1, one.end - start + 1) for one in marks)
    return Text("…" + text[start:], marks=moved)


def sent_line(reply: MessageReply | SpawnReply, _: datetime) -> list[Block]:
    line = f"message {reply.message.id}"
    if isinstance(reply, SpawnReply):
        line = f"session {reply.session.id}, {line}"
    if reply.run is not None:
        line += f", run {reply.run.id} {reply.run.status} for {reply.run.provider}"
    return [line]


# --- runs ---------------------------------------------------------------------------------------


def run_card(run: Run, now: datetime) -> list[Block]:
    usage = usage_parts(attrs.asdict(run.usage)) if run.usage is not None else []
    return [
        Card(
            Text(f"run {run.id}", "bold"),
            [
                ("status", state(run.status)),
                ("session", run.session_id),
                ("provider", run.provider),
                ("model", run.model),
                ("effort", run.effort),
                ("attempt", str(run.attempt) if run.attempt > 1 else None),
                ("worker", run.worker_id),
                ("thread", run.thread_id),
                ("waiting on", run.waiting_on),
                ("held by", _holder(run)),
                ("created", _when(run.created_at, now)),
                ("took" if run.finished_at else "going for", took(run, now)),
                ("used", " · ".join(usage)),
                ("exit code", None if run.exit_code is None else str(run.exit_code)),
                ("cancel", "requested" if run.cancel_requested_at else None),
            ],
        ),
        *outcome(run),
    ]


def _holder(run: Run) -> str | None:
    if run.holder is None or not run.is_held:
        return None
    return f"{run.holder.principal}, process {run.holder.pid}"


def outcome(run: Run) -> list[Block]:
    """Return a run's result or error."""
    if run.error is not None:
        return ["", Text(f"{run.error.code}: {run.error.message}", "red")]
    return ["", Markdown(run.result.text)] if run.result is not None and run.result.text else []


def ended(run: Run, now: datetime) -> list[Block]:
    """Return the status of a run on one line, and its outcome."""
    time = f" after {took(run, now)}" if run.finished_at and run.started_at else ""
    usage = usage_parts(attrs.asdict(run.usage)) if run.usage is not None else []
    line = " · ".join([f"run {run.id} {MARKS.get(run.status, '·')} {run.status}{time}", *usage])
    return [Text(line, STYLES.get(run.status, "")), *outcome(run)]


def run_table(runs: Sequence[Run], now: datetime) -> list[Block]:
    columns = [
        Column("RUN", lambda one: one.id),
        Column("STATUS", lambda one: state(one.status)),
        Column("PROVIDER", lambda one: one.provider),
        Column("CREATED", lambda one: ago(one.created_at, now), right=True),
        Column("TOOK", lambda one: took(one, now), right=True),
        Column("SESSION", lambda one: one.session_id),
        Column("OUTCOME", _outcome, flexible=True),
    ]
    return [Table(columns, runs, "no runs", "OUTCOME STATUS PROVIDER CREATED SESSION RUN")]


def canceled_line(reply: CancelReply, _: datetime) -> list[Block]:
    run = reply.run
    below = len(set(reply.canceled) - {run.id})
    also = counted(below, "descendant") if below else ""
    if run.id not in reply.canceled:
        line = f"run {run.id} had ended before: {run.status}"
        return [line + (f"; ended now: {also}" if also else "")]
    told = "is canceled" if run.status == "canceled" else "is being canceled"
    if run.id in reply.pending:
        told = "is to be canceled, but no worker of this daemon executes it: see run diagnose"
    return [f"run {run.id} {told}" + (f", with {also}" if also else "")]


def diagnosis(reply: DiagnosisReply, now: datetime) -> list[Block]:
    """Return a run's diagnosis: the likely issue first, then the evidence."""
    run, found = reply.run, reply.diagnostics
    issue, counts, started = found.likely_issue, found.queue_counts, found.agent_invocation
    worker = found.worker_id
    if worker and run.provider != MANUAL and run.finished_at is None:
        worker += " (alive)" if found.worker_alive else " (gone)"
    blocks: list[Block] = [
        Text(f"{issue.code}  {issue.message}", "green" if issue.code == "none" else "bold red")
    ]
    if issue.hint:
        blocks.append(Text(issue.hint, "bold"))
    position, pid = found.queue_position, found.active_pid
    blocks += [
        "",
        Card(
            Text(f"run {run.id}", "bold"),
            [
                ("status", state(run.status)),
                ("session", run.session_id),
                ("provider", run.provider),
                ("worker", worker),
                ("workers", f"{found.alive_workers} of {found.max_concurrency}"),
                ("queue", _counts(counts)),
                ("position", None if position is None else str(position)),
                ("blocked by", found.blocked_by_run_id),
                ("pid", None if pid is None else str(pid)),
                ("thread", found.thread_id),
                ("last event", _when(found.last_event_at, now)),
                ("last output", _when(found.last_output_at, now)),
                ("directory", started.cwd if started else None),
                ("command", shlex.join(started.argv) if started else None),
            ],
        ),
    ]
    if found.attempts:
        blocks += [
            "",
            Table(
                [
                    Column("ATTEMPT", lambda one: str(one.attempt)),
                    Column("PROVIDER", lambda one: one.provider),
                    Column("WORKER", lambda one: one.worker_id),
                    Column("PID", lambda one: "" if one.pid is None else str(one.pid)),
                    Column("STARTED", lambda one: ago(one.started_at, now)),
                    Column("OUTCOME", lambda one: state(one.outcome or "going on")),
                ],
                found.attempts,
            ),
        ]
    if found.process_tree:
        blocks += [
            "",
            Table(
                [
                    Column("PID", lambda one: str(one.pid), right=True),
                    Column("STATE", lambda one: one.status),
                    Column("PROCESS", lambda one: one.command, flexible=True),
                ],
                found.process_tree,
            ),
        ]
    if found.processes_unknown is not None:
        blocks += ["", Text(f"The processes are not known: {found.processes_unknown}", "yellow")]
    if found.stderr_tail.strip():
        tail = found.stderr_tail.rstrip().splitlines()[-20:]
        blocks += ["", Text("END OF STDERR", "dim"), *(f"  {line}" for line in tail)]
    return blocks


def _counts(counts: Any) -> str:
    return (
        f"{counts.queued_count} queued, {counts.running_count} running, "
        f"{counts.waiting_count} waiting"
    )


@attrs.frozen
class _Branch:
    id: str
    drawn: str
    tree: SessionTree


def tree_table(tree: SessionTree, now: datetime) -> list[Block]:
    """Return a tree, one session on a line, with the status of its active run, or else of its last run."""

    def drawn(parent: SessionTree, indent: str) -> Iterator[_Branch]:
        for number, child in enumerate(parent.children, 1):
            is_last = number == len(parent.children)
            yield _Branch(child.session.id, indent + ("└─ " if is_last else "├─ "), child)
            yield from drawn(child, indent + ("   " if is_last else "│  "))

    def latest(branch: SessionTree) -> Run | None:
        at_work = (RunStatus.RUNNING, RunStatus.WAITING)
        active = (run for run in branch.runs if run.status in at_work)
        return next(active, branch.runs[-1] if branch.runs else None)

    def status(branch: SessionTree) -> Text:
        run, closed = latest(branch), " (closed)" if branch.session.status == "closed" else ""
        if run is None:
            return Text(f"no run{closed}", "dim")
        error = f": {run.error.code}" if run.error is not None else ""
        text = f"{MARKS.get(run.status, '·')} {run.status}{error}{closed}"
        return Text(text, STYLES.get(run.status, ""))

    def since(branch: SessionTree) -> datetime:
        run = latest(branch)
        created = branch.session.created_at
        return (run.finished_at or run.started_at or run.created_at) if run else created

    columns = [
        Column("SESSION", lambda one: one.drawn + one.id),
        Column(
            "TREE",
            lambda one: one.drawn + (one.tree.session.title or "-"),
            flexible=True,
            only_on_terminal=True,
        ),
        Column("STATUS", lambda one: status(one.tree), flexible=True),
        Column("PROVIDER", lambda one: one.tree.session.provider or "(default)"),
        Column(
            "RUNS",
            lambda one: str(
                one.tree.runs_count if one.tree.runs_count is not None else len(one.tree.runs)
            ),
            right=True,
        ),
        Column("SINCE", lambda one: ago(since(one.tree), now), right=True),
        Column("ID", lambda one: one.id, only_on_terminal=True),
        Column("TITLE", lambda one: one.tree.session.title, flexible=True),
    ]
    return [
        Table(
            columns,
            [_Branch(tree.session.id, "", tree), *drawn(tree, "")],
            short="TREE STATUS PROVIDER SINCE ID",
        )
    ]


# --- access -------------------------------------------------------------------------------------


def grant_table(grants: Sequence[Grant], _: datetime) -> list[Block]:
    columns = [Column("ROLE", lambda one: one.role), Column("PRINCIPAL", lambda one: one.principal)]
    return [Table(columns, grants, "not shared")]


def token_card(created: NewToken, _: datetime) -> list[Block]:
    token = created.token
    return [
        Card(
            Text(f"token {token.id}", "bold"),
            [
                ("name", token.name),
                ("principal", token.principal),
                ("scopes", ", ".join(token.scopes)),
                ("ends", None if token.expires_at is None else clock(token.expires_at)),
                ("secret", Text(created.secret, "bold")),
                ("", "shown only once: store it where you set AGENTCTL_AUTH_TOKEN"),
            ],
        )
    ]


def _validity(token: AccessToken, now: datetime) -> Text:
    if token.revoked_at is not None:
        return Text("revoked", "red")
    if token.expires_at is None:
        return Text("good", "green")
    if token.expires_at <= now:
        return Text("expired", "red")
    return Text(f"valid, expires {ago(token.expires_at, now)}", "green")


def token_table(tokens: Sequence[AccessToken], now: datetime) -> list[Block]:
    return [
        Table(
            [
                Column("TOKEN", lambda one: one.id),
                Column("STATE", lambda one: _validity(one, now)),
                Column("KIND", lambda one: one.purpose),
                Column("PRINCIPAL", lambda one: one.principal),
                Column("SCOPES", lambda one: ",".join(one.scopes)),
                Column("USED", lambda one: _seen(one, now), right=True),
                Column("MADE", lambda one: ago(one.created_at, now), right=True),
                Column("NAME", lambda one: one.name, flexible=True),
            ],
            tokens,
            "no tokens",
            "NAME STATE USED PRINCIPAL SCOPES MADE TOKEN",
        )
    ]


def _seen(token: AccessToken, now: datetime) -> str:
    return "never" if token.seen_at is None else ago(token.seen_at, now)


def device_table(devices: Sequence[AccessToken], now: datetime) -> list[Block]:
    columns = [
        Column("DEVICE", lambda one: one.id),
        Column("STATE", lambda one: _validity(one, now)),
        Column("PRINCIPAL", lambda one: one.principal),
        Column("SCOPES", lambda one: ",".join(one.scopes)),
        Column("SEEN", lambda one: _seen(one, now), right=True),
        Column("ADDED", lambda one: ago(one.created_at, now), right=True),
        Column("NAME", lambda one: one.name, flexible=True),
    ]
    return [Table(columns, devices, "no devices", "NAME STATE SEEN PRINCIPAL SCOPES ADDED DEVICE")]


def invitation_card(reply: NewInvitation, url: str) -> list[Block]:
    ends = reply.device.expires_at
    return [
        Card(
            Text(f"code {reply.code[:4]}-{reply.code[4:]}", "bold"),
            [
                ("valid", "once" if ends is None else f"once, until {clock(ends)}"),
                ("address", url),
                ("principal", reply.device.principal),
                ("scopes", ", ".join(reply.device.scopes)),
            ],
        )
    ]


def audit_table(entries: Sequence[AuditEntry], _: datetime) -> list[Block]:
    def detail(entry: AuditEntry) -> Text:
        values = (f"{name}={value}" for name, value in entry.detail.items() if value)
        return Text(" ".join(values), fit=True)

    columns = [
        Column("SEQ", lambda one: str(one.seq), right=True),
        Column("WHEN", lambda one: clock(one.at)),
        Column("WHO", lambda one: one.principal),
        Column("BY TOKEN", lambda one: one.token),
        Column("DID", lambda one: one.operation),
        Column(
            "DECISION",
            lambda one: Text(one.decision, "" if one.decision == DONE else "red"),
        ),
        Column("ON", lambda one: one.target),
        Column("DETAIL", detail, flexible=True),
    ]
    return [Table(columns, entries, "no entries", "WHEN WHO DID DECISION ON DETAIL")]


# --- the daemon ---------------------------------------------------------------------------------


def daemon_overview(status: DaemonStatus, url: str) -> list[Block]:
    store = status.store
    blocks: list[Block] = [
        Card(
            Text(
                f"agentd {status.version} at {url}: {status.daemon_health}",
                STYLES.get(status.daemon_health, ""),
            ),
            [
                ("running", f"for {duration(status.uptime_s)}, pid {status.pid}"),
                ("as", None if status.user is None else f"{status.user} on {status.machine}"),
                ("workers", f"{status.alive_workers} of {status.max_concurrency} alive"),
                ("runs", _counts(status.queue_counts)),
                ("store", f"{store.backend} {store.path or ''}".rstrip()),
                ("", f"{counted(store.events, 'event')}, schema {store.schema_version}"),
            ],
        ),
        "",
    ]
    blocks.append(
        Table(
            [
                Column("PROVIDER", lambda one: Text(one.name, "bold")),
                Column(
                    "READY",
                    lambda one: Text("yes", "green") if one.available else Text("no", "red"),
                ),
                Column("VERSION", lambda one: one.version),
                Column("LOGIN", lambda one: _LOGIN[one.logged_in]),
                Column("RUNNER", lambda one: one.mode or one.runner),
                Column(
                    "NOTE",
                    lambda one: " ".join(
                        filter(None, ["(default)" if one.default else "", one.reason])
                    ),
                    flexible=True,
                ),
                Column("CAN", _abilities, flexible=True),
            ],
            status.providers,
            "no providers",
        )
    )
    if status.daemons:
        blocks += ["", _daemons_table(status)]
    for problem in status.problems:
        blocks += ["", Text(f"! {problem.code}: {problem.message}", "yellow")]
    return blocks


def _daemons_table(status: DaemonStatus) -> Table:
    return Table(
        [
            Column("DAEMON", lambda one: Text(one.id, "bold")),
            Column("HOST", lambda one: one.host or "(starting)", flexible=True),
            Column("LABELS", lambda one: ", ".join(one.labels), flexible=True),
            Column("RUNS", lambda one: f"{one.active_count} of {one.max_concurrency or '?'}"),
            Column("VERSION", lambda one: one.version, optional=True),
            Column("URL", lambda one: one.url, optional=True),
            Column("PROCESS", lambda one: f"{one.pid} on {one.node}", optional=True),
            Column("NOTE", partial(_daemon_note, status.daemon_id), flexible=True),
        ],
        status.daemons,
        "no daemons",
    )


def _daemon_note(own_id: str | None, daemon: DaemonView) -> str:
    notes = ["(this one)"] if daemon.id == own_id else []
    if daemon.draining:
        notes.append("draining")
    if daemon.away_since is not None:
        notes.append(f"away since {clock(daemon.away_since)}")
    if daemon.spawn_directory is not None:
        notes.append(f"spawn directory {daemon.spawn_directory}")
    return " ".join(notes)


def provider_cards(providers: Sequence[ProviderStatus]) -> list[Block]:
    blocks: list[Block] = []
    for provider in providers:
        ready = "yes" if provider.available else f"no: {provider.reason or 'for an unknown reason'}"
        blocks += [
            "",
            Card(
                Text(provider.name + (" (default)" if provider.default else ""), "bold"),
                [
                    ("ready", Text(ready, "green" if provider.available else "red")),
                    ("version", provider.version),
                    ("login", _LOGIN[provider.logged_in]),
                    ("runner", provider.mode or provider.runner),
                    ("can", _abilities(provider)),
                ],
            ),
        ]
    return blocks[1:] or ["no providers"]


_LOGIN: Final[Mapping[bool | None, str]] = {True: "yes", False: "no", None: ""}


def _abilities(provider: ProviderStatus) -> str:
    abilities = attrs.asdict(provider.capabilities, recurse=False)
    return ", ".join(name for name, value in abilities.items() if value is True)


def checked_lines(reply: CheckReply, _: datetime) -> list[Block]:
    counts = [(reply.sessions, "session"), (reply.runs, "run"), (reply.events, "event")]
    looked = ", ".join(counted(number, noun) for number, noun in counts)
    return [*reply.findings, f"{looked}: {'no problems' if reply.ok else 'problems found'}"]


_LEVELS: Final = {
    "error": ("✗", "bold red"),
    "warning": ("!", "yellow"),
    "note": ("·", "dim"),
    "ok": ("✓", "green"),
}


def findings_list(findings: Sequence[Finding]) -> list[Block]:
    """Return all findings with their hints, most severe first."""
    blocks: list[Block] = []
    for level, (mark, style) in _LEVELS.items():
        for finding in findings:
            if finding.level == level:
                blocks.append(Text(f"{mark} {finding.about}: {finding.message}", style))
                if finding.hint:
                    blocks.append(Text(f"  → {finding.hint}", "dim"))
    return blocks or [Text("no findings", "dim")]
