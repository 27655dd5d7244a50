"""Recovery of the runs that were active when an engine ended unexpectedly.

At the start, the processes of their attempts are ended. A run is changed only once all of them are
confirmed gone. Then one of these actions follows, which ``run.recovered`` records with its reason:

============  ======================================================================================
``canceled``  its cancel had been requested
``parked``    it waits for an answer, and continues to wait
``queued``    its agent had not got the message: the next attempt delivers it
``resumed``   its agent had the message: the next attempt resumes its conversation
``failed``    its agent had the message and cannot resume, or too many engines were lost with the run
============  ======================================================================================
"""

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Final, Literal

import anyio
from attrs import evolve, frozen

from agent_orchestrator.configuration import MAX_ATTEMPTS
from agent_orchestrator.domain.events import EventType
from agent_orchestrator.domain.lifecycle import ACTIVE, RunStatus, Signal
from agent_orchestrator.domain.model import Attempt, Message, Run, RunError, Source
from agent_orchestrator.engine import questions, run_changes, steering, transitions
from agent_orchestrator.engine.core import Core
from agent_orchestrator.engine.daemons import has_provider
from agent_orchestrator.engine.persistence import read_with_retry, transact_with_retry
from agent_orchestrator.host import ReapResult
from agent_orchestrator.operations.daemon import Problem
from agent_orchestrator.ports.changes import Transaction
from agent_orchestrator.ports.queries import RunQueries, View
from agent_orchestrator.ports.runner import capabilities_of
from agent_orchestrator.ports.store import DAEMONS_TOPIC

logger = logging.getLogger("agent_orchestrator.recovery")

LOST_OUTCOME: Final = "worker_lost"
"""The outcome of an attempt whose engine was lost."""

PARKED_OUTCOME: Final = "parking"
"""The outcome of an attempt while its agent is being stopped to park the run."""

BATCH: Final = 50
"""Maximum number of runs recovered in a commit, because other changes wait for it."""

RETRY_S: Final = 5.0
"""Seconds until the next try. They double with each failure."""

LONGEST_RETRY_S: Final = 60.0
"""Maximum seconds until the next try."""

SHARED_PAUSE_S: Final = 10.0
"""Maximum seconds until the next look for lost runs of other daemons, whose end is notified."""

Action = Literal["canceled", "parked", "queued", "resumed", "failed"]

_RECOVERY_NOTE: Final = (
    "{cause} while you were working, and your process was ended. This is the same conversation. A "
    "command that was running has been ended. Check what is already done before you do it again, then "
    "finish."
)


@frozen
class _Decision:
    action: Action
    reason: str


async def recover(core: Core, done: anyio.Event) -> None:
    """Recover the runs of lost engines, with retries until none is left.

    In a store that several daemons share, this goes on: it takes over from each daemon of the same host that
    ends. Runs that are not
    recovered yet are a problem in the daemon's status.

    :param done: set after the first try.
    """
    failed = 0
    with core.notifier.subscribe(DAEMONS_TOPIC) as waiter:
        while True:
            waiter.clear()
            try:
                remaining = await _try_recovery(core)
            except Exception as error:
                logger.exception("finding the runs of a lost daemon failed")
                remaining = _Remaining(failure=error)
            core.recovery_problem = remaining.problem
            done.set()
            if remaining.problem is not None:
                failed = failed + 1 if remaining.failure is not None else 0
                pause = min(RETRY_S * 2 ** max(0, failed - 1), LONGEST_RETRY_S)
                logger.warning("%s; trying again in %g s", remaining.problem.message, pause)
            elif core.store.lease is None:
                return
            else:
                failed, pause = 0, SHARED_PAUSE_S
            with anyio.move_on_after(pause):
                await waiter.wait()


@frozen
class _Remaining:
    """The runs that a try has not recovered.

    :param unjudged: providers that no daemon has: their runs wait for one that can resume them.
    :param alive: number of runs whose processes may still exist.
    :param reasons: the host's reasons why it does not know.
    :param failed: number of runs whose recovery failed.
    """

    unjudged: frozenset[str] = frozenset()
    alive: int = 0
    reasons: tuple[str, ...] = ()
    failed: int = 0
    failure: Exception | None = None

    @property
    def problem(self) -> Problem | None:
        parts = []
        if self.unjudged:
            parts.append(f"no daemon has their providers {', '.join(sorted(self.unjudged))}")
        if self.alive:
            details = "".join(f" ({reason})" for reason in self.reasons[:3])
            parts.append(f"{self.alive} may still have processes{details}")
        if self.failure is not None:
            count = f"{self.failed} " if self.failed else ""
            parts.append(f"{count}could not be recovered: {self.failure!r}")
        if not parts:
            return None
        return Problem("recovery_pending", f"runs of a lost daemon: {'; '.join(parts)}")


