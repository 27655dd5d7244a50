"""Executing one attempt of a run: recording its writes, watching its requests, and stopping it."""

import logging
from math import inf

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup
from attrs import evolve

from agent_orchestrator.domain.errors import AgentFailed
from agent_orchestrator.domain.lifecycle import RunStatus, Signal
from agent_orchestrator.domain.model import (
    RunError,
    RunResult,
)
from agent_orchestrator.engine import questions, recovery, run_changes, transitions
from agent_orchestrator.engine.attempt import AttemptContext, storable
from agent_orchestrator.engine.attempt_end import RECORDING_FAILED, record_end
from agent_orchestrator.engine.attempt_state import Course
from agent_orchestrator.engine.core import Core
from agent_orchestrator.engine.expiry import check_agents
from agent_orchestrator.engine.persistence import (
    STORE_RETRY_S,
    read_with_retry,
    transact_with_retry,
)
from agent_orchestrator.engine.recorder import Recorder
from agent_orchestrator.engine.routing import crash, failures_in, is_exit_code, run_with_fallback
from agent_orchestrator.engine.running_attempt import RunningAttempt
from agent_orchestrator.long_work import run_long
from agent_orchestrator.ports.changes import Transaction
from agent_orchestrator.ports.runner import Outcome
from agent_orchestrator.wire import strict_json

logger = logging.getLogger("agent_orchestrator.worker")

MAX_ERROR = 64 * 2**10
"""Maximum number of characters of a run's error message."""


async def execute(core: Core, running: RunningAttempt) -> None:
    """Execute an attempt of a started run and record its end.

    Afterwards the run has ended, is queued again, or is parked.
    """
    recorder = Recorder(core, running.run)
    attempt_end: transitions.AttemptEnd | None = None
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_record, core, recorder, running)
            tasks.start_soon(_watch_requests, core, running, recorder)
            attempt_end = await _attempt(core, running, recorder, tasks)
            recorder.close()
            tasks.cancel_scope.cancel()
        await record_end(core, running, recorder, attempt_end or RECORDING_FAILED)
    except anyio.get_cancelled_exc_class():
        # The whole engine is being cancelled. If the few tries fail, the next start recovers the run.
        attempt_end = (
            attempt_end
            or running.attempt_end
            or transitions.AttemptEnd(Signal.RELEASE, reason="stopped")
        )
        with anyio.CancelScope(shield=True):
            await record_end(core, running, recorder, attempt_end, tries=len(STORE_RETRY_S))
        raise


async def _record(core: Core, recorder: Recorder, running: RunningAttempt) -> None:
    try:
        await recorder.write()
    except run_changes.StaleAttempt:
        logger.warning("attempt %d of run %s is stale", running.run.attempt, running.run.id)
        running.release("its attempt is stale", core.now())
    except Exception:
        # The writes cannot be committed. The end is recorded without them.
        logger.exception("run %s cannot be recorded", running.run.id)
        running.scope.cancel()


async def _watch_requests(core: Core, running: RunningAttempt, recorder: Recorder) -> None:
    """Cancel the run on request, mark it as blocked while it waits, and park it if it waits too long."""
    with core.notifier.subscribe(
        run_changes.cancel_topic(running.run.id), f"run:{running.run.id}"
    ) as waiter:
        while True:
            waiter.clear()
            run = await read_with_retry(core, lambda view: view.run(running.run.id))
            if run is not None and run.cancel_requested_at is not None:
                running.set_request(None)  # stopping it takes its worker
                running.cancel()
                return
            is_waiting = run is not None and run.status is RunStatus.WAITING
            if running.set_request(run.waiting_on if run is not None and is_waiting else None):
                core.notifier.notify([run_changes.QUEUE_TOPIC])
            if core.draining and running.request_id is not None:
                running.park(
                    core.now()
                )  # the drain parks those that it knows to wait when it begins
            with anyio.move_on_after(await _until_parked(core, running)):
                await waiter.wait()
            # Requests of an attempt that is being stopped stay open for the next one.
            if recorder.withdrawn and not running.scope.cancel_called:
                await _withdraw(core, running, recorder)


