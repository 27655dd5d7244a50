"""Executes a run in a live process: its turns, its questions, and the clean-up."""

import logging
import uuid
from base64 import b64encode
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

import anyio
from anyio.abc import TaskGroup
from attrs import define, field

from agent_orchestrator.domain.errors import AgentFailed
from agent_orchestrator.domain.events import EventType
from agent_orchestrator.domain.images import ImageContent
from agent_orchestrator.domain.model import Invocation
from agent_orchestrator.hosts import current_host
from agent_orchestrator.ports.runner import Outcome, RunContext, Toolbox
from agent_orchestrator.runners.bulk import run_in_thread
from agent_orchestrator.runners.claude import approvals, sdk_tools
from agent_orchestrator.runners.claude.file_changes import FILE_TOOLS, path_of, proposed
from agent_orchestrator.runners.claude.messages import Message, Messages
from agent_orchestrator.runners.claude.plan import Plan
from agent_orchestrator.runners.claude.process import ASKING_MODES, ClaudeProcess
from agent_orchestrator.runners.claude.protocol import LIFECYCLE
from agent_orchestrator.runners.claude.turns import RunReader
from agent_orchestrator.runners.conversations import report_undelivered
from agent_orchestrator.runners.events import JsonObject, agent_event, text
from agent_orchestrator.runners.live.mailbox import Incoming, Mailbox, MessagesDropped
from agent_orchestrator.runners.live.messages import (
    AgentRequest,
    Malformed,
    Notification,
    RpcError,
)
from agent_orchestrator.runners.live.questions import OpenQuestions, Question, length_problem
from agent_orchestrator.runners.live.stopping import (
    INTERRUPT_S,
    PARKED,
    interrupt,
    until_deadline,
)
from agent_orchestrator.runners.live.turn_log import TurnLog
from agent_orchestrator.runners.live.turn_state import Action, Event, Prompt, Turn
from agent_orchestrator.runners.mcp_messages import CANCEL, call_tool, canceled_call, reply
from agent_orchestrator.runners.present_files import present_file

_log = logging.getLogger(__name__)

REQUEST_S: Final = 60.0
"""Maximum seconds for Claude Code to answer a request. It usually takes 10 ms."""

COMMANDS_VARIABLE: Final = "CLAUDE_PID"
"""The variable that Claude Code sets only for its commands. The value is the pid of Claude Code."""

_ASK: Final = "can_use_tool"
_CANCEL: Final = "control_cancel_request"

_MESSAGES: Final = uuid.UUID("3c1d7f0e-6a8e-4c55-9a35-0a9f1f0ab2a4")
"""The namespace of the ids of prompts."""

_CONTINUE: Final = (
    "You were interrupted while you were working, and your process was ended. This is the same conversation. "
    "Check what is already done before you do it again, then finish."
)


