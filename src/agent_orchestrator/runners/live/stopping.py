"""Ends an agent's turn. If the agent does not comply in time, its process is ended."""

from collections.abc import Callable, Coroutine
from typing import Any, Final

import anyio

from agent_orchestrator.domain.errors import AgentFailed
from agent_orchestrator.ports.runner import RunContext
from agent_orchestrator.runners.live.process import LiveProcess

INTERRUPT_S: Final = 10.0
"""Maximum seconds for an agent to end a turn. Agents usually take less than 0.2 s."""

PARKED: Final = "its run waits for an answer"
"""The reason to end a process while its run waits for an answer."""

Work = Callable[[], Coroutine[Any, Any, None]]


async def interrupt(
    process: LiveProcess, send_interrupt: Work, read_one: Work, has_ended: Callable[[], bool]
) -> None:
    """Ask an agent to end its turn. If it does not within :data:`INTERRUPT_S`, end its process.

    :param send_interrupt: sends the agent the request to end the turn.
    :param read_one: reads one message from the mailbox, and answers it if it is a request.
    :param has_ended: returns whether the messages read so far have ended the turn.
    """
    with anyio.move_on_after(INTERRUPT_S) as time_limit:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send_interrupt)
            try:
                while not has_ended():
                    await read_one()
            except anyio.EndOfStream:
                pass
            tasks.cancel_scope.cancel()
    if time_limit.cancelled_caught:
        note = f"{process.protocol.agent} did not end its turn when asked to"
        process.fail(AgentFailed("provider_error", note))


async def until_deadline(context: RunContext, process: LiveProcess, work: Work) -> None:
    """Run the last steps of a run. At the stop deadline, kill the process, which ends these steps too."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_kill_at_deadline, context, process)
        await work()
        tasks.cancel_scope.cancel()


async def _kill_at_deadline(context: RunContext, process: LiveProcess) -> None:
    await context.stop_deadline()
    process.kill()


async def run_shielded(context: RunContext, process: LiveProcess, work: Work) -> None:
    """Complete an exchange with an agent even if the run is canceled meanwhile.

    Otherwise the runner would not know which turn to interrupt, or which messages the agent has. After a
    cancel, the agent has :data:`INTERRUPT_S` to answer; then its process is ended.
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
