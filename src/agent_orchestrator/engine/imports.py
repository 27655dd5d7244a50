"""The call that imports the file of a session.

The whole file is checked first, and kept in a private file meanwhile. Then it is stored in one change: so
nothing is ever half imported, whatever happens.
"""

import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Final

from anyio.to_thread import run_sync
from attrs import define

from agent_orchestrator.domain.access import Principal
from agent_orchestrator.domain.errors import Conflict, Unavailable
from agent_orchestrator.domain.events import EventType
from agent_orchestrator.domain.ids import SortableIds, form_problem
from agent_orchestrator.domain.model import Session
from agent_orchestrator.domain.search import Searchable
from agent_orchestrator.engine import audit
from agent_orchestrator.engine.access import forbid_runs, require_active
from agent_orchestrator.engine.core import Core
from agent_orchestrator.engine.past_records import (
    CANCEL_REASON,
    PastSession,
    past_attempt,
    past_message,
    past_request,
    past_run,
)
from agent_orchestrator.long_work import run_long
from agent_orchestrator.operations.session_files import IMPORT_SESSION, ImportReply, ImportSession
from agent_orchestrator.ports.changes import Draft, PastEvent, Transaction
from agent_orchestrator.wire import long_json
from agent_orchestrator.wire.codec import parse_time, to_plain
from agent_orchestrator.wire.encoded import Encoded
from agent_orchestrator.wire.session_file import Reader
from agent_orchestrator.wire.strict_json import SLICE_SIZE

BATCH: Final = 200
"""Maximum number of events that are added at once."""

BATCH_SIZE: Final = 2**20
"""Bytes of their data after which no more are added at once."""

RETRY_S: Final = 60
"""Seconds until it makes sense to try again after there was no room for the file."""


@define
class _Spool:
    """A file of checked records: for each one its lengths, short fields and long text."""

    file: BinaryIO

    def put(self, fields: Mapping[str, Any], text: bytes) -> None:
        head = json.dumps(fields).encode()
        self.file.write(len(head).to_bytes(8) + len(text).to_bytes(8) + head)
        self.file.write(text)

    def records(self) -> Iterator[tuple[dict[str, Any], bytes]]:
        """Yield the records from the first."""
        self.file.seek(0)
        while lengths := self.file.read(16):
            head = self.file.read(int.from_bytes(lengths[:8]))
            yield json.loads(head), self.file.read(int.from_bytes(lengths[8:]))


async def import_session(
    core: Core, caller: Principal, command: ImportSession, data: AsyncIterator[bytes]
) -> ImportReply:
    """Import the file of a session.

    :raises InvalidRequest: naming the line and the field that is wrong.
    :raises PayloadTooLarge: if the file has more lines or bytes than one may have.
    :raises Conflict: if the session, or something of it, exists already.
    :raises Unavailable: if there is no room for the file.
    """
    forbid_runs(caller)
    core.require_accepting()
    await core.store.read(partial(require_active, caller=caller))
    cwd = await core.workspace(command.cwd or core.config.cwd)
    with core.imports.slot(caller.id):
        async with core.config.host.private_files({}) as directory:
            with _needing_room():
                file = await run_sync(_open, directory / "session")
            try:
                spool = _Spool(file)
                past = PastSession(
                    Reader(),
                    spool,
                    core.config.ids if command.new_id else None,  # type: ignore[arg-type]
                    partial(form_problem, now_ms=int(core.now().timestamp() * 1000)),
                    core.now(),
                )
                async for part in data:
                    with _needing_room():
                        await run_long(past.feed, part)
                past.finish()
                with _needing_room():
                    await run_sync(file.flush)
                return await core.store.transact(_Importer(core, caller, past, spool, cwd).add)
            finally:
                with suppress(OSError):  # of what is not written yet
                    file.close()  # also if this is canceled


@contextmanager
def _needing_room() -> Iterator[None]:
    """Raise ``Unavailable`` if the file cannot be kept while it is checked."""
    try:
        yield
    except OSError as error:
        problem = f"the file cannot be kept while it is checked: {error.strerror or error}"
        raise Unavailable(problem, retry_after_s=RETRY_S) from error


def _open(path: Path) -> BinaryIO:
    return path.open("x+b")


