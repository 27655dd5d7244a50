"""Changes and looks that go on trying while the store is unavailable."""

import itertools
import logging
from collections.abc import Callable
from typing import TypeVar

import anyio

from agent_orchestrator.domain.errors import Unavailable
from agent_orchestrator.engine.core import Core
from agent_orchestrator.ports import Transaction, View

logger = logging.getLogger("agent_orchestrator.persistence")

T = TypeVar("T")

STORE_RETRY_S = (0.1, 0.5, 2.0, 5.0)
"""Pauses between tries of a write the store cannot take now; the last one repeats."""


async def transact_with_retry(
    core: Core,
    change: Callable[[Transaction], T],
    *,
    again: Callable[[Transaction], T] | None = None,
    tries: int | None = None,
    reserve: bool = False,
    is_dropped_in_drain: bool = False,
) -> T:
    """Make a change, again and again while the store is unavailable.

    Shielded while a commit is under way: its caller must know whether it was made.

    :param again: the change to try once a try was refused, which may have been made all the same; None
        is for one that may be made twice.
    :param tries: how often at most; None goes on until the store takes it.
    :param reserve: see :meth:`~agent_orchestrator.ports.Store.transact`.
    :param is_dropped_in_drain: whether to give up once the engine drains, as the next start sees to it.
    :raises Unavailable: if it was not taken in so many tries.
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
    """Look, again and again while the store cannot be read."""
    for pause in itertools.chain(STORE_RETRY_S, itertools.repeat(STORE_RETRY_S[-1])):
        try:
            return await core.store.read(query)
        except Unavailable as error:
            logger.warning("the store cannot be read now, trying again: %s", error)
            await anyio.sleep(pause)
    raise AssertionError("pauses never end")
