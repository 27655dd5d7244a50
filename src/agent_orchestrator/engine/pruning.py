"""Deletion of old events, as far as the limits of a session say.

What is deleted of a log is its beginning: the events up to one of them. Before that, if there are too many or
too large ones, the pieces of messages and outputs whose whole is in the log. Events of a run that has not
ended stay, and so do those of an open request and of a message that waits; with all later ones.

Each change deletes few events. After it, other changes have at least as long as it took.
"""

import hashlib
import logging
from collections.abc import Callable, Collection, Mapping
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final

import anyio
from attrs import Factory, define, evolve, field, frozen

from agent_orchestrator.domain.access import Action, Principal
from agent_orchestrator.domain.errors import InvalidRequest, NotFound, Unavailable
from agent_orchestrator.domain.events import EventType
from agent_orchestrator.domain.lifecycle import is_terminal
from agent_orchestrator.domain.model import Event, PrunedLog, Session
from agent_orchestrator.engine import audit
from agent_orchestrator.engine.access import forbid_runs, session_for
from agent_orchestrator.engine.core import Core
from agent_orchestrator.engine.paging import BATCH_SIZE
from agent_orchestrator.operations.retention import PRUNE_SESSION, PruneReply, PruneSession
from agent_orchestrator.ports.changes import Transaction
from agent_orchestrator.ports.queries import View
from agent_orchestrator.wire.codec import event_to_json, to_plain
from agent_orchestrator.wire.encoded import Encoded

logger = logging.getLogger("agent_orchestrator.pruning")

BATCH: Final = 100
"""Maximum number of events deleted in a change."""

RETENTION: Final = ("retain_days", "retain_events", "retain_bytes")
"""The fields of the limits, of a session, a command and the engine."""

MAX_PIECES: Final = 100_000
"""Maximum number of pieces whose whole is not read yet. Beyond it, those that were read first stay."""

_WHOLE_OF: Final[Mapping[str, tuple[str, str]]] = {
    EventType.AGENT_MESSAGE_DELTA: (EventType.AGENT_MESSAGE, "item_id"),
    EventType.TOOL_OUTPUT: (EventType.TOOL_COMPLETED, "tool_id"),
}
"""For a type of pieces: the type of the event that has the whole, and the field that names it in both."""

_NAME_OF: Final = dict(_WHOLE_OF.values())

Check = Callable[[View], Session]
"""Returns the session; raises if its log must not be pruned any more."""


@frozen
class Limits:
    """What is kept of a log.

    :param before: delete the events that were created before this time.
    :param events: keep at most so many. Here and for ``size``, None means no limit.
    :param size: keep at most so many bytes of data.
    :param through: delete the events up to this ``seq``.
    """

    before: datetime | None = None
    events: int | None = None
    size: int | None = None
    through: int = 0

    @classmethod
    def of(cls, now: datetime, values: Mapping[str, int | None]) -> "Limits":
        """Return the limits that :data:`RETENTION` names. 0 and None mean no limit."""
        days = values["retain_days"]
        before = now - timedelta(days=days) if days else None
        return cls(before, values["retain_events"] or None, values["retain_bytes"] or None)


def limits_of(core: Core, session: Session) -> Limits:
    """Return the limits of a session: its own ones, else those of the engine."""
    own = {name: getattr(session, name) for name in RETENTION}
    return Limits.of(
        core.now(),
        {
            name: getattr(core.config, name) if value is None else value
            for name, value in own.items()
        },
    )


def session_of_log(session_id: str, view: View) -> Session:
    """Return a session that must exist."""
    session = view.session(session_id)
    if session is None:
        raise NotFound(f"no session {session_id}", {"session_id": session_id})
    return session


async def prune_session(core: Core, caller: Principal, command: PruneSession) -> PruneReply:
    """Delete the events that exceed the limits of the call, or else those of the session.

    :raises InvalidRequest: if there are none.
    """

    def check(view: View) -> Session:
        forbid_runs(caller)
        return session_for(view, caller, Action.MANAGE, command.session_id)

    session = await core.store.read(check)
    given = {name: getattr(command, name) for name in RETENTION}
    if command.through is not None:
        limits = Limits(through=command.through)
    elif any(value is not None for value in given.values()):
        limits = Limits.of(core.now(), given)
    else:
        limits = limits_of(core, session)
    if command.through is None and limits == Limits():
        raise InvalidRequest.of(
            {
                "retain_days": "the session has no limits: give one, or `retain_events` or `retain_bytes`"
            }
        )
    pruner = Pruner(core, caller, check, session.id, limits)
    await pruner.prune()
    return PruneReply(await core.store.read(check), pruner.deleted_count, pruner.kept_by)


