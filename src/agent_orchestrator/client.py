"""The client: typed methods over a transport, written once for every way to reach an engine."""

from base64 import b64encode
from collections import deque
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AsyncExitStack
from os import PathLike, fspath
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

from agent_orchestrator import operations as ops
from agent_orchestrator.domain.access import Grant, Scope
from agent_orchestrator.domain.errors import InvalidRequest
from agent_orchestrator.domain.images import size_problem
from agent_orchestrator.domain.model import (
    ApprovalPolicy,
    Approvals,
    Decision,
    Event,
    NotifyParent,
    Request,
    RequestKind,
    RequestStatus,
    Role,
    Run,
    Sandbox,
    Session,
    SessionStatus,
)
from agent_orchestrator.domain.tokens import AccessToken
from agent_orchestrator.operations import CaughtUp, Operation, StatusName, StreamItem, WhenBusy
from agent_orchestrator.ports import Subscription, Transport

Req = TypeVar("Req")
Res = TypeVar("Res")


def _uploads(images: Sequence[bytes]) -> tuple[ops.ImageUpload, ...]:
    # Checked here too: a daemon refuses so long a body before it knows what is in it.
    if problem := size_problem([len(data) for data in images]):
        raise InvalidRequest.of({"images": problem})
    return tuple(ops.ImageUpload(b64encode(data).decode()) for data in images)


class EventStream:
    """Events in order, each once: iterate it; leave it as a scope when you stop before its end."""

    def __init__(self, transport: Transport, request: ops.StreamRequest, *, follow: bool) -> None:
        self._transport = transport
        self._request = request
        self._follow = follow
        self._stack = AsyncExitStack()
        self._subscription: Subscription | None = None
        self._ready: deque[Event] = deque()
        self._at_end = False
        self.epoch: str | None = None
        """The epoch in which the events are read, once the first is asked for."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Give up the place in the stream."""
        self._at_end = True
        self._subscription = None
        await self._stack.aclose()

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        while not self._ready:
            if self._at_end:
                await self.aclose()
                raise StopAsyncIteration
            if self._subscription is None:
                self._subscription = await self._stack.enter_async_context(
                    self._transport.subscribe(self._request)
                )
                self.epoch = self._subscription.epoch
            for item in await self._subscription.receive():
                if isinstance(item, CaughtUp):
                    self._at_end = not self._follow
                elif isinstance(item, StreamItem) and not self._at_end:
                    self._ready.append(item.event)
        return self._ready.popleft()


