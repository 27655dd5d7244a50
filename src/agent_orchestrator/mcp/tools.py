"""The tools: what each does, and when an agent should use it."""

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeVar

from attrs import define, field, frozen

from agent_orchestrator.client import Client
from agent_orchestrator.domain.errors import InvalidRequest, OrchestratorError, Unreachable
from agent_orchestrator.fields import ID_PATTERN, MAX_ID, NOT_A_FIELD, check, shared, specs
from agent_orchestrator.mcp import arguments, questions, wait_any
from agent_orchestrator.mcp.arguments import HOLD_S
from agent_orchestrator.mcp.views import message_view, request_view, run_view, session_view
from agent_orchestrator.operations import (
    RESOLVE_REQUEST,
    SEND_TO_SESSION,
    SPAWN_FROM_RUN,
    ResolveRequest,
    SendOptions,
    SendToSession,
    SessionTree,
    SpawnFromRun,
    SpawnOptions,
)
from agent_orchestrator.wire import codec, problems

INSTRUCTIONS: Final = """\
Work with other agents. session_spawn gives a child part of your work. session_wait waits for its result or \
question. request_resolve answers the question. session_reply_parent informs or asks whoever gave you your task. \
A gateway runs you and other agents. You end when your turn ends, so wait for the children whose results you \
need. If you are a child yourself, ask before you do anything that you may not decide."""
"""Instructions that clients may show to their model. Some show only the first 250 characters."""


@define
class Agent:
    """The run that the tools act for.

    :param client: a client with the run's permissions.
    :param hold_s: default seconds to hold a call.
    :param undelivered: kept between calls.
    """

    client: Client
    run_id: str
    session_id: str
    hold_s: float = HOLD_S
    undelivered: questions.UndeliveredQuestions = field(factory=questions.UndeliveredQuestions)


async def _spawn(agent: Agent, given: SpawnOptions) -> dict[str, Any]:
    command = shared(SpawnFromRun, given, run_id=agent.run_id)
    reply = (await agent.client.transport.call(SPAWN_FROM_RUN, command)).answer
    return {
        "session": session_view(reply.session),
        "run": run_view(reply.run),
        "next": f"the child is working; call session_wait with run_id {reply.run.id} to get its result",
    }


async def _send(agent: Agent, given: SendOptions) -> dict[str, Any]:
    command = shared(SendToSession, given, from_run_id=agent.run_id)
    reply = (await agent.client.transport.call(SEND_TO_SESSION, command)).answer
    return {
        "message": message_view(reply.message),
        "run": None if reply.run is None else run_view(reply.run),
    }


async def _wait(agent: Agent, given: arguments.WaitArguments) -> dict[str, Any]:
    run_ids = list(
        dict.fromkeys([*([given.run_id] if given.run_id else []), *(given.run_ids or ())])
    )
    found: dict[str, str] = {}
    if not run_ids:
        found["run_id"] = "is required, unless run_ids is given"
    if len(run_ids) > arguments.MAX_RUNS:
        found["run_ids"] = f"must be at most {arguments.MAX_RUNS}"
    if not all(len(one) <= MAX_ID and re.fullmatch(ID_PATTERN, one) for one in run_ids):
        found["run_ids"] = f"must be at most {MAX_ID} characters each, and match {ID_PATTERN}"
    if agent.run_id in run_ids:
        found["run_id"] = "is your own run, which cannot end while you wait for it"
    if found:
        raise InvalidRequest.of(found)
    hold_s = agent.hold_s if given.timeout_s is None else given.timeout_s
    return await wait_any.wait_for_any(
        agent.client, run_ids, until=given.until, ignore=given.ignore or (), hold_s=hold_s
    )


async def _reply_parent(agent: Agent, given: arguments.ReplyParentArguments) -> dict[str, Any]:
    hold_s = agent.hold_s if given.timeout_s is None else given.timeout_s
    asker = questions.QuestionCaller(
        agent.client, agent.run_id, agent.session_id, agent.undelivered.of(agent.run_id)
    )
    if given.request_id is not None:
        if given.text is not None or given.request_kind is not None:
            raise InvalidRequest.of(
                {"request_id": "continues a wait: leave out text and request_kind"}
            )
        return await asker.wait_for(given.request_id, hold_s)
    if given.text is None:
        raise InvalidRequest.of({"text": "is required, unless request_id is given"})
    if given.request_kind is None:
        for name in ("detail", "options"):
            if getattr(given, name) is not None:
                raise InvalidRequest.of({name: "needs a request_kind"})
        reply = await agent.client.reply_parent(agent.run_id, given.text)
        return {"parent_session_id": reply.parent_session_id, "request": None}
    return await asker.ask(given, hold_s)


