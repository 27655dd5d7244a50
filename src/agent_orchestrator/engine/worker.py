"""Executing one run: routing, the runner, what stops it, and how it ends."""

import logging
from collections.abc import Callable, Sequence
from datetime import datetime
from math import inf

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup
from anyio.to_thread import run_sync
from attrs import define, evolve, field, frozen

from agent_orchestrator.domain.errors import AgentFailed, Unavailable
from agent_orchestrator.domain.events import EventType
from agent_orchestrator.domain.images import ImageContent
from agent_orchestrator.domain.lifecycle import RunStatus, Signal
from agent_orchestrator.domain.model import (
    Message,
    Run,
    RunError,
    RunResult,
    Session,
    Thread,
    mark_of,
)
from agent_orchestrator.engine import images, ledger, recovery, timing
from agent_orchestrator.engine.attempt import AttemptContext, storable
from agent_orchestrator.engine.config import ProviderConfig
from agent_orchestrator.engine.confinement import Confinement, keeps, shared_cwd
from agent_orchestrator.engine.core import Core
from agent_orchestrator.engine.persistence import STORE_RETRY_S, looked, persistently
from agent_orchestrator.engine.prompts import limit_of
from agent_orchestrator.engine.providers import probe
from agent_orchestrator.engine.recorder import Recorder
from agent_orchestrator.engine.turn_options import TurnOptions, accepted_options
from agent_orchestrator.ports import MARK_VARIABLE, Draft, Outcome, Runner, Transaction
from agent_orchestrator.wire import strict_json

logger = logging.getLogger("agent_orchestrator.worker")

MAX_ERROR = 64 * 2**10
"""Characters of what an agent said that are kept as its run's error."""


@frozen
class Assignment:
    """A run a worker has taken, with what it needs to begin."""

    run: Run
    session: Session
    messages: Sequence[Message]
    thread: Thread | None
    """The one to go on with, of the run's provider."""
    token: str | None = field(default=None, repr=False)
    """By which its agent may act as the run, while the attempt lasts."""


@define(eq=False)
class Live:
    """A run being executed in this process."""

    assignment: Assignment
    scope: anyio.CancelScope = field(factory=anyio.CancelScope)
    canceled: bool = False
    release_reason: str | None = None
    stopped_at: datetime | None = None
    failure: RunError | None = None
    provider: ProviderConfig | None = None
    """What executes it now."""
    waiting_on: str | None = None
    """The request it waits for."""
    waits: int = 0
    """How often it waits now for another run, or for a request it asked without waiting."""
    is_parking: bool = False
    """Whether it is being stopped because it waits."""
    still_s: float = 0.0
    """Seconds it has stood still, the time it does so now not counted."""
    stood_at: float | None = None
    """Since when it stands still, by :func:`anyio.current_time`; its worker does something else
    meanwhile."""
    went_on_at: float = 0.0
    """When it last went on."""
    _goes_on: anyio.Event = field(factory=anyio.Event)
    left: Run | None = None
    """The run as the attempt left it, once that is recorded."""

    @property
    def run(self) -> Run:
        return self.assignment.run

    @property
    def ended(self) -> RunStatus | None:
        """The state the attempt left the run in, once that is recorded."""
        return None if self.left is None else self.left.status

    @property
    def stands_still(self) -> bool:
        """Whether it waits for an answer or for another run."""
        return self.stood_at is not None

    def wait_on(self, request_id: str | None) -> bool:
        """Take note of the request it waits for, if any; tell whether it stands still now and did
        not before, or the other way round.
        """
        self.waiting_on = request_id
        return self._weigh()

    def wait_for_run(self, change: int) -> None:
        """Take note that it waits for one thing more, or less."""
        self.waits += change
        self._weigh()

    def _weigh(self) -> bool:
        stands_still = self.waiting_on is not None or self.waits > 0
        if stands_still == self.stands_still:
            return False
        now = anyio.current_time()
        if self.stood_at is not None:
            self.still_s += now - self.stood_at
            self.stood_at, self.went_on_at = None, now
            self._goes_on.set()
            self._goes_on = anyio.Event()
        else:
            self.stood_at = now
        return True

    async def going(self) -> None:
        """Return while it does not stand still."""
        while self.stands_still:
            await self._goes_on.wait()

    def park(self, at: datetime) -> None:
        """Stop its agent; the run goes on waiting without."""
        self.is_parking = True
        self.stop("it waits for an answer", at)

    def fail(self, error: RunError) -> None:
        """Stop it: it has failed."""
        self.failure = error
        self.scope.cancel()

    def cancel(self) -> None:
        """Stop it for good."""
        self.canceled = True
        self.scope.cancel()

    def stop(self, reason: str, at: datetime) -> None:
        """Stop it and give it back to the queue."""
        self.release_reason = reason
        self.stopped_at = self.stopped_at or at
        self.scope.cancel()


