"""Changes and reads with retries while the store is unavailable."""

import itertools
import logging
from collections.abc import Callable
from typing import TypeVar

import anyio

from agent_orchestrator.domain.errors import Unavailable
from agent_orchestrator.engine.core import Core
from agent_orchestrator.ports.changes import Transaction
from agent_orchestrator.ports.queries import View

logger = logging.getLogger("agent_orchestrator.persistence")

T = TypeVar("T")

STORE_RETRY_S = (0.1, 0.5, 2.0, 5.0)
"""Seconds between tries. The last pause repeats."""


async def transact_with_retry(
    core: Core,
    change: Callable[[Transaction], T],
    *,
    again: Callable[[Transaction], T] | None = None,
    tries: int | None = None,
    reserve: bool = False,
    is_dropped_in_drain: bool = False,
) -> T:
    """Make a change, with retries while the store is unavailable.

    A commit is shielded from cancellation, so that the caller knows whether it was made.

    :param again: the change for retries. A try that failed may have been committed: None means that
        ``change`` may be made twice.
    :param tries: maximum number of tries; None means no limit.
    :param reserve: see :meth:`~agent_orchestrator.ports.store.Store.transact`.
    :param is_dropped_in_drain: whether to stop retrying while the engine drains. Only for changes that
        the recovery at the next start makes up for.
    :raises Unavailable: if it stopped retrying.
    """
    for pause in itertools.chain(STORE_RETRY_S, itertools.repeat(STORE_RETRY_S[-1])):
        try:
            with anyio.CancelScope(shield=True):
                return await core.store.transact(change, reserve=reserve)
        except Unavailable as error:
            change = again or change
            tries = None if tries is None else tries - 1
            if tries == 0 or (is_dropped_in_drain and core.draining):
                raise
            logger.warning("the store cannot take a write now, trying again: %s", error)
            await anyio.sleep(pause)
    raise AssertionError("pauses never end")


async def read_with_retry(core: Core, query: Callable[[View], T]) -> T:
    """Read, with retries while the store is unavailable."""
    for pause in itertools.chain(STORE_RETRY_S, itertools.repeat(STORE_RETRY_S[-1])):
        try:
            return await core.store.read(query)
        except Unavailable as error:
            logger.warning("the store cannot be read now, trying again: %s", error)
            await anyio.sleep(pause)
    raise AssertionError("pauses never end")
