"""The calls for runs: create, read, list, wait, transition, cancel."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import cache
from typing import Any

import anyio

from agent_orchestrator.domain.access import Action, Principal
from agent_orchestrator.domain.errors import InvalidRequest, InvalidTransition, SessionBusy
from agent_orchestrator.domain.lifecycle import RunStatus, Signal, is_terminal, signal_between
from agent_orchestrator.domain.model import (
    FAILURE_CODES,
    MANUAL,
    Run,
    RunError,
    RunResult,
    Source,
)
from agent_orchestrator.engine import queueing, requests, steering, transitions
from agent_orchestrator.engine.access import access_topics, run_for, session_for, visibility
from agent_orchestrator.engine.core import Change, Core
from agent_orchestrator.engine.daemons import provider_for
from agent_orchestrator.engine.images import decode_uploads
from agent_orchestrator.engine.messages import (
    open_session,
    queue_run,
    require_queue_room,
    user_message,
)
from agent_orchestrator.engine.paging import PAGE_SIZE, has_words, page
from agent_orchestrator.engine.turn_options import (
    TurnOptions,
    check_options,
    chosen_options,
    with_default_model,
)
from agent_orchestrator.fields import MAX_NAMED_PROBLEMS, MAX_TEXT, encoding_problem, shown
from agent_orchestrator.operations.runs import (
    CancelReply,
    CancelRun,
    CreateRun,
    GetRun,
    ListRuns,
    RunPage,
    RunReply,
    TransitionRun,
    WaitReply,
    WaitRun,
)
from agent_orchestrator.ports.changes import Transaction
from agent_orchestrator.ports.queries import View


async def create(core: Core, caller: Principal, command: CreateRun) -> Change[RunReply]:
    core.require_accepting()
    options = TurnOptions.of(command, await decode_uploads(command.images))

    def change(tx: Transaction) -> RunReply:
        session = open_session(tx, caller, Action.CONVERSE, command.session_id)
        run_id = core.config.ids("run")
        if command.text is not None:
            source = Source("client", principal=caller.id)
            message = user_message(
                core, session, source, command.text, run_id, images=options.images
            )
            run = queue_run(core, tx, session, message, command.provider, options=options)
            return RunReply(run)
        provider = provider_for(core, tx, session, command.provider)
        if provider != MANUAL:
            raise InvalidRequest.of({"text": f"is required: a run of {provider} needs one"})
        check_options(core, provider, options)
        require_queue_room(core, tx, provider)
        run = queueing.enqueue(
            tx,
            session,
            run_id=run_id,
            message=None,
            provider=provider,
            options=with_default_model(core, session, provider, options),
            chosen=chosen_options(session, provider, options),
            at=core.now(),
        )
        return RunReply(run)

    return change


async def get(core: Core, caller: Principal, command: GetRun) -> RunReply:
    return await core.store.read(
        lambda view: RunReply(run_for(view, caller, Action.READ, command.run_id)[0])
    )


async def list_(core: Core, caller: Principal, command: ListRuns) -> RunPage:
    def query(view: View) -> RunPage:
        if command.session_id is not None:
            session_for(view, caller, Action.READ, command.session_id)
        within = visibility(view, caller)

        def runs(after: str | None, limit: int) -> list[Run]:
            return view.runs(
                within=within,
                session_id=command.session_id,
                status=RunStatus(command.status) if command.status else None,
                order=command.order,
                after=after,
                limit=limit,
                size=PAGE_SIZE,
            )

        matches = _filter(view, command)
        return RunPage(*page(runs, command.cursor, command.limit, matches=matches))

    return await core.store.read(query)


def _filter(view: View, command: ListRuns) -> Callable[[Run], bool] | None:
    """Return whether a run matches a search; None without one."""
    words, provider = command.q, command.provider
    if words is None and provider is None:
        return None

    @cache
    def title(session_id: str) -> str | None:
        session = view.session(session_id)
        return None if session is None else session.title

    def matches(run: Run) -> bool:
        if provider not in (None, run.provider):
            return False
        if words is None:
            return True
        error = () if run.error is None else (run.error.code, run.error.message)
        return has_words(words, (run.id, run.provider, run.model, title(run.session_id), *error))

    return matches


async def wait(core: Core, caller: Principal, command: WaitRun) -> WaitReply:
    topics = [f"run:{command.run_id}", *access_topics(caller)]
    if command.until == "attention":
        topics.append("requests")
    is_own = caller.run is not None and caller.run.run_id == command.run_id

    def query(view: View) -> WaitReply:
        run, _ = run_for(view, caller, Action.READ, command.run_id)
        if is_own and command.until == "terminal":
            raise InvalidRequest.of(
                {"run_id": "is your own run, which cannot end while you wait for it"}
            )
        request = None
        if command.until == "attention":
            request = requests.attention(view, run, caller, frozenset(command.ignore))
        return WaitReply(run, not is_terminal(run.status) and request is None, request)

    with core.notifier.subscribe(*topics) as waiter:
        reply = await core.store.read(query)
        if reply.timed_out and command.timeout_s:
            # An agent may go on working while its run waits for an answer to a request.
            released = (
                nullcontext()
                if caller.run is None or is_own
                else core.workers.released(caller.run.run_id)
            )
            with released, anyio.move_on_after(command.timeout_s):
                while reply.timed_out:
                    await waiter.wait()
                    waiter.clear()
                    reply = await core.store.read(query)
    return reply


async def cancel(core: Core, caller: Principal, command: CancelRun) -> Change[CancelReply]:
    def change(tx: Transaction) -> CancelReply:
        run, _ = run_for(tx, caller, Action.CANCEL, command.run_id)
        reached = transitions.request_cancel(
            core, tx, run, reason=command.reason, cascade=command.cascade
        )
        lost = {run.id for run in tx.lost_runs(core.instance)}
        pending = tuple(run_id for run_id in reached if run_id in lost)
        return CancelReply(tx.run(run.id) or run, tuple(reached), pending)

    return change


_MANUAL_SIGNALS = frozenset({Signal.START, Signal.RELEASE, Signal.COMPLETE, Signal.FAIL})
"""The signals of a manual run's transitions. Only requests make a run wait or resume."""


