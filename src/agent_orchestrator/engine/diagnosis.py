"""The status of the engine, and the diagnosis of a run from evidence."""

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import anyio
import anyio.to_thread
from attrs import evolve, fields_dict, frozen

from agent_orchestrator.domain.access import Action, Principal
from agent_orchestrator.domain.daemons import DaemonRecord, HostRecord
from agent_orchestrator.domain.errors import Unavailable
from agent_orchestrator.domain.lifecycle import ACTIVE, RunStatus, is_terminal
from agent_orchestrator.domain.model import MANUAL, Attempt, Request, Run, RunError
from agent_orchestrator.engine import run_changes
from agent_orchestrator.engine.access import forbid_runs, require_active, run_for
from agent_orchestrator.engine.config import EngineConfig, ProviderConfig
from agent_orchestrator.engine.core import Core
from agent_orchestrator.engine.daemons import (
    absent_host,
    clock_problems,
    daemon_of,
    has_provider,
    workers_elsewhere,
)
from agent_orchestrator.engine.inquiries import processes_elsewhere, processes_here
from agent_orchestrator.engine.providers import probe
from agent_orchestrator.engine.timing import SILENCE_LIMIT
from agent_orchestrator.operations.daemon import (
    DaemonStatus,
    DaemonView,
    GetStatus,
    HostView,
    Problem,
    ProviderRuns,
    ProviderStatus,
    StoreStatus,
)
from agent_orchestrator.operations.runs import (
    AttemptView,
    DiagnoseRun,
    DiagnosisReply,
    Diagnostics,
    InvocationView,
    Issue,
    IssueCode,
    ProcessView,
    QueueCounts,
)
from agent_orchestrator.ports.queries import View
from agent_orchestrator.ports.runner import (
    CANNOT_ASK,
    CWD_MISSING,
    Availability,
    Diagnosing,
    capabilities_of,
)

SILENCE_S = 120.0
"""Seconds without output after which a running agent counts as silent."""

logger = logging.getLogger("agent_orchestrator.providers")


async def status(core: Core, caller: Principal, command: GetStatus) -> DaemonStatus:
    """Return the status of the engine. All callers except agents may read it."""
    forbid_runs(caller)

    def query(
        view: View,
    ) -> tuple[dict[str, dict[RunStatus, int]], int, list[DaemonRecord], list[HostRecord]]:
        require_active(view, caller)
        daemons = [*view.daemons(), *view.lost_daemons()]
        return view.live_runs(), view.event_count(), daemons, view.hosts()

    unread: list[Problem] = []
    daemons: list[DaemonRecord] = []
    hosts: list[HostRecord] = []
    running: dict[str, dict[RunStatus, int]] = {}
    events = 0
    try:
        running, events, daemons, hosts = await core.store.read(query)
    except Unavailable as error:
        if "problem" not in error.details:
            raise
        # A status request reports the store's fault instead of failing.
        text = f"queue_counts, runs and store.events are unknown: {error.message}"
        unread.append(Problem("counts_unknown", text))
    providers = await provider_statuses(core.config)
    problems = [
        *await core.store.problems(),
        *([] if core.recovery_problem is None else [core.recovery_problem]),
        *unread,
        *clock_problems(daemons),
        *(
            Problem("provider_unavailable", f"{provider.name}: {provider.reason}")
            for provider in providers
            if provider.default and not provider.available
        ),
    ]
    warnings = await anyio.to_thread.run_sync(_unprotected, core.config)
    return DaemonStatus(
        daemon_health="draining" if core.draining else "degraded" if problems else "ok",
        version=core.config.version,
        pid=core.process,
        process_start_id=core.config.host.process_start_id(core.process),
        # Not negative, because the clock may be set back.
        uptime_s=max(0.0, round((core.config.clock() - core.started_at).total_seconds(), 3)),
        started_at=core.started_at,
        alive_workers=core.workers.alive_workers,
        max_concurrency=core.config.max_concurrency,
        queue_counts=_counts(running),
        runs=tuple(_provider_runs(name, running[name]) for name in sorted(running)),
        providers=tuple(providers),
        store=StoreStatus(
            core.store.backend, core.store.location, core.store.schema_version, events
        ),
        problems=(*problems, *warnings, *_away(hosts)),
        daemons=tuple(map(_daemon_view, daemons)),
        daemon_id=core.instance,
        host=core.config.host.id,
        hosts=tuple(HostView(one.name, one.away_since, one.waiting_runs) for one in hosts),
        machine=core.config.host.hostname(),
        user=await anyio.to_thread.run_sync(core.config.host.user),
        page=core.config.notify.link_base,
        cwd=core.config.cwd,
    )