_FAULT = ledger.Ending(
    Signal.FAIL, error=RunError("agent_crashed", "what it said could not be recorded")
)


async def execute(core: Core, live: Live) -> None:
    """Execute a run that was started, to the end of this attempt.

    Whatever happens, the run is left in a state that says so: ended, or back in the queue.
    """
    recorder = Recorder(core, live.run)
    ending: ledger.Ending | None = None
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_record, core, recorder, live)
            tasks.start_soon(_heed, core, live, recorder)
            ending = await _attempt(core, live, recorder, tasks)
            recorder.close()
            tasks.cancel_scope.cancel()
        await _end(core, live, recorder, ending or _FAULT)
    except anyio.get_cancelled_exc_class():
        # The whole engine is being cancelled: what was done is kept, the rest is for the next start.
        ending = ending or _stopped(live) or ledger.Ending(Signal.RELEASE, reason="stopped")
        with anyio.CancelScope(shield=True):
            await _end(core, live, recorder, ending, tries=len(STORE_RETRY_S))
        raise


async def _record(core: Core, recorder: Recorder, live: Live) -> None:
    try:
        await recorder.write()
    except ledger.StaleAttempt:
        logger.warning("run %s has moved on from attempt %d", live.run.id, live.run.attempt)
        live.stop("the run has moved on", core.now())
    except Exception:
        # What the attempt said cannot be written; its end is tried without.
        logger.exception("run %s cannot be recorded", live.run.id)
        live.scope.cancel()


async def _heed(core: Core, live: Live, recorder: Recorder) -> None:
    """Stop the run when its cancel is asked for; tell the pool while it waits for an answer, and
    park it when that takes long.
    """
    with core.bells.take(ledger.cancel_topic(live.run.id), f"run:{live.run.id}") as bell:
        while True:
            bell.hush()
            run = await looked(core, lambda view: view.run(live.run.id))
            if run is not None and run.cancel_requested_at is not None:
                live.wait_on(None)  # what it still does takes its worker
                live.cancel()
                return
            is_waiting = run is not None and run.status is RunStatus.WAITING
            if live.wait_on(run.waiting_on if run is not None and is_waiting else None):
                core.bells.ring([ledger.QUEUE_TOPIC])
            with anyio.move_on_after(await _until_parked(core, live)):
                await bell.wait()
            # What is stopped with its agent stays open for the next attempt.
            if recorder.abandoned and not live.scope.cancel_called:
                await _withdraw(core, live, recorder)


async def _withdraw(core: Core, live: Live, recorder: Recorder) -> None:
    """Close what the agent has asked and given up."""
    given_up = tuple(recorder.abandoned)

    def change(tx: Transaction) -> None:
        ledger.fenced(tx, live.run.id, live.run.attempt)
        ledger.withdraw(core, tx, given_up)

    await anyio.lowlevel.checkpoint()  # where the engine itself is being cancelled, this is its end
    try:
        await persistently(core, change)
    except ledger.StaleAttempt:
        return
    del recorder.abandoned[: len(given_up)]


