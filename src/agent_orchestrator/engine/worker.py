"""Executing one run: routing, the runner, what stops it, and how it ends."""

import itertools
import logging
from collections.abc import Mapping, Sequence

import anyio
from attrs import define, evolve, field

from agent_orchestrator.domain.errors import AgentFailed, Unavailable
from agent_orchestrator.domain.events import EventType
from agent_orchestrator.domain.lifecycle import Signal
from agent_orchestrator.domain.model import Message, Run, RunError, RunResult, Session
from agent_orchestrator.engine import ledger
from agent_orchestrator.engine.attempt import AttemptContext, Recorder
from agent_orchestrator.engine.config import ProviderConfig
from agent_orchestrator.engine.core import Core
from agent_orchestrator.ports import (
    MARK_VARIABLE,
    Availability,
    Draft,
    Outcome,
    Probing,
    Runner,
    Transaction,
)

logger = logging.getLogger("agent_orchestrator.worker")

STORE_RETRY_S = (0.1, 0.5, 2.0, 5.0)
"""Pauses between tries to record an ending the store refuses; the last one repeats."""


@define
class Live:
    """A run being executed in this process."""

    run: Run
    scope: anyio.CancelScope = field(factory=anyio.CancelScope)
    canceled: bool = False
    release_reason: str | None = None
    recorder: Recorder | None = None

    def cancel(self) -> None:
        """Stop it for good."""
        self.canceled = True
        self.scope.cancel()

    def stop(self, reason: str) -> None:
        """Stop it and give it back to the queue."""
        self.release_reason = reason
        self.scope.cancel()


async def execute(core: Core, live: Live, session: Session, messages: Sequence[Message]) -> None:
    """Execute a run that was started, to the end of this attempt."""
    run = live.run
    recorder = live.recorder = Recorder(core, run)
    ending: ledger.Ending | None = None
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_record, recorder, live)
            tasks.start_soon(_heed_cancel, core, live)
            ending = await _attempt(core, live, recorder, session, messages)
            tasks.cancel_scope.cancel()
        assert ending is not None
        await _end(core, live, recorder, ending)
    except anyio.get_cancelled_exc_class():
        # The whole engine is being cancelled: what was done is kept, the rest is for the next start.
        reason = live.release_reason or "stopped"
        ending = ending or ledger.Ending(Signal.RELEASE, reason=reason)
        with anyio.CancelScope(shield=True):
            await _end(core, live, recorder, ending, tries=len(STORE_RETRY_S))
        raise


async def _record(recorder: Recorder, live: Live) -> None:
    try:
        await recorder.write()
    except ledger.StaleAttempt:
        logger.warning("run %s has moved on from attempt %d", live.run.id, live.run.attempt)
        live.stop("the run has moved on")


async def _heed_cancel(core: Core, live: Live) -> None:
    with core.bells.take(ledger.cancel_topic(live.run.id)) as bell:
        while True:
            bell.hush()
            run = await core.store.read(lambda view: view.run(live.run.id))
            if run is not None and run.cancel_requested_at is not None:
                live.cancel()
                return
            await bell.wait()


async def _attempt(
    core: Core, live: Live, recorder: Recorder, session: Session, messages: Sequence[Message]
) -> ledger.Ending:
    """Run the agent; return how the attempt ended."""
    context: AttemptContext | None = None
    outcome: Outcome | AgentFailed | None = None
    with live.scope:
        run = live.run
        names = [run.provider, *core.config.routing.fallback.get(run.provider, ())]
        substitutes: list[str | None] = [*names[1:], None]
        for name, substitute in zip(names, substitutes, strict=True):
            provider = core.config.providers.get(name)
            if provider is None:
                outcome = AgentFailed("invalid_config", f"there is no provider {name!r}")
                break
            if name != run.provider:
                run = await _reroute(recorder, session, run, name, provider)
            context = await _context(core, recorder, run, session, messages, provider)
            outcome = await _try(provider.runner, context)
            if substitute is None or not _is_unavailable(outcome, context):
                break
            await recorder.put(_fallback_event(run, outcome, substitute))
    tail = context.stderr_tail if context is not None else ""
    if isinstance(outcome, Outcome):
        # An agent that finished first has completed, whatever was asked for meanwhile.
        result = RunResult(outcome.text)
        return ledger.Ending(
            Signal.COMPLETE, result=result, exit_code=outcome.exit_code, stderr_tail=tail
        )
    if live.canceled:
        return ledger.Ending(Signal.CANCEL, stderr_tail=tail)
    if live.release_reason is not None:
        return ledger.Ending(Signal.RELEASE, reason=live.release_reason, stderr_tail=tail)
    assert outcome is not None
    error = RunError(outcome.code, outcome.message)
    return ledger.Ending(Signal.FAIL, error=error, exit_code=outcome.exit_code, stderr_tail=tail)