def _daemon_view(daemon: DaemonRecord) -> DaemonView:
    profile = daemon.profile
    return DaemonView(
        id=daemon.id,
        node=daemon.node,
        pid=daemon.pid,
        started_at=daemon.started_at,
        expires_at=daemon.expires_at,
        version=None if profile is None else profile.version,
        url=None if profile is None else profile.url,
        max_concurrency=None if profile is None else profile.capacity,
        providers=() if profile is None else profile.providers,
        active_count=daemon.active_runs,
        clock_offset_s=daemon.clock_offset_s,
        away_since=daemon.away_since,
        host=None if profile is None else profile.host,
        labels=() if profile is None else profile.labels,
        draining=profile is not None and profile.draining,
        spawn_directory=None if profile is None else profile.spawn_directory,
    )


def _away(hosts: Sequence[HostRecord]) -> list[Problem]:
    """Return the hosts that runs wait for. This daemon is well, so they do not make it degraded."""
    return [
        Problem(
            "host_away",
            f"{host.waiting_runs} runs wait for the host {host.name}, which no daemon serves{_since(host)}",
        )
        for host in hosts
        if host.waiting_runs and host.away_since is not None
    ]


def _unprotected(config: EngineConfig) -> list[Problem]:
    """Return a warning about agents without a sandbox. It does not make the daemon degraded."""
    names = [
        name
        for name, provider in config.providers.items()
        if not capabilities_of(provider.runner).protect
    ]
    if not names or not config.protected(config.cwd):
        return []
    text = (
        f"agents of {', '.join(names)} have no sandbox: they can change agentd's configuration, "
        "database and log, and read its tokens"
    )
    return [Problem("agents_unconfined", text)]


async def provider_statuses(config: EngineConfig) -> list[ProviderStatus]:
    """Return the status of each provider: whether it would work now."""
    availabilities: dict[str, Availability] = {}

    async def check(name: str) -> None:
        provider = config.providers[name]
        env = config.agent_env(provider)
        availabilities[name] = await probe(provider.runner, env, config.host)

    async with anyio.create_task_group() as tasks:
        for name in config.providers:
            tasks.start_soon(check, name)
    return [
        ProviderStatus(
            name,
            provider.kind,
            availabilities[name].available,
            availabilities[name].reason,
            availabilities[name].version,
            default=name == config.routing.default,
            mode=availabilities[name].mode,
            logged_in=availabilities[name].logged_in,
            capabilities=availabilities[name].capabilities or capabilities_of(provider.runner),
            model=provider.model,
            approvals=provider.approvals,
        )
        for name, provider in config.providers.items()
    ]


_COUNTED: Final = (RunStatus.QUEUED, RunStatus.RUNNING, RunStatus.WAITING)


def _counts(running: Mapping[str, Mapping[RunStatus, int]]) -> QueueCounts:
    return QueueCounts(
        *(sum(counts.get(status, 0) for counts in running.values()) for status in _COUNTED)
    )


def _provider_runs(name: str, counts: Mapping[RunStatus, int]) -> ProviderRuns:
    return ProviderRuns(name, *(counts.get(status, 0) for status in _COUNTED))


