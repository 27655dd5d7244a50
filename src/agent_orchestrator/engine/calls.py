"""Dispatch of operations to their functions, with scope checks and idempotency keys."""

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, Final, Generic, TypeVar

import anyio
from attrs import frozen

from agent_orchestrator.domain.access import Principal
from agent_orchestrator.domain.errors import IdempotencyConflict, OrchestratorError, Unauthorized
from agent_orchestrator.engine import (
    audit,
    children,
    devices,
    diagnosis,
    diffs,
    doctor,
    exports,
    feed,
    grants,
    imports,
    inbox,
    links,
    maintenance,
    messages,
    notices,
    pruning,
    push,
    requests,
    retention,
    runs,
    search,
    sessions,
    takeovers,
    tokens,
    trees,
)
from agent_orchestrator.engine.access import (
    require_active,
    require_scope,
    require_shared,
    seconds_left,
)
from agent_orchestrator.engine.core import Change, Core
from agent_orchestrator.fields import check
from agent_orchestrator.operations import access as access_calls
from agent_orchestrator.operations import daemon as daemon_calls
from agent_orchestrator.operations import devices as device_calls
from agent_orchestrator.operations import events as event_calls
from agent_orchestrator.operations import links as link_calls
from agent_orchestrator.operations import messages as message_calls
from agent_orchestrator.operations import notices as notice_calls
from agent_orchestrator.operations import push as push_calls
from agent_orchestrator.operations import requests as request_calls
from agent_orchestrator.operations import retention as retention_calls
from agent_orchestrator.operations import runs as run_calls
from agent_orchestrator.operations import search as search_calls
from agent_orchestrator.operations import session_files as file_calls
from agent_orchestrator.operations import sessions as session_calls
from agent_orchestrator.operations import takeovers as takeover_calls
from agent_orchestrator.operations.table import Operation
from agent_orchestrator.ports.changes import Transaction
from agent_orchestrator.ports.queries import IdempotencyRecord, View
from agent_orchestrator.ports.transport import Download, Reply
from agent_orchestrator.wire import codec, strict_json

Req = TypeVar("Req")
Res = TypeVar("Res")

Query = Callable[[Core, Principal, Any], Awaitable[Any]]
Mutation = Callable[[Core, Principal, Any], Awaitable[Change[Any]]]

MUTATIONS: Final[dict[str, Mutation]] = {
    session_calls.CREATE_SESSION.name: sessions.create,
    session_calls.MARK_SEEN.name: inbox.mark_seen,
    session_calls.UPDATE_SESSION.name: sessions.update,
    session_calls.CLOSE_SESSION.name: sessions.close,
    takeover_calls.ATTACH_SESSION.name: takeovers.attach,
    takeover_calls.ADOPT_SESSION.name: takeovers.adopt,
    session_calls.SET_ACCESS.name: grants.set_,
    message_calls.SEND_MESSAGE.name: messages.send,
    message_calls.SPAWN_FROM_SESSION.name: children.spawn_from_session,
    message_calls.SPAWN_FROM_RUN.name: children.spawn_from_run,
    message_calls.SEND_TO_SESSION.name: children.send,
    request_calls.REPLY_PARENT.name: requests.reply_parent,
    request_calls.RESOLVE_REQUEST.name: requests.resolve,
    request_calls.EXTEND_REQUEST.name: requests.extend,
    run_calls.CREATE_RUN.name: runs.create,
    run_calls.TRANSITION_RUN.name: runs.transition,
    run_calls.CANCEL_RUN.name: runs.cancel,
    access_calls.CREATE_TOKEN.name: tokens.create,
    access_calls.REVOKE_TOKEN.name: tokens.revoke,
    notice_calls.TEST_NOTICE.name: notices.test,
    notice_calls.RETRY_NOTICE.name: notices.retry,
    link_calls.CREATE_LINK.name: links.create,
    link_calls.REVOKE_LINK.name: links.revoke,
    device_calls.ADD_DEVICE.name: devices.add,
    device_calls.CLAIM_DEVICE.name: devices.claim,
    device_calls.REVOKE_DEVICE.name: devices.revoke,
    push_calls.SUBSCRIBE_PUSH.name: push.subscribe,
    push_calls.UPDATE_PUSH.name: push.update,
    push_calls.UNSUBSCRIBE_PUSH.name: push.unsubscribe,
    push_calls.REPORT_NOTICE.name: push.report,
}
"""Functions that return a change. It is committed together with the record of the idempotency key."""

