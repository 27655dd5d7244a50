"""The MCP server of the tools, independent of its transport."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import mcp_types as types
from anyio.to_thread import run_sync
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.shared.exceptions import MCPError

from agent_orchestrator.mcp.arguments import input_schema
from agent_orchestrator.mcp.tools import INSTRUCTIONS, TOOLS, Agent, Tool, use
from agent_orchestrator.wire import strict_json

AgentServer = Server[Agent]
Context = ServerRequestContext[Agent]


def make_server(version: str, agent: Agent | None = None) -> AgentServer:
    """Return an MCP server of the tools.

    :param agent: the agent for all requests. Without one, the transport passes an agent with each
        request.
    """
    server: AgentServer = Server(
        "agent-orchestrator",
        version=version,
        title="Agent orchestration",
        instructions=INSTRUCTIONS,
        lifespan=_serving(agent),
        on_list_tools=_list_tools,
        on_call_tool=_call_tool,
    )
    # Removes the package's default middleware, which creates unused tracing spans.
    server.middleware.clear()
    return server


def _serving(agent: Agent | None) -> Callable[[Any], AbstractAsyncContextManager[Agent]]:
    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[Agent]:
        if agent is None:
            raise RuntimeError("this server has no agent: each request names one")
        yield agent

    return lifespan


async def _list_tools(
    context: Context, _: types.PaginatedRequestParams | None
) -> types.ListToolsResult:
    hold_s = context.lifespan_context.hold_s
    return types.ListToolsResult(tools=[_described(tool, hold_s) for tool in TOOLS.values()])


def _described(tool: Tool, hold_s: float) -> types.Tool:
    return types.Tool(
        name=tool.name,
        title=tool.title,
        description=tool.description,
        input_schema=input_schema(tool.arguments, hold_s),
        annotations=types.ToolAnnotations(
            read_only_hint=tool.read_only, destructive_hint=False, open_world_hint=False
        ),
    )


async def _call_tool(context: Context, params: types.CallToolRequestParams) -> types.CallToolResult:
    tool = TOOLS.get(params.name)
    if tool is None:
        names = ", ".join(TOOLS)
        raise MCPError(types.INVALID_PARAMS, f"unknown tool {params.name!r}; choose from: {names}")
    result, is_error = await use(context.lifespan_context, tool, params.arguments or {})
    # Text and structured content are the same, because clients may pass either to the model.
    is_long = strict_json.is_long(result)
    encoded = await run_sync(strict_json.text_of, result) if is_long else strict_json.dumps(result)
    text = types.TextContent(type="text", text=encoded)
    return types.CallToolResult(content=[text], structured_content=result, is_error=is_error)
