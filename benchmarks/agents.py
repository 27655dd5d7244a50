"""Agents that are functions."""

import time
from typing import Final

from agent_orchestrator.ports import Outcome, RunContext

ECHO: Final = """\
[providers.echo]
runner = "function"
target = "benchmarks.agents:echo"

[routing]
default = "echo"
"""

ASKING: Final = (
    ECHO
    + """
[providers.asking]
runner = "function"
target = "benchmarks.agents:asking"
"""
)


async def echo(context: RunContext) -> str:
    """Say what was said."""
    return f"echo: {context.prompt}"


async def talk(context: RunContext) -> Outcome:
    """Emit as many events as the prompt's number tells, of the kind agents emit most of."""
    for number in range(int(context.prompt)):
        text = f"word {number} of a longer answer, as models send it"
        await context.emit("agent.message.delta", {"item_id": "item_0", "text": text})
    return Outcome(context.prompt)


async def asking(context: RunContext) -> str:
    """Ask when, and tell how that was resolved and when it is known."""
    request = await context.ask_parent(repr(time.monotonic()), kind="approval_request")
    return f"{request.status} {time.monotonic()!r}"
