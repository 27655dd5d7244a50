"""Executes a run on a thread: its turns, its questions, and the clean-up."""

import logging
from base64 import b64encode
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

import anyio
from anyio.abc import TaskGroup
from attrs import define, field

from agent_orchestrator.domain.errors import AgentFailed
from agent_orchestrator.domain.events import EventType
from agent_orchestrator.domain.images import ImageContent
from agent_orchestrator.domain.model import Invocation, Thread
from agent_orchestrator.ports.runner import Outcome, RunContext, Toolbox
from agent_orchestrator.runners.bulk import run_in_thread
from agent_orchestrator.runners.codex.appserver import approvals
from agent_orchestrator.runners.codex.appserver.dynamic_tools import call_tool
from agent_orchestrator.runners.codex.appserver.failures import failure_of
from agent_orchestrator.runners.codex.appserver.server import Server
from agent_orchestrator.runners.codex.appserver.teardown import end_background_work, end_turn
from agent_orchestrator.runners.codex.appserver.turns import TurnReader
from agent_orchestrator.runners.codex.argv import MAX_INPUT
from agent_orchestrator.runners.codex.failures import refusal_code
from agent_orchestrator.runners.codex.usage import usage_between
from agent_orchestrator.runners.events import AgentEvent, UnexpectedShape, agent_event, text
from agent_orchestrator.runners.live.mailbox import Incoming, Mailbox, MessagesDropped
from agent_orchestrator.runners.live.messages import (
    AgentRequest,
    Malformed,
    Notification,
    RpcError,
)
from agent_orchestrator.runners.live.questions import OpenQuestions, length_problem
from agent_orchestrator.runners.live.steering import steer
from agent_orchestrator.runners.live.stopping import run_shielded, until_deadline
from agent_orchestrator.runners.live.turn_log import TurnLog
from agent_orchestrator.runners.live.turn_state import Action, Event, Prompt, Turn

_log = logging.getLogger(__name__)

REQUEST_TIMEOUT_S: Final = 60.0
"""Maximum seconds to accept a turn or a message. It usually takes 10 ms."""

TOOL_CALL: Final = "item/tool/call"

_ENDS: Final = {"completed": Event.COMPLETED, "failed": Event.FAILED}
"""The events for codex's statuses of an ended turn. Other statuses mean an interruption."""

_Input = Sequence[Mapping[str, Any]]


class ThreadNotLoaded(Exception):
    """Codex has unloaded a thread."""


