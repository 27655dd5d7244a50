"""The metrics of ``GET /metrics``: counters, and values that are read at each request."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import psutil
from attrs import define, field

from agent_orchestrator.domain.lifecycle import is_terminal
from agent_orchestrator.domain.model import Run, Session
from agent_orchestrator.operations.daemon import DaemonStatus, DaemonView, ProviderRuns
from agentd.exposition import Histogram, Labels, MetricFamily, counter, gauge, gauges, render

_HTTP_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_QUEUE_S: Final = (0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 600, 1800, 3600)
_RUN_S: Final = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200)
_COMMIT_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)

_STATES: Final = ("queued", "running", "waiting")
_TOKENS: Final = ("input", "cached_input", "output")


@define(eq=False)
class Metrics:
    """An :class:`~agent_orchestrator.ports.observer.Observer` of the engine that also counts requests and commits.

    It keeps sums only, so its cost does not grow.

    :param db: the database, for its size.
    """

    db: Path | None = None
    streams: int = 0
    """Open streams."""
    _requests: Histogram = field(
        factory=lambda: Histogram(
            "agentd_http_request_duration_seconds",
            "Seconds from a request to its answer, by route; for a stream, to its start.",
            _HTTP_S,
            ("method", "route", "status"),
        )
    )
    _streamed: MetricFamily = field(
        factory=lambda: MetricFamily(
            "agentd_stream_items_total",
            "Events sent to readers of streams.",
            "counter",
            (),
            {(): 0},
        )
    )
    _queued: Histogram = field(
        factory=lambda: Histogram(
            "agentd_run_queue_seconds",
            "Seconds from a run's creation to the start of its first attempt.",
            _QUEUE_S,
            ("provider",),
        )
    )
    _durations: Histogram = field(
        factory=lambda: Histogram(
            "agentd_run_duration_seconds",
            "Seconds from the first start of a run that a worker executed to its end.",
            _RUN_S,
            ("provider", "status"),
        )
    )
    _attempts: MetricFamily = field(
        factory=lambda: MetricFamily(
            "agentd_attempts_total",
            "Ended attempts, by the state of their run after them.",
            "counter",
            ("provider", "left"),
        )
    )
    _failures: MetricFamily = field(
        factory=lambda: MetricFamily(
            "agentd_run_failures_total",
            "Runs that failed, by error code.",
            "counter",
            ("provider", "code"),
        )
    )
    _tokens: MetricFamily = field(
        factory=lambda: MetricFamily(
            "agentd_run_tokens_total",
            "Tokens used by runs that have ended; cached_input is a part of input.",
            "counter",
            ("provider", "type"),
        )
    )
    _commits: Histogram = field(
        factory=lambda: Histogram(
            "agentd_store_commit_duration_seconds", "Seconds a commit took.", _COMMIT_S
        )
    )
    _changes: int = 0

    # --- counters -----------------------------------------------------------------------------

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests.observe(seconds, method, route, str(status))

    def streamed(self, items: int) -> None:
        """Count the events sent to a reader of a stream."""
        self._streamed.values[()] += items

    def committed(self, changes: int, seconds: float) -> None:
        """Count a commit. Called by the store's writer thread only."""
        self._commits.observe(seconds)
        self._changes += changes

    def started(self, run: Run, session: Session) -> None:  # noqa: ARG002
        """Count the queue time of a run at its first attempt."""
        if run.attempt == 1 and run.started_at is not None:
            waited = (run.started_at - run.created_at).total_seconds()
            self._queued.observe(
                max(waited, 0.0), run.provider
            )  # negative if the clock was set back

    def emitted(self, run: Run, event_type: str, data: Mapping[str, Any]) -> None:
        """Count nothing: the status has the number of events."""

    def ended(self, run: Run, after: Run | None) -> None:
        """Count an attempt, and its run if that has ended too."""
        if after is None:
            self._attempts.add(run.provider, "unknown")
            return
        self._attempts.add(after.provider, str(after.status))
        if not is_terminal(after.status):
            return
        if after.started_at is not None and after.finished_at is not None:
            took = (after.finished_at - after.started_at).total_seconds()
            self._durations.observe(max(took, 0.0), after.provider, str(after.status))
        if after.error is not None:
            self._failures.add(after.provider, after.error.code)
        if after.usage is not None:
            for kind in _TOKENS:
                amount = getattr(after.usage, f"{kind}_tokens")
                if amount:
                    self._tokens.add(after.provider, kind, amount=amount)

    # --- the document -------------------------------------------------------------------------

    def document(self, status: DaemonStatus) -> str:
        """Return all metrics as text. Reads the process's statistics and the sizes of files."""
        return render(
            (
                *_status_metrics(status),
                self._queued,
                self._durations,
                self._attempts,
                self._failures,
                self._tokens,
                self._requests,
                gauge("agentd_streams", "Open streams.", self.streams),
                self._streamed,
                counter("agentd_store_changes_total", "Changes committed.", self._changes),
                self._commits,
                gauge("agentd_store_size_bytes", "Bytes of the database's files.", self._size()),
                *_process_metrics(status),
            )
        )

    def _size(self) -> int:
        if self.db is None:
            return 0
        size = 0
        for name in (str(self.db), f"{self.db}-wal", f"{self.db}-shm"):
            try:
                size += os.stat(name).st_size  # noqa: PTH116 - one call, no object
            except OSError:
                continue
        return size


