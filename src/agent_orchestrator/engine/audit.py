"""Writing and reading the audit trail."""

import hashlib
import logging
from collections.abc import Hashable, Mapping
from functools import partial
from typing import Any, Final

import anyio
from attrs import define, evolve, field

from agent_orchestrator.domain.access import Principal, RunIdentity
from agent_orchestrator.domain.audit import DONE, AuditEntry, entry_hash, first_break
from agent_orchestrator.domain.errors import (
    Conflict,
    Forbidden,
    NotFound,
    OrchestratorError,
    Unauthorized,
    Unavailable,
)
from agent_orchestrator.domain.model import PrunedLog, Request
from agent_orchestrator.engine.access import device_of, require_admin
from agent_orchestrator.engine.core import Change, Core
from agent_orchestrator.engine.paging import PAGE_SIZE, page
from agent_orchestrator.operations import access as access_calls
from agent_orchestrator.operations import devices as device_calls
from agent_orchestrator.operations import links as link_calls
from agent_orchestrator.operations import push as push_calls
from agent_orchestrator.operations import requests as request_calls
from agent_orchestrator.operations import runs as run_calls
from agent_orchestrator.operations import sessions as session_calls
from agent_orchestrator.operations import takeovers as takeover_calls
from agent_orchestrator.operations.access import AuditPage, ListAudit
from agent_orchestrator.operations.retention import PRUNE_SESSION
from agent_orchestrator.operations.table import Operation
from agent_orchestrator.ports.changes import Transaction
from agent_orchestrator.ports.queries import View
from agent_orchestrator.wire.codec import to_plain
from agent_orchestrator.wire.strict_json import canonical, json_copy

logger = logging.getLogger("agent_orchestrator.audit")

AUDITED: Final[Mapping[str, tuple[str, ...]]] = {
    request_calls.RESOLVE_REQUEST.name: ("decision", "option", "scope"),
    request_calls.EXTEND_REQUEST.name: ("expires_in_s",),
    run_calls.CANCEL_RUN.name: ("cascade", "reason"),
    session_calls.CLOSE_SESSION.name: ("cascade",),
    access_calls.CREATE_TOKEN.name: ("name", "principal", "scopes", "expires_in_s"),
    access_calls.REVOKE_TOKEN.name: (),
    link_calls.CREATE_LINK.name: ("expires_in_s",),
    link_calls.REVOKE_LINK.name: (),
    device_calls.ADD_DEVICE.name: ("name", "principal", "scopes"),
    device_calls.CLAIM_DEVICE.name: ("name",),
    device_calls.REVOKE_DEVICE.name: (),
    run_calls.TRANSITION_RUN.name: ("to_status", "reason"),
    session_calls.SET_ACCESS.name: ("grants",),
    push_calls.SUBSCRIBE_PUSH.name: ("name", "events"),
    push_calls.UPDATE_PUSH.name: ("push", "events", "quiet_hours", "time_zone", "muted"),
    push_calls.UNSUBSCRIBE_PUSH.name: (),
    takeover_calls.ATTACH_SESSION.name: ("pid",),
    takeover_calls.ADOPT_SESSION.name: ("provider", "thread_id", "cwd"),
}
"""The operations that are recorded when they succeed, and the recorded fields of the command."""

_FREE_TEXT: Final = frozenset({"reason"})
"""Audited fields that do not count when calls are compared, because an agent can vary them freely."""

CHECK_PAGE: Final = 500

_REFUSALS: Final = (Unauthorized, Forbidden, NotFound)


def add_entry(
    core: Core,
    tx: Transaction,
    caller: Principal,
    operation: str,
    target: str | None,
    *,
    decision: str = DONE,
    detail: Mapping[str, Any] | None = None,
) -> None:
    """Add an entry, as part of a change."""
    last = tx.last_audit()
    seq, previous = (last.seq + 1, last.hash) if last is not None else (1, "")
    copy = json_copy(detail or {})
    entry = AuditEntry(
        seq, core.now(), caller.id, caller.kind, operation, target, decision, copy, ""
    )
    tx.add_audit(evolve(entry, hash=entry_hash(previous, entry)))


def target_of(operation: Operation[Any, Any], request: object) -> str | None:
    """Return the ids in the path of a call, joined by slashes; None if it has none."""
    return "/".join(str(getattr(request, name)) for name in operation.path_fields) or None


def audited(
    core: Core,
    caller: Principal,
    operation: Operation[Any, Any],
    request: object,
    change: Change[Any],
) -> Change[Any]:
    """Return a change that also adds an entry, if the operation is audited.

    An agent's repeats of a call on the same target are coalesced like refusals (:func:`record_refusal`).
    Calls are the same if their audited fields are equal, except free text. Only the first
    :data:`~agent_orchestrator.engine.core.MAX_VARIANTS` different calls on a target are counted
    separately, so that made-up values cannot fill the trail.
    """
    fields = AUDITED.get(operation.name)
    if fields is None:
        return change
    times = 1
    if caller.run is not None:  # calls of people are never coalesced
        times += core.repeats.count_of(*_repeat_key(caller, caller.run, operation, request))
    if not _is_recorded(times):
        return change

    def audited(tx: Transaction) -> Any:
        answer = change(tx)
        detail = {name: to_plain(getattr(request, name)) for name in fields}
        target = target_of(operation, request)
        if operation is request_calls.RESOLVE_REQUEST and isinstance(
            answer, request_calls.ResolveReply
        ):
            detail |= _allowed(answer.request)
        if isinstance(answer, access_calls.NewToken):
            target = "/".join(filter(None, (target, answer.token.id)))
        if isinstance(answer, device_calls.NewInvitation | device_calls.NewDevice):
            target = answer.device.id
        if (device := device_of(tx, caller)) is not None:
            detail |= {"device": device.name, "device_id": device.id}
        if times > 1:
            detail["times"] = times
        add_entry(core, tx, caller, operation.name, target, detail=detail)
        return answer

    return audited


