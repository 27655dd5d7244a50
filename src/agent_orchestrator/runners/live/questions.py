"""Questions of an agent: put to its parent or to people, withdrawn, or expired."""

import heapq
import itertools
import json
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final

import anyio
from attrs import define, field, frozen

from agent_orchestrator.domain.errors import Conflict, InvalidRequest
from agent_orchestrator.domain.events import EventType
from agent_orchestrator.domain.model import Option, Request, RequestKind
from agent_orchestrator.fields import (
    MAX_NAMED_PROBLEMS,
    MAX_OPTION,
    MAX_OPTIONS,
    MAX_QUESTION,
    shown,
)
from agent_orchestrator.ports.runner import RunContext
from agent_orchestrator.runners.events import JsonObject

_MAX_DETAIL: Final = 48_000
"""Characters of JSON of a request's detail, with some room for fields that are added."""

_LONGEST_CUT: Final = 2_000
"""Maximum characters of a part that is cut."""


def _cut(question: str) -> str:
    return question[:MAX_QUESTION]


def _valid_options(options: Sequence[Option | str] | None) -> tuple[Option | str, ...] | None:
    """Return the options, or None where they are more than a request may offer.

    They may then be given in words all the same.
    """
    if (
        options is None
        or len(options) > MAX_OPTIONS
        or max(map(len, map(_label, options)), default=0) > MAX_OPTION
    ):
        return None
    return tuple(options)


def _label(option: Option | str) -> str:
    return option.label if isinstance(option, Option) else option


def _fit_detail(detail: JsonObject) -> JsonObject:
    """Return the detail with its longest parts cut until it fits. The cut parts are listed."""
    found = dict(detail)
    sizes = {name: _size({name: value}) for name, value in found.items()}
    total = sum(sizes.values())
    longest = [(-size, name) for name, size in sizes.items()]
    heapq.heapify(longest)
    cut: dict[str, None] = {}
    while total > _MAX_DETAIL and longest:
        _, name = heapq.heappop(longest)
        value = found[name] if isinstance(found[name], str) else json.dumps(found[name])
        cut[name] = None
        total -= sizes[name]
        if len(value) < 2:  # it is the name alone
            del found[name]
            continue
        found[name] = value[: min(_LONGEST_CUT, len(value) // 2)]
        sizes[name] = _size({name: found[name]})
        total += sizes[name]
        heapq.heappush(longest, (-sizes[name], name))
    named = [shown(name) for name in itertools.islice(cut, MAX_NAMED_PROBLEMS)]
    more = [f"and {len(cut) - MAX_NAMED_PROBLEMS:,} more"] if len(cut) > MAX_NAMED_PROBLEMS else []
    return {**found, "cut": [*named, *more]} if cut else found


def _size(value: Any) -> int:
    return len(json.dumps(value))


@frozen
class Question:
    """A request to open.

    :param answer: converts the decision to the agent's answer. ``None`` means that the question could
        not be asked.
    :param decisions: texts that are decisions, besides the options, and so no message for the agent.
    """

    kind: RequestKind
    text: str = field(converter=_cut)
    detail: JsonObject = field(converter=_fit_detail)
    options: tuple[Option | str, ...] | None = field(converter=_valid_options)
    answer: Callable[[Request | None], JsonObject]
    decisions: Collection[str] = ()

    def words(self, request: Request | None) -> str | None:
        """Return a message for the agent about the decision, if its answer has no field for it."""
        answer_text = (request.answer or "").strip() if request is not None else ""
        if (
            self.kind == "input_request"
            or not answer_text
            or answer_text in (*map(_label, self.options or ()), *self.decisions)
        ):
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

    async def ask(self, request_id: str | int, question: Question) -> Asked | None:
        """Ask a question and wait. Return its end; None if the agent has withdrawn it.

        When it returns, answer the agent before anything else waits.
        """
        with anyio.CancelScope() as scope:
            self._scopes[request_id] = scope
            try:
                return Asked(
                    await self._context.ask_parent(
                        question.text,
                        kind=question.kind,
                        detail=question.detail,
                        options=question.options,
                        expires_in_s=self._timeout_s,
                    )
                )
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
