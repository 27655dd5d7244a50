"""Questions whose outcome the agent does not know yet."""

from collections import OrderedDict
from typing import Final

import anyio

from agent_orchestrator.domain.access import RunIdentity

MAX_QUESTIONS: Final = 200
"""Maximum number of questions kept for an attempt. A run can have 64 open ones."""

MAX_ATTEMPTS: Final = 1_000
"""Maximum number of attempts whose questions are kept."""


class UndeliveredQuestions:
    """The questions of one attempt whose outcome was not delivered to its agent, by content.

    If the agent asks such a question again, its earlier call was cut off or is repeated, and the
    question is the same even if it was decided meanwhile. After delivery, the same content is a new
    question, because an approval holds only once. The next attempt's prompt has the outcome, so it
    starts without any.
    """

    def __init__(self) -> None:
        self._ids: OrderedDict[str, str] = OrderedDict()
        self.asking = anyio.Lock()
        """Held while a question is opened, so that concurrent calls open it once."""

    def find(self, key: str) -> str | None:
        """Return the id of the question with this content, or None."""
        return self._ids.get(key)

    def add(self, key: str, request_id: str) -> None:
        """Add a question. Beyond the limit, the oldest is dropped."""
        self._ids[key] = request_id
        if len(self._ids) > MAX_QUESTIONS:
            self._ids.popitem(last=False)

    def discard(self, request_id: str) -> None:
        """Remove a question whose outcome was delivered."""
        for key, known in self._ids.items():
            if known == request_id:
                del self._ids[key]
                return


class QuestionsOfAttempts:
    """Undelivered questions by attempt. Beyond the limit, the least recently used attempt is dropped."""

    def __init__(self) -> None:
        self._attempts: OrderedDict[RunIdentity, UndeliveredQuestions] = OrderedDict()

    def of(self, attempt: RunIdentity) -> UndeliveredQuestions:
        """Return the questions of an attempt."""
        questions = self._attempts.setdefault(attempt, UndeliveredQuestions())
        self._attempts.move_to_end(attempt)
        if len(self._attempts) > MAX_ATTEMPTS:
            self._attempts.popitem(last=False)
        return questions