def count_call(
    core: Core, caller: Principal, operation: Operation[Any, Any], request: object
) -> None:
    """Count an agent's call after its change is committed, except a replay of an earlier answer."""
    if operation.name in AUDITED and caller.run is not None:
        core.repeats.count(*_repeat_key(caller, caller.run, operation, request))


def _repeat_key(
    caller: Principal, run: RunIdentity, operation: Operation[Any, Any], request: object
) -> tuple[Hashable, bytes]:
    """Return the kind of an agent's call, and the variant by its audited fields, for :class:`Repeats`."""
    kind = caller.id, run.attempt, operation.name, DONE, target_of(operation, request)
    fields = [name for name in AUDITED[operation.name] if name not in _FREE_TEXT]
    values = canonical([to_plain(getattr(request, name)) for name in fields])
    return kind, hashlib.sha256(values.encode()).digest()


def _is_recorded(times: int) -> bool:
    """Return True for the 1st, 2nd, 4th, 8th … call."""
    return times & (times - 1) == 0


def _allowed(request: Request) -> dict[str, Any]:
    """Return how a request was resolved: the decision, its option, and what that allows."""
    found = {name: getattr(request, name) for name in AUDITED[request_calls.RESOLVE_REQUEST.name]}
    if (chosen := request.chosen) is not None and chosen.reaches is not None:
        found["reaches"] = chosen.reaches
    return found


async def record_refusal(
    core: Core, caller: Principal, operation: str, target: str | None, error: OrchestratorError
) -> None:
    """Add an entry for a refusal if an agent lacks access or has reached a limit.

    Of an attempt's equal refusals only the 1st, 2nd, 4th, 8th … are recorded, with their number, so that
    a repeated call cannot fill the trail. A failure to write the entry is only logged.
    """
    limit = error.details.get("limit") if isinstance(error, (Conflict, Forbidden)) else None
    if caller.run is None or not (isinstance(error, _REFUSALS) or limit):
        return
    detail: dict[str, Any] = {"attempt": caller.run.attempt, "session_id": caller.run.session_id}
    if limit:
        detail["limit"] = limit
    times = core.repeats.count((caller.id, caller.run.attempt, operation, error.code, limit))
    if not _is_recorded(times):
        return
    if times > 1:
        detail["times"] = times
    entry = partial(_note_refusal, core, caller, operation, target, error.code, detail)
    with anyio.CancelScope(shield=True):
        try:
            await core.store.transact(entry)
        except Unavailable as problem:
            logger.warning(
                "a refusal of %s to %s could not be recorded: %s", operation, caller.id, problem
            )


def _note_refusal(
    core: Core,
    caller: Principal,
    operation: str,
    target: str | None,
    decision: str,
    detail: Mapping[str, Any],
    tx: Transaction,
) -> None:
    add_entry(core, tx, caller, operation, target, decision=decision, detail=detail)


async def list_(core: Core, caller: Principal, command: ListAudit) -> AuditPage:
    def query(view: View) -> AuditPage:
        require_admin(view, caller)

        def entries(after: str | None, limit: int) -> list[AuditEntry]:
            start = None if after is None else int(after)
            return view.audit(order=command.order, after=start, limit=limit, size=PAGE_SIZE)

        return AuditPage(
            *page(entries, command.cursor, command.limit, cursor_of=lambda entry: str(entry.seq))
        )

    return await core.store.read(query)


async def check(core: Core) -> list[str]:
    """Return the finding for the first changed or missing entry, if there is one, and those of session logs
    of which something else was deleted than the trail says.
    """
    trail = _Trail(core)
    if (finding := await trail.read_on()) is not None:
        return [finding]
    found = []
    for session_id in list(trail.deleted):
        while True:
            pruned, is_read = await core.store.read(partial(trail.pruned_log, session_id))
            digest = trail.deleted[session_id]
            if pruned.count != pruned.audited_count or pruned.digest == digest:
                break
            if is_read:
                found.append(
                    f"audit: the trail has another digest of what was deleted of session {session_id}"
                )
                break
            # Somebody has deleted more meanwhile.
            if (finding := await trail.read_on()) is not None:
                return [finding]
    return found


@define
class _Trail:
    """The audit trail, as far as it was read.

    :param deleted: the digest of what was deleted of a session's log, by session id.
    """

    core: Core
    last: AuditEntry | None = None
    deleted: dict[str, Any] = field(factory=dict)

    def _next(self, view: View, limit: int = CHECK_PAGE) -> list[AuditEntry]:
        return view.audit(after=self.last.seq if self.last else 0, limit=limit)

    async def read_on(self) -> str | None:
        """Read up to the end. Return the finding for the first changed or missing entry."""
        while page := await self.core.store.read(self._next):
            if (seq := first_break(page, self.last)) is not None:
                return f"audit: entry {seq} was changed after it was written"
            self.last = page[-1]
            for entry in page:
                if entry.operation == PRUNE_SESSION.name and entry.decision == DONE:
                    self.deleted[entry.target or ""] = entry.detail.get("sha256")
        return None

    def pruned_log(self, session_id: str, view: View) -> tuple[PrunedLog, bool]:
        """Return what was deleted of a session's log, and whether the whole trail was read."""
        return view.pruned_log(session_id), not self._next(view, limit=1)
