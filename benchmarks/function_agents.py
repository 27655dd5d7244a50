"""Agents that are functions."""

import time
from typing import Final

import anyio

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


async def beat(context: RunContext) -> Outcome:
    """Emit events at a steady rate, each with the time: the prompt has their number, and how many a second."""
    count, rate = context.prompt.split()
    started = time.monotonic()
    for number in range(int(count)):
        await anyio.sleep(max(0, started + number / float(rate) - time.monotonic()))
        text = f"sent at {time.monotonic():.6f}"
        await context.emit("agent.message.delta", {"item_id": "item_0", "text": text})
    return Outcome(context.prompt)