async def _try_recovery(core: Core) -> _Remaining:
    lost, unjudged = await read_with_retry(core, partial(_lost_attempts, core))
    results = await _reap(core, [attempt for _, attempt in lost])
    recoverable = [
        (run, result)
        for (run, _), result in zip(lost, results, strict=True)
        if result.state == "gone"
    ]
    failed = 0
    failure: Exception | None = None
    for start in range(0, len(recoverable), BATCH):
        batch = recoverable[start : start + BATCH]
        try:
            await transact_with_retry(core, partial(_recover_batch, core, batch), reserve=True)
        except Exception:
            logger.exception("runs of a lost daemon could not be recovered together")
            # A run that cannot be recovered must not block the others.
            for lost_run in batch:
                try:
                    await transact_with_retry(
                        core, partial(_recover_batch, core, [lost_run]), reserve=True
                    )
                except Exception as error:
                    logger.exception(
                        "run %s of a lost daemon could not be recovered", lost_run[0].id
                    )
                    failed, failure = failed + 1, error
    reasons = {result.reason for result in results if result.reason}
    alive = len(lost) - len(recoverable)
    return _Remaining(unjudged, alive, tuple(sorted(reasons)), failed, failure)


def _lost_attempts(
    core: Core, view: View
) -> tuple[list[tuple[Run, Attempt | None]], frozenset[str]]:
    """Return the lost runs of this host that this engine can judge, and the providers of those that no
    daemon of the host can.
    """
    lost: list[tuple[Run, Attempt | None]] = []
    others: set[str] = set()
    for run in view.lost_runs(core.instance):
        attempt = run_changes.current_attempt(view, run)
        if core.store.lease is not None and not core.is_here(_host_of(view, run, attempt)):
            continue  # only a daemon of that host can end its processes
        if _can_judge(core, run):
            lost.append((run, attempt))
        else:
            others.add(run.provider)
    own = core.config.host.id
    return lost, frozenset(name for name in others if not has_provider(view, name, own))


def _host_of(view: View, run: Run, attempt: Attempt | None) -> str | None:
    """Return the host of a run: where its attempt was started, else where its session is."""
    if attempt is not None and attempt.host is not None:
        return attempt.host
    session = view.session(run.session_id)
    return None if session is None else session.host


def _can_judge(core: Core, run: Run) -> bool:
    """Return whether this engine can decide about a lost run.

    Where several daemons share the store, only one with the run's provider knows whether it can be resumed.
    """
    is_decided = run.cancel_requested_at is not None or run.status is RunStatus.WAITING
    return core.store.lease is None or is_decided or run.provider in core.config.providers


async def _reap(core: Core, attempts: Sequence[Attempt | None]) -> Sequence[ReapResult]:
    """End the processes of these attempts. A run without an attempt (None) never had any."""
    host = core.config.host
    ours = [
        attempt for attempt in attempts if attempt is not None and attempt.host in (None, host.id)
    ]
    reaped: Mapping[tuple[str, int], ReapResult] = {}
    unanswered = ReapResult("unknown")
    try:
        reaped = await host.reap(ours)
    except Exception as error:
        logger.exception("finding processes of a lost daemon failed")
        unanswered = ReapResult("unknown", reason=f"finding them failed: {error!r}")

    def result_of(attempt: Attempt | None) -> ReapResult:
        if attempt is None:
            return ReapResult()
        if attempt.host not in (None, host.id):
            return ReapResult("unknown", reason=f"they are on host {attempt.host}")
        return reaped.get((attempt.run_id, attempt.attempt), unanswered)

    return [result_of(attempt) for attempt in attempts]


def _recover_batch(core: Core, batch: Sequence[tuple[Run, ReapResult]], tx: Transaction) -> None:
    for before, result in batch:
        run = tx.run(before.id)
        if run is None or run.status not in ACTIVE or run.worker_id != before.worker_id:
            continue  # another engine has recovered it
        _recover_run(core, tx, run, result)


