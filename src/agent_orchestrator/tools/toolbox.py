"""The tools: what each is, when an agent should use it, and how it is called."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from attrs import evolve, frozen

from agent_orchestrator.domain.errors import InvalidRequest, OrchestratorError, Unreachable
from agent_orchestrator.fields import NOT_A_FIELD, check, shown, specs
from agent_orchestrator.long_work import run_long
from agent_orchestrator.operations.options import SendOptions, SpawnOptions
from agent_orchestrator.ports.runner import ToolResult, ToolSpec
from agent_orchestrator.tools import arguments, functions
from agent_orchestrator.tools.agent import Agent
from agent_orchestrator.tools.long_results import long_result
from agent_orchestrator.wire import codec, problems, strict_json

INSTRUCTIONS: Final = """\
Work with other agents. session_spawn gives a child part of your work. session_wait waits for its result or \
question. request_resolve answers the question. session_reply_parent informs or asks whoever gave you your task. \
A gateway runs you and other agents. You end when your turn ends, so wait for the children whose results you \
need. If you are a child yourself, ask before you do anything that you may not decide."""
"""Instructions that clients may show to their model. Some show only the first 250 characters."""


@frozen
class Tool:
    """A tool; see :class:`~agent_orchestrator.ports.runner.ToolSpec`.

    :param arguments: the class of its arguments. Fields that are not for agents are left out.
    :param run: executes a call, and returns its answer as a JSON object.
    """

    name: str
    title: str
    description: str
    arguments: type
    run: Callable[[Agent, Any], Awaitable[dict[str, Any]]]
    read_only: bool = False

    def spec(self, hold_s: float) -> ToolSpec:
        """Return the tool for clients.

        :param hold_s: the default of ``timeout_s``.
        """
        schema = arguments.input_schema(self.arguments, hold_s)
        return ToolSpec(self.name, self.title, self.description, schema, self.read_only)


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
            functions.spawn,
        ),
        Tool(
            "session_send",
            "Send a message to another agent",
            "Send a message to the agent of a session that you spawned: a further "
            "task when it is done, or a correction while it works. The agent keeps "
            "its conversation. Returns the run that handles the message; "
            "session_wait gets its result.",
            SendOptions,
            functions.send,
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
            functions.wait,
            read_only=True,
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
            functions.reply_parent,
        ),
        Tool(
            "session_list",
            "List your children",
            "List your children and their descendants, oldest first: their "
            "sessions, the state of their runs, and their questions. Use this to "
            "find ids that you no longer have. `children_count` is the number of "
            "direct children. If there is a `next_cursor`, call again with it.",
            arguments.ListArguments,
            functions.list_,
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
            functions.resolve,
        ),
    )
}


Arguments = TypeVar("Arguments")


def read_arguments(kind: type[Arguments], values: Mapping[str, Any]) -> Arguments:
    """Return a tool's checked arguments.

    :raises InvalidRequest: if some are invalid. Names every invalid field.
    """
    names = {spec.name for spec in arguments.fields(kind)}
    if hidden := values.keys() & specs(kind).keys() - names:  # type: ignore[arg-type]
        raise InvalidRequest.of(dict.fromkeys(sorted(hidden), NOT_A_FIELD))
    read = codec.command(kind, values)
    check(kind, read)
    return read


async def _checked(kind: type[Arguments], values: Any) -> Arguments:
    if not isinstance(values, Mapping) or not all(isinstance(name, str) for name in values):
        raise InvalidRequest.of({"arguments": "must be an object"})
    if strict_json.is_long(values):
        return await run_long(read_arguments, kind, values)
    return read_arguments(kind, values)


def unknown_tool(name: str) -> str:
    """Return what is wrong with a name that no tool has."""
    return f"unknown tool {shown(name)!r}; choose from: {', '.join(TOOLS)}"


@frozen
class AgentTools:
    """The tools of one agent: a :class:`~agent_orchestrator.ports.runner.Toolbox`."""

    agent: Agent

    def list(self) -> Sequence[ToolSpec]:
        """Return the tools."""
        return [tool.spec(self.agent.hold_s) for tool in TOOLS.values()]

    def holding(self, seconds: float) -> "AgentTools":
        """Return the same tools, whose calls wait at most so long by default."""
        return AgentTools(evolve(self.agent, hold_s=seconds))

    async def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Call a tool, and return its answer or the error."""
        content, is_error = await self._called(name, arguments)
        if strict_json.is_long(content):
            return await long_result(content, is_error=is_error)
        return ToolResult(content, strict_json.dumps(content), is_error)

    async def _called(self, name: Any, arguments: Any) -> tuple[dict[str, Any], bool]:
        # Untyped, because a runner may pass on whatever its model said.
        try:
            tool = TOOLS.get(name) if isinstance(name, str) else None
            if tool is None:
                raise InvalidRequest.of({"name": unknown_tool(str(name))})
            return await tool.run(self.agent, await _checked(tool.arguments, arguments)), False
        except OrchestratorError as error:
            return problems.to_body(error), True
        except Unreachable as error:
            body = {"code": "unreachable", "message": str(error), "details": {}}
            return {"error": body}, True
