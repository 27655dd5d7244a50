"""Delivers messages to an agent during its turn. The agent may refuse them."""

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
    deliver: Callable[[str], Coroutine[Any, Any, None]],
) -> None:
    """Deliver steering messages to the turn as they come.

    :param undelivered: the messages that the agent has not accepted; the next turn gets them. A message is added
        before it is sent to the agent, so that it cannot be lost.
    :param deliver: sends a message to the turn, and removes it from ``undelivered`` if the agent accepts it.
    """
    await log.wait_until_taken()
    async with context.steering() as messages:
        async for message in messages:
            undelivered.append(message)
            await log.until(lambda state: state.is_running)
            if len(undelivered) > 1:
                continue  # the agent refused an earlier one, which must come first
            try:
                await run_shielded(context, process, partial(deliver, message))
            except AgentFailed:
                return
