"""Idempotent questions: a call that is repeated or was cut off continues the same question."""

import hashlib
from collections import OrderedDict
from typing import Any, Final
from uuid import uuid4

import anyio
from attrs import frozen

from agent_orchestrator.client import Client
from agent_orchestrator.domain.errors import NotFound
from agent_orchestrator.domain.model import Request
from agent_orchestrator.mcp.arguments import ReplyParentArguments
from agent_orchestrator.mcp.views import request_view
from agent_orchestrator.wire import strict_json

MAX_UNDELIVERED: Final = 200
"""Maximum number of questions kept for a run. It can have 64 open ones."""

MAX_RUNS: Final = 1000

_DECISIONS: Final = {"approved": "approve", "answered": "answer"}
"""Decisions by the status of a closed request. Any other status means "deny"."""


class RunQuestions:
    """The questions of one run whose outcome was not delivered to its agent, by content.

    If the agent asks such a question again, its earlier call was cut off or is repeated, and the
    question is the same even if it was decided meanwhile. After delivery, the same content is a new
    question, because an approval holds only once.
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
        if len(self._ids) > MAX_UNDELIVERED:
            self._ids.popitem(last=False)

    def discard(self, request_id: str) -> None:
        """Remove a question whose outcome was delivered."""
        for key, known in self._ids.items():
            if known == request_id:
                del self._ids[key]
                return


class UndeliveredQuestions:
    """Undelivered questions by run. Beyond the limit, the least recently used run is dropped."""

    def __init__(self) -> None:
        self._runs: OrderedDict[str, RunQuestions] = OrderedDict()

    def of(self, run_id: str) -> RunQuestions:
        """Return the questions of a run."""
        found = self._runs.setdefault(run_id, RunQuestions())
        self._runs.move_to_end(run_id)
        if len(self._runs) > MAX_RUNS:
            self._runs.popitem(last=False)
        return found


@frozen
class QuestionCaller:
    """Opens requests for a run and waits for their answers."""

    client: Client
    run_id: str
    session_id: str
    undelivered: RunQuestions

    async def ask(self, question: ReplyParentArguments, hold_s: float) -> dict[str, Any]:
        """Open a request, or find the one that this question repeats, and wait for its answer."""
        async with self.undelivered.asking:
            request = await self._repeated_question(question) or await self._open(question)
        return await self._answer(request, hold_s if question.wait else 0)

    async def _open(self, question: ReplyParentArguments) -> Request:
        assert question.text is not None
        reply = await self.client.reply_parent(
            self.run_id,
            question.text,
            request_kind=question.request_kind,
            detail=question.detail,
            options=question.options,
            expires_in_s=question.expires_in_s,
            wait=question.wait,
            idempotency_key=f"mcp-{uuid4().hex}",
        )
        assert reply.request is not None
        self.undelivered.add(_question_key(question), reply.request.id)
        return reply.request

    async def wait_for(self, request_id: str, hold_s: float) -> dict[str, Any]:
        """Wait for the answer to a question of this run.

        :raises NotFound: if the question belongs to another run.
        """
        request = await self.client.get_request(request_id)
        if request.run_id != self.run_id:
            raise NotFound(f"your run has no request {request_id}", {"request_id": request_id})
        return await self._answer(request, hold_s)

    async def _answer(self, request: Request, hold_s: float) -> dict[str, Any]:
        if request.is_open and hold_s:
            request = await self.client.get_request(request.id, wait_s=hold_s)
        if not request.is_open:
            self.undelivered.discard(request.id)
        return _result(request)

    async def _repeated_question(self, question: ReplyParentArguments) -> Request | None:
        """Return the request that this question repeats, or None.

        Only open requests and undelivered outcomes are searched. Both are few.
        """
        key = _question_key(question)
        if (known := self.undelivered.find(key)) is not None:
            return await self.client.get_request(known)
        cursor: str | None = None
        while True:
            page = await self.client.requests(
                session_id=self.session_id, status="pending", limit=100, cursor=cursor
            )
            for one in page.requests:
                if self._is_repetition(one, question):
                    self.undelivered.add(key, one.id)
                    return one
            if (cursor := page.next_cursor) is None:
                return None

    def _is_repetition(self, request: Request, question: ReplyParentArguments) -> bool:
        return (
            request.run_id == self.run_id
            and request.kind == question.request_kind
            and request.text == question.text
            and request.detail == question.detail
            and (request.options or ()) == tuple(question.options or ())
        )


def _question_key(question: ReplyParentArguments) -> str:
    """Return a hash of a question's content."""
    content = {
        "kind": question.request_kind,
        "text": question.text,
        "detail": question.detail,
        "options": question.options,
    }
    return hashlib.sha256(strict_json.canonical(content).encode()).hexdigest()


def _result(request: Request) -> dict[str, Any]:
    """Return the view of a request for the agent that asked it."""
    view: dict[str, Any] = {
        "parent_session_id": request.parent_session_id,
        "request": request_view(request),
        "timed_out": request.is_open,
        "decision": None if request.is_open else _DECISIONS.get(request.status, "deny"),
    }
    if request.is_open:
        next_call = f"call session_reply_parent again with only request_id {request.id}"
        view["next"] = f"not decided yet: {next_call}"
    elif request.answer is not None:
        view["answer"] = request.answer
    return view
