"""The functions of the tools. Each takes the agent and checked arguments, and returns a JSON object."""

import re
from typing import Any

from agent_orchestrator.domain.errors import InvalidRequest
from agent_orchestrator.fields import ID_PATTERN, MAX_ID, shared
from agent_orchestrator.operations.messages import (
    SEND_TO_SESSION,
    SPAWN_FROM_RUN,
    SendToSession,
    SpawnFromRun,
)
from agent_orchestrator.operations.options import SendOptions, SpawnOptions
from agent_orchestrator.operations.requests import (
    GET_REQUEST,
    REPLY_PARENT,
    RESOLVE_REQUEST,
    GetRequest,
    ReplyParent,
    ResolveRequest,
)
from agent_orchestrator.operations.sessions import GET_TREE, GetTree, SessionTree
from agent_orchestrator.tools import arguments, questions, wait_any
from agent_orchestrator.tools.agent import Agent
from agent_orchestrator.tools.views import message_view, request_view, run_view, session_view


async def spawn(agent: Agent, given: SpawnOptions) -> dict[str, Any]:
    command = shared(SpawnFromRun, given, run_id=agent.run_id)
    reply = await agent.call(SPAWN_FROM_RUN, command)
    return {
        "session": session_view(reply.session),
        "run": run_view(reply.run),
        "next": f"the child is working; call session_wait with run_id {reply.run.id} to get its result",
    }


async def send(agent: Agent, given: SendOptions) -> dict[str, Any]:
    command = shared(SendToSession, given, from_run_id=agent.run_id)
    reply = await agent.call(SEND_TO_SESSION, command)
    return {
        "message": message_view(reply.message),
        "run": None if reply.run is None else run_view(reply.run),
    }


async def wait(agent: Agent, given: arguments.WaitArguments) -> dict[str, Any]:
    run_ids = list(
        dict.fromkeys([*([given.run_id] if given.run_id else []), *(given.run_ids or ())])
    )
    found: dict[str, str] = {}
    if not run_ids:
        found["run_id"] = "is required, unless run_ids is given"
    if len(run_ids) > arguments.MAX_RUNS:
        found["run_ids"] = f"must be at most {arguments.MAX_RUNS}"
    elif not all(len(one) <= MAX_ID and re.fullmatch(ID_PATTERN, one) for one in run_ids):
        found["run_ids"] = f"must be at most {MAX_ID} characters each, and match {ID_PATTERN}"
    if agent.run_id in run_ids:
        found["run_id"] = "is your own run, which cannot end while you wait for it"
    if found:
        raise InvalidRequest.of(found)
    hold_s = agent.hold_s if given.timeout_s is None else given.timeout_s
    return await wait_any.wait_for_any(
        agent, run_ids, until=given.until, ignore=given.ignore or (), hold_s=hold_s
    )


async def reply_parent(agent: Agent, given: arguments.ReplyParentArguments) -> dict[str, Any]:
    hold_s = agent.hold_s if given.timeout_s is None else given.timeout_s
    if given.request_id is not None:
        if given.text is not None or given.request_kind is not None:
            raise InvalidRequest.of(
                {"request_id": "continues a wait: leave out text and request_kind"}
            )
        return await questions.wait_for(agent, given.request_id, hold_s)
    if given.text is None:
        raise InvalidRequest.of({"text": "is required, unless request_id is given"})
    if given.request_kind is None:
        for name in ("detail", "options"):
            if getattr(given, name) is not None:
                raise InvalidRequest.of({name: "needs a request_kind"})
        reply = await agent.call(REPLY_PARENT, ReplyParent(agent.run_id, given.text))
        return {"parent_session_id": reply.parent_session_id, "request": None}
    return await questions.ask(agent, given, hold_s)


async def list_(agent: Agent, given: arguments.ListArguments) -> dict[str, Any]:
    command = shared(GetTree, given, session_id=agent.session_id)
    tree = await agent.call(GET_TREE, command)
    children: list[dict[str, Any]] = []
    pending = list(reversed(tree.children))
    while pending:
        node = pending.pop()
        if not node.repeated:
            children.append(await _child(agent, node))
        pending += reversed(node.children)
    return {
        "session": session_view(tree.session),
        "children": children,
        "children_count": tree.children_count,
        "next_cursor": tree.next_cursor,
    }


async def _child(agent: Agent, node: SessionTree) -> dict[str, Any]:
    run = node.runs[-1] if node.runs else None
    for one in node.runs:
        if one.finished_at is None:
            run = one  # the earliest unfinished run; later ones are queued behind it
            break
    request = None
    if run is not None and run.waiting_on is not None:
        request = (await agent.call(GET_REQUEST, GetRequest(run.waiting_on))).request
    return {
        "session": session_view(node.session),
        "run": None if run is None else run_view(run, with_result=False),
        "children_count": node.children_count,
        "request": request_view(request, in_short=True) if request and request.is_open else None,
    }


async def resolve(agent: Agent, given: arguments.ResolveArguments) -> dict[str, Any]:
    command = shared(ResolveRequest, given)
    request = (await agent.call(RESOLVE_REQUEST, command)).request
    return {"request": request_view(request)}