async def _try(runner: Runner, context: AttemptContext) -> Outcome | AgentFailed:
    availability = await probe(runner, context.env)
    if not availability.available:
        return AgentFailed("provider_unavailable", availability.reason or "it is not available")
    try:
        outcome = await runner.run(context)
    except AgentFailed as failure:
        return failure
    except Exception as error:
        if found := _failures_within(error):
            return found[0]
        logger.exception("runner %s failed in run %s", runner.name, context.run.id)
        return AgentFailed("agent_crashed", f"{type(error).__name__}: {error}")
    if isinstance(outcome, Outcome):
        return outcome
    kind = type(outcome).__name__  # type: ignore[unreachable]  # runners come from outside
    return AgentFailed("agent_crashed", f"runner {runner.name} returned {kind}, not an Outcome")


def _failures_within(error: BaseException) -> list[AgentFailed]:
    """Return the failures in what a task group of the runner raised."""
    if isinstance(error, BaseExceptionGroup):
        return [found for part in error.exceptions for found in _failures_within(part)]
    return [error] if isinstance(error, AgentFailed) else []


async def probe(runner: Runner, env: Mapping[str, str]) -> Availability:
    """Ask a runner whether it would work; one that cannot tell is taken at its word."""
    if not isinstance(runner, Probing):
        return Availability(available=True)
    try:
        return await runner.probe(env)
    except Exception as error:
        logger.exception("probing runner %s failed", runner.name)
        return Availability(available=False, reason=f"probing it failed: {error}")


def _is_unavailable(outcome: Outcome | AgentFailed, context: AttemptContext) -> bool:
    return (
        isinstance(outcome, AgentFailed)
        and outcome.code == "provider_unavailable"
        and not context.is_delivered
    )


def _fallback_event(run: Run, outcome: Outcome | AgentFailed | None, substitute: str) -> Draft:
    assert isinstance(outcome, AgentFailed)
    data = {
        "code": outcome.code,
        "message": f"{run.provider} is not available, {substitute} takes over: {outcome.message}",
        "provider": run.provider,
        "fallback": substitute,
    }
    return Draft(EventType.RUN_ERROR, data, run.id, run.attempt)


async def _reroute(
    recorder: Recorder,
    session: Session,
    run: Run,
    name: str,
    provider: ProviderConfig,
) -> Run:
    routed = evolve(run, provider=name, model=session.model or provider.model)

    def write(tx: Transaction, current: Run) -> None:
        tx.put_run(evolve(current, provider=routed.provider, model=routed.model))

    await recorder.put(write)
    return routed


async def _context(
    core: Core,
    recorder: Recorder,
    run: Run,
    session: Session,
    messages: Sequence[Message],
    provider: ProviderConfig,
) -> AttemptContext:
    thread = None
    if run.provider in session.threads:
        thread = await core.store.read(lambda view: view.thread(session.id, run.provider))
    env = provider.env.apply(core.config.environ) | {
        "AGENTCTL_RUN_ID": run.id,
        "AGENTCTL_SESSION_ID": session.id,
        MARK_VARIABLE: f"{run.id}.{run.attempt}",
    }
    prompt = "\n\n".join(message.text for message in messages)
    return AttemptContext(core, recorder, run, session, prompt=prompt, thread=thread, env=env)


async def _end(
    core: Core, live: Live, recorder: Recorder, ending: ledger.Ending, *, tries: int | None = None
) -> None:
    """Record the ending, with what the attempt said last, in one commit.

    :param tries: how often to try while the store refuses; None goes on until it takes it. A run
        given up on is found at the next start.
    """
    rest = list(recorder.take())

    def change(tx: Transaction) -> None:
        ledger.fenced(tx, live.run.id, live.run.attempt)
        recorder.apply(tx, rest)
        run = ledger.fenced(tx, live.run.id, live.run.attempt)
        final = ending
        if ending.signal is Signal.RELEASE and run.cancel_requested_at is not None:
            final = evolve(ending, signal=Signal.CANCEL)
        _requeue_unsteered(core, tx, ledger.finish(tx, run, final, core.now()))

    for pause in itertools.chain(STORE_RETRY_S, itertools.repeat(STORE_RETRY_S[-1])):
        try:
            with anyio.CancelScope(shield=True):
                await core.store.transact(change)
        except ledger.StaleAttempt:
            return
        except Unavailable as error:
            logger.error("run %s: its end is not recorded yet: %s", live.run.id, error)  # noqa: TRY400
            tries = None if tries is None else tries - 1
            if tries == 0:
                raise
            await anyio.sleep(pause)
        else:
            return


def _requeue_unsteered(core: Core, tx: Transaction, run: Run) -> None:
    """Make a run of its own of every message the agent was to take but did not."""
    session = tx.session(run.session_id)
    assert session is not None
    for message in tx.run_messages(run.id):
        if message.id == run.message_id or message.delivery != "queued":
            continue
        run_id = core.config.ids("run")
        ledger.enqueue(
            tx,
            session,
            run_id=run_id,
            message=evolve(message, run_id=run_id),
            provider=run.provider,
            model=run.model,
            at=core.now(),
        )
