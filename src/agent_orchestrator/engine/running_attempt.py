"""An attempt that this process executes: what it was given, where it stands, and how it is stopped."""

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
    """A run a worker has taken, with what it needs to begin."""

    run: Run
    session: Session
    messages: Sequence[Message]
    thread: Thread | None
    """The one to go on with, of the run's provider."""
    token: str | None = field(default=None, repr=False)
    """By which its agent may act as the run, while the attempt lasts."""


@define(eq=False)
class BlockedTime:
    """How long an agent has been blocked. Times are those of :func:`anyio.current_time`."""

    since: float | None = None
    """When it was blocked, while it is; its worker does something else meanwhile."""
    ended_at: float = 0.0
    """When it was last unblocked."""
    total_s: float = 0.0
    """Seconds it was blocked before."""
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
        """Wait until the agent is not blocked."""
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
    """What executes it now."""
    request_id: str | None = None
    """The request it cannot go on without the answer to."""
    attempt_end: AttemptEnd | None = None
    """How it is to end, if it is being stopped."""
    stopped_at: datetime | None = None
    """When it was first to be parked or released."""
    final_run: Run | None = None
    """The run as the attempt left it, once that is recorded."""
    _calls: int = 0
    """How many calls of its agent wait."""

    @property
    def run(self) -> Run:
        return self.assignment.run

    @property
    def final_status(self) -> RunStatus | None:
        """The state the attempt left the run in, once that is recorded."""
        return None if self.final_run is None else self.final_run.status

    @property
    def is_blocked(self) -> bool:
        """Whether it waits for an answer or for another run."""
        return self.request_id is not None or self._calls > 0

    def set_request(self, request_id: str | None) -> bool:
        """Record the request whose answer it waits for, if any.

        :return: True if this blocked or unblocked the attempt.
        """
        was_blocked, self.request_id = self.is_blocked, request_id
        return self._has_changed(was_blocked)

    def begin_call(self) -> None:
        """Record that a call of its agent waits."""
        was_blocked = self.is_blocked
        self._calls += 1
        self._has_changed(was_blocked)

    def end_call(self) -> None:
        """Record that such a call is over."""
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
        """Stop its agent; the run goes on waiting without."""
        self.stopped_at = self.stopped_at or at
        self._stop(Order.PARK, AttemptEnd(Signal.RELEASE, reason="it waits for an answer"))

    def release(self, reason: str, at: datetime) -> None:
        """Stop it and give it back to the queue."""
        self.stopped_at = self.stopped_at or at
        self._stop(Order.RELEASE, AttemptEnd(Signal.RELEASE, reason=reason))

    def fail(self, error: RunError) -> None:
        """Stop it: it has failed."""
        self._stop(Order.FAIL, AttemptEnd(Signal.FAIL, error=error))

    def cancel(self) -> None:
        """Stop it for good."""
        self._stop(Order.CANCEL, AttemptEnd(Signal.CANCEL))

    def _stop(self, order: Order, attempt_end: AttemptEnd) -> None:
        before, self.course = self.course, advance(self.course, order)
        if self.course is not before:
            self.attempt_end = attempt_end
        self.scope.cancel()

    def end(self, run: Run) -> None:
        """Note the run as the recorded end of the attempt left it."""
        self.course = advance(self.course, Order.END)
        self.final_run = run
