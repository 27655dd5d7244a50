"""Deletion of old idempotency records and notices, and of tokens that ended long ago."""

import logging
from datetime import datetime, timedelta
from operator import methodcaller
from typing import Final

import anyio

from agent_orchestrator.domain.access import Principal
from agent_orchestrator.domain.errors import Unavailable
from agent_orchestrator.domain.tokens import AccessToken
from agent_orchestrator.engine.core import Core
from agent_orchestrator.ports.changes import Transaction

logger = logging.getLogger("agent_orchestrator.retention")

KEY_LIFETIME: Final = timedelta(days=7)
"""How long an idempotency record is kept. Only one day is promised, because the clock may be set."""

MAX_RECORDS: Final = 100_000
MAX_RECORDS_SIZE: Final = 2**30
"""Maximum number of a caller's idempotency records, and bytes of their answers."""

MAX_RUN_RECORDS: Final = 10_000
MAX_RUN_RECORDS_SIZE: Final = 2**26
"""The same if the caller is a run."""

TOKEN_LIFETIME: Final = timedelta(days=30)
"""How long a revoked or expired token is kept and listed."""

NOTICE_LIFETIME: Final = timedelta(days=30)
"""How long a notice is kept and listed after its last change."""

SHORTEST_PAUSE_S: Final = 3600.0
LONGEST_PAUSE_S: Final = 86400.0
"""Bounds of the seconds between two passes. The lower one lets many rows be deleted together. The upper one
is needed because the clock may be set and the machine may sleep."""

RETRY_S: Final = 60.0
"""Seconds until the next pass after a failure."""

BATCH: Final = 64
"""Maximum number of rows deleted in a change: answers can be long, and other changes wait."""

RECORDS_TOPIC: Final = "records"
"""Notified when a run has ended and has more records than the change deleted."""


def record_limits(caller: Principal) -> tuple[int, int]:
    """Return the maximum number of a caller's records, and of bytes of their answers."""
    if caller.run is not None:
        return MAX_RUN_RECORDS, MAX_RUN_RECORDS_SIZE
    return MAX_RECORDS, MAX_RECORDS_SIZE


async def delete_expired(core: Core) -> None:
    """Delete old records and tokens when they are due, as long as the engine runs."""
    with core.notifier.subscribe(RECORDS_TOPIC) as waiter:
        while True:
            waiter.clear()
            try:
                due = await delete_due(core)
            except Exception as error:
                is_known = isinstance(error, Unavailable)
                text = "old records and tokens cannot be deleted now, trying again: %s"
                logger.warning(text, error, exc_info=not is_known)
                await anyio.sleep(RETRY_S)
                continue
            with anyio.move_on_after(seconds_until(due, core.now())):
                await waiter.wait()


def delete_run_records(tx: Transaction, run_id: str) -> None:
    """Delete records of a run that ends, because nothing can call as this run any more.

    This deletes at most :data:`BATCH`; :func:`delete_expired` deletes the rest.
    """
    if tx.delete_records_of(run_id, limit=BATCH) == BATCH:
        tx.notify(RECORDS_TOPIC)


def seconds_until(due: datetime | None, now: datetime) -> float:
    """Return the seconds until the next pass.

    :param due: when the next row is due; None if there is none.
    """
    seconds = LONGEST_PAUSE_S if due is None else (due - now).total_seconds()
    return min(max(seconds, SHORTEST_PAUSE_S), LONGEST_PAUSE_S)


async def delete_due(core: Core) -> datetime | None:
    """Delete due records and tokens, and return when the next one is due.

    :raises Unavailable: if the store is unavailable.
    """
    await _delete_records_of_ended_runs(core)
    await _delete_notices(core)
    due_times = (await _delete_records(core), await _delete_tokens(core))
    return min((due for due in due_times if due is not None), default=None)


async def _delete_records_of_ended_runs(core: Core) -> None:
    """Delete the records of runs that have ended."""
    while callers := await core.store.read(lambda view: view.ended_callers(limit=BATCH)):
        for caller in callers:
            delete = methodcaller("delete_records_of", caller, limit=BATCH)
            while await core.store.transact(delete) == BATCH:
                pass


async def _delete_records(core: Core) -> datetime | None:
    before = core.now() - KEY_LIFETIME
    oldest = await core.store.read(lambda view: view.oldest_record_at())
    while oldest is not None and oldest < before:
        if not await core.store.transact(lambda tx: tx.delete_records(before=before, limit=BATCH)):
            break
        oldest = await core.store.read(lambda view: view.oldest_record_at())
    return None if oldest is None else oldest + KEY_LIFETIME


async def _delete_notices(core: Core) -> None:
    """Delete notices that ended long ago. A pass is made at least once a day."""
    delete = methodcaller("delete_notices", before=core.now() - NOTICE_LIFETIME, limit=BATCH)
    if await core.store.read(lambda view: bool(view.notices(limit=1))):
        while await core.store.transact(delete) == BATCH:
            pass


async def _delete_tokens(core: Core) -> datetime | None:
    """Delete the tokens that ended long ago, except the newest token of all.

    As long as the store has a token, callers need one.
    """
    before = core.now() - TOKEN_LIFETIME
    next_end: datetime | None = None
    newest: list[AccessToken] = []
    while page := await core.store.read(
        lambda view, after=newest[-1].id if newest else None: view.tokens(after=after, limit=BATCH)  # type: ignore[misc]
    ):
        ended = [(token.id, end) for token in [*newest, *page[:-1]] if (end := _ended_at(token))]
        newest = page[-1:]
        if due := [token_id for token_id, end in ended if end < before]:
            await core.store.transact(lambda tx, due=due: _remove_tokens(tx, due))  # type: ignore[misc]
            logger.info("%d tokens that ended long ago were deleted", len(due))
        later = [end for _, end in ended if end >= before]
        next_end = min([*later, *([next_end] if next_end else [])], default=None)
    return None if next_end is None else next_end + TOKEN_LIFETIME


def _ended_at(token: AccessToken) -> datetime | None:
    """Return when a token was revoked or expires; None if neither."""
    return min(
        (end for end in (token.revoked_at, token.expires_at) if end is not None), default=None
    )


def _remove_tokens(tx: Transaction, token_ids: list[str]) -> None:
    for token_id in token_ids:
        tx.remove_token(token_id)