async def diagnose(core: Core, caller: Principal, command: DiagnoseRun) -> DiagnosisReply:
    """Return a run's diagnostics, with the most likely reason for its state."""
    facts = await core.store.read(lambda view: _facts(core, view, caller, command.run_id))
    run = facts.run
    attempt = facts.attempts[-1] if facts.attempts else None
    tree, processes_unknown = await _process_tree(core, facts, attempt)
    provider = core.config.providers.get(run.provider)
    availability = (
        await probe(provider.runner, core.config.agent_env(provider), core.config.host)
        if provider
        and facts.is_here
        and (run.status is RunStatus.QUEUED or _failed_with(run, "auth_failed"))
        else Availability(available=True)
    )
    is_here = run.worker_id is not None and run.id in core.workers.running
    worker_alive = is_here or facts.daemon is not None
    issue = _runner_issue(run, provider) or _issue(
        core, facts, availability, worker_alive, bool(tree) or processes_unknown is not None
    )
    if _failed_with(run, "auth_failed") and availability.logged_in:
        issue = evolve(
            issue,
            code="login_stale",
            message=f"{issue.message} (the agent has a login, but its provider refused it)",
        )
    if _may_wait_for_the_store(run, issue) and (fault := await _store_fault(core)) is not None:
        hint = "see `agentctl daemon status`; the run continues when the store works again"
        issue = Issue(
            "unknown", f"the store accepts no writes: {fault.code}: {fault.message}", hint
        )
    return DiagnosisReply(
        run,
        Diagnostics(
            worker_id=run.worker_id,
            worker_alive=worker_alive,
            alive_workers=core.workers.alive_workers,
            max_concurrency=core.config.max_concurrency,
            queue_counts=facts.counts,
            queue_position=facts.position,
            likely_issue=issue,
            active_pid=tree[0].pid if tree else None,
            process_tree=tree,
            processes_unknown=processes_unknown,
            last_event_at=facts.last_event_at,
            last_output_at=facts.last_output_at,
            blocked_by_run_id=facts.blocked_by.id if facts.blocked_by else None,
            pending_request=facts.request,
            thread_id=run.thread_id,
            attempts=tuple(_attempt_view(attempt) for attempt in facts.attempts),
            stderr_tail=attempt.stderr_tail if attempt else "",
            **_invocation(provider, attempt),
        ),
    )


def _failed_with(run: Run, code: str) -> bool:
    return run.status is RunStatus.FAILED and run.error is not None and run.error.code == code


@frozen
class _Facts:
    run: Run
    counts: QueueCounts
    position: int | None
    blocked_by: Run | None
    attempts: Sequence[Attempt]
    last_event_at: datetime | None
    last_output_at: datetime | None
    request: Request | None
    daemon: DaemonRecord | None
    """Another daemon that executes the run."""
    is_provided: bool
    """False if no daemon has the run's provider."""
    other_workers: int
    """Number of the workers of other daemons that may start the run. Counted for queued runs only."""
    other_busy: int
    """Number of those that execute a run."""
    is_here: bool
    """Whether this engine serves the run's host."""
    absent_host: HostRecord | None
    """The run's host, if no daemon serves it."""

    def silent_s(self, until: datetime) -> float:
        """Return the seconds since its agent's last output."""
        last = max(filter(None, (self.last_output_at, self.run.started_at)), default=until)
        return (until - last).total_seconds()


