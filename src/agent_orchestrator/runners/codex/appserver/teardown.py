"""Ends all of codex's work for a run."""

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import anyio
import anyio.lowlevel

from agent_orchestrator.domain.errors import AgentFailed
from agent_orchestrator.hosts import current_host
from agent_orchestrator.runners.bulk import run_in_thread
from agent_orchestrator.runners.codex.appserver.server import Server
from agent_orchestrator.runners.codex.appserver.turns import TurnReader
from agent_orchestrator.runners.live.mailbox import Mailbox
from agent_orchestrator.runners.live.messages import AgentRequest, Notification, RpcError
from agent_orchestrator.runners.live.stopping import INTERRUPT_S, interrupt

_log = logging.getLogger(__name__)

_CLEAN_S: Final = 60.0

THREAD_VARIABLE: Final = "CODEX_THREAD_ID"
"""The variable that identifies a thread's commands in a process that serves many threads. Codex 0.169 sets it for every
command, sandboxed or not."""

_BEGIN_S: Final = 1.0
"""Maximum seconds until a sub-agent begins new work. It takes 20 ms."""


async def end_turn(server: Server, mailbox: Mailbox, reader: TurnReader) -> None:
    """Ask codex to end the turn. If it does not, end its process."""
    params = {"threadId": reader.thread_id, "turnId": reader.turn_id}
    await interrupt(
        server,
        partial(_request_end, server, "turn/interrupt", params, INTERRUPT_S),
        partial(_drain_one, server, mailbox, reader),
        lambda: reader.end is not None,
    )


async def end_background_work(server: Server, mailbox: Mailbox, reader: TurnReader) -> None:
    """End the work of sub-agents, and processes that commands have left running.

    Codex 0.169 lets sub-agents continue when the turn that started them has ended.
    """
    if server.failure is None:
        with anyio.move_on_after(_BEGIN_S):
            while "" in reader.children.values() and await _draining(server, mailbox, reader):
                pass
        async with anyio.create_task_group() as tasks:
            # Unread messages would come before the answers that this waits for.
            tasks.start_soon(_drain_messages, server, mailbox, reader)
            while at_work := {child: turn for child, turn in reader.children.items() if turn}:
                for child, turn in at_work.items():
                    reader.children[child] = None
                    params = {"threadId": child, "turnId": turn}
                    await _request_end(server, "turn/interrupt", params, INTERRUPT_S)
            for thread_id in reader.threads:
                params = {"threadId": thread_id}
                await _request_end(server, "thread/backgroundTerminals/clean", params, _CLEAN_S)
            tasks.cancel_scope.cancel()
    ended = await current_host().kill_by_variable(THREAD_VARIABLE, reader.threads)
    if ended:
        _log.info("thread %s left %d processes", reader.thread_id, len(ended))


async def _request_end(
    server: Server, method: str, params: Mapping[str, Any], timeout_s: float
) -> None:
    """Ask codex to end something. It may have ended already, like codex itself."""
    try:
        await server.request(method, params, timeout_s)
    except RpcError as refused:
        _log.info("codex refused %s: %s", method, refused)
    except AgentFailed:
        pass  # codex has ended with all its work


async def _drain_messages(server: Server, mailbox: Mailbox, reader: TurnReader) -> None:
    while await _draining(server, mailbox, reader):
        pass


async def _draining(server: Server, mailbox: Mailbox, reader: TurnReader) -> bool:
    try:
        await _drain_one(server, mailbox, reader)
    except anyio.EndOfStream:
        await anyio.lowlevel.checkpoint()
        return False
    return True


async def _drain_one(server: Server, mailbox: Mailbox, reader: TurnReader) -> None:
    """Discard a message of codex, and decline its question."""
    incoming = await mailbox.take()
    if isinstance(incoming, AgentRequest):
        server.refuse(incoming, "the run is being stopped")
    elif isinstance(incoming, Notification) and not reader.is_stale(incoming):
        if incoming.is_long:
            await run_in_thread(reader.feed, incoming)
        else:
            reader.feed(incoming)
