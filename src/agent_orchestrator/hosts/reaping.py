"""Ends the processes of attempts whose engine was lost, with a result for each attempt."""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

import anyio

from agent_orchestrator.domain.model import Attempt
from agent_orchestrator.host import ReapResult

_log = logging.getLogger(__name__)

MAX_CONCURRENT: Final = 8
"""Maximum number of attempts searched for at once. Each search reads the process table."""


async def reap(
    host: str, attempts: Sequence[Attempt], reap_one: Callable[[Attempt], Awaitable[ReapResult]]
) -> Mapping[tuple[str, int], ReapResult]:
    """End all processes of these attempts; see :meth:`agent_orchestrator.host.Host.reap`.

    :param host: the id of this host. Attempts of another host are ``unknown``.
    :param reap_one: ends the processes of one attempt.
    """
    results: dict[tuple[str, int], ReapResult] = {}
    limiter = anyio.CapacityLimiter(MAX_CONCURRENT)

    async def end(attempt: Attempt) -> None:
        async with limiter:
            results[attempt.run_id, attempt.attempt] = await _answer(host, attempt, reap_one)

    async with anyio.create_task_group() as tasks:
        for attempt in attempts:
            tasks.start_soon(end, attempt)
    return results


async def _answer(
    host: str, attempt: Attempt, reap_one: Callable[[Attempt], Awaitable[ReapResult]]
) -> ReapResult:
    if attempt.host not in (None, host):
        return ReapResult("unknown", reason=f"it was started on the host {attempt.host}")
    try:
        return await reap_one(attempt)
    except Exception as error:  # noqa: BLE001 - one attempt must not block the others
        _log.exception("finding processes of %s failed", attempt.tag)
        return ReapResult("unknown", reason=f"finding them failed: {error!r}")
