"""Executes a run in a session: its turns, its questions, and the clean-up."""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

import anyio
from anyio.abc import TaskGroup
from attrs import define, field

from agent_orchestrator.domain.errors import AgentFailed
from agent_orchestrator.domain.events import EventType
from agent_orchestrator.domain.model import Invocation
from agent_orchestrator.ports.runner import Outcome, RunContext
from agent_orchestrator.runners.acp import permissions
from agent_orchestrator.runners.acp.agent import AcpAgent
from agent_orchestrator.runners.acp.failures import STOP_CODES, code_of, failure_of
from agent_orchestrator.runners.acp.permissions import CANCELLED, Approvals
from agent_orchestrator.runners.acp.process import REQUEST_FAILED, AcpProcess
from agent_orchestrator.runners.acp.prompts import blocks
from agent_orchestrator.runners.acp.sessions import OpenSession
from agent_orchestrator.runners.acp.tool_access import ToolAccess
from agent_orchestrator.runners.acp.tool_calls import ToolCall
from agent_orchestrator.runners.acp.updates import UpdateReader
from agent_orchestrator.runners.acp.usage import UsageMeter
from agent_orchestrator.runners.acp.values import value_at
from agent_orchestrator.runners.bulk import run_in_thread
from agent_orchestrator.runners.events import JsonObject, agent_event, text
from agent_orchestrator.runners.live.mailbox import Incoming, Mailbox, MessagesDropped
from agent_orchestrator.runners.live.messages import (
    AgentRequest,
    Answer,
    Malformed,
    Notification,
    RpcError,
)
from agent_orchestrator.runners.live.questions import OpenQuestions, length_problem
from agent_orchestrator.runners.live.steering import steer
from agent_orchestrator.runners.live.stopping import PARKED, interrupt, until_deadline
from agent_orchestrator.runners.live.turn_log import TurnLog
from agent_orchestrator.runners.live.turn_state import Event, Prompt, Turn

_logger = logging.getLogger(__name__)

REQUEST_S: Final = 60.0
"""Maximum seconds to accept a message or a mode. It usually takes 10 ms."""

PERMISSION: Final = "session/request_permission"
UPDATE: Final = "session/update"

_WORK: Final = frozenset(
    {"agent_message_chunk", "agent_thought_chunk", "tool_call", "tool_call_update", "plan"}
)
"""The updates that prove that the agent works on the prompt."""

_REFUSALS: Final = (-32600, -32601, -32602)
"""The codes of errors with which an agent refuses a prompt before it reads it. After any other error, the prompt is in its
conversation."""

_DENIED: Final = "Your request was denied."

_MAX_DENIED: Final = 10
"""Maximum number of turns in a row that begin only because a request was denied, and in which no tool was used."""

_MAX_QUESTIONS: Final = 100
"""Maximum number of open requests for permission. Agents have one, or a few."""

_MAX_RESTORED: Final = 20
"""Maximum number of times that the mode is restored in a run after the agent has changed it."""

_MANY: Final = 1_000
"""Number of messages after which the agent must have the prompt. Until then, their events are in memory."""


