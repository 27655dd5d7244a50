"""Messages for an agent that comes to its turn, and may refuse them."""

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from agent_orchestrator.domain.errors import AgentFailed
from agent_orchestrator.ports.runner import RunContext
from agent_orchestrator.runners.live.process import LiveProcess
from agent_orchestrator.runners.live.stopping import run_shielded
from agent_orchestrator.runners.live.turn_log import TurnLog


async def steer(
    context: RunContext,
    process: LiveProcess,
    log: TurnLog,
    undelivered: list[str],
    give: Callable[[str], Coroutine[Any, Any, None]],
) -> None:
    """Deliver steering messages to the turn, as they come.

    :param undelivered: the messages that the agent does not have, which the next turn gets. A message is in it before the
        agent is asked: it is accepted, and must not be lost.
    :param give: gives the turn a message, and removes it from ``undelivered`` if the agent has taken it.
    """
    await log.wait_taken()
    async with context.steering() as messages:
        async for message in messages:
            undelivered.append(message)
            await log.until(lambda state: state.is_running)
            if len(undelivered) > 1:
                continue  # the agent did not take one before it, which goes first
            try:
                await run_shielded(context, process, partial(give, message))
            except AgentFailed:
                return