async def _until_parked(core: Core, live: Live) -> float:
    """Return the seconds until a waiting run is to be parked; park it where that is now."""
    if live.waiting_on is None or live.stood_at is None or live.is_parking:
        return inf
    due = live.stood_at + core.config.park_after_s - anyio.current_time()
    if due > 0:
        return due

    def change(tx: Transaction) -> bool:
        run = tx.run(live.run.id)
        if run is None or (run.attempt, run.waiting_on) != (live.run.attempt, live.waiting_on):
            return False
        if not recovery.resumes(core, tx, run):
            return False  # its agent could not go on: the process is kept
        # Kept before the agent is stopped: an answer that comes now is for the next attempt.
        ledger.amend_attempt(tx, run, outcome=recovery.PARKING)
        return True

    if await persistently(core, change):
        live.park(core.now())
    return inf


async def _attempt(core: Core, live: Live, recorder: Recorder, tasks: TaskGroup) -> ledger.Ending:
    """Run the agent; return how the attempt ended."""
    outcome: Outcome | AgentFailed | None = None
    contexts: list[AttemptContext] = []
    try:
        with live.scope:
            outcome = await _routed(core, live, recorder, contexts, tasks)
    except Exception as error:
        # trio lets a cancellation out in one group with what a runner's other task raised.
        failures = _failures_within(error)
        if not failures:
            logger.exception("run %s: its worker failed", live.run.id)
        outcome = failures[0] if failures else _crash(error)
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


def _ending(live: Live, outcome: Outcome | AgentFailed | None) -> ledger.Ending:
    if isinstance(outcome, Outcome):
        # An agent that finished first has completed, whatever was asked for meanwhile.
        result = RunResult(outcome.text)
        return ledger.Ending(Signal.COMPLETE, result=result, exit_code=outcome.exit_code)
    if stopped := _stopped(live):
        return stopped
    if outcome is None:
        return _FAULT
    message = outcome.message
    if len(message) > MAX_ERROR:
        message = f"{message[:MAX_ERROR]}… [cut: {len(message):,} characters]"
    error = RunError(outcome.code, storable(message))
    return ledger.Ending(Signal.FAIL, error=error, exit_code=outcome.exit_code)


def _stopped(live: Live) -> ledger.Ending | None:
    if live.canceled:
        return ledger.Ending(Signal.CANCEL)
    if live.failure is not None:
        return ledger.Ending(Signal.FAIL, error=live.failure)
    if live.release_reason is not None:
        return ledger.Ending(Signal.RELEASE, reason=live.release_reason)
    return None


async def _routed(
    core: Core,
    live: Live,
    recorder: Recorder,
    contexts: list[AttemptContext],
    tasks: TaskGroup,
) -> Outcome | AgentFailed:
    """Try the run's provider and, while nothing has begun, those that stand in for it."""
    run = live.run
    problem = await core.cwd_problem(live.assignment.session.cwd)
    if problem is not None:
        return AgentFailed("invalid_config", problem)
    names = [run.provider, *core.config.routing.fallback.get(run.provider, ())]
    substitutes: list[str | None] = [*names[1:], None]
    for name, substitute in zip(names, substitutes, strict=True):
        provider = core.config.providers.get(name)
        if provider is None:
            break
        if name != run.provider:
            run = await _reroute(recorder, live.assignment.session, run, name, provider)
        if not keeps(provider.runner, Confinement.of(run)):
            note = f"{name} cannot keep to the sandbox or approval policy that is asked for"
            return AgentFailed("invalid_config", note)
        live.provider = provider
        if provider.run_timeout_s is not None or provider.silence_timeout_s is not None:
            tasks.start_soon(timing.watch, live, recorder, provider)
        context = await _context(core, recorder, live.assignment, run, provider)
        contexts.append(context)
        options = TurnOptions.kept_by(run, context.images)
        if missing := options.given - accepted_options(provider.runner):
            note = f"{name} does not take {', '.join(sorted(missing))}"
            return AgentFailed("invalid_config", note)
        if excess := limit_of(core, name).excess(context.prompt):
            return AgentFailed("invalid_config", f"{name} takes less text at once: {excess}")
        outcome = await _try(provider.runner, context)
        if substitute is None or not _is_unavailable(outcome, context):
            return outcome
        await recorder.put(_fallback_event(run, outcome, substitute))
    return AgentFailed("invalid_config", f"there is no provider {run.provider!r}")


