"""The orchestration tools as codex's dynamic tools: no MCP server for each thread, and no approval.

Codex asks the client that serves a thread to execute its dynamic tools. So a call reaches the run that
works on the thread, also without a daemon. Codex 0.169 accepts them for new threads only. It stores
them with the thread, and offers them again when another process resumes it.

A thread that began without them, by exec or with ``tools`` off, has the tools of the daemon as an MCP
server. Its configuration has the run's token, and codex reads it when it loads the thread. So such a
thread is unloaded at the end of each run.
"""

from collections.abc import Sequence

from agent_orchestrator.ports.runner import Toolbox, ToolSpec
from agent_orchestrator.runners.events import JsonObject, text


def dynamic_tools(tools: Toolbox) -> Sequence[JsonObject]:
    """Return the ``dynamicTools`` of a new thread."""
    return [_tool(spec) for spec in tools.list()]


def _tool(spec: ToolSpec) -> JsonObject:
    return {
        "type": "function",
        "name": spec.name,
        "description": spec.description,
        "inputSchema": spec.input_schema,
    }


async def call_tool(tools: Toolbox | None, params: JsonObject) -> JsonObject:
    """Execute codex's ``item/tool/call`` and return the answer to it.

    :param tools: None if the runner gives its agents no tools. A thread keeps those it began with.
    """
    if tools is None:
        return _answer("the orchestration tools are off for this agent", success=False)
    given = params.get("arguments")
    result = await tools.call(text(params.get("tool")), {} if given is None else given)
    return _answer(result.text, success=not result.is_error)


def _answer(said: str, *, success: bool) -> JsonObject:
    return {"success": success, "contentItems": [{"type": "inputText", "text": said}]}
