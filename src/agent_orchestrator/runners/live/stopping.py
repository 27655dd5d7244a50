"""Ends an agent's work: the agent is asked first, and its process is ended if it does not comply."""

from collections.abc import Callable, Coroutine
from typing import Any, Final

import anyio

from agent_orchestrator.domain.errors import AgentFailed
from agent_orchestrator.ports.runner import RunContext
from agent_orchestrator.runners.live.process import LiveProcess

INTERRUPT_S: Final = 10.0
"""Seconds that an agent has to end a turn. Agents usually take less than 0.2 s."""

PARKED: Final = "its run waits for an answer"
"""Why a process ends that is not needed before then."""

Work = Callable[[], Coroutine[Any, Any, None]]


async def interrupt(
    process: LiveProcess, ask: Work, read_one: Work, has_ended: Callable[[], bool]
) -> None:
    """Have an agent end its turn. If it does not in time, end its process.

    :param ask: asks it to.
    :param read_one: takes a message from the mailbox, and answers what the agent asks.
    :param has_ended: whether the messages so far have ended the turn.
    """
    with anyio.move_on_after(INTERRUPT_S) as time_limit:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            try:
                while not has_ended():
                    await read_one()
            except anyio.EndOfStream:
                pass
            tasks.cancel_scope.cancel()
    if time_limit.cancelled_caught:
        note = f"{process.protocol.agent} did not end a turn as told"
        process.fail(AgentFailed("provider_error", note))


async def until_deadline(context: RunContext, process: LiveProcess, work: Work) -> None:
    """Do what ends a run. Kill the process at the stop deadline, so that the work ends too."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_kill_at_deadline, context, process)
        await work()
        tasks.cancel_scope.cancel()


async def _kill_at_deadline(context: RunContext, process: LiveProcess) -> None:
    await context.stop_deadline()
    process.kill()


async def run_shielded(context: RunContext, process: LiveProcess, work: Work) -> None:
    """Complete a step with an agent even if the run is canceled meanwhile.

    After a cancel it must be known which turn to interrupt, and which messages the agent has. It has as
    much time for a step as for the end of a turn. The process of a slower one is ended.
    """
    failure: Exception | None = None
    is_finished = anyio.Event()

    async def shielded() -> None:
        nonlocal failure
        with anyio.CancelScope(shield=True):
            try:
                await work()
            except Exception as problem:  # noqa: BLE001 - raised below, outside of the group
                failure = problem
        is_finished.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(shielded)
        try:
            await is_finished.wait()
        finally:
            if not is_finished.is_set():
                with anyio.CancelScope(shield=True), anyio.move_on_after(INTERRUPT_S):
                    await until_deadline(context, process, is_finished.wait)
                if not is_finished.is_set():
                    note = f"{process.protocol.agent} did not answer"
                    process.fail(AgentFailed("provider_error", note))
    if failure is not None:
        raise failure
