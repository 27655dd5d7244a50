"""How long what is only of use for a while is kept: records of idempotency keys, ended tokens."""

import logging
from datetime import datetime, timedelta
from operator import methodcaller
from typing import Final

import anyio

from agent_orchestrator.domain.access import Principal
from agent_orchestrator.domain.errors import Unavailable
from agent_orchestrator.domain.tokens import AccessToken
from agent_orchestrator.engine.core import Core
from agent_orchestrator.ports import Transaction

logger = logging.getLogger("agent_orchestrator.retention")

KEY_LIFETIME: Final = timedelta(days=7)
"""How long the record of an idempotency key is kept; a day is promised, as clocks are set."""

MAX_RECORDS: Final = 100_000
MAX_RECORDS_SIZE: Final = 2**30
"""Records of one caller, and bytes of their answers, that are kept; of a run fewer."""

MAX_RUN_RECORDS: Final = 10_000
MAX_RUN_RECORDS_SIZE: Final = 2**26

TOKEN_LIFETIME: Final = timedelta(days=30)
"""How long a token is kept, and listed, once it was revoked or has expired."""

SHORTEST_PAUSE_S: Final = 3600.0
LONGEST_PAUSE_S: Final = 86400.0
"""Seconds between two passes. What is due is deleted up to an hour late, so that much goes at once. A
clock that is set, or a machine that sleeps, moves the due moment and not the pause: it has a limit."""

RETRY_S: Final = 60.0

BATCH: Final = 64
"""Rows deleted in one change. A record can hold a long answer, and other changes wait meanwhile."""

RECORDS_TOPIC: Final = "records"
"""Notified when a run has ended and has more records than its last change deleted."""


def record_limits(caller: Principal) -> tuple[int, int]:
    """Return how many records of a caller are kept, and how many bytes of their answers."""
    if caller.run is not None:
        return MAX_RUN_RECORDS, MAX_RUN_RECORDS_SIZE
    return MAX_RECORDS, MAX_RECORDS_SIZE


async def delete_expired(core: Core) -> None:
    """Delete what is due, for as long as the engine runs."""
    with core.notifier.subscribe(RECORDS_TOPIC) as waiter:
        while True:
            waiter.clear()
            try:
                due = await delete_due(core)
            except Exception as error:
                is_known = isinstance(error, Unavailable)
                told = "what is over cannot be deleted now, trying again: %s"
                logger.warning(told, error, exc_info=not is_known)
                await anyio.sleep(RETRY_S)
                continue
            with anyio.move_on_after(seconds_until(due, core.now())):
                await waiter.wait()


def forget_run(tx: Transaction, run_id: str) -> None:
    """Delete records of a run that ends: nobody can call as this run any more.

    At most :data:`BATCH` go in this change. :func:`delete_expired` deletes the rest.
    """
    if tx.delete_records_of(run_id, limit=BATCH) == BATCH:
        tx.notify(RECORDS_TOPIC)


def seconds_until(due: datetime | None, now: datetime) -> float:
    """Return the seconds until the next pass.

    :param due: when something is due; None if nothing is there.
    """
    seconds = LONGEST_PAUSE_S if due is None else (due - now).total_seconds()
    return min(max(seconds, SHORTEST_PAUSE_S), LONGEST_PAUSE_S)


async def delete_due(core: Core) -> datetime | None:
    """Delete what is due now; return when something is due next.

    :raises Unavailable: if the store cannot be read or written to.
    """
    await _forget_ended(core)
    moments = (await _delete_records(core), await _delete_tokens(core))
    return min((moment for moment in moments if moment is not None), default=None)


async def _forget_ended(core: Core) -> None:
    """Delete the records of runs that have ended."""
    while callers := await core.store.read(lambda view: view.ended_callers(limit=BATCH)):
        for caller in callers:
            forget = methodcaller("delete_records_of", caller, limit=BATCH)
            while await core.store.transact(forget) == BATCH:
                pass


async def _delete_records(core: Core) -> datetime | None:
    before = core.now() - KEY_LIFETIME
    oldest = await core.store.read(lambda view: view.oldest_record_at())
    while oldest is not None and oldest < before:
        if not await core.store.transact(lambda tx: tx.delete_records(before=before, limit=BATCH)):
            break
        oldest = await core.store.read(lambda view: view.oldest_record_at())
    return None if oldest is None else oldest + KEY_LIFETIME


async def _delete_tokens(core: Core) -> datetime | None:
    """Delete the tokens that ended long ago, but for the newest of all: while there is one, no caller
    is let in without a token.
    """
    before = core.now() - TOKEN_LIFETIME
    next_end: datetime | None = None
    newest: list[AccessToken] = []
    while page := await core.store.read(
        lambda view, after=newest[-1].id if newest else None: view.tokens(after=after, limit=BATCH)  # type: ignore[misc]
    ):
        ended = [(token.id, end) for token in [*newest, *page[:-1]] if (end := _ended_at(token))]
        newest = page[-1:]
        if over := [token_id for token_id, end in ended if end < before]:
            await core.store.transact(lambda tx, over=over: _remove_tokens(tx, over))  # type: ignore[misc]
            logger.info("%d tokens that ended long ago are deleted", len(over))
        to_come = [end for _, end in ended if end >= before]
        next_end = min([*to_come, *([next_end] if next_end else [])], default=None)
    return None if next_end is None else next_end + TOKEN_LIFETIME


def _ended_at(token: AccessToken) -> datetime | None:
    """Return when a token ended, or will."""
    return min(
        (end for end in (token.revoked_at, token.expires_at) if end is not None), default=None
    )


def _remove_tokens(tx: Transaction, token_ids: list[str]) -> None:
    for token_id in token_ids:
        tx.remove_token(token_id)
