"""Execution of a run by its provider, or by a fallback."""

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup
from attrs import evolve

from agent_orchestrator.domain.errors import AgentFailed
from agent_orchestrator.domain.events import EventType
from agent_orchestrator.domain.images import ImageContent
from agent_orchestrator.domain.model import Run, Session, attempt_tag
from agent_orchestrator.engine import images, run_changes, steering, timing
from agent_orchestrator.engine.attempt import AttemptContext, storable
from agent_orchestrator.engine.config import ProviderConfig
from agent_orchestrator.engine.confinement import Confinement, is_supported_by, shared_cwd
from agent_orchestrator.engine.core import Core
from agent_orchestrator.engine.persistence import read_with_retry
from agent_orchestrator.engine.prompts import limit_of
from agent_orchestrator.engine.providers import probe
from agent_orchestrator.engine.recorder import Recorder
from agent_orchestrator.engine.running_attempt import Assignment, RunningAttempt
from agent_orchestrator.engine.turn_options import TurnOptions, accepted_options
from agent_orchestrator.host import Host, use_host
from agent_orchestrator.ports.changes import Draft, Transaction
from agent_orchestrator.ports.runner import TAG_VARIABLE, Attachable, Outcome, RunContext, Runner

MAX_EXIT_CODE: Final = 2**32 - 1
"""The largest exit code, on Windows: 32 bits."""

logger = logging.getLogger("agent_orchestrator.worker")


async def run_with_fallback(
    core: Core,
    running: RunningAttempt,
    recorder: Recorder,
    contexts: list[AttemptContext],
    tasks: TaskGroup,
) -> Outcome | AgentFailed:
    """Execute a run with its provider, or with its fallbacks as long as the agent has had no effects."""
    run = running.run
    is_turn = run.kind == "message"  # else the agent's record is read, which only its runner can
    problem = await core.cwd_problem(running.assignment.session.cwd)
    if problem is not None and is_turn:
        return AgentFailed("invalid_config", problem)
    fallbacks = core.config.routing.fallback.get(run.provider, ()) if is_turn else ()
    names = [run.provider, *fallbacks]
    substitutes: list[str | None] = [*names[1:], None]
    for name, substitute in zip(names, substitutes, strict=True):
        provider = core.config.providers.get(name)
        if provider is None:
            break
        if name != run.provider:
            run = await _reroute(recorder, running.assignment.session, run, name, provider)
        if not is_supported_by(provider.runner, Confinement.of(run)):
            note = f"{name} cannot enforce the requested sandbox or approval policy"
            return AgentFailed("invalid_config", note)
        running.provider = provider
        if provider.run_timeout_s is not None or provider.silence_timeout_s is not None:
            tasks.start_soon(timing.enforce_time_limits, running, recorder, provider)
        context = await _context(core, recorder, running.assignment, run, provider)
        contexts.append(context)
        options = TurnOptions.required_by(run, context.images)
        if missing := options.names - accepted_options(provider.runner):
            note = f"{name} does not support {', '.join(sorted(missing))}"
            return AgentFailed("invalid_config", note)
        if excess := limit_of(core, name).excess(context.prompt):
            return AgentFailed("invalid_config", f"the prompt is too long for {name}: {excess}")
        outcome = await _try(provider.runner, context, core.config.host)
        if substitute is None or not _is_unavailable(outcome, context):
            return outcome
        await recorder.put(_fallback_event(run, outcome, substitute))
    return AgentFailed("invalid_config", f"unknown provider {run.provider!r}")


async def _work(
    runner: Runner, context: AttemptContext, host: Host
) -> Callable[[RunContext], Awaitable[Outcome]] | AgentFailed:
    """Return what the runner has to do for a run, or why it cannot."""
    if context.run.kind != "message":
        # The agent is not needed for this: it may be logged out by now.
        if isinstance(runner, Attachable):
            return runner.read_record
        return AgentFailed("invalid_config", f"{runner.name} cannot read its agent's own record")
    availability = await probe(runner, context.env, host)
    if not availability.available:
        return AgentFailed("provider_unavailable", availability.reason or "it is not available")
    return runner.run


