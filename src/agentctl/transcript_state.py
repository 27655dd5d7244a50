"""What a transcript remembers of runs and children."""

from datetime import datetime

from attrs import define, field

from agentctl.diffstat import Diffstat
from agentctl.event_text import Step
from agentctl.times import between, duration


@define
class ChildState:
    """The state of a child session."""

    title: str
    """Empty if it has none. Its id is then shown in the text."""
    spawned_at: datetime | None
    """None after its first run has ended."""


@define
class RunState:
    """The state of an unfinished run."""

    provider: str = "agent"
    started_at: datetime | None = None
    messages: list[str] = field(factory=list)
    """The agent's messages. The result is usually the last one, or all of them."""
    tool: str | None = None
    """The id of the tool on the previous line."""
    plan: list[Step] = field(factory=list)
    """The plan that was shown last."""
    pieces: dict[str, list[str]] = field(factory=dict)
    """The pieces of incomplete messages, by item id."""
    diffstat: Diffstat = field(factory=Diffstat)

    def took(self, until: datetime) -> str:
        """Return the run's duration as text; empty if its start is unknown."""
        time_taken = between(self.started_at, until)
        return "" if time_taken is None else f" after {duration(time_taken.total_seconds())}"
