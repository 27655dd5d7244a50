"""Questions of an agent: put to its parent or to people, withdrawn, or expired."""

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


MAX_ASKED: Final = 4 * 2**20
"""Maximum characters of what an agent asks about. Nobody can judge more, and a request shows less."""


def length_problem(subject: str, *asked: Any) -> str | None:
    """Return why a question is not put to anybody; None if it is short enough.

    :param subject: the name of what is asked about.
    :param asked: what the agent says of it, in each of its messages.
    """
    size = max(map(strict_json.text_length, asked))
    if size <= MAX_ASKED:
        return None
    limit = f"a question may have at most {MAX_ASKED:,}"
    return f"{subject[:MAX_NAME]} has {size:,} characters, and {limit}"


def _cut(question: str) -> str:
    return question[:MAX_QUESTION]


def _valid_options(options: Sequence[Option | str] | None) -> tuple[Option, ...] | None:
    """Return the options, or None where a request may not offer them. They may then be given in words."""
    details = QuestionDetails(options=options)
    try:
        check(QuestionDetails, details)
    except InvalidRequest:
        return None
    return None if problem_of_options(details.offered or ()) else details.offered


def _fit_detail(detail: Detail) -> JsonObject:
    """Return the detail in the same shape, cut until it fits. ``cut`` names the fields that were cut.

    What the agent says in its own words is the first that is left out.
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
    """Return a JSON value with texts of this length, and less of what is deeper within it."""
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
    """A request to open.

    :param answer: converts the decision to the agent's answer. ``None`` means that the question could
        not be asked.
    """

    kind: RequestKind
    text: str = field(converter=_cut)
    detail: JsonObject = field(converter=_fit_detail)
    options: tuple[Option, ...] | None = field(converter=_valid_options)
    answer: Callable[[Request | None], JsonObject]

    def words(self, request: Request | None) -> str | None:
        """Return a message for the agent about the decision, if its answer has no field for it."""
        answer_text = (request.answer or "").strip() if request is not None else ""
        if self.kind == "input_request" or not answer_text:
            return None
        verdict = "approved" if request is not None and request.status == "approved" else "denied"
        return f"Your request was {verdict}, with this message: {answer_text}"


@frozen
class Asked:
    """The end of a question.

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
    _stop_words: str = field(default="", init=False)
    """The text of the denial that ended the turn."""

    def denial(self) -> AgentFailed:
        """Return the failure of a run whose turn was ended by a denial."""
        words = f": {self._stop_words}" if self._stop_words else ""
        return AgentFailed("denied", f"its request was denied, and the turn was ended{words}")

    async def ask(self, request_id: str | int, question: Question) -> Asked | None:
        """Ask a question and wait. Return its end; None if the agent has withdrawn it.

        When it returns, answer the agent before anything else waits.
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
                    self._stop_words = request.answer or ""
                return Asked(request)
            except (InvalidRequest, Conflict) as problem:
                note = f"declined, as nobody could be asked: {problem}"
                await self._context.emit(EventType.RUN_ERROR, {"message": note})
                return Asked(None)
            finally:
                self._scopes.pop(request_id, None)
        return None

    def withdraw(self, request_id: object) -> None:
        """Withdraw a question, because the agent does not wait for an answer to it any more."""
        if isinstance(request_id, (str, int)) and request_id in self._scopes:
            self._scopes[request_id].cancel()