async def _withdraw(core: Core, running: RunningAttempt, recorder: Recorder) -> None:
    """Cancel the requests that the agent has given up."""
    given_up = tuple(recorder.withdrawn)

    def change(tx: Transaction) -> None:
        run_changes.require_current_attempt(core, tx, running.run.id, running.run.attempt)
        questions.withdraw_requests(core, tx, given_up)

    await anyio.lowlevel.checkpoint()  # raises if the engine itself is being cancelled
    try:
        await transact_with_retry(core, change)
    except run_changes.StaleAttempt:
        return
    del recorder.withdrawn[: len(given_up)]


async def _until_parked(core: Core, running: RunningAttempt) -> float:
    """Park the run if it has waited long enough; else return the seconds until then."""
    if (
        running.request_id is None
        or running.blocked.since is None
        or running.course is not Course.WORKING
    ):
        return inf
    due = running.blocked.since + core.config.park_after_s - anyio.current_time()
    if due > 0:
        return due

    def change(tx: Transaction) -> bool:
        run = tx.run(running.run.id)
        if run is None or (run.attempt, run.waiting_on) != (
            running.run.attempt,
            running.request_id,
        ):
            return False
        if not recovery.resumes(core, tx, run):
            return False  # its agent cannot resume, so the process is kept
        # Recorded before the agent is stopped: an answer from now on is for the next attempt.
        run_changes.amend_attempt(tx, run, outcome=recovery.PARKED_OUTCOME)
        return True

    if await transact_with_retry(core, change):
        running.park(core.now())
    return inf


async def _attempt(
    core: Core, running: RunningAttempt, recorder: Recorder, tasks: TaskGroup
) -> transitions.AttemptEnd:
    """Run the agent and return the end of the attempt."""
    outcome: Outcome | AgentFailed | None = None
    contexts: list[AttemptContext] = []
    try:
        with running.scope:
            outcome = await run_with_fallback(core, running, recorder, contexts, tasks)
    except Exception as error:
        # On trio a cancellation and the exception of another task come in one group.
        failures = failures_in(error)
        if not failures:
            logger.exception("run %s: its worker failed", running.run.id)
        outcome = failures[0] if failures else crash(error)
    if isinstance(outcome, Outcome):
        outcome = await _stored(outcome)
    elif outcome is not None:
        check_agents(core)  # its supervisor may have ended it
    tail = contexts[-1].stderr_tail if contexts else ""
    return evolve(_end_of_attempt(running, outcome), stderr_tail=tail)


async def _stored(outcome: Outcome) -> Outcome | AgentFailed:
    """Return an outcome that can be stored, or the failure if it is too large."""
    if len(outcome.text) <= strict_json.SLICE_SIZE:
        return evolve(outcome, text=storable(outcome.text))
    with anyio.CancelScope(shield=True):
        stored: Outcome | AgentFailed = await run_long(_checked, outcome)
    return stored


def _checked(outcome: Outcome) -> Outcome | AgentFailed:
    text = storable(outcome.text)
    if strict_json.size_of(text) <= strict_json.MAX_STORED_SIZE:
        return evolve(outcome, text=text)
    maximum = f"{strict_json.MAX_STORED_SIZE:,}"
    problem = f"Outcome.text has more than {maximum} bytes of JSON, which no client could read"
    return AgentFailed("agent_crashed", problem)


def _end_of_attempt(
    running: RunningAttempt, outcome: Outcome | AgentFailed | None
) -> transitions.AttemptEnd:
    if isinstance(outcome, Outcome):
        # An agent that finishes before it is stopped has completed.
        result = RunResult(outcome.text)
        return transitions.AttemptEnd(Signal.COMPLETE, result=result, exit_code=outcome.exit_code)
    if running.attempt_end is not None:
        return running.attempt_end
    if outcome is None:
        return RECORDING_FAILED
    message = outcome.message
    if len(message) > MAX_ERROR:
        message = f"{message[:MAX_ERROR]}… [cut: {len(message):,} characters]"
    error = RunError(outcome.code, storable(message))
    exit_code = outcome.exit_code if is_exit_code(outcome.exit_code) else None
    return transitions.AttemptEnd(Signal.FAIL, error=error, exit_code=exit_code)