async def _try(runner: Runner, context: AttemptContext) -> Outcome | AgentFailed:
    availability = await probe(runner, context.env)
    if not availability.available:
        return AgentFailed("provider_unavailable", availability.reason or "it is not available")
    try:
        outcome = await runner.run(context)
    except AgentFailed as failure:
        return failure
    except anyio.get_cancelled_exc_class():
        # Ours, or (on asyncio) one of a task the runner cancelled and awaited, which is its fault.
        await anyio.lowlevel.checkpoint()
        logger.exception("runner %s let out a cancellation of its own", runner.name)
        return AgentFailed("agent_crashed", "the runner was cancelled from inside")
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # a function of a user's may even call sys.exit
        if isinstance(error, BaseExceptionGroup) and not isinstance(error, Exception):
            raise  # holds a cancellation: the scope round this knows whose
        if found := _failures_within(error):
            return found[0]
        logger.exception("runner %s failed in run %s", runner.name, context.run.id)
        return _crash(error)
    given: object = outcome  # runners come from outside, where nothing checks their types
    if isinstance(given, Outcome) and isinstance(given.text, str):
        return given
    kind = type(given).__name__
    return AgentFailed("agent_crashed", f"runner {runner.name} returned {kind}, not an Outcome")


def _crash(error: BaseException) -> AgentFailed:
    return AgentFailed("agent_crashed", f"{type(error).__name__}: {error}")


def _failures_within(error: BaseException) -> list[AgentFailed]:
    """Return the failures in what a task group of the runner raised."""
    if isinstance(error, BaseExceptionGroup):
        return [found for part in error.exceptions for found in _failures_within(part)]
    return [error] if isinstance(error, AgentFailed) else []


def _is_unavailable(outcome: Outcome | AgentFailed, context: AttemptContext) -> bool:
    return (
        isinstance(outcome, AgentFailed)
        and outcome.code == "provider_unavailable"
        and not context.has_begun
    )


def _fallback_event(run: Run, outcome: Outcome | AgentFailed, substitute: str) -> Draft:
    assert isinstance(outcome, AgentFailed)
    reason = storable(outcome.message)
    data = {
        "code": outcome.code,
        "message": f"{run.provider} is not available, {substitute} takes over: {reason}",
        "provider": run.provider,
        "fallback": substitute,
    }
    return Draft(EventType.RUN_ERROR, data, run.id, run.attempt)


async def _reroute(
    recorder: Recorder, session: Session, run: Run, name: str, provider: ProviderConfig
) -> Run:
    model = session.model or provider.model
    # Its thread is known to the other provider only.
    routed = evolve(run, provider=name, model=model, thread_id=None)

    def write(tx: Transaction, current: Run) -> None:
        changed = evolve(current, provider=routed.provider, model=routed.model, thread_id=None)
        tx.put_run(changed)
        ledger.amend_attempt(tx, current, provider=name)

    await recorder.put(write)
    return routed


async def _context(
    core: Core, recorder: Recorder, assignment: Assignment, run: Run, provider: ProviderConfig
) -> AttemptContext:
    session = assignment.session
    thread = assignment.thread
    if run.provider != assignment.run.provider:
        thread = await looked(core, lambda view: view.thread(session.id, run.provider))
    env = provider.env.apply(core.config.environ) | {
        "AGENTCTL_RUN_ID": run.id,
        "AGENTCTL_SESSION_ID": session.id,
        MARK_VARIABLE: mark_of(run.id, run.attempt),
    }
    if core.config.url is not None:
        env["AGENTCTL_URL"] = core.config.url
        if assignment.token is not None:
            env["AGENTCTL_AUTH_TOKEN"] = assignment.token
    messages = ledger.unheard(assignment.messages, thread, provider.runner)
    seen: Sequence[ImageContent] = ()
    if any(message.images for message in messages):
        seen = await looked(core, lambda view: images.contents(view, messages))
    return AttemptContext(
        core,
        recorder,
        run,
        session,
        shared_cwd=await shared_cwd(core, session),
        messages=messages,
        images=seen,
        thread=thread,
        env=env,
    )


