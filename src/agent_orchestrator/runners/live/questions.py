"""Questions of an agent to its parent or a human, which are decided, expire or are withdrawn."""

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import anyio
from attrs import define, field, frozen

from agent_orchestrator.domain.approvals import problem_of_options
from agent_orchestrator.domain.details import Detail
from agent_orchestrator.domain.errors import AgentFailed, Conflict, InvalidRequest
from agent_orchestrator.domain.events import EventType
from agent_orchestrator.domain.model import Option, Request, RequestKind
from agent_orchestrator.fields import MAX_NAME, MAX_QUESTION, check
from agent_orchestrator.operations.options import QuestionDetails
from agent_orchestrator.ports.runner import RunContext
from agent_orchestrator.runners.events import JsonObject
from agent_orchestrator.wire import strict_json

_MAX_DETAIL: Final = 48_000
"""Characters of JSON of a request's detail, with some room for fields that are added."""


MAX_CONTENT: Final = 4 * 2**20
"""Maximum characters of the content of a question. A person could not judge more."""


def length_problem(subject: str, *contents: Any) -> str | None:
    """Return the reason to refuse a question as too long; None if it is short enough.

    :param subject: the subject of the question.
    :param contents: its content, in each message of the agent that has it.
    """
    size = max(map(strict_json.text_length, contents))
    if size <= MAX_CONTENT:
        return None
    limit = f"a question may have at most {MAX_CONTENT:,}"
    return f"{subject[:MAX_NAME]} has {size:,} characters, and {limit}"


def _cut(question: str) -> str:
    return question[:MAX_QUESTION]


def _valid_options(options: Sequence[Option | str] | None) -> tuple[Option, ...] | None:
    """Return the options; None if a request may not offer them. Free text is then allowed as an answer."""
    details = QuestionDetails(options=options)
    try:
        check(QuestionDetails, details)
    except InvalidRequest:
        return None
    return None if problem_of_options(details.offered or ()) else details.offered


def _fit_detail(detail: Detail) -> JsonObject:
    """Return the detail in the same shape, cut until it fits. ``cut`` names the fields that were cut.

    The field ``agent``, the agent's own text, is left out first.
    """
    whole: JsonObject = {**detail}
    if strict_json.text_length(whole) <= _MAX_DETAIL and _size(whole) <= _MAX_DETAIL:
        return whole
    kept = {name: value for name, value in whole.items() if name != "agent"}
    found, length = kept, _MAX_DETAIL
    while _size(found) > _MAX_DETAIL:
        found = {name: _clipped(value, length) for name, value in kept.items()}
        length //= 2
    return {**found, "cut": [name for name in whole if found.get(name) != whole[name]]}


def _clipped(value: Any, length: int) -> Any:
    """Return a JSON value with its texts cut to a length. Texts and lists inside it are cut to less."""
    if isinstance(value, str):
        return value[:length]
    if isinstance(value, list | tuple):
        return [_clipped(entry, length // 2) for entry in value[: length // 64]]
    if isinstance(value, Mapping):
        entries = itertools.islice(value.items(), max(8, length // 64) if length else 0)
        return {name[: max(64, length)]: _clipped(entry, length // 2) for name, entry in entries}
    return value


def _size(value: Any) -> int:
    return len(json.dumps(value))


@frozen
class Question:
    """A question to ask.

    :param answer: converts the resolved request to the answer for the agent. It gets None if the
        question could not be asked.
    """

    kind: RequestKind
    text: str = field(converter=_cut)
    detail: JsonObject = field(converter=_fit_detail)
    options: tuple[Option, ...] | None = field(converter=_valid_options)
    answer: Callable[[Request | None], JsonObject]

    def decision_message(self, request: Request | None) -> str | None:
        """Return the text that came with a decision, as a message for the agent; None if there is none.

        For agents whose answer has no field for it.
        """
        answer_text = (request.answer or "").strip() if request is not None else ""
        if self.kind == "input_request" or not answer_text:
            return None
        verdict = "approved" if request is not None and request.status == "approved" else "denied"
        return f"Your request was {verdict}, with this message: {answer_text}"


@frozen
class QuestionOutcome:
    """How a question ended.

    :param request: the resolved request; None if the question could not be asked.
    """

    request: Request | None


@define(eq=False)
class OpenQuestions:
    """The questions of a run that wait for a decision, by the agent's id of each.

    :param timeout_s: seconds after which a question expires.
    """

    _context: RunContext
    _timeout_s: float
    _scopes: dict[str | int, anyio.CancelScope] = field(factory=dict, init=False)
    _denial_text: str = field(default="", init=False)
    """The text of the denial that ended the turn."""

    def denial(self) -> AgentFailed:
        """Return the failure of a run whose turn was ended by a denial."""
        words = f": {self._denial_text}" if self._denial_text else ""
        return AgentFailed("denied", f"its request was denied, and the turn was ended{words}")

    async def ask(self, request_id: str | int, question: Question) -> QuestionOutcome | None:
        """Ask a question and wait. Return its outcome; None if the agent has withdrawn it.

        Answer the agent before the next await.
        """
        with anyio.CancelScope() as scope:
            self._scopes[request_id] = scope
            try:
                request = await self._context.ask_parent(
                    question.text,
                    kind=question.kind,
                    detail=question.detail,
                    options=question.options,
                    expires_in_s=self._timeout_s,
                )
                if request.chosen is not None and request.chosen.kind == "deny_and_stop":
                    self._denial_text = request.answer or ""
                return QuestionOutcome(request)
            except (InvalidRequest, Conflict) as problem:
                note = f"declined, as nobody could be asked: {problem}"
                await self._context.emit(EventType.RUN_ERROR, {"message": note})
                return QuestionOutcome(None)
            finally:
                self._scopes.pop(request_id, None)
        return None

    def withdraw(self, request_id: object) -> None:
        """Withdraw a question, because the agent no longer waits for its answer."""
        if isinstance(request_id, (str, int)) and request_id in self._scopes:
            self._scopes[request_id].cancel()
