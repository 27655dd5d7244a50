"""``agentctl mcp``: the tools for agents over MCP."""

import os
import signal
from typing import Any

import click

from agentctl.call import Call
from agentctl.commands.tool import RUN_VARIABLE, SESSION_VARIABLE
from agentctl.failures import usage_failure
from agentctl.options import Command, Number, read_id


@click.command(
    "mcp",
    cls=Command,
    examples="""
    agentctl mcp
    agentctl mcp --run-id run_01k0 --timeout-s 3000
    """,
)
@click.option("--run-id", metavar="ID", help=f"The run to act for.  [env: {RUN_VARIABLE}]")
@click.option(
    "--timeout-s",
    type=Number(0, 86_400),
    help="Default maximum wait of a tool call, in seconds.  [default: 50]",
)
def mcp(run_id: str | None, timeout_s: float | None) -> None:
    """Serve the tools for agents as an MCP server on standard input and output.

    This is for MCP clients that start servers as commands. Give a client that takes a URL the path
    /mcp of agentd and the run's token. The tools are session_spawn, session_send, session_wait,
    session_reply_parent, session_list and request_resolve.
    """
    call = Call.current(default_format="json")
    named = read_id(run_id) if run_id else os.environ.get(RUN_VARIABLE)
    if not named:
        raise usage_failure("name the run that the tools act for: --run-id ID")

    async def body(connection: Any) -> None:
        from importlib.metadata import version

        from agent_orchestrator.mcp.stdio import serve_stdio
        from agent_orchestrator.tools.agent import Agent, calls_over
        from agent_orchestrator.tools.arguments import HOLD_S
        from agent_orchestrator.tools.toolbox import AgentTools

        client = connection.client()
        session_id = None if run_id else os.environ.get(SESSION_VARIABLE)
        if not session_id:
            session_id = (await client.get_run(named)).session_id
        hold_s = HOLD_S if timeout_s is None else timeout_s
        # A blocked read of standard input cannot be cancelled. There is nothing to clean up.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        calls = calls_over(client.transport)
        agent = Agent(calls, named, session_id, hold_s)
        await serve_stdio(AgentTools(agent), version("agent-orchestrator"))

    call.run(body)