async def _list(agent: Agent, given: arguments.ListArguments) -> dict[str, Any]:
    tree = await agent.client.get_tree(agent.session_id, limit=given.limit, cursor=given.cursor)
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
        request = await agent.client.get_request(run.waiting_on)
    return {
        "session": session_view(node.session),
        "run": None if run is None else run_view(run, with_result=False),
        "children_count": node.children_count,
        "request": request_view(request, in_short=True) if request and request.is_open else None,
    }


async def _resolve(agent: Agent, given: arguments.ResolveArguments) -> dict[str, Any]:
    command = shared(ResolveRequest, given)
    request = (await agent.client.transport.call(RESOLVE_REQUEST, command)).answer.request
    return {"request": request_view(request)}


@frozen
class Tool:
    """A tool.

    :param description: for the model: what the tool does and when to use it.
    :param read_only: True if the tool changes nothing.
    :param waits: True if a call may be held.
    """

    name: str
    title: str
    description: str
    arguments: type
    run: Callable[[Agent, Any], Awaitable[dict[str, Any]]]
    read_only: bool = False
    waits: bool = False


TOOLS: Final[Mapping[str, Tool]] = {
    tool.name: tool
    for tool in (
        Tool(
            "session_spawn",
            "Spawn a child agent",
            "Start another agent on a task, without waiting for it. Use this for "
            "parts that can be done independently. Spawn all children before you "
            "wait for the first. Returns the child's session and run; session_wait "
            "gets the result.",
            SpawnOptions,
            _spawn,
        ),
        Tool(
            "session_send",
            "Send a message to another agent",
            "Send a message to the agent of a session that you spawned: a further "
            "task when it is done, or a correction while it works. The agent keeps "
            "its conversation. Returns the run that handles the message; "
            "session_wait gets its result.",
            SendOptions,
            _send,
        ),
        Tool(
            "session_wait",
            "Wait for children",
            "Wait until a child's run has ended or asks something. In the answer, "
            "a `run.status` of completed comes with `run.result`, and failed with "
            "`run.error`. A `request` means that a child asks something: decide "
            "with request_resolve, then wait again. `timed_out` true means that it "
            "still works: call again with the same arguments. Do not poll with "
            "session_list instead.",
            arguments.WaitArguments,
            _wait,
            read_only=True,
            waits=True,
        ),
        Tool(
            "session_reply_parent",
            "Inform or ask your parent",
            "Report progress to whoever gave you your task, or ask a question. "
            "With a request_kind the call waits until somebody decides. Go on only "
            "if `decision` is approve or answer; anything else means no. "
            "`timed_out` true means that nobody has decided yet: call again with "
            "only the request_id. Without a parent, a person is asked.",
            arguments.ReplyParentArguments,
            _reply_parent,
            waits=True,
        ),
        Tool(
            "session_list",
            "List your children",
            "List your children and their descendants, oldest first: their "
            "sessions, the state of their runs, and their questions. Use this to "
            "find ids that you no longer have. `children_count` is the number of "
            "direct children. If there is a `next_cursor`, call again with it.",
            arguments.ListArguments,
            _list,
            read_only=True,
        ),
        Tool(
            "request_resolve",
            "Answer a child's question",
            "Decide a question of a child or its descendants. Approve or deny an "
            "approval_request or permission_request; answer an input_request with "
            "a text. Approve only what your own task covers. Otherwise deny, or "
            "leave it to a person: call session_wait with its id in `ignore`. The "
            "first decision counts.",
            arguments.ResolveArguments,
            _resolve,
        ),
    )
}


A = TypeVar("A")


def read_arguments(kind: type[A], given: Mapping[str, Any]) -> A:
    """Return a tool's checked arguments.

    :raises InvalidRequest: if some are invalid. Names every invalid field.
    """
    names = {spec.name for spec in arguments.fields(kind)}
    if hidden := given.keys() & specs(kind).keys() - names:  # type: ignore[arg-type]
        raise InvalidRequest.of(dict.fromkeys(sorted(hidden), NOT_A_FIELD))
    found = codec.command(kind, given)
    check(kind, found)
    return found


async def use(agent: Agent, tool: Tool, given: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """Call a tool. Return its result or error, and whether it is an error."""
    try:
        return await tool.run(agent, read_arguments(tool.arguments, given)), False
    except OrchestratorError as error:
        return problems.to_body(error), True
    except Unreachable as error:
        body = {"code": "unreachable", "message": str(error), "details": {}}
        return {"error": body}, True
