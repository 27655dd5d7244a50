"""Deletes events that exceed the limits of their sessions, in regular passes while the engine runs.

If several engines share a store, one claims a pass. If it stops in the middle, a later pass continues: each
change leaves the store consistent.
"""

import logging
from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import partial
from operator import methodcaller
from typing import Final

import anyio
from attrs import define

from agent_orchestrator.domain.access import Principal
from agent_orchestrator.domain.errors import Unavailable
from agent_orchestrator.domain.model import Session
from agent_orchestrator.engine.core import Core
from agent_orchestrator.engine.pruning import RETENTION, Limits, Pruner, limits_of, session_of_log
from agent_orchestrator.ports.changes import Transaction
from agent_orchestrator.ports.queries import View

logger = logging.getLogger("agent_orchestrator.retention")

JOB: Final = "retention"

INTERVAL: Final = timedelta(hours=6)
"""The time between the end of a pass and the next one."""

CLAIM: Final = timedelta(hours=1)
"""Maximum time for one session. After that, another engine may begin a pass."""

LONGEST_PAUSE_S: Final = 3600.0
"""Maximum seconds between two checks, because the clock may be set and the machine may sleep."""

RETRY_S: Final = 60.0
"""Seconds between a failure and the next check."""

PAGE: Final = 50
"""Maximum number of sessions per read."""

ENGINE: Final = Principal("engine")
"""The caller in the audit trail."""


async def enforce_limits(core: Core) -> None:
    """Make a pass whenever one is due. Runs until it is canceled."""
    while True:
        try:
            due = await run_if_due(core)
            pause_s = min(max((due - core.now()).total_seconds(), 1.0), LONGEST_PAUSE_S)
        except Exception as error:
            is_known = isinstance(error, Unavailable)
            text = "old events cannot be deleted now, trying again: %s"
            logger.warning(text, error, exc_info=not is_known)
            pause_s = RETRY_S
        await anyio.sleep(pause_s)


async def run_if_due(core: Core) -> datetime:
    """Make a pass if one is due and no other engine has claimed it. Return the time of the next check.

    :raises Unavailable: if the store is unavailable.
    """
    if not await core.store.read(partial(_has_work, core)):
        return core.now() + CLAIM
    due, now = await core.store.read(lambda view: view.job_due(JOB)), core.now()
    if due is not None and due > now + INTERVAL + CLAIM:
        is_due, claimed_until = True, due  # the clock was wrong when this was stored
    else:
        is_due, claimed_until = due is None or due <= now, now
    if is_due and await _begin(core, now=claimed_until, until=now + CLAIM):
        claim = _Claim(core, now + CLAIM)
        await prune_all(core, claim)
        due = core.now() + INTERVAL
        await claim.move_to(due)
    return due or core.now() + CLAIM


def _has_work(core: Core, view: View) -> bool:
    return bool(
        any(getattr(core.config, name) for name in RETENTION)
        or view.limited_sessions(limit=1)
        or view.unaudited_logs(limit=1)
    )


async def _begin(core: Core, *, now: datetime, until: datetime) -> bool:
    """Claim the job up to a time. Return False if there is a claim that ends after ``now``."""
    is_claimed: bool = await core.store.transact(
        methodcaller("claim_job", JOB, now=now, until=until)
    )
    return is_claimed


@define
class _Claim:
    """A claim of the job by this engine.

    :param until: when it ends. No claim of another engine ends at the same time.
    """

    core: Core
    until: datetime

    async def move_to(self, until: datetime) -> bool:
        """Let it end at another time. Return False if it has ended, and another engine has claimed the job."""

        def change(tx: Transaction) -> bool:
            return tx.job_due(JOB) == self.until and tx.claim_job(JOB, now=self.until, until=until)

        if not await self.core.store.transact(change):
            return False
        self.until = until
        return True


async def prune_all(core: Core, claim: _Claim) -> None:
    """Prune every session that exceeds its limits, as long as no other engine has claimed the job."""
    audited: set[str] = set()
    while page := await core.store.read(lambda view: view.unaudited_logs(limit=PAGE)):
        if audited.issuperset(page):
            break
        if not await claim.move_to(core.now() + CLAIM):
            return
        audited.update(page)
        for session_id in page:
            await _prune(core, session_id, Limits())
    after: str | None = None
    while sessions := await core.store.read(partial(_page, core, after)):
        after = sessions[-1].id
        due = await core.store.read(partial(_exceeding, core, sessions))
        for session in due:
            if not await claim.move_to(core.now() + CLAIM):
                return
            await _prune(core, session.id, limits_of(core, session))


async def _prune(core: Core, session_id: str, limits: Limits) -> None:
    pruner = Pruner(core, ENGINE, partial(session_of_log, session_id), session_id, limits)
    await pruner.prune()
    if pruner.deleted_count:
        logger.info("%d old events of session %s were deleted", pruner.deleted_count, session_id)


def _page(core: Core, after: str | None, view: View) -> Sequence[Session]:
    """Return the next sessions that may have limits."""
    if any(getattr(core.config, name) for name in RETENTION):
        return view.sessions(after=after, limit=PAGE)
    return view.limited_sessions(after=after, limit=PAGE)


def _exceeding(core: Core, sessions: Sequence[Session], view: View) -> list[Session]:
    return [one for one in sessions if _exceeds(view, one, limits_of(core, one))]


def _exceeds(view: View, session: Session, limits: Limits) -> bool:
    if session.last_seq - session.oldest_cursor <= 1:  # the newest event stays
        return False
    if limits.before is not None:
        oldest = view.events(session.id, after=session.oldest_cursor, limit=1)
        if oldest[0].created_at < limits.before:
            return True
    if limits.events is not None:
        kept = session.last_seq - view.pruned_log(session.id).count
        if kept > limits.events:
            return True
    return limits.size is not None and view.log_size(session.id) > limits.size