def _facts(core: Core, view: View, caller: Principal, run_id: str) -> _Facts:
    run, session = run_for(view, caller, Action.READ, run_id)
    daemon = daemon_of(view, run)
    attempts = view.attempts(run_id)
    host = session.host
    if run.status in ACTIVE and attempts and attempts[-1].host is not None:
        host = attempts[-1].host
    other_workers, other_busy = 0, 0
    if run.status is RunStatus.QUEUED:
        other_workers, other_busy = workers_elsewhere(core, view, run.provider, host)
    # A run waits for the workers of its host only. Without other daemons, all runs are of this one.
    queue_host = None if core.store.lease is None else host
    return _Facts(
        run,
        _counts(view.live_runs()),
        None if run.provider == MANUAL else view.queue_position(run, host=queue_host),
        view.queued_before(run) if run.status is RunStatus.QUEUED else None,
        attempts,
        view.last_event_at(run),
        view.last_output_at(run),
        view.request(run.waiting_on) if run.waiting_on else None,
        None if daemon is None or daemon.id == core.instance else daemon,
        core.store.lease is None
        or run.provider == MANUAL
        or has_provider(view, run.provider, host),
        other_workers,
        other_busy,
        core.is_here(host),
        absent_host(core, view, host),
    )


_STORE_FAULTS: Final = frozenset(
    {
        "disk_full",
        "disk_error",
        "database_read_only",
        "database_locked",
        "database_damaged",
        "commits_lost",
        "database_unreachable",
        "database_failed",
        "lease_lost",
    }
)
"""Problems of a store that prevent writes."""

_FAILURES: Final[dict[str, tuple[IssueCode, str]]] = {
    "auth_failed": (
        "auth_failed",
        "log the agent in again, or set the key that its provider reads",
    ),
    "rate_limited": ("rate_limited", "wait, or lower max_concurrency"),
    "quota_exhausted": ("quota_exhausted", "wait for the quota to renew, or use another provider"),
    "context_exceeded": (
        "unknown",
        "the conversation is too long for the model: start a new session",
    ),
    "provider_error": (
        "unknown",
        "read the message and the end of standard error; sending it again may help",
    ),
    "provider_unreachable": (
        "provider_unavailable",
        "check the network and the provider's address",
    ),
    "provider_unavailable": (
        "provider_unavailable",
        "see the provider in `agentctl daemon status`",
    ),
    "invalid_config": ("invalid_config", "correct the provider's settings; see the invocation"),
    "thread_missing": ("thread_missing", "start a session"),
    "agent_crashed": ("crashed", "see the end of standard error and the exit code"),
    "timeout": ("unknown", "allow more time, or make the task smaller"),
    "worker_lost": ("worker_lost", "send the message again"),
    "denied": ("unknown", "a request of the agent was denied"),
}

_SILENT_FAILURES: Final = {
    "provider_error": "sending the message again may help",
    "agent_crashed": "it wrote nothing to standard error: see the exit code and the agent's last output",
}
"""Hints for agents that wrote nothing to standard error."""


def _runner_issue(run: Run, provider: ProviderConfig | None) -> Issue | None:
    """Return the likely issue of a failed run from its runner's diagnosis; None without one."""
    if provider is None or run.status is not RunStatus.FAILED or run.error is None:
        return None
    runner = provider.runner
    try:
        return runner.diagnose(run.error) if isinstance(runner, Diagnosing) else None
    except Exception:
        logger.exception("diagnosing a run of %s failed", run.provider)
        return None


def _failure(run: Run, error: RunError, attempts: Sequence[Attempt]) -> Issue:
    code, hint = _FAILURES.get(error.code, ("unknown", "see the run's events"))
    if not (attempts and attempts[-1].stderr_tail.strip()):
        hint = _SILENT_FAILURES.get(error.code, hint)
    if error.code == "timeout" and error.message.endswith(SILENCE_LIMIT):
        code = "agent_silent"
    if error.code == "invalid_config" and error.message.startswith(CWD_MISSING):
        code = "cwd_missing"
        hint = (
            f"create the directory again, or use `agentctl session move {run.session_id} DIR`; then send "
            "the message again"
        )
    if error.message.startswith(CANNOT_ASK):
        code, hint = "agent_cannot_ask", "install another version of the agent"
    return Issue(code, f"{error.code}: {error.message}", hint)


