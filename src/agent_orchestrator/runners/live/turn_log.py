"""Records the events of a run while its agent works."""

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

import anyio
from attrs import define, field

from agent_orchestrator.domain.errors import AgentFailed
from agent_orchestrator.domain.events import EventType
from agent_orchestrator.domain.model import Invocation
from agent_orchestrator.ports.runner import RunContext
from agent_orchestrator.runners.events import AgentEvent
from agent_orchestrator.runners.live.coalescing import Coalescer
from agent_orchestrator.runners.live.mailbox import Incoming, Mailbox, MessagesDropped
from agent_orchestrator.runners.live.messages import Malformed
from agent_orchestrator.runners.live.process import LiveProcess
from agent_orchestrator.runners.live.turn_state import Action, Event, State, step

TURN_START_TIMEOUT_S: Final = 1.0
"""Maximum seconds before the process is recorded without waiting for the prompt."""


@define(eq=False)
class TurnLog:
    """The state of a run, and its events. Events are held back until the agent has the prompt.

    :param process: the process of the agent.
    :param invocation: how it was started.
    :param record_thread: records the id of the conversation; called when the agent has the prompt.
    """

    _context: RunContext
    _process: LiveProcess
    _invocation: Invocation
    _record_thread: Callable[[], Coroutine[Any, Any, None]]
    state: State = field(factory=State, init=False)
    _coalescer: Coalescer = field(factory=Coalescer, init=False)
    _changed: anyio.Event = field(factory=anyio.Event, init=False)
    """Set, and replaced, at each change of the state."""
    _held: list[AgentEvent] = field(factory=list, init=False)

    def apply(self, event: Event) -> tuple[Action, ...]:
        """Change the state. Return the actions that follow, for :meth:`act`."""
        self.state, actions = step(self.state, event)
        self._changed.set()
        self._changed = anyio.Event()
        return actions

    async def until(self, condition: Callable[[State], bool]) -> None:
        """Wait until the state meets a condition."""
        while not condition(self.state):
            await self._changed.wait()

    async def wait_until_taken(self) -> None:
        """Wait until the agent has the prompt, at most :data:`TURN_START_TIMEOUT_S`.

        All that is recorded afterwards is then in one commit.
        """
        with anyio.move_on_after(TURN_START_TIMEOUT_S):
            await self.until(lambda state: state.has_prompt)

    async def record_if_late(self) -> None:
        """Record the process if the agent does not take the prompt in time."""
        await self.wait_until_taken()
        if not self.state.has_prompt:
            await self.act(self.apply(Event.DELAYED))

    async def act(self, actions: Sequence[Action]) -> None:
        """Execute the actions of a change of the state."""
        if Action.RECORD_PROCESS in actions:
            await self._context.report_process(self._process.pid, self._invocation)
        if Action.RECORD_PROMPT in actions:
            await self._context.delivered()
            await self._record_thread()
            await self._release()
            self.apply(Event.RECORDED)
        elif Action.RELEASE_EVENTS in actions:
            await self._release()

    async def _release(self) -> None:
        """Record the events that were held back, and those that arrive meanwhile."""
        while self._held:
            events, self._held = self._held, []
            for event in events:
                await self._context.emit(event.event_type, event.data)

    def process_lost(self) -> AgentFailed:
        """Apply the end of the process during the turn. Return the failure of the run."""
        self.apply(Event.LOST)
        self._context.note_stderr(self._process.stderr_tail)
        failure = self._process.failure
        assert failure is not None
        return AgentFailed(failure.code, failure.message, exit_code=failure.exit_code)

    async def record_unreadable(self, incoming: MessagesDropped | Malformed) -> None:
        """Record a line that is not a message.

        :raises AgentFailed: if messages were dropped or the line is too long.
        """
        agent = self._process.protocol.agent
        match incoming:
            case MessagesDropped(size):
                note = f"{size:,} bytes of the output of {agent} could not be recorded in time"
                raise AgentFailed("provider_error", note)
            case Malformed(line) if line.truncation is not None:
                note = f"{agent} wrote a line of {line.truncation.size:,} bytes, which is too long"
                raise AgentFailed("provider_error", note)
            case Malformed(line):
                data = {"kind": "stdout", "payload": {"text": line.text}}
                await self.emit([AgentEvent(EventType.BACKEND_EVENT, data)])

    async def emit(self, events: Sequence[AgentEvent]) -> None:
        """Record events. Pieces of a text may be held until more of them arrive."""
        await self._emit_now(self._coalescer.add(events))

    async def flush(self) -> None:
        """Record the pieces that are held."""
        await self._emit_now(self._coalescer.flush())

    async def _emit_now(self, events: Sequence[AgentEvent]) -> None:
        if self.state.holds_events:
            self._held += events
            return
        for event in events:
            await self._context.emit(event.event_type, event.data)

    async def next(self, mailbox: Mailbox) -> Incoming:
        """Return the next message. While waiting, record the pieces that are due.

        :raises anyio.EndOfStream: if no more will come.
        """
        while (due := self._coalescer.due) != float("inf"):
            with anyio.move_on_after(max(due - anyio.current_time(), 0)):
                return await mailbox.take()
            await self.flush()
        return await mailbox.take()
