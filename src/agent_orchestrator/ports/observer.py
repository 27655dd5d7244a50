"""Observers: callbacks for metrics and traces."""

from collections.abc import Mapping
from typing import Any, Protocol

from agent_orchestrator.domain.model import Run, Session


class Observer(Protocol):
    """Callbacks for metrics and traces.

    They are called in the event loop's thread, and must not wait or raise.
    """

    def started(self, run: Run, session: Session) -> None:
        """Called when a worker has started an attempt."""
        ...

    def emitted(self, run: Run, event_type: str, data: Mapping[str, Any]) -> None:
        """Called for each event of an agent; see ``AGENT_EVENTS`` for the types."""
        ...

    def ended(self, run: Run, after: Run | None) -> None:
        """Called when an attempt has ended.

        :param run: the run when the attempt started.
        :param after: the run when the attempt has ended: in a terminal state, queued again, or
            parked. None if a later attempt has already changed it.
        """
        ...
