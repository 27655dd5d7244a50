"""The operations: which function carries each out, and how a repeated request gets its first answer."""

import hashlib
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, Final, TypeVar

import attrs

from agent_orchestrator import operations as ops
from agent_orchestrator.domain.access import Principal
from agent_orchestrator.domain.errors import IdempotencyConflict, InvalidRequest
from agent_orchestrator.engine import diagnosis, feed, messages, runs, sessions
from agent_orchestrator.engine.core import Change, Core
from agent_orchestrator.fields import problems
from agent_orchestrator.operations import Operation
from agent_orchestrator.ports import IdempotencyRecord, Reply, Transaction
from agent_orchestrator.wire import codec, strict_json

Req = TypeVar("Req")
Res = TypeVar("Res")

KEY_LIFETIME: Final = timedelta(days=7)
"""How long a key is kept at least; the promise to callers is 24 hours."""

Look = Callable[[Core, Principal, Any], Awaitable[Any]]
Mutation = Callable[[Core, Principal, Any], Awaitable[Change[Any]]]

MUTATIONS: Final[dict[str, Mutation]] = {
    ops.CREATE_SESSION.name: sessions.create,
    ops.UPDATE_SESSION.name: sessions.update,
    ops.SEND_MESSAGE.name: messages.send,
    ops.CREATE_RUN.name: runs.create,
    ops.TRANSITION_RUN.name: runs.transition,
    ops.CANCEL_RUN.name: runs.cancel,
}
"""What returns a change, for the store to make together with the record of the key."""

LOOKS: Final[dict[str, Look]] = {
    ops.LIST_SESSIONS.name: sessions.list_,
    ops.GET_SESSION.name: sessions.get,
    ops.LIST_MESSAGES.name: messages.list_,
    ops.LIST_EVENTS.name: feed.list_events,
    ops.LIST_RUNS.name: runs.list_,
    ops.GET_RUN.name: runs.get,
    ops.WAIT_RUN.name: runs.wait,
    ops.DIAGNOSE_RUN.name: diagnosis.diagnose,
    ops.STATUS.name: diagnosis.status,
}


async def carry_out(
    core: Core, who: Principal, operation: Operation[Req, Res], request: Req
) -> Reply[Res]:
    """Carry out one operation for a caller.

    :raises OrchestratorError: if it is refused.
    """
    values = {
        attribute.name: getattr(request, attribute.name)
        for attribute in attrs.fields(type(request))  # type: ignore[arg-type]
    }
    if found := problems(operation.request, values):
        raise InvalidRequest.of(found)
    if look := LOOKS.get(operation.name):
        return Reply(await look(core, who, request))
    change = await MUTATIONS[operation.name](core, who, request)
    key = values.get("idempotency_key")
    if key is None:
        return Reply(await core.store.transact(change))
    return await core.store.transact(_once(core, who, operation, request, str(key), change))


def _once(
    core: Core,
    who: Principal,
    operation: Operation[Req, Res],
    request: Req,
    key: str,
    change: Change[Res],
) -> Change[Reply[Res]]:
    """Return a change that is made once for a key, and answers the same ever after."""
    path, _, body = codec.request_parts(operation, request)
    content = {name: value for name, value in (body or {}).items() if name != "idempotency_key"}
    fingerprint = hashlib.sha256(strict_json.canonical(content).encode()).hexdigest()
    call = f"{operation.method} {path}"

    def once(tx: Transaction) -> Reply[Res]:
        if record := tx.idempotency(who.id, call, key):
            if record.fingerprint != fingerprint:
                raise IdempotencyConflict(
                    "the idempotency key was used for another request", {"idempotency_key": key}
                )
            plain = strict_json.loads(record.answer.encode())
            return Reply(codec.from_plain(operation.answer, plain), replayed=True)
        answer = change(tx)
        now = core.now()
        tx.remember(
            IdempotencyRecord(who.id, call, key, fingerprint, codec.to_json(answer), now),
            forget_before=now - KEY_LIFETIME,
        )
        return Reply(answer)

    return once