def _issue(
    core: Core, facts: _Facts, availability: Availability, worker_alive: bool, has_process: bool
) -> Issue:
    run = facts.run
    if run.status is RunStatus.FAILED and run.error is not None:
        return _failure(run, run.error, facts.attempts)
    if run.status is RunStatus.CANCELED:
        requested_at = run.cancel_requested_at
        since = "" if requested_at is None else f"; requested at {_format_time(requested_at)}"
        return Issue("canceled", f"canceled{since}", "")
    if is_terminal(run.status):
        return Issue("none", f"the run is {run.status}", "")
    if run.status is RunStatus.QUEUED:
        return _queue_issue(core, facts, availability)
    if run.cancel_requested_at is not None and run.worker_id is not None and not worker_alive:
        return _lost_issue(core, facts)
    if run.is_held:
        return Issue(
            "held",
            run_changes.state_of(run),
            "leave that program; or cancel the run, which does not end the program",
        )
    if run.status is RunStatus.WAITING:
        return Issue(
            "waiting_on_request",
            f"the run waits for an answer to {run.waiting_on}",
            "answer the request",
        )
    if run.provider == MANUAL:
        return Issue(
            "none", "the run is manual: its owner drives it with `agentctl run transition`", ""
        )
    return _running_issue(core, facts, worker_alive, has_process)


def _format_time(moment: datetime) -> str:
    """Return a time in UTC for people: RFC 3339, whole seconds."""
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def _may_wait_for_the_store(run: Run, issue: Issue) -> bool:
    """Return whether a fault of the store may delay a run: its start or its end cannot be recorded."""
    if run.provider == MANUAL or is_terminal(run.status):
        return False
    about_to_start = run.status is RunStatus.QUEUED and issue.code == "none"
    return about_to_start or issue.code in ("agent_exited", "agent_silent", "canceled")


async def _store_fault(core: Core) -> Problem | None:
    return next(
        (problem for problem in await core.store.problems() if problem.code in _STORE_FAULTS), None
    )


def _queue_issue(core: Core, facts: _Facts, availability: Availability) -> Issue:
    run = facts.run
    if facts.blocked_by is not None:
        blocker = facts.blocked_by
        return Issue(
            "queued_behind_run",
            run_changes.state_of(blocker),
            f"wait for it, or cancel it: agentctl run cancel --run-id {blocker.id}",
        )
    if run.provider == MANUAL:
        return Issue(
            "none", "the run is manual and waits for its owner to start it", "use run transition"
        )
    if facts.absent_host is not None:
        return _away_issue("the run waits for", facts.absent_host)
    if not facts.is_provided:
        where = "" if facts.is_here else " of the run's host"
        text = f"no daemon{where} has the provider {run.provider}"
        return Issue("provider_unavailable", text, "start a daemon that has it; the run waits")
    starts_here = facts.is_here and (
        core.store.lease is None or run.provider in core.config.providers
    )
    own_workers = core.workers.alive_workers if starts_here else 0
    workers = own_workers + facts.other_workers
    if not workers:
        return Issue("no_workers", "no worker starts runs now", "start the daemon again")
    if not availability.available:
        return Issue("provider_unavailable", str(availability.reason), "see the provider's reason")
    busy = (core.workers.busy_workers if own_workers else 0) + facts.other_busy
    if busy >= workers:
        return Issue(
            "queued_no_capacity",
            f"all {workers} workers are busy; the run is number {facts.position} in the queue",
            "wait, or raise max_concurrency",
        )
    return Issue("none", "a worker is about to start the run", "")