class Client:
    """Sessions, messages, runs and events. Made by ``open_embedded`` or ``connect``.

    Every method raises :class:`~agent_orchestrator.domain.errors.OrchestratorError` where the call
    is refused: ``InvalidRequest`` for bad values, ``NotFound`` for what is not there (or not
    yours), ``Unavailable`` when the engine is full or stopping. A remote client also raises
    ``Unreachable``. A run that fails is no error: look at ``run.status`` and ``run.error``.

    A mutation may carry an ``idempotency_key``: the same call again with the same key, even from
    another process or after a restart, gets the first answer and does nothing.
    """

    def __init__(self, transport: Transport) -> None:
        self.transport = transport

    async def _call(self, operation: Operation[Req, Res], request: Req) -> Res:
        return (await self.transport.call(operation, request)).answer

    # --- sessions -----------------------------------------------------------------------------

    async def create_session(
        self,
        *,
        title: str | None = None,
        provider: str | None = None,
        model: str | None = None,
        cwd: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        approvals: Approvals | None = None,
        max_depth: int | None = None,
        max_children: int | None = None,
        max_descendants: int | None = None,
        approval_policy: ApprovalPolicy | None = None,
        sandbox: Sandbox | None = None,
        idempotency_key: str | None = None,
    ) -> Session:
        """Make a session.

        :param cwd: where its agents work, an absolute path; the engine's own directory without one.
        :param provider: where its messages go; the default route without one.
        :param approvals: who decides what its agents and their children ask for; the provider's own
            setting without one, and where that is stricter.
        :param max_depth: generations of children there may be below it.
        :param max_children: children of one run that may be at work, here and below.
        :param max_descendants: sessions below it that may be at work.
        :param approval_policy: when its agents ask; their provider's setting without one.
        :param sandbox: what their commands may do without asking, likewise.
        :raises InvalidRequest: also if one of the limits is larger than the engine's.
        """
        kept = {} if metadata is None else metadata
        limits = (max_depth, max_children, max_descendants)
        more = (*limits, approval_policy, sandbox)
        request = ops.CreateSession(
            title, provider, model, cwd, kept, approvals, *more, idempotency_key=idempotency_key
        )
        return (await self._call(ops.CREATE_SESSION, request)).session

    async def start_session(
        self,
        text: str,
        *,
        title: str | None = None,
        provider: str | None = None,
        model: str | None = None,
        cwd: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        approvals: Approvals | None = None,
        max_depth: int | None = None,
        max_children: int | None = None,
        max_descendants: int | None = None,
        approval_policy: ApprovalPolicy | None = None,
        sandbox: Sandbox | None = None,
        effort: str | None = None,
        output_schema: Mapping[str, Any] | None = None,
        images: Sequence[bytes] = (),
        idempotency_key: str | None = None,
    ) -> ops.CreateSessionReply:
        """Make a session and put its first message into it, both or neither.

        The parameters are those of :meth:`create_session`.

        :param text: what to tell the agent.
        :param effort: reasoning effort of this first message; the provider's setting without one.
        :param output_schema: JSON Schema that the answer to this first message must match.
        :param images: of this first message, as in :meth:`send_message`.
        :raises InvalidRequest: also if the provider cannot do what is asked of it.
        """
        request = ops.CreateSession(
            title=title,
            provider=provider,
            model=model,
            cwd=cwd,
            metadata={} if metadata is None else metadata,
            approvals=approvals,
            max_depth=max_depth,
            max_children=max_children,
            max_descendants=max_descendants,
            approval_policy=approval_policy,
            sandbox=sandbox,
            text=text,
            effort=effort,
            output_schema=output_schema,
            images=_uploads(images),
            idempotency_key=idempotency_key,
        )
        return await self._call(ops.CREATE_SESSION, request)

    async def get_session(self, session_id: str) -> Session:
        """Return a session."""
        return (await self._call(ops.GET_SESSION, ops.GetSession(session_id))).session

    async def list_sessions(
        self,
        *,
        status: SessionStatus | None = None,
        parent_session_id: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> ops.SessionPage:
        """Return a page of sessions, oldest first; ``next_cursor`` is None on the last."""
        return await self._call(
            ops.LIST_SESSIONS, ops.ListSessions(status, parent_session_id, limit, cursor)
        )

    async def update_session(
        self,
        session_id: str,
        *,
        title: str | None = None,
        status: SessionStatus | None = None,
        metadata: Mapping[str, Any] | None = None,
        approval_policy: ApprovalPolicy | None = None,
        sandbox: Sandbox | None = None,
        cwd: str | None = None,
        idempotency_key: str | None = None,
    ) -> Session:
        """Rename, move, close, reopen or annotate a session; what is None stays.

        :param cwd: the directory its agents work in from the next run on, an absolute path. Queued runs
            start there, too. Sessions below stay where they are.
        :raises InvalidRequest: also if agents may not work there.
        :raises Forbidden: also if ``workspace_roots`` are set and a child would leave its parent's
            directory.
        :raises SessionBusy: if a run of a session to be moved is under way.
        """
        request = ops.UpdateSession(
            session_id=session_id,
            title=title,
            status=status,
            metadata=metadata,
            approval_policy=approval_policy,
            sandbox=sandbox,
            cwd=cwd,
            idempotency_key=idempotency_key,
        )
        return (await self._call(ops.UPDATE_SESSION, request)).session

    async def close_session(
        self, session_id: str, *, cascade: bool = False, idempotency_key: str | None = None
    ) -> ops.CloseSessionReply:
        """Close a session: it takes no further messages. A repeat succeeds.

        :param cascade: also close all its descendants, and cancel every run of the sessions it closes.
            Without it, what runs or is queued goes on.
        :raises Forbidden: if the caller does not own it; an agent owns none.
        """
        request = ops.CloseSession(session_id, cascade, idempotency_key)
        return await self._call(ops.CLOSE_SESSION, request)

    async def get_access(self, session_id: str) -> tuple[Grant, ...]:
        """Return what others than its owner may do with a session.

        :raises Forbidden: if the caller does not own it.
        """
        return (await self._call(ops.GET_ACCESS, ops.GetAccess(session_id))).grants

    async def set_access(
        self, session_id: str, grants: Sequence[Grant], *, idempotency_key: str | None = None
    ) -> tuple[Grant, ...]:
        """Set what others may do with a session and all below it, in place of what they might.

        :raises Forbidden: if the caller does not own it.
        """
        request = ops.SetAccess(session_id, tuple(grants), idempotency_key)
        return (await self._call(ops.SET_ACCESS, request)).grants

    # --- messages -----------------------------------------------------------------------------

    async def send_message(
        self,
        session_id: str,
        text: str,
        *,
        role: Role = "user",
        provider: str | None = None,
        when_busy: WhenBusy = "queue",
        approval_policy: ApprovalPolicy | None = None,
        sandbox: Sandbox | None = None,
        model: str | None = None,
        effort: str | None = None,
        output_schema: Mapping[str, Any] | None = None,
        images: Sequence[bytes] = (),
        idempotency_key: str | None = None,
    ) -> ops.MessageReply:
        """Put a message into a session; one of role ``user`` becomes a run.

        :param when_busy: if a run of the session is active: ``queue`` behind it, ``steer`` it with
            the text where its runner can (else queue), ``interrupt`` it, or ``reject``.
        :param approval_policy: when the agent asks in the message's run; the session's without one.
        :param sandbox: what its commands may do without asking, likewise.
        :param model: the model for this message only; the session's, else the provider's, without one.
        :param effort: reasoning effort for this message only; the provider's setting without one.
        :param output_schema: JSON Schema that the answer must match; 32,768 bytes at most.
        :param images: the content of image files that the agent sees with the text: PNG, JPEG, GIF or
            WebP; 8 at most, of 5 MiB together. They are kept until the run has ended.
        :raises InvalidRequest: also if the provider cannot keep to what is asked of it there.
        :raises SessionBusy: if it is rejected.
        :raises SessionClosed: if the session is closed.
        """
        options = (model, effort, output_schema, _uploads(images))
        more = (approval_policy, sandbox, *options, idempotency_key)
        request = ops.SendMessage(session_id, text, role, provider, when_busy, *more)
        return await self._call(ops.SEND_MESSAGE, request)

    async def list_messages(
        self, session_id: str, *, limit: int = 100, cursor: str | None = None
    ) -> ops.MessagePage:
        """Return a page of a session's messages, oldest first."""
        return await self._call(ops.LIST_MESSAGES, ops.ListMessages(session_id, limit, cursor))

    # --- agents that work together -----------------------------------------------------------

    async def spawn(
        self,
        task: str,
        *,
        run_id: str | None = None,
        session_id: str | None = None,
        provider: str | None = None,
        cwd: str | None = None,
        title: str | None = None,
        notify_parent: NotifyParent = "record",
        approvals: Approvals | None = None,
        max_depth: int | None = None,
        max_children: int | None = None,
        max_descendants: int | None = None,
        model: str | None = None,
        effort: str | None = None,
        output_schema: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> ops.SpawnReply:
        """Make a child of a run, or of a session, and give it a task.

        The child's outcome is recorded in the parent: a message of source ``child``, and the event
        ``child.finished``.

        :param notify_parent: ``wake`` also hands the outcome to the parent's agent, as its next
            message; what waits for a busy parent is handed over together.
        :param approvals: who decides what the child asks for; its parent's policy without one.
        :param max_depth: generations of children there may be below the child.
        :param max_children: children of one run that may be at work, in the child and below.
        :param max_descendants: sessions below the child that may be at work.
        :param model: the model for the task; the child's later messages have the session's or the
            provider's.
        :param effort: reasoning effort for the task; the provider's setting without one.
        :param output_schema: JSON Schema that the answer to the task must match.
        :raises InvalidRequest: also if ``approvals`` is looser than the parent's, or a limit larger
            than what the child has without, or the provider does not take an option.
        :raises Conflict: if a limit of the tree is reached (``details["limit"]``), or the run is
            canceled.
        :raises Forbidden: if an agent's child would be deeper than the limit, work elsewhere, or have
            another model or more effort than somebody chose for the agent's own run.
        :raises TypeError: unless exactly one parent is named.
        """
        if (run_id is None) == (session_id is None):
            raise TypeError("spawn() takes a run_id or a session_id")
        limits = (max_depth, max_children, max_descendants)
        options = (model, effort, output_schema)
        more = (provider, cwd, title, notify_parent, approvals, *limits, *options, idempotency_key)
        if run_id is not None:
            return await self._call(ops.SPAWN_FROM_RUN, ops.SpawnFromRun(run_id, task, *more))
        assert session_id is not None
        request = ops.SpawnFromSession(session_id, task, *more)
        return await self._call(ops.SPAWN_FROM_SESSION, request)

    async def send(
        self,
        session_id: str,
        text: str,
        *,
        from_run_id: str | None = None,
        when_busy: WhenBusy = "queue",
        model: str | None = None,
        effort: str | None = None,
        output_schema: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> ops.MessageReply:
        """Send a message from one agent to another's session.

        :param from_run_id: the run that sends it; without one the caller does.
        :param model: the model for this message only, as in :meth:`send_message`.
        :param effort: reasoning effort for this message only.
        :param output_schema: JSON Schema that the answer must match.
        :raises InvalidRequest: also if the provider does not take an option.
        :raises Forbidden: if an agent asks for another model or more effort than somebody chose for
            its own run.
        """
        more = (when_busy, model, effort, output_schema, idempotency_key)
        request = ops.SendToSession(session_id, text, from_run_id, *more)
        return await self._call(ops.SEND_TO_SESSION, request)

    async def reply_parent(
        self,
        run_id: str,
        text: str,
        *,
        request_kind: RequestKind | None = None,
        detail: Mapping[str, Any] | None = None,
        options: Sequence[str] | None = None,
        expires_in_s: float = 3600.0,
        timeout_s: float | None = None,
        wait: bool = False,
        idempotency_key: str | None = None,
    ) -> ops.ReplyParentReply:
        """Tell or ask the parent of a run, whichever that is.

        :param request_kind: makes it a question, listed in the inbox until it is resolved, expires
            (which counts as a denial) or its run ends.
        :param expires_in_s: seconds until it expires.
        :param timeout_s: another name of ``expires_in_s``, as the API has it.
        :param wait: the run cannot go on without: it is ``waiting``, and its worker free, until then.
        :raises Conflict: if there is no parent to tell, or the run is canceled.
        :raises InvalidTransition: if a run that is not running is to wait.
        """
        given = None if options is None else tuple(options)
        open_s = expires_in_s if timeout_s is None else timeout_s
        request = ops.ReplyParent(
            run_id, text, request_kind, detail, given, open_s, wait, idempotency_key
        )
        return await self._call(ops.REPLY_PARENT, request)

    async def requests(
        self,
        *,
        status: RequestStatus | None = None,
        session_id: str | None = None,
        root_session_id: str | None = None,
        resolvable: bool | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> ops.RequestPage:
        """Return a page of requests, oldest first: the inbox.

        :param resolvable: only those the caller may resolve, or also what it may only read; None is
            the latter where a session or a tree is named, else the former.
        """
        request = ops.ListRequests(status, session_id, root_session_id, resolvable, limit, cursor)
        return await self._call(ops.LIST_REQUESTS, request)

    async def get_request(self, request_id: str, *, wait_s: float = 0.0) -> Request:
        """Return a request; with ``wait_s``, once it is resolved or the time is up."""
        return (await self._call(ops.GET_REQUEST, ops.GetRequest(request_id, wait_s))).request

    async def resolve_request(
        self,
        request_id: str,
        decision: Decision,
        *,
        scope: Literal["once", "session"] | None = None,
        text: str | None = None,
        idempotency_key: str | None = None,
    ) -> Request:
        """Approve, deny or answer a request. The first answer counts; the same again succeeds.

        :param text: words for the agent; an answer is nothing without, nor is the approval of an
            ``input_request``.
        :raises AlreadyResolved: if another answer came first, or its time was up.
        """
        request = ops.ResolveRequest(request_id, decision, scope, text, idempotency_key)
        return (await self._call(ops.RESOLVE_REQUEST, request)).request

    async def extend_request(
        self, request_id: str, expires_in_s: float, *, idempotency_key: str | None = None
    ) -> Request:
        """Give an open request more time.

        :param expires_in_s: seconds from now that it stays open at least.
        :raises AlreadyResolved: if it is closed.
        """
        request = ops.ExtendRequest(request_id, expires_in_s, idempotency_key)
        return (await self._call(ops.EXTEND_REQUEST, request)).request

    async def get_tree(
        self, session_id: str, *, limit: int = 1000, cursor: str | None = None
    ) -> ops.TreePage:
        """Return a page of a session's descendants, with the newest runs of each.

        :param limit: descendants to return at most, 1 to 1000.
        :param cursor: ``next_cursor`` of the page before.
        """
        return await self._call(ops.GET_TREE, ops.GetTree(session_id, limit, cursor))

    # --- runs ---------------------------------------------------------------------------------

    async def create_run(
        self,
        session_id: str,
        *,
        text: str | None = None,
        provider: str | None = None,
        model: str | None = None,
        effort: str | None = None,
        output_schema: Mapping[str, Any] | None = None,
        images: Sequence[bytes] = (),
        idempotency_key: str | None = None,
    ) -> Run:
        """Queue a run; with provider ``manual``, one that you drive with :meth:`transition_run`.

        :param model: the model for this run only, as in :meth:`send_message`.
        :param effort: reasoning effort for this run only.
        :param output_schema: JSON Schema that the answer must match.
        :param images: what the agent sees with the text, as in :meth:`send_message`.
        """
        more = (model, effort, output_schema, _uploads(images), idempotency_key)
        request = ops.CreateRun(session_id, text, provider, *more)
        return (await self._call(ops.CREATE_RUN, request)).run

    async def get_run(self, run_id: str) -> Run:
        """Return a run."""
        return (await self._call(ops.GET_RUN, ops.GetRun(run_id))).run

    async def list_runs(
        self,
        *,
        session_id: str | None = None,
        status: StatusName | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> ops.RunPage:
        """Return a page of runs, oldest first."""
        return await self._call(ops.LIST_RUNS, ops.ListRuns(session_id, status, limit, cursor))

    async def wait_run(
        self,
        run_id: str,
        *,
        timeout_s: float = 30.0,
        until: Literal["terminal", "attention"] = "terminal",
        ignore: Collection[str] = (),
    ) -> ops.WaitReply:
        """Wait until a run has ended, or the time is up (``timed_out``).

        :param until: ``attention`` also returns when the run or a descendant asks something: the
            answer's ``request``.
        :param ignore: ids of requests not to return for: those left to somebody else.
        """
        request = ops.WaitRun(run_id, timeout_s, until=until, ignore=tuple(ignore))
        return await self._call(ops.WAIT_RUN, request)

    async def transition_run(
        self,
        run_id: str,
        to_status: StatusName,
        *,
        reason: str | None = None,
        result: Mapping[str, Any] | None = None,
        error: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> Run:
        """Drive a manual run to its next state; any run to ``canceled``.

        :param result: ``{"text": …}`` with ``completed``.
        :param error: ``{"code": …, "message": …}`` with ``failed``.
        :raises InvalidTransition: if the lifecycle has no such step; nothing is changed.
        """
        request = ops.TransitionRun(run_id, to_status, reason, result, error, idempotency_key)
        return (await self._call(ops.TRANSITION_RUN, request)).run

    async def cancel_run(
        self,
        run_id: str,
        *,
        reason: str | None = None,
        cascade: bool = True,
        idempotency_key: str | None = None,
    ) -> ops.CancelReply:
        """Ask for a run's end; it is ``canceled`` once its agent's processes are gone."""
        request = ops.CancelRun(run_id, reason, cascade, idempotency_key)
        return await self._call(ops.CANCEL_RUN, request)

    async def diagnose_run(self, run_id: str) -> ops.DiagnosisReply:
        """Return what is known of a run, and the likeliest reason for its state."""
        return await self._call(ops.DIAGNOSE_RUN, ops.DiagnoseRun(run_id))

    # --- events -------------------------------------------------------------------------------

    async def list_events(
        self,
        session_id: str,
        *,
        cursor: int = 0,
        limit: int = 100,
        wait_s: float = 0.0,
        epoch: str | None = None,
    ) -> ops.EventPage:
        """Return a page of a session's log after a cursor.

        :param epoch: of the page before; a log that was restored from a backup since is then refused.
        :raises CursorAhead: if the log has no such cursor; ``details["resume_cursor"]`` is where to
            begin again.
        """
        request = ops.ListEvents(session_id, cursor, limit, wait_s, epoch)
        return await self._call(ops.LIST_EVENTS, request)

    def events(
        self,
        session_id: str | None = None,
        *,
        cursor: int | str = 0,
        follow: bool = False,
        epoch: str | None = None,
    ) -> EventStream:
        """Iterate over a session's events after a cursor: ``async for event in client.events(…)``.

        :param session_id: None means all sessions the caller may read; the cursor is then an
            opaque string (``client.transport.subscribe`` hands it out with each event).
        :param cursor: ``"head"`` is the end of the log as it is now.
        :param follow: go on with what comes, for ever; else end where the log ends now.
        :param epoch: with one session, that of the stream or page the cursor is from
            (``EventStream.epoch``, ``EventPage.epoch``).
        :raises CursorAhead: (at the first event) if the log has no such cursor, or was restored from a
            backup since that epoch; ``details["resume_cursor"]`` is where to begin again.
        """
        ids = () if session_id is None else (session_id,)
        start = None if session_id is None and cursor == 0 else str(cursor)
        return EventStream(self.transport, ops.StreamRequest(ids, start, epoch), follow=follow)

    # --- the engine ---------------------------------------------------------------------------

    async def status(self) -> ops.DaemonStatus:
        """Return how the engine, its workers, providers and store are."""
        return await self._call(ops.STATUS, ops.GetStatus())

    async def back_up(self, path: str | PathLike[str], *, force: bool = False) -> ops.BackupReply:
        """Copy the store, consistent and checked, into a file on the engine's machine.

        :param path: absolute; the file is made for its owner only.
        :param force: replace a file that is there.
        :raises Conflict: if there is one and it is not to be replaced, or the store has no file.
        :raises Forbidden: if the caller is not an administrator.
        :raises InvalidRequest: if nothing can be written there.
        :raises Unavailable: if there is no room.
        """
        return await self._call(ops.BACK_UP, ops.BackUp(fspath(path), force))

    async def check_store(self) -> ops.CheckReply:
        """Check that the store is sound, and that its log says what its rows say.

        :raises Forbidden: if the caller is not an administrator.
        """
        return await self._call(ops.CHECK_STORE, ops.CheckStore())

    async def examine(self) -> ops.Examination:
        """Return what is wrong or dangerous about the daemon, its providers, store and settings.

        :raises Forbidden: if the caller is not an administrator.
        """
        return await self._call(ops.EXAMINE, ops.Examine())

    async def list_audit(self, *, limit: int = 100, cursor: str | None = None) -> ops.AuditPage:
        """Return a page of the audit trail, oldest first.

        :raises Forbidden: if the caller is no administrator.
        """
        return await self._call(ops.LIST_AUDIT, ops.ListAudit(limit, cursor))

    async def create_token(
        self,
        name: str,
        *,
        principal: str | None = None,
        scopes: Sequence[Scope] = ("read", "write", "approve"),
        expires_in_s: float | None = None,
    ) -> ops.NewToken:
        """Make a named token; the answer's ``secret`` is shown this once.

        :param principal: whom it stands for; None takes the name.
        :raises Forbidden: if the caller is no administrator.
        """
        request = ops.CreateToken(name, principal, tuple(scopes), expires_in_s)
        return await self._call(ops.CREATE_TOKEN, request)

    async def list_tokens(self, *, limit: int = 100, cursor: str | None = None) -> ops.TokenPage:
        """Return a page of the named tokens, ended ones included, oldest first."""
        return await self._call(ops.LIST_TOKENS, ops.ListTokens(limit, cursor))

    async def revoke_token(self, token_id: str) -> AccessToken:
        """End a named token, and the streams and waits opened with it."""
        return (await self._call(ops.REVOKE_TOKEN, ops.RevokeToken(token_id))).token