@frozen
class _Part:
    """The next events to delete.

    :param after: what was deleted before.
    :param through: the last of them.
    :param digest: of all events up to it.
    :param count: number of them.
    :param size: of their data, in bytes.
    """

    after: PrunedLog
    through: int
    digest: str
    count: int
    size: int


@define
class Pruner:
    """Prunes the log of one session.

    :param caller: who prunes it, for the audit trail.
    :param check: called in each read and change.
    :param deleted_count: the number of deleted events so far.
    :param kept_by: what kept events although the limits are exceeded.
    """

    core: Core
    caller: Principal
    check: Check
    session_id: str
    limits: Limits
    deleted_count: int = 0
    kept_by: str | None = None
    _ended: set[str] = Factory(set)
    """Ids of runs and requests that have ended, which they are for ever."""
    _excess_events: int = 0
    _excess_size: int = 0
    _measured_at: int | None = None
    """The number of deleted events of the log when it was measured, and by this pruner since."""

    async def prune(self) -> None:
        """Delete what exceeds the limits, and record it in the audit trail."""
        try:
            await self._delete_beginning()
            if await self._exceeds_size():
                await self._delete_pieces()
                if await self._exceeds_size():
                    await self._delete_beginning()
        except BaseException:
            with anyio.CancelScope(shield=True):
                try:
                    await self._record()
                except Unavailable as problem:  # the next pass does it
                    logger.warning("what was deleted could not be recorded: %s", problem)
            raise
        await self._record()

    async def _exceeds_size(self) -> bool:
        """Return whether the log is too long or too large."""
        if self.limits.events is None and self.limits.size is None:
            return False
        await self.core.store.read(self._measure)
        return self._excess_events > 0 or self._excess_size > 0

    def _measure(self, view: View) -> None:
        session, deleted_count = self.check(view), view.pruned_log(self.session_id).count
        if self.limits.events is not None:
            self._excess_events = session.last_seq - deleted_count - self.limits.events
        if self.limits.size is not None:
            self._excess_size = view.log_size(self.session_id) - self.limits.size
        self._measured_at = deleted_count

    async def _delete_beginning(self) -> None:
        while (part := await self.core.store.read(self._next_part)) is not None:
            deleted = await self._change(partial(self._delete_part, part))
            if deleted is None:
                continue  # somebody else has deleted events meanwhile
            self.deleted_count += deleted
            if self._measured_at is not None:
                self._measured_at += deleted
                self._excess_events -= part.count
                self._excess_size -= part.size

    def _next_part(self, view: View) -> _Part | None:
        session = self.check(view)
        before = view.pruned_log(self.session_id)
        if self._measured_at not in (None, before.count):
            self._measure(view)
        digest = before.digest
        through = count = size = 0
        for event in view.events(self.session_id, after=before.seq, limit=BATCH, size=BATCH_SIZE):
            if event.seq >= session.last_seq or not self._is_due(event, count, size):
                break
            if (kept_by := self._keeper(view, event)) is not None:
                self.kept_by = kept_by
                break
            digest, length = _digest(digest, event)
            through, count, size = event.seq, count + 1, size + length
        return _Part(before, through, digest, count, size) if count else None

    def _is_due(self, event: Event, count: int, size: int) -> bool:
        limits = self.limits
        return (
            event.seq <= limits.through
            or (limits.before is not None and event.created_at < limits.before)
            or count < self._excess_events
            or size < self._excess_size
        )

    def _keeper(self, view: View, event: Event) -> str | None:
        """Return the id of the run, request or message that an event must stay for; None if for nothing."""
        if event.run_id is not None and not self._run_has_ended(view, event.run_id):
            return event.run_id
        if event.event_type == EventType.MESSAGE_CREATED:
            message = view.message(str(event.data.get("message_id")))
            if message is not None and message.run_id is None and message.delivery == "queued":
                return message.id
            run_id = None if message is None else message.run_id
            return run_id if run_id and not self._run_has_ended(view, run_id) else None
        if event.event_type.startswith("request."):
            request_id = event.data.get("id", event.data.get("request_id"))
            if isinstance(request_id, str) and request_id not in self._ended:
                request = view.request(request_id)
                if request is not None and request.is_open:
                    return request_id
                self._ended.add(request_id)
        return None

    def _run_has_ended(self, view: View, run_id: str) -> bool:
        if run_id not in self._ended:
            run = view.run(run_id)
            if run is not None and not is_terminal(run.status):
                return False
            self._ended.add(run_id)
        return True

    def _delete_part(self, part: _Part, tx: Transaction) -> int | None:
        self.check(tx)
        if tx.pruned_log(self.session_id).count != part.after.count:
            return None
        return tx.delete_events(self.session_id, through=part.through, digest=part.digest)

    async def _delete_pieces(self) -> None:
        pieces = _Pieces()
        after = 0

        def query(view: View) -> list[Event]:
            self.check(view)
            events = view.events(self.session_id, after=after, limit=BATCH, size=BATCH_SIZE)
            for event in events:
                if event.run_id is not None and self._run_has_ended(view, event.run_id):
                    pieces.note(event)
            return events

        while events := await self.core.store.read(query):
            after = events[-1].seq
            while len(pieces.superfluous) >= BATCH:
                await self._delete_seqs(pieces.take(BATCH))
        while pieces.superfluous:
            await self._delete_seqs(pieces.take(BATCH))

    async def _delete_seqs(self, seqs: Collection[int]) -> None:
        def change(tx: Transaction) -> int:
            self.check(tx)
            return tx.delete_events(self.session_id, seqs=tuple(seqs))

        self.deleted_count += await self._change(change) or 0

    async def _change(self, change: Callable[[Transaction], int | None]) -> int | None:
        began = anyio.current_time()
        count = await self.core.store.transact(change)
        await anyio.sleep(anyio.current_time() - began)
        return count

    async def _record(self) -> None:
        """Add what was deleted to the audit trail, also what an earlier engine could not."""

        def change(tx: Transaction) -> None:
            pruned = tx.pruned_log(self.session_id)
            if pruned.count == pruned.audited_count:
                return
            detail = {
                "events": pruned.count - pruned.audited_count,
                "oldest_cursor": pruned.seq,
                "sha256": pruned.digest,
                **{name: to_plain(value) for name, value in self._given().items()},
            }
            tx.mark_pruned_audited(self.session_id)
            audit.add_entry(
                self.core, tx, self.caller, PRUNE_SESSION.name, self.session_id, detail=detail
            )

        pruned = await self.core.store.read(lambda view: view.pruned_log(self.session_id))
        if pruned.count != pruned.audited_count:
            await self.core.store.transact(change)

    def _given(self) -> dict[str, Any]:
        limits = self.limits
        given = {
            "before": limits.before,
            "retain_events": limits.events,
            "retain_bytes": limits.size,
            "through": limits.through or None,
        }
        return {name: value for name, value in given.items() if value is not None}


