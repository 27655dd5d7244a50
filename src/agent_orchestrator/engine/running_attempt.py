"""An attempt that this process executes: its assignment, its state, and stopping it."""

from collections.abc import Sequence
from datetime import datetime

import anyio
from attrs import define, field, frozen

from agent_orchestrator.domain.lifecycle import RunStatus, Signal
from agent_orchestrator.domain.model import Message, Run, RunError, Session, Thread
from agent_orchestrator.engine.attempt_state import Course, Order, advance
from agent_orchestrator.engine.config import ProviderConfig
from agent_orchestrator.engine.transitions import AttemptEnd


@frozen
class Assignment:
    """A run assigned to a worker, with the data that the worker needs."""

    run: Run
    session: Session
    messages: Sequence[Message]
    thread: Thread | None
    """The thread of the run's provider to resume."""
    token: str | None = field(default=None, repr=False)
    """The bearer token of its agent, valid during the attempt."""


@define(eq=False)
class BlockedTime:
    """The time that an agent was blocked. Times are those of :func:`anyio.current_time`."""

    since: float | None = None
    """When it was blocked; None if it is not blocked now."""
    ended_at: float = 0.0
    """When the last block ended."""
    total_s: float = 0.0
    """Total seconds of earlier blocks."""
    _ended: anyio.Event = field(factory=anyio.Event)

    def begin(self) -> None:
        self.since = anyio.current_time()

    def end(self) -> None:
        assert self.since is not None
        self.ended_at = anyio.current_time()
        self.total_s += self.ended_at - self.since
        self.since = None
        self._ended.set()
        self._ended = anyio.Event()

    async def wait_over(self) -> None:
        """Wait until the agent is not blocked any more."""
        while self.since is not None:
            await self._ended.wait()


@define(eq=False)
class RunningAttempt:
    """A run being executed in this process."""

    assignment: Assignment
    scope: anyio.CancelScope = field(factory=anyio.CancelScope)
    course: Course = Course.WORKING
    blocked: BlockedTime = field(factory=BlockedTime)
    provider: ProviderConfig | None = None
    """The provider that executes it now."""
    request_id: str | None = None
    """The request whose answer it waits for."""
    attempt_end: AttemptEnd | None = None
    """The end to record, if it is being stopped."""
    stopped_at: datetime | None = None
    """When it was first parked or released."""
    final_run: Run | None = None
    """The run after the recorded end of the attempt."""
    has_used_token: bool = False
    """Whether something has authenticated with the token of its agent."""
    _calls: int = 0
    """Number of its agent's calls that wait."""

    @property
    def run(self) -> Run:
        return self.assignment.run

    @property
    def final_status(self) -> RunStatus | None:
        """The status of the run after the recorded end of the attempt."""
        return None if self.final_run is None else self.final_run.status

    @property
    def is_blocked(self) -> bool:
        """Whether it waits for an answer or another run."""
        return self.request_id is not None or self._calls > 0

    def set_request(self, request_id: str | None) -> bool:
        """Set the request whose answer it waits for, if any.

        :return: True if this blocked or unblocked the attempt.
        """
        was_blocked, self.request_id = self.is_blocked, request_id
        return self._has_changed(was_blocked)

    def begin_call(self) -> None:
        """Count a call of its agent that waits."""
        was_blocked = self.is_blocked
        self._calls += 1
        self._has_changed(was_blocked)

    def end_call(self) -> None:
        """Count the end of such a call."""
        was_blocked = self.is_blocked
        self._calls -= 1
        self._has_changed(was_blocked)

    def _has_changed(self, was_blocked: bool) -> bool:
        if self.is_blocked == was_blocked:
            return False
        if was_blocked:
            self.blocked.end()
        else:
            self.blocked.begin()
        return True

    def park(self, at: datetime) -> None:
        """Stop its agent. The run continues to wait without one."""
        self.stopped_at = self.stopped_at or at
        self._stop(Order.PARK, AttemptEnd(Signal.RELEASE, reason="it waits for an answer"))

    def release(self, reason: str, at: datetime) -> None:
        """Stop its agent. The run goes back to the queue."""
        self.stopped_at = self.stopped_at or at
        self._stop(Order.RELEASE, AttemptEnd(Signal.RELEASE, reason=reason))

    def fail(self, error: RunError) -> None:
        """Stop its agent. The run fails."""
        self._stop(Order.FAIL, AttemptEnd(Signal.FAIL, error=error))

    def cancel(self) -> None:
        """Stop its agent. The run is canceled."""
        self._stop(Order.CANCEL, AttemptEnd(Signal.CANCEL))

    def _stop(self, order: Order, attempt_end: AttemptEnd) -> None:
        before, self.course = self.course, advance(self.course, order)
        if self.course is not before:
            self.attempt_end = attempt_end
        self.scope.cancel()

    def end(self, run: Run) -> None:
        """Set the run after the recorded end of the attempt."""
        self.course = advance(self.course, Order.END)
        self.final_run = run