ALLOWED_WHEN_FULL: Final = frozenset({run_calls.CANCEL_RUN.name})
"""Mutations that are allowed on a full disk: the run to cancel may be the one that fills it."""

QUERIES: Final[dict[str, Query]] = {
    session_calls.LIST_SESSIONS.name: sessions.list_,
    session_calls.GET_DIFF.name: diffs.get,
    session_calls.GET_SESSION.name: sessions.get,
    session_calls.GET_ACCESS.name: grants.get,
    message_calls.LIST_MESSAGES.name: messages.list_,
    session_calls.GET_TREE.name: trees.tree,
    request_calls.LIST_REQUESTS.name: requests.list_,
    request_calls.GET_REQUEST.name: requests.get,
    event_calls.LIST_EVENTS.name: feed.list_events,
    search_calls.SEARCH.name: search.search,
    run_calls.LIST_RUNS.name: runs.list_,
    run_calls.GET_RUN.name: runs.get,
    run_calls.WAIT_RUN.name: runs.wait,
    run_calls.DIAGNOSE_RUN.name: diagnosis.diagnose,
    daemon_calls.STATUS.name: diagnosis.status,
    daemon_calls.BACK_UP.name: maintenance.back_up,
    retention_calls.PRUNE_SESSION.name: pruning.prune_session,
    daemon_calls.CHECK_STORE.name: maintenance.check_store,
    daemon_calls.DOCTOR.name: doctor.run_doctor,
    access_calls.LIST_TOKENS.name: tokens.list_,
    link_calls.LIST_LINKS.name: links.list_,
    device_calls.LIST_DEVICES.name: devices.list_,
    access_calls.LIST_AUDIT.name: audit.list_,
    notice_calls.LIST_NOTICES.name: notices.list_,
    notice_calls.GET_NOTICE.name: notices.get,
    push_calls.LIST_PUSH.name: push.list_,
    push_calls.GET_PUSH_KEY.name: push.key,
}


async def dispatch(
    core: Core, caller: Principal, operation: Operation[Req, Res], request: Req
) -> Reply[Res]:
    """Execute an operation for a caller.

    :raises OrchestratorError: if it is refused.
    """
    core.require_own_process()
    try:
        return await _dispatch(core, caller, operation, request)
    except OrchestratorError as error:
        await _record_refusal(core, caller, operation, request, error)
        raise


Downloading = Callable[[Core, Principal, Any], AbstractAsyncContextManager[Download]]
Uploading = Callable[[Core, Principal, Any, AsyncIterator[bytes]], Awaitable[Any]]

DOWNLOADS: Final[dict[str, Downloading]] = {
    file_calls.EXPORT_SESSION.name: exports.export_session,
}
"""Functions that open a stream of lines."""

UPLOADS: Final[dict[str, Uploading]] = {file_calls.IMPORT_SESSION.name: imports.import_session}
"""Functions that take a stream of lines."""


@asynccontextmanager
async def download(
    core: Core, caller: Principal, operation: Operation[Req, Res], request: Req
) -> AsyncIterator[Download]:
    """Open the lines that an operation answers with, for a caller.

    :raises OrchestratorError: if it is refused.
    """
    core.require_own_process()
    async with AsyncExitStack() as stack:
        try:
            _check_call(core, caller, operation, request)
            lines = DOWNLOADS[operation.name](core, caller, request)
            opened = await stack.enter_async_context(lines)
        except OrchestratorError as error:
            await _record_refusal(core, caller, operation, request, error)
            raise
        yield opened


async def upload(
    core: Core,
    caller: Principal,
    operation: Operation[Req, Res],
    request: Req,
    data: AsyncIterator[bytes],
) -> Reply[Res]:
    """Execute an operation that takes lines, for a caller.

    :raises OrchestratorError: if it is refused.
    """
    core.require_own_process()
    try:
        _check_call(core, caller, operation, request)
        with anyio.move_on_after(seconds_left(core, caller)):
            return Reply(await UPLOADS[operation.name](core, caller, request, data))
        raise Unauthorized("the token has expired")
    except OrchestratorError as error:
        await _record_refusal(core, caller, operation, request, error)
        raise


