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


async def spawn(agent: Agent, options: SpawnOptions) -> dict[str, Any]:
    command = shared(SpawnFromRun, options, run_id=agent.run_id)
    reply = await agent.call(SPAWN_FROM_RUN, command)
    return {
        "session": session_view(reply.session),
        "run": run_view(reply.run),
        "next": f"the child is working; call session_wait with run_id {reply.run.id} to get its result",
    }


async def send(agent: Agent, options: SendOptions) -> dict[str, Any]:
    command = shared(SendToSession, options, from_run_id=agent.run_id)
    reply = await agent.call(SEND_TO_SESSION, command)
    return {
        "message": message_view(reply.message),
        "run": None if reply.run is None else run_view(reply.run),
    }


async def wait(agent: Agent, values: arguments.WaitArguments) -> dict[str, Any]:
    run_ids = list(
        dict.fromkeys([*([values.run_id] if values.run_id else []), *(values.run_ids or ())])
    )
    problems: dict[str, str] = {}
    if not run_ids:
        problems["run_id"] = "is required, unless run_ids is given"
    if len(run_ids) > arguments.MAX_RUNS:
        problems["run_ids"] = f"must be at most {arguments.MAX_RUNS}"
    elif not all(len(run_id) <= MAX_ID and re.fullmatch(ID_PATTERN, run_id) for run_id in run_ids):
        problems["run_ids"] = f"must be at most {MAX_ID} characters each, and match {ID_PATTERN}"
    if agent.run_id in run_ids:
        problems["run_id"] = "is your own run, which cannot end while you wait for it"
    if problems:
        raise InvalidRequest.of(problems)
    hold_s = agent.hold_s if values.timeout_s is None else values.timeout_s
    return await wait_any.wait_for_any(
        agent, run_ids, until=values.until, ignore=values.ignore or (), hold_s=hold_s
    )


async def reply_parent(agent: Agent, values: arguments.ReplyParentArguments) -> dict[str, Any]:
    hold_s = agent.hold_s if values.timeout_s is None else values.timeout_s
    if values.request_id is not None:
        if values.text is not None or values.request_kind is not None:
            raise InvalidRequest.of(
                {"request_id": "continues a wait: leave out text and request_kind"}
            )
        return await questions.wait_for(agent, values.request_id, hold_s)
    if values.text is None:
        raise InvalidRequest.of({"text": "is required, unless request_id is given"})
    if values.request_kind is None:
        for name in ("detail", "options"):
            if getattr(values, name) is not None:
                raise InvalidRequest.of({name: "needs a request_kind"})
        reply = await agent.call(REPLY_PARENT, ReplyParent(agent.run_id, values.text))
        return {"parent_session_id": reply.parent_session_id, "request": None}
    return await questions.ask(agent, values, hold_s)


async def list_(agent: Agent, values: arguments.ListArguments) -> dict[str, Any]:
    command = shared(GetTree, values, session_id=agent.session_id)
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
    for candidate in node.runs:
        if candidate.finished_at is None:
            run = candidate  # the earliest unfinished run; later ones are queued behind it
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


async def resolve(agent: Agent, values: arguments.ResolveArguments) -> dict[str, Any]:
    command = shared(ResolveRequest, values)
    request = (await agent.call(RESOLVE_REQUEST, command)).request
    return {"request": request_view(request)}
