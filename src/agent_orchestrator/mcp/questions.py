"""Asking once, however often the call is made: what a client cut off, or asked again, goes on."""

import hashlib
from collections import OrderedDict
from typing import Any, Final

from attrs import frozen

from agent_orchestrator.client import Client
from agent_orchestrator.domain.errors import NotFound
from agent_orchestrator.domain.model import Request
from agent_orchestrator.mcp.arguments import ReplyParent
from agent_orchestrator.mcp.views import request_view
from agent_orchestrator.wire import strict_json

MAX_UNTOLD: Final = 1000

_DECISIONS: Final = {"approved": "approve", "answered": "answer"}
"""What a closed question came to; whatever else became of it means no."""


class Untold:
    """The questions whose end the agent has not been told of.

    Asked again in the same words, such a question is the same one, though it may have been decided
    meanwhile: its call was cut off, or is repeated. Once the agent knows, the same words are a new
    question: what was approved once is not approved twice.
    """

    def __init__(self) -> None:
        self._ids: OrderedDict[str, None] = OrderedDict()

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._ids

    def add(self, request_id: str) -> None:
        """Keep one; of very many the oldest are forgotten."""
        self._ids[request_id] = None
        if len(self._ids) > MAX_UNTOLD:
            self._ids.popitem(last=False)

    def discard(self, request_id: str) -> None:
        self._ids.pop(request_id, None)


@frozen
class Asker:
    """Asks for a run, and waits for its answers."""

    client: Client
    run_id: str
    session_id: str
    untold: Untold

    async def ask(self, question: ReplyParent, hold_s: float) -> dict[str, Any]:
        """Open a request, or find the one this question opened before, and wait for its answer."""
        before = await self._same(question)
        request = next((one for one in before if one.is_open or one.id in self.untold), None)
        if request is None:
            assert question.text is not None
            reply = await self.client.reply_parent(
                self.run_id,
                question.text,
                request_kind=question.request_kind,
                detail=question.detail,
                options=question.options,
                timeout_s=question.expires_in_s,
                wait=question.wait,
                idempotency_key=_key(question, len(before)),
            )
            request = reply.request
            assert request is not None
            self.untold.add(request.id)
        return await self._answer(request, hold_s if question.wait else 0)

    async def go_on(self, request_id: str, hold_s: float) -> dict[str, Any]:
        """Wait for the answer to a question of this run.

        :raises NotFound: if it asked no such question.
        """
        request = await self.client.get_request(request_id)
        if request.run_id != self.run_id:
            raise NotFound(f"no request {request_id} of yours", {"request_id": request_id})
        return await self._answer(request, hold_s)

    async def _answer(self, request: Request, hold_s: float) -> dict[str, Any]:
        if request.is_open and hold_s:
            request = await self.client.get_request(request.id, wait_s=hold_s)
        if not request.is_open:
            self.untold.discard(request.id)
        return _told(request)

    async def _same(self, question: ReplyParent) -> list[Request]:
        """Return what this run asked in the same words before, the latest first."""
        found: list[Request] = []
        cursor: str | None = None
        while True:
            page = await self.client.requests(session_id=self.session_id, limit=1000, cursor=cursor)
            found += [one for one in page.requests if self._is_same(one, question)]
            cursor = page.next_cursor
            if cursor is None:
                return found[::-1]

    def _is_same(self, request: Request, question: ReplyParent) -> bool:
        return (
            request.run_id == self.run_id
            and request.kind == question.request_kind
            and request.text == question.text
            and request.detail == question.detail
            and (request.options or ()) == tuple(question.options or ())
        )


def _key(question: ReplyParent, times: int) -> str:
    """Return a key that two calls with the same question share which come at the same moment."""
    words = {
        "kind": question.request_kind,
        "text": question.text,
        "detail": question.detail,
        "options": question.options,
        "expires_in_s": question.expires_in_s,
        "wait": question.wait,
        "times": times,
    }
    return "mcp-" + hashlib.sha256(strict_json.canonical(words).encode()).hexdigest()[:40]


def _told(request: Request) -> dict[str, Any]:
    """Return what an agent is told of a question of its own."""
    told: dict[str, Any] = {
        "parent_session_id": request.parent_session_id,
        "request": request_view(request),
        "timed_out": request.is_open,
        "decision": None if request.is_open else _DECISIONS.get(request.status, "deny"),
    }
    if request.is_open:
        again = f"call session_reply_parent again with only request_id {request.id}"
        told["next"] = f"not decided yet: {again}"
    elif request.answer is not None:
        told["answer"] = request.answer
    return told
