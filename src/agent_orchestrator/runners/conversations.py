"""Delivers a prompt to an agent's conversation, and again if the agent did not get it."""

from collections.abc import Awaitable, Callable, Iterable
from typing import Final, Literal

import anyio
from attrs import frozen

from agent_orchestrator.domain.errors import AgentFailed
from agent_orchestrator.domain.events import EventType
from agent_orchestrator.domain.model import Thread
from agent_orchestrator.fields import runner_option
from agent_orchestrator.ports.runner import Outcome, RunContext

_MAX_TRIES: Final = 2
"""Maximum number of tries to deliver a prompt that the agent did not get."""


class ConversationMissing(Exception):
    """The agent does not have the conversation to resume. No model has got the prompt."""


class PromptNotTaken(Exception):
    """The agent's process ended before the agent had the prompt, which can be sent again.

    :ivar thread: the conversation for the next try; None for a new one.
    """

    def __init__(self, failure: AgentFailed, thread: Thread | None) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.thread = thread


# No slots: a class cannot have two bases with slots, and runners have further bases.
@frozen(kw_only=True, eq=False, slots=False)
class ConversationRunner:
    """The base of runners whose agents keep a conversation for each session."""

    on_missing_thread: Literal["fail", "fresh"] = runner_option(
        "What to do if the agent has lost the session's conversation: replace it with a new one, or fail with "
        "`thread_missing`.",
        default="fresh",
    )

    async def deliver(
        self, context: RunContext, turn: Callable[[Thread | None], Awaitable[Outcome]]
    ) -> Outcome:
        """Run a turn in the session's conversation, and again if the agent did not get its prompt.

        :param turn: gets the conversation; None for a new one. Raises :class:`ConversationMissing` and
            :class:`PromptNotTaken`.
        :raises AgentFailed: if the turn fails.
        """
        thread, tries_left = context.thread, _MAX_TRIES
        while True:
            try:
                return await turn(thread)
            except ConversationMissing as missing:
                if thread is None or self.on_missing_thread == "fail":
                    raise AgentFailed("thread_missing", str(missing)) from None
                note = f"the conversation is gone, so a new one is started: {missing}"
                data = {"message": note, "code": "thread_missing"}
                await context.emit(EventType.RUN_ERROR, data)
                thread = None
            except PromptNotTaken as problem:
                tries_left -= 1
                if tries_left == 0:
                    raise problem.failure from None
                thread = problem.thread


async def report_undelivered(context: RunContext, messages: Iterable[str]) -> None:
    """Record the steering messages that were accepted, and that the agent did not get."""
    with anyio.CancelScope(shield=True):
        for message in messages:
            note = f"the turn ended before the agent received this message: {message}"
            await context.emit(EventType.RUN_ERROR, {"message": note})