@define(eq=False)
class TurnDriver:
    """Delivers a run's prompt and its steering messages, and records the outcome.

    :param previous_thread: the thread of the session before the run.
    :param overrides: further parameters of ``turn/start``.
    :param tools: the orchestration tools, if its agent gets them.
    :param thread_settings: settings to store with the thread, besides its token counts.
    :param steered: steering messages that were accepted, but not yet delivered to the agent.
    """

    context: RunContext
    server: Server
    thread_id: str
    mailbox: Mailbox
    previous_thread: Thread | None
    overrides: Mapping[str, Any]
    thread_settings: Mapping[str, Any]
    invocation: Invocation
    tools: Toolbox | None
    approval_timeout_s: float
    remember_approvals: bool
    steered: list[str]
    _reader: TurnReader = field(init=False)
    _log: TurnLog = field(init=False)
    _questions: OpenQuestions = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._reader = TurnReader(self.thread_id)
        self._questions = OpenQuestions(self.context, self.approval_timeout_s)
        self._log = TurnLog(self.context, self.server, self.invocation, self._record_thread)

    async def _record_thread(self) -> None:
        settings = None if self.previous_thread else self.thread_settings
        await self.context.set_thread(self.thread_id, settings)

    @property
    def has_prompt(self) -> bool:
        """Whether codex has the prompt."""
        return self._log.state.has_prompt

    async def run(self) -> Outcome:
        """Execute the run.

        :raises AgentFailed: if the turn fails.
        :raises ThreadNotLoaded: if codex does not have the thread.
        """
        try:
            await self._turn(_input(self.context.prompt, self.context.images))
            while self.steered:
                count = _count_fitting(self.steered)
                await self._turn(_input("\n\n".join(self.steered[:count])), count)
            return self._outcome()
        finally:
            if self._needs_stop:
                with anyio.CancelScope(shield=True):
                    await until_deadline(self.context, self.server, self._stop_turn)

    # --- a turn

    async def _turn(self, turn_input: _Input, steered_count: int = 0) -> None:
        """Run a turn of codex from its prompt to its end.

        :param steered_count: number of steering messages that the prompt contains.
        """
        reader = self._reader = TurnReader(
            self.thread_id,
            has_run_commands=self._reader.has_run_commands,
            children=self._reader.children,
            items=self._reader.items,
        )
        failure: AgentFailed | ThreadNotLoaded | None = None
        async with anyio.create_task_group() as tasks:
            # Recorded while codex already works, so that the turn does not take longer.
            tasks.start_soon(self._log.record_if_late)
            tasks.start_soon(
                steer, self.context, self.server, self._log, self.steered, self._steer_with
            )
            try:
                await run_shielded(
                    self.context, self.server, partial(self._send_prompt, turn_input)
                )
                del self.steered[:steered_count]
                while reader.end is None:
                    await self._receive(tasks, await self._log.next(self.mailbox))
            except anyio.EndOfStream:
                failure = self._log.process_lost()
            except (AgentFailed, ThreadNotLoaded) as problem:
                failure = problem
            if self.has_prompt:
                await self._log.until(lambda state: state.prompt is Prompt.RECORDED)
            tasks.cancel_scope.cancel()
        if failure is not None and not self.has_prompt:
            raise failure
        await self._log.emit(reader.finish())
        await self._log.flush()
        if failure is not None:
            if self._log.state.turn in (Turn.REFUSED, Turn.LOST):
                # Otherwise it would be counted for the next run of the thread.
                await self._report_usage()
            raise failure
        await self._finish()

    async def _send_prompt(self, turn_input: _Input) -> None:
        """Send the prompt to codex."""
        params = {"threadId": self.thread_id, "input": turn_input, **self.overrides}
        self._log.apply(Event.START)
        try:
            answer = await self.server.request("turn/start", params, REQUEST_TIMEOUT_S)
        except RpcError as refused:
            self._log.apply(Event.REFUSED)
            self.server.invalidate(self.thread_id)  # codex may have accepted its settings
            code = refusal_code(refused.message)
            if code == "thread_missing" and not self.has_prompt:
                self.server.threads.pop(self.thread_id, None)  # codex has unloaded it
                raise ThreadNotLoaded(refused.message) from refused
            raise AgentFailed(code, f"codex refused the turn: {refused.message}") from refused
        turn = answer.get("turn") if isinstance(answer, dict) else None
        self._reader.turn_id = text(turn.get("id")) if isinstance(turn, dict) else None
        if self._reader.turn_id:
            self.server.route_turn(self._reader.turn_id, self.mailbox)
        self._log.apply(Event.ACCEPTED)

    async def _receive(self, tasks: TaskGroup, incoming: Incoming) -> None:
        match incoming:
            case AgentRequest():
                tasks.start_soon(self._answer_request, incoming)
            case MessagesDropped() | Malformed():
                await self._log.record_unreadable(incoming)
            case Notification("serverRequest/resolved", params):
                self._questions.withdraw(params.get("requestId"))
            case Notification() if not self._reader.is_stale(incoming):
                if incoming.is_long:
                    events = await run_in_thread(self._reader.feed, incoming)
                else:
                    events = self._reader.feed(incoming)
                actions: tuple[Action, ...] = ()
                if self._reader.is_recorded and not self.has_prompt:
                    actions += self._log.apply(Event.CONFIRMED)
                if self._reader.end is not None:
                    actions += self._log.apply(
                        _ENDS.get(self._reader.end.status, Event.INTERRUPTED)
                    )
                if actions:
                    tasks.start_soon(self._log.act, actions)
                await self._log.emit(events)

    # --- its end

    async def _finish(self) -> None:
        await self._report_usage()
        end = self._reader.end
        assert end is not None
        if self._log.state.turn is Turn.COMPLETED:
            return
        if not self.has_prompt:
            await self._log.act(self._log.apply(Event.UNCONFIRMED))
        if self._log.state.turn is Turn.FAILED:
            raise AgentFailed(*failure_of(end.error))
        if self._log.state.turn is Turn.DENIED:
            raise self._questions.denial()
        raise AgentFailed("provider_error", f"codex ended the turn as {end.status}")

    async def _report_usage(self) -> None:
        totals = self._reader.totals
        if totals is not None:
            before = (
                self.previous_thread.state.get("usage")
                if self.previous_thread is not None
                else None
            )
            await self.context.report_usage(usage_between(before or {}, totals))
        await self.context.set_thread(
            self.thread_id, totals and {**self.thread_settings, "usage": totals}
        )

    def _outcome(self) -> Outcome:
        return Outcome(self._reader.items.last_message or "")

    @property
    def _needs_stop(self) -> bool:
        return (
            self._log.state.is_working
            or self._reader.has_run_commands
            or bool(self._reader.children)
        )

    async def _stop_turn(self) -> None:
        """End the turn, and processes that commands have left running."""
        reader, is_cut = self._reader, self._log.state.is_working
        self._log.apply(Event.STOP)
        if self.server.failure is None and is_cut:
            await end_turn(self.server, self.mailbox, reader)
            with anyio.move_on_after(1):
                if self.has_prompt and self.server.failure is None:
                    await self._report_usage()
        await end_background_work(self.server, self.mailbox, reader)

    # --- questions, tool calls and steering

    async def _answer_request(self, incoming: AgentRequest) -> None:
        """Ask a question of codex as a request, or execute a call of our tools."""
        if incoming.method == TOOL_CALL and incoming.params.get("threadId") == self.thread_id:
            self.server.respond(incoming, await call_tool(self.tools, incoming.params))
            return
        item = self._reader.items.tools.get(text(incoming.params.get("itemId")))
        if (problem := length_problem(incoming.method, incoming.params, item)) is not None:
            await self._log.emit([agent_event(EventType.RUN_ERROR, message=f"denied: {problem}")])
            self.server.refuse(incoming, problem)
            return
        try:
            make = partial(approvals.question_for, item=item, remember=self.remember_approvals)
            question = await run_in_thread(make, incoming) if incoming.is_long else make(incoming)
        except UnexpectedShape:
            question = None
        if question is None:
            payload = {"method": incoming.method, "params": incoming.params}
            data = {"kind": incoming.method, "payload": payload}
            await self._log.emit([AgentEvent(EventType.BACKEND_EVENT, data)])
            self.server.refuse(incoming, f"this client does not answer {incoming.method}")
            return
        outcome = await self._questions.ask(incoming.id, question)
        if outcome is None:
            return
        answer = question.answer(outcome.request)
        is_canceled = answer.get("decision") == approvals.CANCEL
        if is_canceled:
            self._log.apply(Event.CANCEL_ANSWERED)
        message = None if is_canceled else question.decision_message(outcome.request)
        if message is not None:
            self.steered.append(message)  # before the answer, which may end the turn
        self.server.respond(incoming, answer)
        if message is not None:
            with suppress(AgentFailed):
                await run_shielded(self.context, self.server, partial(self._steer_with, message))

    async def _steer_with(self, message: str) -> None:
        """Send a message to the turn."""
        params = {
            "threadId": self.thread_id,
            "expectedTurnId": self._reader.turn_id,
            "input": _input(message),
        }
        try:
            await self.server.request("turn/steer", params, REQUEST_TIMEOUT_S)
        except RpcError as refused:
            _log.info("codex did not accept a message during a turn: %s", refused)
        else:
            if message in self.steered:
                self.steered.remove(message)


def _count_fitting(messages: Sequence[str]) -> int:
    """Return how many messages, from the first on, codex takes in one turn: at least one."""
    size = 0
    for count, message in enumerate(messages):
        size += len(message) + 2
        if size > MAX_INPUT and count:
            return count
    return len(messages)


def _input(prompt: str, images: Sequence[ImageContent] = ()) -> _Input:
    """Return the input of a turn in codex's format. Images are embedded, so codex need not read files."""
    return [
        {"type": "text", "text": prompt},
        *({"type": "image", "url": _data_url(content)} for content in images),
    ]


def _data_url(content: ImageContent) -> str:
    return f"data:{content.image.media_type};base64,{b64encode(content.data).decode()}"