@define
class _Importer:
    """Stores a file that was checked."""

    core: Core
    caller: Principal
    past: PastSession
    spool: _Spool
    cwd: str

    def add(self, tx: Transaction) -> ImportReply:
        require_active(tx, self.caller)
        now, session = self.core.now(), self._session()
        if self.past.new_id is None and isinstance(ids := self.core.config.ids, SortableIds):
            ids.follow(self.past.ids.values())  # of a machine whose clock is ahead
        if tx.session(session.id) is not None:
            raise self._taken("session", session.id)
        tx.add_session(session)
        events = self._add_records(tx, session)
        self._add_events(tx, session, events)
        self._end_all(tx, session)
        assert self.past.session is not None
        from_session = self.past.session
        data = {
            "status": "closed",
            "cwd": self.cwd,
            "from_session_id": self.past.file_id,
            "from_cwd": from_session.cwd,
            "from_owner": from_session.owner,
            "made_by": self.past.made_by,
            "made_at": self.past.made_at,
        }
        tx.append(session.id, [Draft(EventType.SESSION_IMPORTED, data)], now)
        counts = self.past.reader.counts
        detail = {"from_session_id": self.past.file_id, "events": counts["event"]}
        audit.add_entry(self.core, tx, self.caller, IMPORT_SESSION.name, session.id, detail=detail)
        return ImportReply(
            tx.session(session.id) or session,
            runs=counts["run"],
            messages=counts["message"],
            requests=counts["request"],
            events=counts["event"],
            canceled=tuple(self.past.unended),
        )

    def _session(self) -> Session:
        past = self.past.session
        assert past is not None
        return Session(
            id=past.id,
            title=past.title,
            owner=self.caller.id,
            provider=past.provider,
            model=past.model,
            cwd=self.cwd,
            status="closed",
            parent_session_id=None,
            parent_run_id=None,
            root_session_id=past.id,
            depth=0,
            metadata=past.metadata,
            threads={},
            last_seq=0,
            created_at=past.created_at,
            updated_at=past.updated_at,
            notices="none",
            host=self.core.config.host.id,
        )

    def _taken(self, kind: str, object_id: str) -> Conflict:
        return Conflict(
            f"{kind} {object_id} exists already: import with `new_id` to give all new ids",
            {f"{kind}_id": object_id},
        )

    def _add_records(
        self, tx: Transaction, session: Session
    ) -> Iterator[tuple[dict[str, Any], bytes]]:
        """Add the runs, messages and requests. Yield the records of events after them."""
        now, past = self.core.now(), self.past
        request_ids = past.request_ids()
        for fields, text in self.spool.records():
            if fields["kind"] == "event":
                yield fields, text
                continue
            is_long = len(text) > SLICE_SIZE
            plain = past.renamed(long_json.loads(text) if is_long else json.loads(text))
            match fields["kind"]:
                case "run":
                    if tx.run(fields["id"]) is not None:
                        raise self._taken("run", fields["id"])
                    run = past_run(plain["run"], session.id, now)
                    tx.add_run(run)
                    for one in plain["attempts"]:
                        tx.put_attempt(past_attempt(one, run.id, now))
                case "message":
                    if tx.message(fields["id"]) is not None:
                        raise self._taken("message", fields["id"])
                    tx.add_message(past_message(plain, session.id, request_ids))
                case "request":
                    if tx.request(fields["id"]) is not None:
                        raise self._taken("request", fields["id"])
                    tx.add_request(past_request(plain, session.id, now))

    def _add_events(
        self, tx: Transaction, session: Session, records: Iterator[tuple[dict[str, Any], bytes]]
    ) -> None:
        assert self.past.session is not None
        oldest, digest = self.past.session.oldest_cursor, self.past.digest
        batch: list[PastEvent] = []
        size = 0
        for fields, text in records:
            batch.append(_event(fields, text))
            size += len(text)
            if len(batch) >= BATCH or size >= BATCH_SIZE:
                tx.add_past(session.id, batch, oldest_cursor=oldest, digest=digest)
                batch, size = [], 0
        if batch:
            tx.add_past(session.id, batch, oldest_cursor=oldest, digest=digest)

    def _end_all(self, tx: Transaction, session: Session) -> None:
        """Log the end of what had not ended."""
        now = self.core.now()
        drafts = []
        for request_id in self.past.pending:
            request = tx.request(request_id)
            drafts.append(Draft(EventType.REQUEST_RESOLVED, to_plain(request)))
        for run_id in self.past.unended:
            run = tx.run(run_id)
            assert run is not None
            data = {"attempt": run.attempt, "reason": CANCEL_REASON}
            drafts.append(Draft(EventType.RUN_CANCELED, data, run_id, run.attempt))
        for start in range(0, len(drafts), BATCH):
            tx.append(session.id, drafts[start : start + BATCH], now)


def _event(fields: Mapping[str, Any], text: bytes) -> PastEvent:
    found = None if fields["found"] is None else Searchable(*fields["found"])
    is_long = len(text) > SLICE_SIZE
    draft = Draft(
        fields["event_type"],
        Encoded(text) if is_long else {},
        fields["run_id"],
        fields["attempt"],
        None if is_long else text.decode(),
        found,
        fields["line"],
    )
    return PastEvent(fields["seq"], draft, parse_time(fields["at"]))
