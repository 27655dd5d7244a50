"""Recording the end of an attempt."""

import logging
from collections.abc import Callable

from attrs import evolve

from agent_orchestrator.domain.errors import Unavailable
from agent_orchestrator.domain.lifecycle import RunStatus, Signal
from agent_orchestrator.domain.model import Run, RunError
from agent_orchestrator.engine import questions, recovery, run_changes, transitions
from agent_orchestrator.engine.core import Core
from agent_orchestrator.engine.persistence import transact_with_retry
from agent_orchestrator.engine.recorder import Recorder
from agent_orchestrator.engine.running_attempt import RunningAttempt
from agent_orchestrator.ports.changes import Transaction

logger = logging.getLogger("agent_orchestrator.worker")

RECORDING_FAILED = transitions.AttemptEnd(
    Signal.FAIL, error=RunError("agent_crashed", "the agent's output could not be recorded")
)


async def record_end(
    core: Core,
    running: RunningAttempt,
    recorder: Recorder,
    attempt_end: transitions.AttemptEnd,
    *,
    tries: int | None = None,
) -> None:
    """Record the end of an attempt and its pending writes in one commit.

    :param tries: maximum number of tries while the store is unavailable; None retries until the engine
        drains. If all fail, the next start recovers the run.
    """
    pending = recorder.pending

    def change(tx: Transaction) -> Run:
        recorder.apply(tx, pending)
        return _finish(core, running, tx, attempt_end, recorder)

    def change_alone(tx: Transaction) -> Run:
        return _finish(core, running, tx, RECORDING_FAILED, recorder)

    try:
        running.end(await _record(core, running, change, tries))
    except (run_changes.StaleAttempt, Unavailable):
        raise
    except Exception:
        logger.exception("run %s: its last output cannot be recorded", running.run.id)
        running.end(await _record(core, running, change_alone, tries))


async def _record(
    core: Core, running: RunningAttempt, end: Callable[[Transaction], Run], tries: int | None = None
) -> Run:
    """Commit a change that ends an attempt, and return the run after it.

    A try that failed may have been committed. The next try then finds a stale attempt, and returns the run.
    """

    def again(tx: Transaction) -> Run:
        try:
            return end(tx)
        except run_changes.StaleAttempt:
            if (run := tx.run(running.run.id)) is None:
                raise
            return run

    return await transact_with_retry(
        core, end, again=again, tries=tries, reserve=True, is_dropped_in_drain=True
    )


async def give_up(core: Core, running: RunningAttempt) -> None:
    """End a run whose worker failed unexpectedly, so that nothing executes it any more.

    Pending writes are dropped, because they may be the cause. If the end cannot be recorded either, the
    next start recovers the run.
    """
    error = RunError("worker_lost", "the daemon failed to end the run: see its log")

    def change(tx: Transaction) -> Run:
        run = run_changes.require_current_attempt(core, tx, running.run.id, running.run.attempt)
        is_canceled = run.cancel_requested_at is not None
        attempt_end = (
            transitions.AttemptEnd(Signal.CANCEL)
            if is_canceled
            else transitions.AttemptEnd(Signal.FAIL, error=error)
        )
        return transitions.finish(core, tx, run, attempt_end)

    try:
        running.end(await _record(core, running, change))
    except run_changes.StaleAttempt:
        pass  # a later attempt has it
    except Exception:
        logger.exception(
            "the end of run %s cannot be recorded; the next start recovers it", running.run.id
        )


def _finish(
    core: Core,
    running: RunningAttempt,
    tx: Transaction,
    attempt_end: transitions.AttemptEnd,
    recorder: Recorder,
) -> Run:
    run = run_changes.require_current_attempt(core, tx, running.run.id, running.run.attempt)
    if run.cancel_requested_at is not None and attempt_end.signal in (Signal.RELEASE, Signal.FAIL):
        attempt_end = evolve(attempt_end, signal=Signal.CANCEL, error=None)
    if attempt_end.signal is not Signal.RELEASE:
        return transitions.finish(core, tx, run, attempt_end)
    if run.status is RunStatus.WAITING:
        return transitions.park(core, tx, run, stderr_tail=attempt_end.stderr_tail)
    attempt = run_changes.current_attempt(tx, run)
    resumes = (
        attempt is not None
        and recovery.has_begun(tx, run, attempt)
        and recovery.resumes(core, tx, run)
    )
    undelivered = tx.request(recorder.asking) if recorder.asking is not None else None
    if undelivered is None or undelivered.status not in questions.DECIDED:
        undelivered = questions.undelivered_answer(
            tx, run, recorder.reported, running.stopped_at or core.now()
        )
    released = transitions.finish(core, tx, run, attempt_end)
    if attempt is not None and resumes:
        recovery.queue_note(core, tx, released, attempt, "The orchestrator was stopped")
    if undelivered is not None:
        # The decision came while the agent was being stopped, so the next attempt delivers it.
        questions.queue_answer(core, tx, released, undelivered)
    return released