@define
class _Pieces:
    """Finds the pieces whose whole comes later in the log.

    :param superfluous: the ``seq`` of each.
    """

    superfluous: list[int] = Factory(list)
    _open: dict[tuple[str | None, int | None, str, str], list[int]] = field(factory=dict)
    """The pieces of what is not complete, by run, attempt, type of the whole, and name."""
    _open_count: int = 0

    def note(self, event: Event) -> None:
        """Take the next event of a run that has ended."""
        if (whole := _WHOLE_OF.get(event.event_type)) is not None:
            of_type, name_field = whole
        elif (name_field := _NAME_OF.get(event.event_type, "")) and not isinstance(
            event.data, Encoded
        ):
            of_type = event.event_type
        else:
            return  # also if decoding would take long: then its pieces stay
        name = event.data.get(name_field)
        if not isinstance(name, str):
            return
        key = event.run_id, event.attempt, of_type, name
        if whole is None:
            seqs = self._open.pop(key, [])
            self._open_count -= len(seqs)
            self.superfluous += seqs
            return
        if self._open_count >= MAX_PIECES:
            self._open.clear()
            self._open_count = 0
        self._open.setdefault(key, []).append(event.seq)
        self._open_count += 1

    def take(self, count: int) -> list[int]:
        """Remove and return some superfluous pieces."""
        taken, self.superfluous = self.superfluous[:count], self.superfluous[count:]
        return taken


def _digest(before: str, event: Event) -> tuple[str, int]:
    """Return the digest with one more event (:class:`PrunedLog`), and the size of its data."""
    digest = hashlib.sha256(bytes.fromhex(before))
    size = -sum(map(len, event_to_json(evolve(event, data={})))) + len("{}")
    for piece in event_to_json(event):
        digest.update(piece)
        size += len(piece)
    return digest.hexdigest(), size
