"""Executing one run: what is recorded meanwhile, and what stops it."""

import logging
from math import inf

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup
from anyio.to_thread import run_sync
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
from agent_orchestrator.engine.persistence import STORE_RETRY_S, looked, persistently
from agent_orchestrator.engine.recorder import Recorder
from agent_orchestrator.engine.routing import crash, failures_in, is_exit_code, run_with_fallback
from agent_orchestrator.engine.running_attempt import RunningAttempt
from agent_orchestrator.ports import Outcome, Transaction
from agent_orchestrator.wire import strict_json

logger = logging.getLogger("agent_orchestrator.worker")

MAX_ERROR = 64 * 2**10
"""Characters of what an agent said that are kept as its run's error."""


async def execute(core: Core, live: RunningAttempt) -> None:
    """Execute a run that was started, to the end of this attempt.

    Whatever happens, the run is left in a state that says so: ended, or back in the queue.
    """
    recorder = Recorder(core, live.run)
    ending: transitions.AttemptEnd | None = None
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_record, core, recorder, live)
            tasks.start_soon(_heed, core, live, recorder)
            ending = await _attempt(core, live, recorder, tasks)
            recorder.close()
            tasks.cancel_scope.cancel()
        await record_end(core, live, recorder, ending or RECORDING_FAILED)
    except anyio.get_cancelled_exc_class():
        # The whole engine is being cancelled: what was done is kept, the rest is for the next start.
        ending = ending or live.ending or transitions.AttemptEnd(Signal.RELEASE, reason="stopped")
        with anyio.CancelScope(shield=True):
            await record_end(core, live, recorder, ending, tries=len(STORE_RETRY_S))
        raise


async def _record(core: Core, recorder: Recorder, live: RunningAttempt) -> None:
    try:
        await recorder.write()
    except run_changes.StaleAttempt:
        logger.warning("run %s has moved on from attempt %d", live.run.id, live.run.attempt)
        live.release("the run has moved on", core.now())
    except Exception:
        # What the attempt said cannot be written; its end is tried without.
        logger.exception("run %s cannot be recorded", live.run.id)
        live.scope.cancel()


async def _heed(core: Core, live: RunningAttempt, recorder: Recorder) -> None:
    """Stop the run when its cancel is asked for; tell the pool while it waits for an answer, and
    park it when that takes long.
    """
    with core.notifier.subscribe(
        run_changes.cancel_topic(live.run.id), f"run:{live.run.id}"
    ) as waiter:
        while True:
            waiter.clear()
            run = await looked(core, lambda view: view.run(live.run.id))
            if run is not None and run.cancel_requested_at is not None:
                live.set_request(None)  # what it still does takes its worker
                live.cancel()
                return
            is_waiting = run is not None and run.status is RunStatus.WAITING
            if live.set_request(run.waiting_on if run is not None and is_waiting else None):
                core.notifier.notify([run_changes.QUEUE_TOPIC])
            with anyio.move_on_after(await _until_parked(core, live)):
                await waiter.wait()
            # What is stopped with its agent stays open for the next attempt.
            if recorder.abandoned and not live.scope.cancel_called:
                await _withdraw(core, live, recorder)


async def _withdraw(core: Core, live: RunningAttempt, recorder: Recorder) -> None:
    """Close what the agent has asked and given up."""
    given_up = tuple(recorder.abandoned)

    def change(tx: Transaction) -> None:
        run_changes.require_current_attempt(tx, live.run.id, live.run.attempt)
        questions.withdraw_requests(core, tx, given_up)

    await anyio.lowlevel.checkpoint()  # where the engine itself is being cancelled, this is its end
    try:
        await persistently(core, change)
    except run_changes.StaleAttempt:
        return
    del recorder.abandoned[: len(given_up)]


async def _until_parked(core: Core, live: RunningAttempt) -> float:
    """Return the seconds until a waiting run is to be parked; park it where that is now."""
    if live.request_id is None or live.blocked.since is None or live.course is not Course.WORKING:
        return inf
    due = live.blocked.since + core.config.park_after_s - anyio.current_time()
    if due > 0:
        return due

    def change(tx: Transaction) -> bool:
        run = tx.run(live.run.id)
        if run is None or (run.attempt, run.waiting_on) != (live.run.attempt, live.request_id):
            return False
        if not recovery.resumes(core, tx, run):
            return False  # its agent could not go on: the process is kept
        # Kept before the agent is stopped: an answer that comes now is for the next attempt.
        run_changes.amend_attempt(tx, run, outcome=recovery.PARKING)
        return True

    if await persistently(core, change):
        live.park(core.now())
    return inf


async def _attempt(
    core: Core, live: RunningAttempt, recorder: Recorder, tasks: TaskGroup
) -> transitions.AttemptEnd:
    """Run the agent; return how the attempt ended."""
    outcome: Outcome | AgentFailed | None = None
    contexts: list[AttemptContext] = []
    try:
        with live.scope:
            outcome = await run_with_fallback(core, live, recorder, contexts, tasks)
    except Exception as error:
        # trio lets a cancellation out in one group with what a runner's other task raised.
        failures = failures_in(error)
        if not failures:
            logger.exception("run %s: its worker failed", live.run.id)
        outcome = failures[0] if failures else crash(error)
    if isinstance(outcome, Outcome):
        outcome = await _stored(outcome)
    tail = contexts[-1].stderr_tail if contexts else ""
    return evolve(_ending(live, outcome), stderr_tail=tail)


async def _stored(outcome: Outcome) -> Outcome | AgentFailed:
    """Return an outcome that can be stored and read, or the failure to come to one."""
    if len(outcome.text) <= strict_json.SLICE:
        return evolve(outcome, text=storable(outcome.text))
    with anyio.CancelScope(shield=True):
        stored: Outcome | AgentFailed = await run_sync(_checked, outcome)
    return stored


def _checked(outcome: Outcome) -> Outcome | AgentFailed:
    text = storable(outcome.text)
    if strict_json.size_of(text) <= strict_json.MAX_STORED_SIZE:
        return evolve(outcome, text=text)
    most = f"{strict_json.MAX_STORED_SIZE:,}"
    problem = f"Outcome.text has more than {most} bytes of JSON, which no client could read"
    return AgentFailed("agent_crashed", problem)


def _ending(live: RunningAttempt, outcome: Outcome | AgentFailed | None) -> transitions.AttemptEnd:
    if isinstance(outcome, Outcome):
        # An agent that finished first has completed, whatever was asked for meanwhile.
        result = RunResult(outcome.text)
        return transitions.AttemptEnd(Signal.COMPLETE, result=result, exit_code=outcome.exit_code)
    if live.ending is not None:
        return live.ending
    if outcome is None:
        return RECORDING_FAILED
    message = outcome.message
    if len(message) > MAX_ERROR:
        message = f"{message[:MAX_ERROR]}… [cut: {len(message):,} characters]"
    error = RunError(outcome.code, storable(message))
    exit_code = outcome.exit_code if is_exit_code(outcome.exit_code) else None
    return transitions.AttemptEnd(Signal.FAIL, error=error, exit_code=exit_code)
