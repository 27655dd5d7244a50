"""Who plays in a story: what it remembers of runs and children."""

from datetime import datetime

from attrs import define, field

from agentctl.diffstat import Diffstat
from agentctl.event_text import Step
from agentctl.times import between, duration


@define
class ChildState:
    """What is remembered of a child session."""

    title: str
    """Empty where it has none: its id is then told instead, but not as an actor's name."""
    spawned_at: datetime | None
    """None once its first run has ended."""


@define
class RunState:
    """What is remembered of a run that has not ended."""

    provider: str = "agent"
    started_at: datetime | None = None
    messages: list[str] = field(factory=list)
    """What the agent said: its result is mostly the last of it, or all."""
    tool: str | None = None
    """The tool the line before told of."""
    plan: list[Step] = field(factory=list)
    """The plan that was told last."""
    pieces: dict[str, list[str]] = field(factory=dict)
    """Messages that have come in part, by item."""
    diffstat: Diffstat = field(factory=Diffstat)

    def took(self, until: datetime) -> str:
        """Return how long it was at work; empty where its start was not seen."""
        taken = between(self.started_at, until)
        return "" if taken is None else f" after {duration(taken.total_seconds())}"
