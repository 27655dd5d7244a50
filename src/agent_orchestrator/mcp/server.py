"""The MCP server of the tools, independent of its transport."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.shared.exceptions import MCPError

from agent_orchestrator.ports.runner import Toolbox, ToolSpec
from agent_orchestrator.tools.toolbox import INSTRUCTIONS, TOOLS, unknown_tool

ToolServer = Server[Toolbox]
Context = ServerRequestContext[Toolbox]


def make_server(version: str, tools: Toolbox | None = None) -> ToolServer:
    """Return an MCP server of the tools.

    :param tools: the tools for all requests. Without them, the transport passes those of the agent with
        each request.
    """
    server: ToolServer = Server(
        "agent-orchestrator",
        version=version,
        title="Agent orchestration",
        instructions=INSTRUCTIONS,
        lifespan=_serving(tools),
        on_list_tools=_list_tools,
        on_call_tool=_call_tool,
    )
    # Removes the package's default middleware, which creates unused tracing spans.
    server.middleware.clear()
    return server


def _serving(tools: Toolbox | None) -> Callable[[Any], AbstractAsyncContextManager[Toolbox]]:
    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[Toolbox]:
        if tools is None:
            raise RuntimeError("this server has no agent: each request names one")
        yield tools

    return lifespan


async def _list_tools(
    context: Context, _: types.PaginatedRequestParams | None
) -> types.ListToolsResult:
    return types.ListToolsResult(tools=[_tool(spec) for spec in context.lifespan_context.list()])


def _tool(spec: ToolSpec) -> types.Tool:
    return types.Tool(
        name=spec.name,
        title=spec.title,
        description=spec.description,
        input_schema=dict(spec.input_schema),
        annotations=types.ToolAnnotations(
            read_only_hint=spec.read_only, destructive_hint=False, open_world_hint=False
        ),
    )


async def _call_tool(context: Context, params: types.CallToolRequestParams) -> types.CallToolResult:
    if params.name not in TOOLS:  # an error of the protocol in MCP
        raise MCPError(types.INVALID_PARAMS, unknown_tool(params.name))
    result = await context.lifespan_context.call(params.name, params.arguments or {})
    # Text and structured content are the same, because clients may pass either to the model.
    text = types.TextContent(type="text", text=result.text)
    return types.CallToolResult(
        content=[text], structured_content=dict(result.content), is_error=result.is_error
    )