def _status_metrics(status: DaemonStatus) -> Iterator[MetricFamily]:
    runs: dict[Labels, float] = {
        (run_counts.provider, state): float(_count(run_counts, state))
        for run_counts in status.runs
        for state in _STATES
    }
    for provider in status.providers:
        for state in _STATES:
            runs.setdefault((provider.name, state), 0.0)
    yield gauges(
        "agentd_info", "The version of the daemon.", ("version",), {(status.version,): 1.0}
    )
    yield gauge("agentd_uptime_seconds", "Seconds since the start.", status.uptime_s)
    yield gauges(
        "agentd_health",
        "1 for the state the daemon is in.",
        ("state",),
        {
            (state,): float(state == status.daemon_health)
            for state in ("ok", "degraded", "draining")
        },
    )
    yield gauges(
        "agentd_problems",
        "Present problems, by code.",
        ("code",),
        {
            (code,): float(sum(problem.code == code for problem in status.problems))
            for code in {problem.code for problem in status.problems}
        },
    )
    yield gauge("agentd_workers", "Workers alive.", status.alive_workers)
    yield gauge(
        "agentd_workers_limit",
        "Maximum number of runs executed at the same time.",
        status.max_concurrency,
    )
    yield gauge(
        "agentd_queue_length", "Runs that wait for a worker.", status.queue_counts.queued_count
    )
    yield gauges("agentd_runs", "Runs that have not ended.", ("provider", "status"), runs)
    yield gauges(
        "agentd_provider_available",
        "1 if an agent could be started now.",
        ("provider",),
        {(provider.name,): float(provider.available) for provider in status.providers},
    )
    yield counter("agentd_store_events_total", "Events in the log.", status.store.events)
    if status.daemons:
        yield from _daemon_metrics(status.daemons)


def _daemon_metrics(daemons: Sequence[DaemonView]) -> Iterator[MetricFamily]:
    """Yield the metrics of all daemons of the database. They come from their rows: none of them is asked."""

    def of_each(name: str, text: str, value: Callable[[DaemonView], float | None]) -> MetricFamily:
        values: dict[Labels, float] = {
            (daemon.id, daemon.node, daemon.url or ""): number
            for daemon in daemons
            if (number := value(daemon)) is not None
        }
        return gauges(name, text, ("daemon", "node", "url"), values)

    yield of_each(
        "agentd_daemon_up",
        "1 if the daemon sends heartbeats to the database, 0 if it is away.",
        lambda daemon: float(daemon.away_since is None),
    )
    yield of_each(
        "agentd_daemon_away_since_seconds",
        "The last heartbeat of a daemon that is away.",
        lambda daemon: None if daemon.away_since is None else daemon.away_since.timestamp(),
    )
    yield of_each(
        "agentd_daemon_active_runs",
        "Its runs that are running, or wait with an agent.",
        lambda daemon: daemon.active_count,
    )
    yield of_each(
        "agentd_daemon_workers_limit",
        "Maximum number of runs that it executes at the same time.",
        lambda daemon: daemon.max_concurrency,
    )
    yield of_each(
        "agentd_daemon_clock_offset_seconds",
        "Seconds that its clock is ahead of the database's.",
        lambda daemon: daemon.clock_offset_s,
    )


def _count(runs: ProviderRuns, state: str) -> int:
    count: int = getattr(runs, f"{state}_count")
    return count


def _process_metrics(status: DaemonStatus) -> Iterator[MetricFamily]:
    """Yield the metrics of this process, with the names that Prometheus clients use."""
    process = psutil.Process()
    with process.oneshot():
        times, memory = process.cpu_times(), process.memory_info()
    yield counter(
        "process_cpu_seconds_total", "Seconds of processor time.", times.user + times.system
    )
    yield gauge("process_resident_memory_bytes", "Bytes of memory.", memory.rss)
    yield gauge("process_open_fds", "Open files.", process.num_fds())
    yield gauge("process_start_time_seconds", "When it started.", status.started_at.timestamp())
