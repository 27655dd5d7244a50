"""A run's part of a thread: its turns, what is asked in them, and leaving nothing behind."""

import logging
from base64 import b64encode
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

import anyio
from anyio.abc import TaskGroup
from attrs import define, field

from agent_orchestrator.domain.errors import AgentFailed, Conflict, InvalidRequest
from agent_orchestrator.domain.events import EventType
from agent_orchestrator.domain.images import ImageContent
from agent_orchestrator.domain.model import Invocation, Thread
from agent_orchestrator.ports import Outcome, RunContext
from agent_orchestrator.runners.bulk import in_thread
from agent_orchestrator.runners.codex.appserver import approvals, endings
from agent_orchestrator.runners.codex.appserver.endings import end_rest, end_turn
from agent_orchestrator.runners.codex.appserver.failures import failure_of
from agent_orchestrator.runners.codex.appserver.mailbox import Mailbox, TooFarBehind
from agent_orchestrator.runners.codex.appserver.peer import (
    Asked,
    Heard,
    Notification,
    Refused,
    Unreadable,
)
from agent_orchestrator.runners.codex.appserver.pieces import Pieces
from agent_orchestrator.runners.codex.appserver.server import Server
from agent_orchestrator.runners.codex.appserver.tools import Tools
from agent_orchestrator.runners.codex.appserver.turn_state import (
    Action,
    Event,
    Prompt,
    State,
    Turn,
    step,
)
from agent_orchestrator.runners.codex.appserver.turns import TurnReader
from agent_orchestrator.runners.codex.argv import MAX_INPUT
from agent_orchestrator.runners.codex.failures import refusal_code
from agent_orchestrator.runners.codex.items import UnexpectedShape, text
from agent_orchestrator.runners.codex.reading import AgentEvent
from agent_orchestrator.runners.codex.usage import usage_between

_log = logging.getLogger(__name__)

REQUEST_S: Final = 60.0
"""Seconds codex has to take a turn or a message; it takes some 10 ms."""

TOOL_CALL: Final = "item/tool/call"

PATIENCE_S: Final = 1.0
"""Seconds after which what is recorded of a turn does not wait for codex to have the prompt."""


_ENDS: Final = {"completed": Event.COMPLETED, "failed": Event.FAILED}
"""How codex says that a turn ended; whatever else it says is an interruption."""

_Input = Sequence[Mapping[str, Any]]


class NotLoaded(Exception):
    """Codex has let go of a thread that it had loaded."""