@define(eq=False)
class TurnDriver:
    """Delivers a run's prompt and later messages, and records the outcome.

    A message that the agent did not accept during its turn starts another turn of the same run.

    :param tools: the orchestration tools that the agent was given; None without them.
    :param approvals: the approvals of the session.
    :param pending: messages that the agent does not have yet.
    """

    context: RunContext
    process: AcpProcess
    mailbox: Mailbox
    session: OpenSession
    invocation: Invocation
    tools: ToolAccess | None
    approval_timeout_s: float
    approvals: Approvals
    pending: list[str]
    _reader: UpdateReader = field(init=False)
    _log: TurnLog = field(init=False)
    _questions: OpenQuestions = field(init=False)
    _unanswered: dict[str | int, AgentRequest] = field(factory=dict, init=False)
    _prompt: int | None = field(default=None, init=False)
    """The number of the request with the prompt."""
    _received: int = field(default=0, init=False)
    """The number of messages so far."""
    _restored: int = field(default=0, init=False)
    """The number of times that the mode was restored."""
    _is_restoring: bool = field(default=False, init=False)
    _is_denied: bool = field(default=False, init=False)
    """Whether a question of this turn was denied."""

    def __attrs_post_init__(self) -> None:
        self._reader = UpdateReader(self.agent, UsageMeter(self.agent.usage, self.process.totals))
        self._questions = OpenQuestions(self.context, self.approval_timeout_s)
        self._log = TurnLog(self.context, self.process, self.invocation, self._record_thread)

    @property
    def agent(self) -> AcpAgent:
        return self.process.spec.agent

    @property
    def name(self) -> str:
        return self.process.spec.name

    @property
    def has_prompt(self) -> bool:
        """Whether the agent has the prompt."""
        return self._log.state.has_prompt

    async def _record_thread(self) -> None:
        state = {**self.session.state, **self.approvals.state()}
        await self.context.set_thread(self.session.thread_id, state)

    async def run(self) -> Outcome:
        """Execute the run.

        :raises AgentFailed: if a turn fails.
        """
        try:
            await self._turn(blocks(self.agent, self.context.prompt, self.context.images))
            denied = calls_done = 0
            while self.pending:
                is_stuck = set(self.pending) == {_DENIED} and self._reader.calls_done == calls_done
                denied, calls_done = denied + 1 if is_stuck else 0, self._reader.calls_done
                if denied > _MAX_DENIED:
                    self.pending.clear()
                    message = f"{self.name} asked again after {_MAX_DENIED} denials in a row"
                    raise AgentFailed("denied", message)
                count = len(self.pending)
                await self._turn(blocks(self.agent, "\n\n".join(self.pending)), count)
            if self.tools is not None and not self.tools.is_used():
                # An agent says nothing if it cannot connect.
                note = f"{self.name} worked without its tools: it did not connect to them"
                await self.context.emit(EventType.RUN_ERROR, {"message": note})
            return Outcome(self._reader.last_message)
        finally:
            if self._log.state.is_working and self.process.failure is None:
                with anyio.CancelScope(shield=True):
                    await until_deadline(self.context, self.process, self._stop)

    # --- a turn

    async def _turn(self, prompt: Sequence[Mapping[str, Any]], pending_count: int = 0) -> None:
        """Run a turn from its prompt to its end.

        :param pending_count: number of pending messages that the prompt contains.
        """
        self._is_denied = False
        self._reader.last_message = self._reader.last_text = ""
        self._log.apply(Event.START)
        params = {"sessionId": self.session.id, "prompt": prompt}
        self._prompt = self.process.submit("session/prompt", params, self.mailbox)
        self._log.apply(Event.ACCEPTED)
        del self.pending[:pending_count]
        answer: Answer | None = None
        failure: AgentFailed | None = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._log.record_if_late)
            if self.process.can_steer and self.agent.steers:
                tasks.start_soon(
                    steer, self.context, self.process, self._log, self.pending, self._steer_with
                )
            try:
                while answer is None:
                    answer = await self._receive(tasks, await self._log.next(self.mailbox))
            except anyio.EndOfStream:
                failure = self._log.process_lost()
            except AgentFailed as problem:
                failure = problem
            await self._log.emit(self._reader.finish())
            if answer is not None:
                failure = await self._end(answer)
            if self.has_prompt:
                await self._log.until(lambda state: state.prompt is Prompt.RECORDED)
            tasks.cancel_scope.cancel()
        # Some agents end a turn before its requests are answered, and may still wait for the answers.
        for request in self._unanswered.values():
            self.process.respond(request, CANCELLED)
        self._unanswered.clear()
        await self._log.flush()
        if answer is not None:
            await self._report_usage(answer)
        if failure is not None:
            raise failure

    async def _receive(self, tasks: TaskGroup, incoming: Incoming) -> Answer | None:
        """Handle a message. Return the answer to the prompt."""
        self._received += 1
        if self._received > _MANY:
            self._confirm(tasks)
        match incoming:
            case Answer() if incoming.number == self._prompt:
                return incoming
            case MessagesDropped() | Malformed():
                await self._log.record_unreadable(incoming)
            case AgentRequest(method=method) if method == PERMISSION and self._is_ours(incoming):
                self._confirm(tasks)
                if incoming.id in self._unanswered or len(self._unanswered) >= _MAX_QUESTIONS:
                    self.process.refuse(incoming, "its id is in use, or too many requests are open")
                    return None
                call, events = self._reader.asked(incoming.params)
                await self._log.emit(events)
                self._unanswered[incoming.id] = incoming
                tasks.start_soon(self._answer, incoming, call)
            case AgentRequest(method=method):
                self.process.refuse(incoming, f"this client does not answer {method}")
            case Notification(method=method, params=params) if method == REQUEST_FAILED:
                self._confirm(tasks)
                note = f"a request to the model of {self.name} failed: {text(params.get('reason'))}"
                await self._log.emit([agent_event(EventType.RUN_ERROR, message=note)])
            case Notification("$/cancel_request", params):
                self._questions.withdraw(params.get("requestId"))
            case Notification(method=method) if method == UPDATE and self._is_ours(incoming):
                await self._update(tasks, incoming)
            case Notification(method, params):
                await self._record(method, params)
        return None

    def _is_ours(self, incoming: AgentRequest | Notification) -> bool:
        return incoming.params.get("sessionId") == self.session.id

    def _confirm(self, tasks: TaskGroup) -> None:
        """Record that the agent has the prompt."""
        if not self.has_prompt:
            tasks.start_soon(self._log.act, self._log.apply(Event.CONFIRMED))

    async def _record(self, kind: str, payload: JsonObject) -> None:
        await self._log.emit([agent_event(EventType.BACKEND_EVENT, kind=kind, payload=payload)])

    async def _update(self, tasks: TaskGroup, incoming: Notification) -> None:
        if text(value_at(incoming.params, ["update", "sessionUpdate"])) in _WORK:
            self._confirm(tasks)
        if incoming.is_long:
            events = await run_in_thread(self._reader.feed, incoming.params)
        else:
            events = self._reader.feed(incoming.params)
        await self._log.emit(events)
        if not self._is_restoring and self._left_mode() is not None:
            self._is_restoring = True
            tasks.start_soon(self._restore_mode)

    def _left_mode(self) -> str | None:
        """Return the mode of the agent if it is not the requested one; else None."""
        mode, wanted = self._reader.mode, self.session.mode
        return None if wanted is None or mode == wanted else mode

    async def _restore_mode(self) -> None:
        """Set the requested mode again after the agent has changed it."""
        setting, wanted = self.process.settings["mode"], self.session.mode
        assert wanted is not None
        try:
            while (mode := self._left_mode()) is not None:
                self._reader.mode = None
                self._restored += 1
                if self._restored > _MAX_RESTORED:
                    self._fail(f"{self.name} does not stay in the mode {wanted!r}")
                    return
                note = (
                    f"{self.name} went into the mode {mode[:100]!r}, and is set to {wanted!r} again"
                )
                await self.context.emit(EventType.RUN_ERROR, {"message": note})
                params = setting.change(self.session.id, wanted)
                await self.process.request(setting.method, params, REQUEST_S)
        except RpcError as refused:
            self._fail(f"{self.name} cannot be set to the mode {wanted!r}: {refused.message}")
        except AgentFailed:
            pass  # the turn has the failure
        finally:
            self._is_restoring = False

    def _fail(self, message: str) -> None:
        self.process.fail(AgentFailed("provider_error", message))

    # --- its end

    async def _end(self, answer: Answer) -> AgentFailed | None:
        """Record the end of the turn. Return its failure; None if it succeeded."""
        failure = self._failure_of(answer)
        is_refused = answer.error is not None and answer.error.code in _REFUSALS
        if not is_refused and not self.has_prompt:
            await self._log.act(self._log.apply(Event.CONFIRMED))
        if failure is None:
            event = Event.COMPLETED
        else:
            is_canceled = self._log.state.turn is Turn.CANCELING
            event = Event.INTERRUPTED if is_canceled else Event.FAILED
        self._log.apply(event)
        if not self.has_prompt:
            await self._log.act(self._log.apply(Event.UNCONFIRMED))
        return failure

    def _failure_of(self, answer: Answer) -> AgentFailed | None:
        """Return the failure of a turn; None if it succeeded."""
        if self._log.state.turn is Turn.CANCELING:
            return AgentFailed("denied", "its request was denied, and the turn ended with it")
        if answer.error is not None:
            return failure_of(self.name, self.agent, answer.error)
        reason = text(value_at(answer.result, ["stopReason"]))
        if reason == "end_turn":
            if not self.agent.hides_errors or value_at(answer.result, ["usage"]):
                return None
            message = (
                self._reader.last_text.strip() or f"{self.name} gave no reason for its failure"
            )
            return AgentFailed(code_of(message), message)
        if reason == "cancelled" and self._is_denied:
            if self.pending:
                return None
            return AgentFailed(
                "denied", f"{self.name} ended the turn, because its request was denied"
            )
        if reason == self.agent.overflow_reason:
            message = f"{self.name}: the conversation is too long for its model"
            return AgentFailed("context_exceeded", message)
        code, message = STOP_CODES.get(
            reason, ("provider_error", f"it ended the turn as {reason!r}")
        )
        return AgentFailed(code, f"{self.name}: {message}")

    async def _report_usage(self, answer: Answer) -> None:
        meter = self._reader.usage
        if isinstance(answer.result, Mapping):
            meter.add_result(answer.result)
        self.process.totals = meter.totals
        if (usage := meter.usage()) is not None:
            await self.context.report_usage(usage)

    async def _stop(self) -> None:
        """End the turn. If the agent has used tools, end its process, with all that it started."""
        self._log.apply(Event.STOP)
        end: list[Answer] = []

        async def read_one() -> None:
            match await self.mailbox.take():
                case Answer() as answer if answer.number == self._prompt:
                    end.append(answer)
                case AgentRequest(method=method) as request if method == PERMISSION:
                    self.process.respond(request, CANCELLED)
                case AgentRequest(method=method) as request:
                    self.process.refuse(request, f"this client does not answer {method}")

        await interrupt(self.process, self._ask_to_stop, read_one, lambda: bool(end))
        if end:
            with anyio.move_on_after(1):
                await self._report_usage(end[0])
        if self.context.is_parking:
            self.process.retire(PARKED)
        elif self._reader.has_called_tools:
            self.process.fail(AgentFailed("provider_error", f"{self.name} was stopped"))

    async def _ask_to_stop(self) -> None:
        self.process.notify("session/cancel", {"sessionId": self.session.id})
        for request in self._unanswered.values():
            self.process.respond(request, CANCELLED)

    # --- questions and steering

    async def _answer(self, incoming: AgentRequest, call: ToolCall) -> None:
        """Answer a permission request of the agent: by a rule, or by the decision on a request."""
        options = incoming.params.get("options")
        once = permissions.allow_once(options)
        message, is_canceled = None, False
        problem = length_problem(call.title or call.kind, call.fields)
        if once is None:
            problem = f"{self.name} did not offer to allow it only once"
        if call.is_own or (problem is None and self.approvals.have(call)):
            answer = once or permissions.denial(options)
        elif problem is not None:
            await self.context.emit(EventType.RUN_ERROR, {"message": f"denied: {problem}"})
            answer = permissions.denial(options)
        else:
            make = partial(permissions.question_for, options=options)
            question = await run_in_thread(make, call) if incoming.is_long else make(call)
            outcome = await self._questions.ask(incoming.id, question)
            if outcome is None:
                self._unanswered.pop(incoming.id, None)
                return
            answer, message = (
                question.answer(outcome.request),
                question.decision_message(outcome.request),
            )
            is_canceled = permissions.is_cancel(outcome.request)
            if answer == once and permissions.is_for_session(outcome.request):
                self.approvals.add(call)
                await self._record_thread()
        if is_canceled:
            self._log.apply(Event.CANCEL_ANSWERED)
        elif message is not None:
            self.pending.append(message)  # before the answer, which may end the turn
        if answer != once:
            call.is_declined = self._is_denied = True
            if message is None and not is_canceled and self.agent.denial_ends_turn:
                self.pending.append(_DENIED)
        self._unanswered.pop(incoming.id, None)
        self.process.respond(incoming, answer)
        if is_canceled:
            await self._ask_to_stop()

    async def _steer_with(self, message: str) -> None:
        """Give the turn a message."""
        params = {"sessionId": self.session.id, "prompt": blocks(self.agent, message)}
        try:
            answer = await self.process.request("_session/steering", params, REQUEST_S)
        except RpcError as refused:
            _logger.info("%s did not accept a message during a turn: %s", self.name, refused)
            return
        if value_at(answer, ["outcome"]) != "injected":
            # It arrived after the turn and started a turn that never ends. It is sent in a new turn instead.
            self.process.notify("session/cancel", {"sessionId": self.session.id})
        elif message in self.pending:
            self.pending.remove(message)
