"""The states of the messages of a run, as a table without input or output.

Claude Code 2.1.332 reports the states of each message that has an id (``command_lifecycle``): ``queued``,
``started`` when it is in a request to the model, and ``completed`` after the result of its turn, or ``cancelled``. A
message that the conversation has already answered is ``completed`` at once, without a turn.

A message that is sent while a tool runs is added to the turn. One that is sent while the model answers gets a turn
after it. A run ends when all its messages have ended.
"""

from collections.abc import Mapping
from enum import Enum
from typing import Final

from attrs import define, field


class Message(Enum):
    SENT = "sent"
    QUEUED = "queued"
    STARTED = "started"
    COMPLETED = "completed"
    ANSWERED_BEFORE = "answered before"
    """The conversation had the answer, or a part of it, before this run."""
    CANCELED = "cancelled"


ENDED: Final = frozenset({Message.COMPLETED, Message.ANSWERED_BEFORE, Message.CANCELED})

STEPS: Final[Mapping[tuple[Message, str], Message]] = {
    (Message.SENT, "queued"): Message.QUEUED,
    (Message.SENT, "started"): Message.STARTED,
    (Message.SENT, "completed"): Message.ANSWERED_BEFORE,
    (Message.SENT, "cancelled"): Message.CANCELED,
    (Message.QUEUED, "started"): Message.STARTED,
    (Message.QUEUED, "completed"): Message.ANSWERED_BEFORE,
    (Message.QUEUED, "cancelled"): Message.CANCELED,
    (Message.STARTED, "completed"): Message.COMPLETED,
    (Message.STARTED, "cancelled"): Message.CANCELED,
}
"""The next state of a message for each report. Any other report changes nothing."""


@define
class Messages:
    """The messages of a run, by id."""

    states: dict[str, Message] = field(factory=dict)

    def send(self, message_id: str) -> None:
        self.states[message_id] = Message.SENT

    def report(self, message_id: str, state: str) -> Message | None:
        """Change the state of a message. Return the new one; None if nothing changed."""
        present = self.states.get(message_id)
        found = None if present is None else STEPS.get((present, state))
        if found is not None:
            self.states[message_id] = found
        return found

    @property
    def are_ended(self) -> bool:
        """Whether all have ended."""
        return all(state in ENDED for state in self.states.values())