@define(eq=False)
class Conversation:
    """Hands over one run's prompt, and whatever steers it, and records what comes of it.

    :param before: the thread as the session knew it before the run.
    :param overrides: what ``turn/start`` is given besides.
    :param kept: what to remember with the thread, besides the tokens it has used.
    :param steered: messages that were taken and that the agent has not been given.
    """

    context: RunContext
    server: Server
    thread_id: str
    route: Mailbox
    before: Thread | None
    overrides: Mapping[str, Any]
    kept: Mapping[str, Any]
    invocation: Invocation
    tools: Tools
    approval_timeout_s: float
    remember_approvals: bool
    steered: list[str]
    _reader: TurnReader = field(init=False)
    _pieces: Pieces = field(factory=Pieces, init=False)
    _state: State = field(factory=State, init=False)
    _state_changed: anyio.Event = field(factory=anyio.Event, init=False)
    """Set, and replaced, at each change of the state."""
    _early: list[AgentEvent] = field(factory=list, init=False)
    """The events that are held back while the state says so."""
    _asks: dict[Any, anyio.CancelScope] = field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        self._reader = TurnReader(self.thread_id)

    @property
    def is_taken(self) -> bool:
        """Whether codex has the prompt."""
        return self._state.is_taken

    def _apply(self, event: Event) -> tuple[Action, ...]:
        """Change the state; return what is to be done for it."""
        self._state, actions = step(self._state, event)
        self._state_changed.set()
        self._state_changed = anyio.Event()
        return actions

    async def _until(self, condition: Callable[[State], bool]) -> None:
        """Wait until the state meets a condition."""
        while not condition(self._state):
            await self._state_changed.wait()

    async def hold(self) -> Outcome:
        """Carry it out.

        :raises AgentFailed: if the turn fails.
        :raises NotLoaded: if codex does not have the thread.
        """
        try:
            await self._turn(_input(self.context.prompt, self.context.images))
            while self.steered:
                together = _together(self.steered)
                await self._turn(_input("\n\n".join(self.steered[:together])), together)
            return self._outcome()
        finally:
            if self._has_to_be_left:
                with anyio.CancelScope(shield=True):
                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(self._hurry)
                        await self._leave()
                        tasks.cancel_scope.cancel()

    # --- a turn

    async def _turn(self, given: _Input, of_steered: int = 0) -> None:
        """Give codex a prompt, and hear it out.

        :param of_steered: how many of the messages that were not given yet are in it.
        """
        reader = self._reader = TurnReader(
            self.thread_id,
            has_run_commands=self._reader.has_run_commands,
            children=self._reader.children,
            items=self._reader.items,
        )
        failure: AgentFailed | NotLoaded | None = None
        async with anyio.create_task_group() as tasks:
            # Written down while codex is at work already: it takes no longer for that.
            tasks.start_soon(self._report_late)
            tasks.start_soon(self._steer)
            try:
                await self._finished(partial(self._give, given))
                del self.steered[:of_steered]
                while reader.end is None:
                    await self._hear(tasks, await self._next())
            except anyio.EndOfStream:
                failure = self._broken()
            except (AgentFailed, NotLoaded) as problem:
                failure = problem
            if self.is_taken:
                await self._until(lambda state: state.prompt is Prompt.RECORDED)
            tasks.cancel_scope.cancel()
        if failure is not None and not self.is_taken:
            raise failure
        await self._tell(reader.finish())
        await self._tell_now(self._pieces.take())
        if failure is not None:
            if self._state.turn in (Turn.REFUSED, Turn.LOST):
                await self._report_usage()  # or the thread's next run would have used it
            raise failure
        await self._conclude()

    async def _report_late(self) -> None:
        """Record the process where codex does not come to take the prompt."""
        await self._taken_or_late()
        if not self.is_taken:
            await self._act(self._apply(Event.DELAYED))

    async def _taken_or_late(self) -> None:
        """Wait until codex has the prompt: all that is recorded then is recorded in one commit."""
        with anyio.move_on_after(PATIENCE_S):
            await self._until(lambda state: state.is_taken)

    async def _act(self, actions: Sequence[Action]) -> None:
        """Do what a change of the state asks for."""
        async with anyio.create_task_group() as tasks:
            if Action.RECORD_PROCESS in actions:
                tasks.start_soon(self.context.report_process, self.server.pid, self.invocation)
            if Action.RECORD_PROMPT in actions:
                tasks.start_soon(self.context.delivered)
        if Action.RECORD_PROMPT in actions:
            await self.context.set_thread(self.thread_id, None if self.before else self.kept)
            await self._release()
            self._apply(Event.RECORDED)
        elif Action.RELEASE_EVENTS in actions:
            await self._release()

    async def _release(self) -> None:
        """Record the events that were held back, and those that come meanwhile."""
        while self._early:
            events, self._early = self._early, []
            for event in events:
                await self.context.emit(event.event_type, event.data)

    async def _give(self, given: _Input) -> None:
        """Give codex the prompt."""
        params = {"threadId": self.thread_id, "input": given, **self.overrides}
        self._apply(Event.START)
        try:
            answer = await self.server.request("turn/start", params, REQUEST_S)
        except Refused as refused:
            self._apply(Event.REFUSED)
            self.server.doubt(self.thread_id)  # it may have taken what it was told besides
            code = refusal_code(refused.message)
            if code == "thread_missing" and not self.is_taken:
                self.server.threads.pop(self.thread_id, None)  # codex has unloaded it
                raise NotLoaded(refused.message) from refused
            raise AgentFailed(code, f"codex refused the turn: {refused.message}") from refused
        turn = answer.get("turn") if isinstance(answer, dict) else None
        self._reader.turn_id = text(turn.get("id")) if isinstance(turn, dict) else None
        if self._reader.turn_id:
            self.server.own_turn(self._reader.turn_id, self.route)
        self._apply(Event.ACCEPTED)

    async def _finished(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do something with codex, to its end also where the run is canceled meanwhile.

        Who cancels must know which turn to interrupt, and what it was given. Codex has as long for it
        as it has to end a turn; one that takes longer is ended.
        """
        failure: AgentFailed | NotLoaded | None = None
        over = anyio.Event()

        async def shielded() -> None:
            nonlocal failure
            with anyio.CancelScope(shield=True):
                try:
                    await work()
                except (AgentFailed, NotLoaded) as problem:
                    failure = problem
            over.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(shielded)
            try:
                await over.wait()
            finally:
                with anyio.CancelScope(shield=True):
                    if not over.is_set():
                        await self._soon_over(over)
        if failure is not None:
            raise failure

    async def _soon_over(self, over: anyio.Event) -> None:
        with anyio.move_on_after(endings.INTERRUPT_S):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._hurry)
                await over.wait()
                tasks.cancel_scope.cancel()
        if not over.is_set():
            self.server.fall(AgentFailed("provider_error", "codex did not answer"))

    async def _next(self) -> Heard | TooFarBehind:
        """Return what comes next, telling meanwhile what was held back too long."""
        while (due := self._pieces.due) != float("inf"):
            with anyio.move_on_after(max(due - anyio.current_time(), 0)):
                return await self.route.take()
            await self._tell_now(self._pieces.take())
        return await self.route.take()

    def _broken(self) -> AgentFailed:
        """Return why the process has ended in the middle."""
        self._apply(Event.LOST)
        failure = self.server.failure
        assert failure is not None
        self.context.note_stderr(self.server.stderr_tail)
        return AgentFailed(failure.code, failure.message)

    async def _hear(self, tasks: TaskGroup, heard: Heard | TooFarBehind) -> None:
        match heard:
            case TooFarBehind(size):
                note = f"{size:,} bytes that codex said could not be recorded in time"
                raise AgentFailed("provider_error", note)
            case Asked():
                tasks.start_soon(self._answer, heard)
            case Unreadable(said) if said.truncation is not None:
                note = f"codex said a line of {said.truncation.size} bytes, too large to be read"
                raise AgentFailed("provider_error", note)
            case Unreadable(said):
                data = {"kind": "stdout", "payload": {"text": said.text}}
                await self._tell([AgentEvent(EventType.BACKEND_EVENT, data)])
            case Notification("serverRequest/resolved", params):
                asked_id = params.get("requestId")
                if isinstance(asked_id, (str, int)) and asked_id in self._asks:
                    self._asks[asked_id].cancel()
            case Notification() if not self._reader.is_stale(heard):
                if heard.is_long:
                    events = await in_thread(self._reader.feed, heard)
                else:
                    events = self._reader.feed(heard)
                actions: tuple[Action, ...] = ()
                if self._reader.is_recorded and not self.is_taken:
                    actions += self._apply(Event.CONFIRMED)
                if self._reader.end is not None:
                    actions += self._apply(_ENDS.get(self._reader.end.status, Event.INTERRUPTED))
                if actions:
                    tasks.start_soon(self._act, actions)
                await self._tell(events)

    async def _tell(self, events: Sequence[AgentEvent]) -> None:
        await self._tell_now(self._pieces.put(events))

    async def _tell_now(self, events: Sequence[AgentEvent]) -> None:
        if self._state.holds_events:
            self._early += events
            return
        for event in events:
            await self.context.emit(event.event_type, event.data)

    # --- its end

    async def _conclude(self) -> None:
        await self._report_usage()
        end = self._reader.end
        assert end is not None
        if self._state.turn is Turn.COMPLETED:
            return
        if not self.is_taken:
            await self._act(self._apply(Event.UNCONFIRMED))
        if self._state.turn is Turn.FAILED:
            raise AgentFailed(*failure_of(end.error))
        if self._state.turn is Turn.DENIED:
            raise AgentFailed("denied", "what it asked for was answered with cancel")
        raise AgentFailed("provider_error", f"codex ended the turn as {end.status}")

    async def _report_usage(self) -> None:
        totals = self._reader.totals
        if totals is not None:
            before = self.before.state.get("usage") if self.before is not None else None
            await self.context.report_usage(usage_between(before or {}, totals))
        await self.context.set_thread(self.thread_id, totals and {**self.kept, "usage": totals})

    def _outcome(self) -> Outcome:
        return Outcome(self._reader.items.last_message or "")

    @property
    def _has_to_be_left(self) -> bool:
        return (
            self._state.is_working or self._reader.has_run_commands or bool(self._reader.children)
        )

    async def _leave(self) -> None:
        """End what is under way and whatever commands have left running."""
        reader, is_cut = self._reader, self._state.is_working
        self._apply(Event.STOP)
        if self.server.failure is None and is_cut:
            await end_turn(self.server, self.route, reader)
            with anyio.move_on_after(1):
                if self.is_taken and self.server.failure is None:
                    await self._report_usage()
        await end_rest(self.server, self.route, reader)

    async def _hurry(self) -> None:
        await self.context.out_of_patience()
        self.server.kill()

    # --- what is asked of us, and what we say meanwhile

    async def _answer(self, asked: Asked) -> None:
        """Put what codex asks to whoever decides, and the calls of our tools to the daemon."""
        if asked.method == TOOL_CALL and asked.params.get("threadId") == self.thread_id:
            self.server.respond(asked, await self.tools.call(self.context.env, asked.params))
            return
        try:
            item = self._reader.items.open_item(text(asked.params.get("itemId")))
            make = partial(approvals.question, item=item, remember=self.remember_approvals)
            question = await in_thread(make, asked) if asked.is_long else make(asked)
        except UnexpectedShape:
            question = None
        if question is None:
            payload = {"method": asked.method, "params": asked.params}
            data = {"kind": asked.method, "payload": payload}
            await self._tell([AgentEvent(EventType.BACKEND_EVENT, data)])
            self.server.refuse(asked, f"this client does not answer {asked.method}")
            return
        with anyio.CancelScope() as scope:
            self._asks[asked.id] = scope
            try:
                request = await self.context.ask_parent(
                    question.text,
                    kind=question.kind,
                    detail=question.detail,
                    options=question.options,
                    expires_in_s=self.approval_timeout_s,
                )
            except (InvalidRequest, Conflict) as problem:
                request = None
                note = f"nobody could be asked, so it is declined: {problem}"
                await self.context.emit(EventType.RUN_ERROR, {"message": note})
            finally:
                self._asks.pop(asked.id, None)
            answer = question.answer(request)
            is_canceled = answer.get("decision") == approvals.CANCEL
            if is_canceled:
                self._apply(Event.CANCEL_ANSWERED)
            words = None if is_canceled else question.words(request)
            if words is not None:
                self.steered.append(words)  # first: the turn may end with the answer
            self.server.respond(asked, answer)
        if words is not None:
            with suppress(AgentFailed):
                await self._finished(partial(self._give_besides, words))

    async def _steer(self) -> None:
        """Give the turn what is sent while it goes on."""
        await self._taken_or_late()
        async with self.context.steering() as messages:
            async for message in messages:
                self.steered.append(message)  # first: it is taken, and must not be lost
                await self._until(lambda state: state.is_running)
                if len(self.steered) > 1:
                    continue  # codex did not take one before it, which goes first
                try:
                    await self._finished(partial(self._give_besides, message))
                except AgentFailed:
                    return

    async def _give_besides(self, message: str) -> None:
        """Give the turn a message."""
        params = {
            "threadId": self.thread_id,
            "expectedTurnId": self._reader.turn_id,
            "input": _input(message),
        }
        try:
            await self.server.request("turn/steer", params, REQUEST_S)
        except Refused as refused:
            _log.info("codex did not take a message while at work: %s", refused)
        else:
            if message in self.steered:
                self.steered.remove(message)


def _together(messages: Sequence[str]) -> int:
    """Return how many messages, from the first on, codex takes in one turn: at least one."""
    size = 0
    for count, message in enumerate(messages):
        size += len(message) + 2
        if size > MAX_INPUT and count:
            return count
    return len(messages)


def _input(said: str, images: Sequence[ImageContent] = ()) -> _Input:
    """Return what codex takes as the input of a turn. The images are in it: it need not read files."""
    return [
        {"type": "text", "text": said},
        *({"type": "image", "url": _data_url(content)} for content in images),
    ]


def _data_url(content: ImageContent) -> str:
    return f"data:{content.image.media_type};base64,{b64encode(content.data).decode()}"
