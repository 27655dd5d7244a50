"""Waiting for the first of several runs."""

from collections.abc import Sequence
from typing import Any, Literal

import anyio

from agent_orchestrator.domain.lifecycle import is_terminal
from agent_orchestrator.operations.runs import WAIT_RUN, WaitReply, WaitRun
from agent_orchestrator.tools.agent import Agent
from agent_orchestrator.tools.views import request_view, run_view
from agent_orchestrator.wire import strict_json


async def wait_for_any(
    agent: Agent,
    run_ids: Sequence[str],
    *,
    until: Literal["terminal", "attention"],
    ignore: Sequence[str],
    hold_s: float,
) -> dict[str, Any]:
    """Wait for the first of several runs and return the result of ``session_wait``.

    :param ignore: ids of requests that do not end the wait.
    :raises OrchestratorError: if the caller may not wait for one of the runs.
    """
    replies: dict[str, WaitReply] = {}
    failures: list[Exception] = []

    async def wait(run_id: str) -> None:
        try:
            command = WaitRun(run_id, timeout_s=hold_s, until=until, ignore=ignore)
            reply = await agent.call(WAIT_RUN, command)
        except Exception as error:  # noqa: BLE001 - raised below, not in a group
            failures.append(error)
        else:
            replies[run_id] = reply
            if reply.timed_out:
                return
        tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        for run_id in run_ids:
            tasks.start_soon(wait, run_id)
    if failures:
        raise failures[0]
    arrived = next((reply for reply in replies.values() if not reply.timed_out), None)
    if arrived is None:
        return {
            "timed_out": True,
            "runs": [run_view(replies[run_id].run) for run_id in run_ids],
            "next": "still waiting: call session_wait again with the same arguments",
        }
    return _finished_reply(arrived, run_ids, ignore)


def _finished_reply(
    reply: WaitReply, run_ids: Sequence[str], ignored: Sequence[str]
) -> dict[str, Any]:
    ended = is_terminal(reply.run.status)
    others = [run_id for run_id in run_ids if run_id != reply.run.id]
    remaining = others if ended else list(run_ids)
    result: dict[str, Any] = {"timed_out": False, "run": run_view(reply.run)}
    advice = []
    if reply.request is not None:
        result["request"] = request_view(reply.request)
        ignore = strict_json.dumps([*ignored, reply.request.id])
        advice.append(
            f"decide with request_resolve, request_id {reply.request.id}, or leave it to a person: "
            f"session_wait with ignore {ignore}"
        )
    if remaining:
        result["still_waiting_for"] = remaining
        advice.append("then session_wait for those in still_waiting_for")
    if advice:
        result["next"] = "; ".join(advice)
    return result