async def transition(core: Core, caller: Principal, command: TransitionRun) -> Change[RunReply]:
    to_status = RunStatus(command.to_status)
    result = _result(to_status, command.result)
    error = _error(to_status, command.error)

    def change(tx: Transaction) -> RunReply:
        run, _ = run_for(tx, caller, Action.CONVERSE, command.run_id)
        signal = signal_between(run.status, to_status)
        if signal is Signal.CANCEL:
            transitions.request_cancel(core, tx, run, reason=command.reason, cascade=True)
            return RunReply(tx.run(run.id) or run)
        if run.provider != MANUAL or signal not in _MANUAL_SIGNALS:
            raise InvalidTransition(
                f"run {run.id} is executed by {run.provider}: it can only be canceled"
                if run.provider != MANUAL
                else f"a run becomes {to_status} by a request, not by a transition",
                {"from": run.status, "to": to_status},
            )
        if signal is Signal.START:
            return RunReply(_start(tx, run, f"{MANUAL}/{caller.id}", core))
        attempt_end = transitions.AttemptEnd(
            signal, result=result, error=error, reason=command.reason
        )
        return RunReply(transitions.finish(core, tx, run, attempt_end))

    return change


def _start(tx: Transaction, run: Run, worker_id: str, core: Core) -> Run:
    active = tx.active_run(run.session_id)
    if active is not None:
        raise SessionBusy(f"run {active.id} of the session is active", {"run_id": active.id})
    started = transitions.start(core, tx, run, worker_id)
    for message in tx.run_messages(run.id):
        steering.mark_delivered(tx, message.id, run.attempt)
    return started


def _result(to_status: RunStatus, values: Mapping[str, Any] | None) -> RunResult | None:
    if values is None:
        return RunResult("") if to_status is RunStatus.COMPLETED else None
    if to_status is not RunStatus.COMPLETED:
        raise InvalidRequest.of({"result": "needs to_status completed"})
    fields = _text_fields("result", values, required=("text",))
    return RunResult(fields["text"])


def _error(to_status: RunStatus, values: Mapping[str, Any] | None) -> RunError | None:
    if values is None:
        failed = to_status is RunStatus.FAILED
        return RunError("provider_error", "the client gave no reason") if failed else None
    if to_status is not RunStatus.FAILED:
        raise InvalidRequest.of({"error": "needs to_status failed"})
    fields = _text_fields("error", values, required=("message",), optional=("code",))
    code = fields.get("code", "provider_error")
    if code not in FAILURE_CODES:
        raise InvalidRequest.of({"error.code": f"must be one of {', '.join(FAILURE_CODES)}"})
    return RunError(code, fields["message"])


def _text_fields(
    path: str,
    values: Mapping[str, Any],
    *,
    required: tuple[str, ...],
    optional: tuple[str, ...] = (),
) -> dict[str, str]:
    unknown = [name for name in values if name not in required + optional]
    problems = {
        f"{path}.{shown(name)}": "is not a field of this call"
        for name in unknown[:MAX_NAMED_PROBLEMS]
    }
    for name in required + optional:
        value = values.get(name)
        if name not in values:
            if name in required:
                problems[f"{path}.{name}"] = "is required"
        elif not isinstance(value, str):
            problems[f"{path}.{name}"] = "must be a string"
        elif len(value) > MAX_TEXT:
            problems[f"{path}.{name}"] = f"must be at most {MAX_TEXT:,} characters"
        elif problem := encoding_problem(value):
            problems[f"{path}.{name}"] = problem
    if problems:
        raise InvalidRequest.of(problems)
    return {name: str(value) for name, value in values.items()}