def _running_issue(core: Core, facts: _Facts, worker_alive: bool, has_process: bool) -> Issue:
    if not worker_alive:
        return _lost_issue(core, facts)
    if facts.run.cancel_requested_at is not None:
        return Issue(
            "canceled",
            f"a cancel was requested at {_format_time(facts.run.cancel_requested_at)}; the agent is "
            "being stopped",
            "the agent is killed when its time to stop is over",
        )
    attempt = facts.attempts[-1] if facts.attempts else None
    if attempt is not None and attempt.pid is not None and not has_process:
        return Issue(
            "agent_exited", f"the agent's process {attempt.pid} is gone; the run is ending", ""
        )
    silent_s = facts.silent_s(core.now())
    if silent_s > SILENCE_S:
        return Issue(
            "agent_silent",
            f"the agent has had no output for {silent_s:.0f} s",
            f"check the process tree, or cancel the run: agentctl run cancel --run-id {facts.run.id}",
        )
    return Issue("none", "the agent is working", "")


def _lost_issue(core: Core, facts: _Facts) -> Issue:
    """Return the issue of an active run that no worker of this engine executes."""
    run, host = facts.run, _other_host(core, facts.attempts[-1] if facts.attempts else None)
    issue = Issue(
        "worker_lost",
        f"the worker {run.worker_id} is not in this daemon",
        "restart the daemon",
    )
    if facts.absent_host is not None:
        issue = _away_issue("its agent may still be on", facts.absent_host)
    elif host is not None:
        issue = Issue(
            "worker_lost",
            f"its agent is on host {host}, and this is host {core.config.host.id}",
            f"a daemon of host {host} takes the run over: start one on this database if there is none",
        )
    if run.cancel_requested_at is not None:
        requested_at = _format_time(run.cancel_requested_at)
        waits = f"; the cancel of {requested_at} waits until its processes are known to be gone"
        issue = evolve(issue, message=issue.message + waits)
    return issue


def _away_issue(relation: str, host: HostRecord) -> Issue:
    """Return the issue of a run whose host no daemon serves."""
    return Issue(
        "host_away",
        f"{relation} the host {host.name}, which no daemon serves{_since(host)}",
        f"start agentd on {host.name}; or cancel what runs and move the session to another host",
    )


def _since(host: HostRecord) -> str:
    return "" if host.away_since is None else f" since {_format_time(host.away_since)}"


def _other_host(core: Core, attempt: Attempt | None) -> str | None:
    """Return the host of an attempt if it is not this engine's."""
    if attempt is None or attempt.host in (None, core.config.host.id):
        return None
    return attempt.host


async def _process_tree(
    core: Core, facts: _Facts, attempt: Attempt | None
) -> tuple[tuple[ProcessView, ...], str | None]:
    """Return the processes of a run's agent, and why they are not known; None if they are."""
    if facts.run.status not in ACTIVE or attempt is None or attempt.pid is None:
        return (), None
    if (host := _other_host(core, attempt)) is None:
        return await processes_here(core, attempt), None
    if facts.daemon is None:
        return (), f"they are on host {host}, and its daemon has ended"
    return await processes_elsewhere(core, facts.daemon, attempt)


_INVOCATION: Final = "invocation"


def _invocation(provider: ProviderConfig | None, attempt: Attempt | None) -> dict[str, Any]:
    """Return the invocation of an agent, as the field of the diagnostics for its kind of runner."""
    if attempt is None or (invocation := attempt.invocation) is None:
        return {}
    kind = provider.kind.partition("-")[0] if provider else ""
    field_name = f"{kind}_{_INVOCATION}"
    view = InvocationView(
        invocation.command,
        invocation.profile,
        invocation.extra_args,
        invocation.argv,
        invocation.cwd,
    )
    return {field_name if field_name in fields_dict(Diagnostics) else _INVOCATION: view}


def _attempt_view(attempt: Attempt) -> AttemptView:
    return AttemptView(
        attempt.attempt,
        attempt.worker_id,
        attempt.provider,
        attempt.started_at,
        attempt.ended_at,
        attempt.outcome,
        attempt.pid,
        attempt.delivered_at,
        attempt.host,
    )