async def _try(runner: Runner, context: AttemptContext, host: Host) -> Outcome | AgentFailed:
    execute = await _work(runner, context, host)
    if isinstance(execute, AgentFailed):
        return execute
    try:
        with use_host(host):
            outcome = await execute(context)
    except AgentFailed as failure:
        return failure
    except anyio.get_cancelled_exc_class():
        # The engine's cancellation is raised here. Else, on asyncio, the runner awaited a cancelled task.
        await anyio.lowlevel.checkpoint()
        logger.exception("runner %s raised an unexpected cancellation", runner.name)
        problem = f"runner {runner.name} raised a cancellation that the engine did not request"
        return AgentFailed("agent_crashed", problem)
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # a user's function may even call sys.exit
        if isinstance(error, BaseExceptionGroup) and not isinstance(error, Exception):
            raise  # it contains a cancellation, which the surrounding scope handles
        if failures := failures_in(error):
            return failures[0]
        logger.exception("runner %s failed in run %s", runner.name, context.run.id)
        return crash(error)
    unchecked: object = outcome  # a runner may be untyped third-party code
    if not isinstance(unchecked, Outcome):
        return AgentFailed(
            "agent_crashed",
            f"runner {runner.name} returned {type(unchecked).__name__}, not an Outcome",
        )
    text: object = unchecked.text
    if not isinstance(text, str):
        return AgentFailed("agent_crashed", f"runner {runner.name}: Outcome.text must be a str")
    if not is_exit_code(unchecked.exit_code):
        problem = f"Outcome.exit_code must be an integer of at most {MAX_EXIT_CODE:,}, or None"
        return AgentFailed("agent_crashed", f"runner {runner.name}: {problem}")
    return unchecked


def is_exit_code(value: object) -> bool:
    """Return True for a valid exit code: None, or an integer in range, negative for a signal."""
    if value is None:
        return True
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MAX_EXIT_CODE


def crash(error: BaseException) -> AgentFailed:
    return AgentFailed("agent_crashed", f"{type(error).__name__}: {error}")


def failures_in(error: BaseException) -> list[AgentFailed]:
    """Return the ``AgentFailed`` errors in an exception or a group of exceptions."""
    if isinstance(error, BaseExceptionGroup):
        return [failure for part in error.exceptions for failure in failures_in(part)]
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
        "message": f"{run.provider} is not available, using {substitute} instead: {reason}",
        "provider": run.provider,
        "fallback": substitute,
    }
    return Draft(EventType.RUN_ERROR, data, run.id, run.attempt)


async def _reroute(
    recorder: Recorder, session: Session, run: Run, name: str, provider: ProviderConfig
) -> Run:
    model = session.model or provider.model
    # A thread belongs to one provider.
    routed = evolve(run, provider=name, model=model, thread_id=None)

    def write(tx: Transaction, current: Run) -> None:
        changed = evolve(current, provider=routed.provider, model=routed.model, thread_id=None)
        tx.put_run(changed)
        run_changes.amend_attempt(tx, current, provider=name)

    await recorder.put(write)
    return routed


async def _context(
    core: Core, recorder: Recorder, assignment: Assignment, run: Run, provider: ProviderConfig
) -> AttemptContext:
    session = assignment.session
    thread = assignment.thread
    if run.provider != assignment.run.provider:
        thread = await read_with_retry(core, lambda view: view.thread(session.id, run.provider))
    env = core.config.agent_env(provider) | {
        "AGENTCTL_RUN_ID": run.id,
        "AGENTCTL_SESSION_ID": session.id,
        TAG_VARIABLE: attempt_tag(run.id, run.attempt),
    }
    if assignment.token is not None:
        env["AGENTCTL_AUTH_TOKEN"] = assignment.token
    messages = steering.unseen_messages(assignment.messages, thread, provider.runner)
    contents: Sequence[ImageContent] = ()
    if any(message.images for message in messages):
        contents = await read_with_retry(core, lambda view: images.contents(view, messages))
    return AttemptContext(
        core,
        recorder,
        run,
        session,
        shared_cwd=await shared_cwd(core, session),
        messages=messages,
        images=contents,
        thread=thread,
        env=env,
    )
