"""Idempotent questions: a call that is repeated or was cut off continues the same question."""

import hashlib
from typing import Any, Final
from uuid import uuid4

from agent_orchestrator.domain.errors import NotFound
from agent_orchestrator.domain.model import Request
from agent_orchestrator.fields import shared
from agent_orchestrator.operations.requests import (
    GET_REQUEST,
    LIST_REQUESTS,
    REPLY_PARENT,
    GetRequest,
    ListRequests,
    ReplyParent,
)
from agent_orchestrator.tools.agent import Agent
from agent_orchestrator.tools.arguments import ReplyParentArguments
from agent_orchestrator.tools.views import request_view
from agent_orchestrator.wire import strict_json
from agent_orchestrator.wire.codec import to_plain

_DECISIONS: Final = {"approved": "approve", "answered": "answer"}
"""Decisions by the status of a closed request. Any other status means "deny"."""


async def ask(agent: Agent, question: ReplyParentArguments, hold_s: float) -> dict[str, Any]:
    """Open a request, or find the one that this question repeats, and wait for its answer."""
    async with agent.undelivered.asking:
        request = await _repeated_question(agent, question) or await _open(agent, question)
    return await _answer(agent, request, hold_s if question.wait else 0)


async def wait_for(agent: Agent, request_id: str, hold_s: float) -> dict[str, Any]:
    """Wait for the answer to a question of this run.

    :raises NotFound: if the question belongs to another run.
    """
    request = await _request(agent, request_id)
    if request.run_id != agent.run_id:
        raise NotFound(f"your run has no request {request_id}", {"request_id": request_id})
    return await _answer(agent, request, hold_s)


async def _open(agent: Agent, question: ReplyParentArguments) -> Request:
    key = f"tool-{uuid4().hex}"
    command = shared(ReplyParent, question, run_id=agent.run_id, idempotency_key=key)
    request = (await agent.call(REPLY_PARENT, command)).request
    assert request is not None
    agent.undelivered.add(_question_key(question), request.id)
    return request


async def _request(agent: Agent, request_id: str, *, wait_s: float = 0) -> Request:
    return (await agent.call(GET_REQUEST, GetRequest(request_id, wait_s=wait_s))).request


async def _answer(agent: Agent, request: Request, hold_s: float) -> dict[str, Any]:
    if request.is_open and hold_s:
        request = await _request(agent, request.id, wait_s=hold_s)
    if not request.is_open:
        agent.undelivered.discard(request.id)
    return _result(request)


async def _repeated_question(agent: Agent, question: ReplyParentArguments) -> Request | None:
    """Return the request that this question repeats, or None.

    Only open requests and undelivered outcomes are searched. Both are few.
    """
    key = _question_key(question)
    if (known := agent.undelivered.find(key)) is not None:
        return await _request(agent, known)
    cursor: str | None = None
    while True:
        command = ListRequests(
            session_id=agent.session_id, status="pending", limit=100, cursor=cursor
        )
        page = await agent.call(LIST_REQUESTS, command)
        for request in page.requests:
            if request.run_id == agent.run_id and _is_repetition(request, question):
                agent.undelivered.add(key, request.id)
                return request
        if (cursor := page.next_cursor) is None:
            return None


def _is_repetition(request: Request, question: ReplyParentArguments) -> bool:
    return (
        request.kind == question.request_kind
        and request.text == question.text
        and request.detail == question.detail
        and (request.options or ()) == (question.offered or ())
    )


def _question_key(question: ReplyParentArguments) -> str:
    """Return a hash of a question's content."""
    content = {
        "kind": question.request_kind,
        "text": question.text,
        "detail": question.detail,
        "options": to_plain(question.offered),
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