@define(eq=False)
class RunDriver:
    """Delivers a run's prompt and its steering messages, and records the outcome.

    :param state: the state to keep with the conversation.
    :param decision: the answer to each question whether a tool may be used; None to ask.
    """

    context: RunContext
    process: ClaudeProcess
    mailbox: Mailbox
    invocation: Invocation
    state: dict[str, Any]
    tools: Toolbox
    model: str | None
    decision: bool | None
    approval_timeout_s: float
    _reader: RunReader = field(init=False)
    _log: TurnLog = field(init=False)
    _questions: OpenQuestions = field(init=False)
    _messages: Messages = field(factory=Messages, init=False)
    _texts: dict[str, str] = field(factory=dict, init=False)
    """The steering messages that the model does not have yet, by id."""
    _calls: dict[str, anyio.CancelScope] = field(factory=dict, init=False)
    """The calls of our tools that have no answer yet."""

    def __attrs_post_init__(self) -> None:
        self._reader = RunReader(Plan.kept(self.state.get("plan")))
        self._questions = OpenQuestions(self.context, self.approval_timeout_s)
        self._log = TurnLog(self.context, self.process, self.invocation, self._record_thread)

    async def _record_thread(self) -> None:
        self.state |= {"has_begun": True, "plan": self._reader.plan.keep()}
        await self.context.set_thread(self.process.thread_id, dict(self.state))

    @property
    def has_prompt(self) -> bool:
        """Whether the model has the prompt."""
        return self._log.state.has_prompt

    async def run(self) -> Outcome:
        """Execute the run.

        :raises AgentFailed: if the turn fails.
        """
        try:
            await self._begin()
            await self._work()
            return Outcome(self._answer())
        finally:
            is_cut = self._log.state.is_working
            self._log.apply(Event.STOP)
            if is_cut or self._reader.has_run_commands or self._texts:
                with anyio.CancelScope(shield=True):
                    await until_deadline(
                        self.context, self.process, partial(self._clean_up, is_cut=is_cut)
                    )
            if self.context.is_parking:
                self.process.retire(PARKED)

    def _answer(self) -> str:
        """Return the result of the run.

        :raises AgentFailed: if it does not match the JSON Schema that was asked for.
        """
        if self.process.spec.schema is None:
            return self._reader.answer
        if self._reader.structured is None:
            problem = "the model gave no answer that matches the JSON Schema"
            raise AgentFailed("provider_error", problem)
        return self._reader.structured

    # --- turns

    async def _begin(self) -> None:
        """Send the prompt. The conversation is recorded first."""
        if self.process.mode != self.process.spec.mode:
            await self._set_mode()
        if self.model is None and self.state.get("model") is not None:
            # A conversation keeps the model that it was started with.
            await self._request("set_model", model=None)
        self.state["model"] = self.model
        await self.context.set_thread(self.process.thread_id, dict(self.state))
        self._log.apply(Event.START)
        self._send(self._prompt_id(), self.context.prompt, self.context.images)

    def _prompt_id(self) -> str:
        """Return the id of the prompt, which is the same in the next attempt of the run.

        If the gateway ends before it has recorded that the model has the prompt, the next attempt sends it again.
        Claude Code then runs it only if the conversation does not have an answer to it. A process ignores an id that it
        has received before, so it gets a new one.
        """
        found = str(uuid.uuid5(_MESSAGES, f"{self.context.run.id}\0{self.context.prompt}"))
        if found in self.process.prompts:
            return str(uuid.uuid4())
        self.process.prompts.add(found)
        return found

    async def _set_mode(self) -> None:
        mode = self.process.spec.mode
        await self._request("set_permission_mode", mode=mode)
        self.process.mode = mode

    async def _request(self, method: str, **params: Any) -> Any:
        try:
            return await self.process.request(method, params, REQUEST_S)
        except RpcError as refused:
            problem = f"Claude Code refused {method}: {refused.message}"
            raise AgentFailed("invalid_config", problem) from refused

    def _send(self, message_id: str, prompt: str, images: Sequence[ImageContent] = ()) -> None:
        self._messages.send(message_id)
        self.process.notify("user", user_message(message_id, prompt, images))

    async def _work(self) -> None:
        """Receive until all messages have ended."""
        failure: AgentFailed | None = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._log.record_if_late)
            tasks.start_soon(self._steer)
            try:
                while not self._messages.are_ended:
                    await self._receive(tasks, await self._log.next(self.mailbox))
                await self._log.act(self._end())
            except anyio.EndOfStream:
                failure = self._log.process_lost()
            except AgentFailed as problem:
                failure = problem
            if self.has_prompt:
                await self._log.until(lambda state: state.prompt is Prompt.RECORDED)
            tasks.cancel_scope.cancel()
        if failure is not None and not self.has_prompt:
            raise failure
        await self._log.emit(self._reader.finish())
        await self._log.flush()
        await self._report_usage()
        failure = failure or self._reader.failure
        if self._log.state.turn is Turn.DENIED:
            raise self._questions.denial()
        if failure is not None:
            raise failure

    def _end(self) -> tuple[Action, ...]:
        """Apply the end of the last turn to the state."""
        log = self._log
        if log.state.turn is Turn.STARTING:
            log.apply(Event.ACCEPTED)
        if self._reader.turns == 0:
            self._reader.failure = AgentFailed("provider_error", "Claude Code gave no result")
        if self._reader.failure is None:
            return log.apply(Event.COMPLETED)
        is_canceling = log.state.turn is Turn.CANCELING
        actions = log.apply(Event.INTERRUPTED if is_canceling else Event.FAILED)
        return actions if self.has_prompt else log.apply(Event.UNCONFIRMED)

    async def _receive(self, tasks: TaskGroup, incoming: Incoming) -> None:
        self.context.touch()
        match incoming:
            case AgentRequest(method=method) if method == _ASK:
                tasks.start_soon(self._ask, incoming)
            case AgentRequest(method=sdk_tools.METHOD):
                self._receive_mcp(tasks, incoming)
            case AgentRequest(method=method):
                self.process.refuse(incoming, f"this client does not answer {method}")
            case MessagesDropped() | Malformed():
                await self._log.record_unreadable(incoming)
            case Notification(method, params) if method == _CANCEL:
                self._questions.withdraw(params.get("request_id"))
            case Notification(method, params) if method == LIFECYCLE:
                self._report(text(params.get("command_uuid")), text(params.get("state")))
            case Notification():
                await self._read(tasks, incoming)

    async def _read(self, tasks: TaskGroup, incoming: Notification) -> None:
        reader = self._reader
        if incoming.is_long:
            events = await run_in_thread(reader.feed, incoming)
        else:
            events = reader.feed(incoming)
        if reader.is_answering and not self.has_prompt and self._log.state.is_running:
            tasks.start_soon(self._log.act, self._log.apply(Event.CONFIRMED))
        if self._log.state.holds_events and not reader.is_answering:
            # Errors are recorded at once, because they explain why there is no answer yet.
            for event in [one for one in events if one.event_type == EventType.RUN_ERROR]:
                events.remove(event)
                await self.context.emit(event.event_type, event.data)
        await self._log.emit(events)
        if reader.mode is not None and reader.mode != self.process.mode:
            self.process.mode = reader.mode
            is_plan_approved = reader.mode == "default" != self.process.spec.mode
            is_unasked = reader.mode not in ASKING_MODES and not self.process.has_hooks
            if is_plan_approved or is_unasked:
                tasks.start_soon(self._set_mode)

    def _report(self, message_id: str, state: str) -> None:
        found = self._messages.report(message_id, state)
        if found is Message.STARTED:
            self._texts.pop(message_id, None)
            if self._log.state.turn is Turn.STARTING:
                self._log.apply(Event.ACCEPTED)
        elif found is Message.ANSWERED_BEFORE and not self.has_prompt:
            # An earlier attempt got a part of the answer, and ended before that was recorded.
            self._send(str(uuid.uuid4()), _CONTINUE)

    async def _steer(self) -> None:
        """Send steering messages when they arrive."""
        await self._log.wait_until_taken()
        async with self.context.steering() as messages:
            async for message in messages:
                self._steer_with(message)

    def _steer_with(self, message: str) -> None:
        message_id = str(uuid.uuid4())
        self._texts[message_id] = message
        self._send(message_id, message)

    async def _report_usage(self) -> None:
        if self._reader.usage is not None:
            await self.context.report_usage(self._reader.usage)
        if self._reader.turns:
            await self._record_thread()

    # --- questions and tools

    def _receive_mcp(self, tasks: TaskGroup, request: AgentRequest) -> None:
        message = sdk_tools.message_of(request.params)
        if message.get("method") == CANCEL:
            if (scope := self._calls.get(canceled_call(message))) is not None:
                scope.cancel()
            self.process.respond(request, sdk_tools.answer(reply(message, ())))
        else:
            tasks.start_soon(self._call_tool, request, message)

    async def _call_tool(self, request: AgentRequest, message: JsonObject) -> None:
        key = str(message.get("id"))
        with anyio.CancelScope() as scope:
            self._calls[key] = scope
            try:
                await self._log.until(lambda state: state.prompt is Prompt.RECORDED)
                response = await call_tool(self.tools, message)
                self.process.respond(request, sdk_tools.answer(response))
            finally:
                self._calls.pop(key, None)

    async def _ask(self, incoming: AgentRequest) -> None:
        """Ask whether a tool may be used, and answer."""
        params = incoming.params
        name, tool_input = text(params.get("tool_name")), params.get("input")
        await self._log.until(lambda state: state.prompt is Prompt.RECORDED)
        if self.decision is not None and name != approvals.QUESTION_TOOL:
            given = tool_input if isinstance(tool_input, Mapping) else {}
            answer = approvals.allow(given) if self.decision else approvals.deny()
            self.process.respond(incoming, answer)
            return
        call = self._reader.call_of(text(params.get("tool_use_id")))
        problem = length_problem(f"the input of {name}", params, call and call[1])
        if problem is not None:
            await self._log.emit([agent_event(EventType.RUN_ERROR, message=f"denied: {problem}")])
            self.process.respond(incoming, approvals.deny(f"Not allowed: {problem}."))
            return
        make = partial(self._question, call=call)
        is_long = name in FILE_TOOLS or incoming.is_long
        question, change = await run_in_thread(make, params) if is_long else make(params)
        if change is not None:
            self._reader.note_change(text(params.get("tool_use_id")), change)
        outcome = await self._questions.ask(incoming.id, question)
        if outcome is None:
            return
        answer = question.answer(outcome.request)
        if answer.get("interrupt") is True:
            self._log.apply(Event.CANCEL_ANSWERED)
        if rules := approvals.granted_rules(answer):
            self.state["rules"] = [*dict.fromkeys([*self.state.get("rules", ()), *rules])]
        if answer.get("behavior") == "allow" and (
            message := question.decision_message(outcome.request)
        ):
            self._steer_with(message)  # an approval has no field for it
        self.process.respond(incoming, answer)
        if rules:
            await self.context.set_thread(self.process.thread_id, dict(self.state))

    def _question(
        self, params: JsonObject, call: tuple[str, JsonObject] | None
    ) -> tuple[Question, JsonObject | None]:
        """Return the request for a question, and the change of a file that it is about. Blocks."""
        name, tool_input = text(params.get("tool_name")), params.get("input")
        change = None
        if name in FILE_TOOLS and isinstance(tool_input, Mapping):
            context = self.context
            path = path_of(tool_input)
            present = present_file(path, context.session.cwd, context.protected.secret)
            change = proposed(name, tool_input, present)
        return approvals.question_for(params, call, change), change

    # --- the end

    async def _clean_up(self, *, is_cut: bool) -> None:
        """End the turn, and processes that commands have left running.

        :param is_cut: whether the agent was still working.
        """
        process = self.process
        if process.failure is None and is_cut:
            await interrupt(
                process, self._interrupt, self._drain_one, lambda: self._messages.are_ended
            )
            with anyio.move_on_after(1):
                if self.has_prompt:
                    await self._report_usage()
        if self._reader.has_run_commands:
            ended = await current_host().kill_by_variable(COMMANDS_VARIABLE, [str(process.pid)])
            if ended:
                _log.info("Claude Code %d left %d processes", process.pid, len(ended))
        await report_undelivered(self.context, self._texts.values())

    async def _interrupt(self) -> None:
        try:
            await self.process.request("interrupt", {"cancel_queued": True}, INTERRUPT_S)
        except RpcError as refused:
            _log.info("Claude Code refused an interrupt: %s", refused)
        except AgentFailed:
            pass  # it has ended with all its work

    async def _drain_one(self) -> None:
        """Discard a message, and decline its question."""
        incoming = await self.mailbox.take()
        match incoming:
            case AgentRequest():
                self.process.refuse(incoming, "the run is being stopped")
            case Notification(method, params) if method == LIFECYCLE:
                self._messages.report(text(params.get("command_uuid")), text(params.get("state")))
            case Notification() if incoming.is_long:
                await run_in_thread(self._reader.feed, incoming)
            case Notification():
                self._reader.feed(incoming)


def user_message(message_id: str, prompt: str, images: Sequence[ImageContent]) -> Mapping[str, Any]:
    """Return the fields of a message."""
    said = literal(prompt)
    content: Any = said
    if images:
        content = [*map(_image, images), {"type": "text", "text": said}]
    return {
        "message": {"role": "user", "content": content},
        "parent_tool_use_id": None,
        "session_id": "",
        "uuid": message_id,
    }


def literal(prompt: str) -> str:
    """Return a prompt so that the model gets it.

    Claude Code 2.1.332 executes a prompt that begins with the name of a command, such as ``/clear``, itself.
    """
    return f"\n{prompt}" if prompt.startswith("/") else prompt


def _image(content: ImageContent) -> Mapping[str, Any]:
    data = b64encode(content.data).decode()
    source = {"type": "base64", "media_type": content.image.media_type, "data": data}
    return {"type": "image", "source": source}
