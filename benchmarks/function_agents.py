"""Agents that are functions."""

import time
from typing import Final

from agent_orchestrator.ports.runner import Outcome, RunContext

ECHO: Final = """\
[providers.echo]
runner = "function"
target = "benchmarks.function_agents:echo"

[routing]
default = "echo"
"""

ASKING: Final = (
    ECHO
    + """
[providers.asking]
runner = "function"
target = "benchmarks.function_agents:asking"
"""
)


async def echo(context: RunContext) -> str:
    """Repeat the message."""
    return f"echo: {context.prompt}"


async def talk(context: RunContext) -> Outcome:
    """Emit the prompt's number of events, of the most common type."""
    for number in range(int(context.prompt)):
        text = f"word {number} of a longer answer, as models send it"
        await context.emit("agent.message.delta", {"item_id": "item_0", "text": text})
    return Outcome(context.prompt)


async def asking(context: RunContext) -> str:
    """Ask with the current time. Return the resolution and the time of receiving it."""
    request = await context.ask_parent(repr(time.monotonic()), kind="approval_request")
    return f"{request.status} {time.monotonic()!r}"