async def _end(
    core: Core, live: Live, recorder: Recorder, ending: ledger.Ending, *, tries: int | None = None
) -> None:
    """Record the ending, with what the attempt said last, in one commit.

    :param tries: how often to try while the store is unavailable; None goes on until it takes it, or
        the engine drains. A run given up on is found at the next start.
    """
    rest = recorder.pending

    def change(tx: Transaction) -> Run:
        recorder.apply(tx, rest)
        return _finish(core, live, tx, ending, recorder)

    def change_alone(tx: Transaction) -> Run:
        return _finish(core, live, tx, _FAULT, recorder)

    try:
        live.left = await _made(core, live, change, tries)
    except (ledger.StaleAttempt, Unavailable):
        raise
    except Exception:
        logger.exception("run %s: what it said last cannot be recorded", live.run.id)
        live.left = await _made(core, live, change_alone, tries)


async def _made(
    core: Core, live: Live, end: Callable[[Transaction], Run], tries: int | None = None
) -> Run:
    """Make a change that ends an attempt, and return the run as that left it.

    A try that the store refused may have been made all the same. Then the next one finds that the run
    has moved on, and returns it as it is.
    """

    def again(tx: Transaction) -> Run:
        try:
            return end(tx)
        except ledger.StaleAttempt:
            if (run := tx.run(live.run.id)) is None:
                raise
            return run

    return await persistently(
        core, end, again=again, tries=tries, reserve=True, is_dropped_in_drain=True
    )


async def give_up(core: Core, live: Live) -> None:
    """End a run whose worker failed in a way it should not: nothing is executing it any more.

    Of what the attempt had to say nothing more is recorded, which may be what it failed with. Where
    that cannot be recorded either, the run is taken up at the next start.
    """
    error = RunError("worker_lost", "the daemon failed at bringing it to its end: see its log")

    def change(tx: Transaction) -> Run:
        run = ledger.fenced(tx, live.run.id, live.run.attempt)
        is_canceled = run.cancel_requested_at is not None
        ending = (
            ledger.Ending(Signal.CANCEL) if is_canceled else ledger.Ending(Signal.FAIL, error=error)
        )
        return ledger.finish(core, tx, run, ending)

    try:
        live.left = await _made(core, live, change)
    except ledger.StaleAttempt:
        pass  # it went on without this attempt
    except Exception:
        logger.exception("run %s is left to the next start", live.run.id)


def _finish(
    core: Core, live: Live, tx: Transaction, ending: ledger.Ending, recorder: Recorder
) -> Run:
    run = ledger.fenced(tx, live.run.id, live.run.attempt)
    if run.cancel_requested_at is not None and ending.signal in (Signal.RELEASE, Signal.FAIL):
        ending = evolve(ending, signal=Signal.CANCEL, error=None)
    if ending.signal is not Signal.RELEASE:
        return ledger.finish(core, tx, run, ending)
    if run.status is RunStatus.WAITING:
        return ledger.park(core, tx, run, stderr_tail=ending.stderr_tail)
    attempt = ledger.current_attempt(tx, run)
    goes_on = (
        attempt is not None
        and recovery.has_begun(tx, run, attempt)
        and recovery.resumes(core, tx, run)
    )
    untold = tx.request(recorder.asking) if recorder.asking is not None else None
    if untold is None or untold.status not in ledger.DECIDED:
        untold = ledger.untold_answer(tx, run, recorder.told, live.stopped_at or core.now())
    released = ledger.finish(core, tx, run, ending)
    if attempt is not None and goes_on:
        recovery.owe_note(core, tx, released, attempt, "The program that runs you was stopped")
    if untold is not None:
        # Decided while its agent was being stopped: the next attempt is told.
        ledger.owe_answer(core, tx, released, untold)
    return released