def _check_call(
    core: Core, caller: Principal, operation: Operation[Req, Res], request: Req
) -> None:
    check(operation.request, request)
    if not operation.public:
        require_scope(core, caller, operation.scope)
        require_shared(caller, operation)


async def _record_refusal(
    core: Core,
    caller: Principal,
    operation: Operation[Any, Any],
    request: object,
    error: OrchestratorError,
) -> None:
    target = audit.target_of(operation, request)
    await audit.record_refusal(core, caller, operation.name, target, error)


async def _dispatch(
    core: Core, caller: Principal, operation: Operation[Req, Res], request: Req
) -> Reply[Res]:
    _check_call(core, caller, operation, request)
    if query := QUERIES.get(operation.name):
        # A query may wait, and the token may expire meanwhile.
        with anyio.move_on_after(seconds_left(core, caller)):
            return Reply(await query(core, caller, request))
        raise Unauthorized("the token has expired")
    key: str | None = getattr(request, "idempotency_key", None)
    once = _IdempotentCall.of(caller, operation, request, key) if key is not None else None
    try:
        change = await MUTATIONS[operation.name](core, caller, request)
    except OrchestratorError:
        # A repeat may be refused now, although the first call succeeded: return its answer.
        if once is not None and (reply := await core.store.read(once.replay)) is not None:
            return reply
        raise
    change = audit.audited(core, caller, operation, request, change)
    reserve = operation.name in ALLOWED_WHEN_FULL
    if once is None:
        reply = Reply(await core.workers.transact(core.store, change, reserve=reserve))
    else:
        making = partial(once.apply, core, change)
        reply = await core.workers.transact(core.store, making, reserve=reserve)
    if not reply.replayed:
        audit.count_call(core, caller, operation, request)
    return reply


def _image_fingerprint(image: Mapping[str, Any]) -> dict[str, Any]:
    return {**image, "data": hashlib.sha256(image["data"].encode()).hexdigest()}


@frozen
class _IdempotentCall(Generic[Res]):
    """A call with an idempotency key."""

    caller: Principal
    call: str
    key: str
    fingerprint: str
    answer: type[Res]

    @classmethod
    def of(
        cls, caller: Principal, operation: Operation[Req, Res], request: Req, key: str
    ) -> "_IdempotentCall[Res]":
        content = codec.explicit_values(request)
        content.pop("idempotency_key")
        if "images" in content:
            # Encoding such long texts as JSON would block the event loop.
            content["images"] = [_image_fingerprint(image) for image in content["images"]]
        path = "/".join(str(content.pop(name)) for name in operation.path_fields)
        fingerprint = hashlib.sha256(strict_json.canonical(content).encode()).hexdigest()
        return cls(caller, f"{operation.name} {path}", key, fingerprint, operation.answer)

    def replay(self, view: View) -> Reply[Res] | None:
        """Return the first answer; None if this is the first call.

        :raises IdempotencyConflict: if the key was used for another request.
        """
        require_active(view, self.caller)
        record = view.idempotency(self.caller.id, self.call, self.key)
        if record is None:
            return None
        if record.fingerprint != self.fingerprint:
            raise IdempotencyConflict(
                "the idempotency key was used for another request", {"idempotency_key": self.key}
            )
        plain = strict_json.loads(record.answer.encode())
        return Reply(codec.from_plain(self.answer, plain), replayed=True, text=record.answer)

    def apply(self, core: Core, change: Change[Res], tx: Transaction) -> Reply[Res]:
        """Make the change and store its answer; return the stored answer if there is one."""
        if (reply := self.replay(tx)) is not None:
            return reply
        answer = change(tx)
        text = codec.to_json(answer)
        record = IdempotencyRecord(
            self.caller.id, self.call, self.key, self.fingerprint, text, core.now()
        )
        max_count, max_size = retention.record_limits(self.caller)
        tx.add_record(record, max_count=max_count, max_size=max_size)
        return Reply(answer, text=text)