def _recover_run(core: Core, tx: Transaction, run: Run, result: ReapResult) -> None:
    attempt = run_changes.current_attempt(tx, run)
    is_delivered = attempt is not None and has_begun(tx, run, attempt)
    decision = _decide(core, tx, run, is_delivered=is_delivered)
    data = {
        "attempt": run.attempt,
        "action": decision.action,
        "reason": decision.reason,
        "worker_id": run.worker_id,
        "delivered": is_delivered,
        "ended_processes": list(result.ended),
    }
    run_changes.log(tx, run, EventType.RUN_RECOVERED, data, core.now())
    logger.warning("run %s: %s: %s", run.id, decision.action, decision.reason)
    match decision.action:
        case "canceled":
            transitions.finish(
                core, tx, run, transitions.AttemptEnd(Signal.CANCEL, outcome=LOST_OUTCOME)
            )
        case "parked":
            transitions.park(core, tx, run, outcome=LOST_OUTCOME)
        case "failed":
            error = RunError(LOST_OUTCOME, decision.reason)
            transitions.finish(
                core,
                tx,
                run,
                transitions.AttemptEnd(Signal.FAIL, error=error, outcome=LOST_OUTCOME),
            )
        case "queued" | "resumed":
            attempt_end = transitions.AttemptEnd(
                Signal.RELEASE, reason=decision.reason, outcome=LOST_OUTCOME
            )
            undelivered = None
            if attempt is not None:
                # An agent that is being stopped to park its run may have output without having got the
                # answer.
                is_parking = attempt.outcome == PARKED_OUTCOME
                stopped_at = attempt.started_at if is_parking else core.now()
                undelivered = questions.undelivered_answer(tx, run, (), stopped_at)
            released = transitions.finish(core, tx, run, attempt_end)
            if decision.action == "resumed" and attempt is not None:
                queue_note(core, tx, released, attempt, "The orchestrator ended unexpectedly")
            if undelivered is not None:
                questions.queue_answer(core, tx, released, undelivered)


def _decide(core: Core, tx: RunQueries, run: Run, *, is_delivered: bool) -> _Decision:
    if run.cancel_requested_at is not None:
        return _Decision("canceled", "its cancel had been requested")
    if run.status is RunStatus.WAITING:
        return _Decision("parked", f"the run waits for an answer to {run.waiting_on}")
    provider = core.config.providers.get(run.provider)
    lost = 1 + sum(attempt.outcome == LOST_OUTCOME for attempt in tx.attempts(run.id))
    maximum = MAX_ATTEMPTS if provider is None else provider.max_attempts
    if lost >= maximum:
        times = "time" if lost == 1 else "times"
        return _Decision("failed", f"the daemon stopped {lost} {times} during this run")
    if run.kind != "message":
        return _Decision("queued", "the daemon stopped while it read the agent's own record")
    if not is_delivered:
        return _Decision("queued", "the daemon stopped before the agent got the message")
    stopped = "the daemon stopped while the agent was working"
    if provider is not None and provider.on_crash == "fail":
        return _Decision("failed", f"{stopped}, and on_crash is fail")
    if resumes(core, tx, run):
        return _Decision("resumed", f"{stopped}; its conversation is resumed")
    return _Decision("failed", f"{stopped}, and it has no conversation to resume")


def has_begun(view: RunQueries, run: Run, attempt: Attempt) -> bool:
    """Return True if an attempt's agent got the message or had any output."""
    return attempt.delivered_at is not None or _last_activity_at(view, run, attempt) is not None


def _last_activity_at(view: RunQueries, run: Run, attempt: Attempt) -> datetime | None:
    """Return the time of an attempt's last output; None if it had none.

    The attempt is identified by its number, because times are ambiguous: clocks may be set back.
    """
    return view.last_output_at(run, attempt=attempt.attempt)


def resumes(core: Core, view: RunQueries, run: Run | None) -> bool:
    """Return True if a new attempt of the run can resume the conversation of the previous one."""
    if run is None or run.kind != "message":
        return False
    provider = core.config.providers.get(run.provider)
    return (
        provider is not None
        and capabilities_of(provider.runner).resume
        and view.thread(run.session_id, run.provider) is not None
    )


def queue_note(core: Core, tx: Transaction, released: Run, attempt: Attempt, cause: str) -> None:
    """Queue a note about the interruption as the next message of a run that resumes a conversation.

    Messages of this attempt that the agent may not have got are queued again, before the note: all of
    them if the agent had no output, else the steering messages after its last output.

    :param attempt: the attempt that was stopped.
    :param cause: the beginning of the note's first sentence: what interrupted the agent.
    """
    output_at = _last_activity_at(tx, released, attempt)
    for earlier in tx.run_messages(released.id):
        is_unseen = output_at is None or (earlier.is_steering and output_at <= earlier.created_at)
        is_of_attempt = earlier.delivered_attempt in (None, attempt.attempt)
        if is_unseen and is_of_attempt and not steering.is_recovery_note(earlier):
            tx.put_message(evolve(earlier, delivery="queued", is_steering=False))
    message = Message(
        id=core.config.ids("msg"),
        session_id=released.session_id,
        role="system",
        source=Source("client"),
        text=_RECOVERY_NOTE.format(cause=cause),
        run_id=released.id,
        delivery="queued",
        created_at=core.now(),
    )
    tx.add_message(message)
    tx.append(released.session_id, [run_changes.message_created_event(message)], message.created_at)
