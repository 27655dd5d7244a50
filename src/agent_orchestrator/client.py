"""The client: typed methods over a transport, written once for every way to reach an engine."""

from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from os import PathLike, fspath
from types import TracebackType
from typing import Any, Self, TypeVar

from agent_orchestrator import operations as ops
from agent_orchestrator.domain.access import Grant
from agent_orchestrator.domain.model import (
    Event,
    Request,
    RequestKind,
    Run,
    Session,
)
from agent_orchestrator.domain.tokens import AccessToken
from agent_orchestrator.fields import shared, takes
from agent_orchestrator.operations import CaughtUp, Operation, StreamItem
from agent_orchestrator.ports import Subscription, Transport

Req = TypeVar("Req")
Res = TypeVar("Res")


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

    @takes(ops.SessionOptions)
    async def create_session(self, options: ops.SessionOptions) -> Session:
        """Make a session.

        :raises InvalidRequest: also if one of the limits is larger than the engine's.
        """
        request = shared(ops.CreateSession, options)
        return (await self._call(ops.CREATE_SESSION, request)).session

    @takes(ops.StartSession)
    async def start_session(self, options: ops.StartSession) -> ops.CreateSessionReply:
        """Make a session and put its first message into it, both or neither.

        :param images: the content of image files, as in :meth:`send_message`.
        :raises InvalidRequest: also if the provider cannot do what is asked of it.
        """
        return await self._call(ops.CREATE_SESSION, shared(ops.CreateSession, options))

    async def get_session(self, session_id: str) -> Session:
        """Return a session."""
        return (await self._call(ops.GET_SESSION, ops.GetSession(session_id))).session

    @takes(ops.ListSessions)
    async def list_sessions(self, request: ops.ListSessions) -> ops.SessionPage:
        """Return a page of sessions, oldest first; ``next_cursor`` is None on the last."""
        return await self._call(ops.LIST_SESSIONS, request)

    @takes(ops.UpdateSession)
    async def update_session(self, request: ops.UpdateSession) -> Session:
        """Rename, move, close, reopen or annotate a session; what is None stays.

        :param cwd: the directory its agents work in from the next run on, an absolute path. Queued runs
            start there, too. Sessions below stay where they are.
        :raises InvalidRequest: also if agents may not work there.
        :raises Forbidden: also if ``workspace_roots`` are set and a child would leave its parent's
            directory.
        :raises SessionBusy: if a run of a session to be moved is under way.
        """
        return (await self._call(ops.UPDATE_SESSION, request)).session

    @takes(ops.CloseSession)
    async def close_session(self, request: ops.CloseSession) -> ops.CloseSessionReply:
        """Close a session: it takes no further messages. A repeat succeeds.

        Without ``cascade``, what runs or is queued goes on.

        :raises Forbidden: if the caller does not own it; an agent owns none.
        """
        return await self._call(ops.CLOSE_SESSION, request)

    async def get_access(self, session_id: str) -> tuple[Grant, ...]:
        """Return what others than its owner may do with a session.

        :raises Forbidden: if the caller does not own it.
        """
        return (await self._call(ops.GET_ACCESS, ops.GetAccess(session_id))).grants

    @takes(ops.SetAccess)
    async def set_access(self, request: ops.SetAccess) -> tuple[Grant, ...]:
        """Set what others may do with a session and all below it, in place of what they might.

        :raises Forbidden: if the caller does not own it.
        """
        return (await self._call(ops.SET_ACCESS, request)).grants

    # --- messages -----------------------------------------------------------------------------

    @takes(ops.SendMessage)
    async def send_message(self, request: ops.SendMessage) -> ops.MessageReply:
        """Put a message into a session; one of role ``user`` becomes a run.

        :param images: the content of image files that the agent sees with the text: PNG, JPEG, GIF or
            WebP; 8 at most, of 5 MiB together. They are kept until the run has ended.
        :raises InvalidRequest: also if the provider cannot keep to what is asked of it there.
        :raises SessionBusy: if it is rejected.
        :raises SessionClosed: if the session is closed.
        """
        return await self._call(ops.SEND_MESSAGE, request)

    @takes(ops.ListMessages)
    async def list_messages(self, request: ops.ListMessages) -> ops.MessagePage:
        """Return a page of a session's messages, oldest first."""
        return await self._call(ops.LIST_MESSAGES, request)

    # --- agents that work together -----------------------------------------------------------

    @takes(ops.SpawnArguments)
    async def spawn(self, options: ops.SpawnArguments) -> ops.SpawnReply:
        """Make a child of a run, or of a session, and give it a task.

        The child's outcome is recorded in the parent: a message of source ``child``, and the event
        ``child.finished``.

        :param notify_parent: ``wake`` also hands the outcome to the parent's agent, as its next
            message; what waits for a busy parent is handed over together.
        :param model: the model for the task; the child's later messages have the session's or the
            provider's.
        :raises InvalidRequest: also if ``approvals`` is looser than the parent's, or a limit larger
            than what the child has without, or the provider does not take an option.
        :raises Conflict: if a limit of the tree is reached (``details["limit"]``), or the run is
            canceled.
        :raises Forbidden: if an agent's child would be deeper than the limit, work elsewhere, or have
            another model or more effort than somebody chose for the agent's own run.
        :raises TypeError: unless exactly one parent is named.
        """
        if (options.run_id is None) == (options.session_id is None):
            raise TypeError("spawn() takes a run_id or a session_id")
        if options.run_id is not None:
            return await self._call(ops.SPAWN_FROM_RUN, shared(ops.SpawnFromRun, options))
        return await self._call(ops.SPAWN_FROM_SESSION, shared(ops.SpawnFromSession, options))

    @takes(ops.SendToSession)
    async def send(self, request: ops.SendToSession) -> ops.MessageReply:
        """Send a message from one agent to another's session.

        :param from_run_id: the run that sends it; without one the caller does.
        :raises InvalidRequest: also if the provider does not take an option.
        :raises Forbidden: if an agent asks for another model or more effort than somebody chose for
            its own run.
        """
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
        request = ops.ReplyParent(
            run_id,
            text,
            request_kind=request_kind,
            detail=detail,
            options=options,
            expires_in_s=expires_in_s if timeout_s is None else timeout_s,
            wait=wait,
            idempotency_key=idempotency_key,
        )
        return await self._call(ops.REPLY_PARENT, request)

    @takes(ops.ListRequests)
    async def requests(self, request: ops.ListRequests) -> ops.RequestPage:
        """Return a page of requests, oldest first: the inbox.

        :param resolvable: only those the caller may resolve, or also what it may only read; None is
            the latter where a session or a tree is named, else the former.
        """
        return await self._call(ops.LIST_REQUESTS, request)

    @takes(ops.GetRequest)
    async def get_request(self, request: ops.GetRequest) -> Request:
        """Return a request; with ``wait_s``, once it is resolved or the time is up."""
        return (await self._call(ops.GET_REQUEST, request)).request

    @takes(ops.ResolveRequest)
    async def resolve_request(self, request: ops.ResolveRequest) -> Request:
        """Approve, deny or answer a request. The first answer counts; the same again succeeds.

        :param text: words for the agent; an answer is nothing without, nor is the approval of an
            ``input_request``.
        :raises AlreadyResolved: if another answer came first, or its time was up.
        """
        return (await self._call(ops.RESOLVE_REQUEST, request)).request

    @takes(ops.ExtendRequest)
    async def extend_request(self, request: ops.ExtendRequest) -> Request:
        """Give an open request more time.

        :raises AlreadyResolved: if it is closed.
        """
        return (await self._call(ops.EXTEND_REQUEST, request)).request

    @takes(ops.GetTree)
    async def get_tree(self, request: ops.GetTree) -> ops.TreePage:
        """Return a page of a session's descendants, with the newest runs of each."""
        return await self._call(ops.GET_TREE, request)

    # --- runs ---------------------------------------------------------------------------------

    @takes(ops.CreateRun)
    async def create_run(self, request: ops.CreateRun) -> Run:
        """Queue a run; with provider ``manual``, one that you drive with :meth:`transition_run`.

        :param images: what the agent sees with the text, as in :meth:`send_message`.
        """
        return (await self._call(ops.CREATE_RUN, request)).run

    async def get_run(self, run_id: str) -> Run:
        """Return a run."""
        return (await self._call(ops.GET_RUN, ops.GetRun(run_id))).run

    @takes(ops.ListRuns)
    async def list_runs(self, request: ops.ListRuns) -> ops.RunPage:
        """Return a page of runs, oldest first."""
        return await self._call(ops.LIST_RUNS, request)

    @takes(ops.WaitRun)
    async def wait_run(self, request: ops.WaitRun) -> ops.WaitReply:
        """Wait until a run has ended, or the time is up (``timed_out``).

        :param until: ``attention`` also returns when the run or a descendant asks something: the
            answer's ``request``.
        :param ignore: ids of requests not to return for: those left to somebody else.
        """
        return await self._call(ops.WAIT_RUN, request)

    @takes(ops.TransitionRun)
    async def transition_run(self, request: ops.TransitionRun) -> Run:
        """Drive a manual run to its next state; any run to ``canceled``.

        :param result: ``{"text": …}`` with ``completed``.
        :param error: ``{"code": …, "message": …}`` with ``failed``.
        :raises InvalidTransition: if the lifecycle has no such step; nothing is changed.
        """
        return (await self._call(ops.TRANSITION_RUN, request)).run

    @takes(ops.CancelRun)
    async def cancel_run(self, request: ops.CancelRun) -> ops.CancelReply:
        """Ask for a run's end; it is ``canceled`` once its agent's processes are gone."""
        return await self._call(ops.CANCEL_RUN, request)

    async def diagnose_run(self, run_id: str) -> ops.DiagnosisReply:
        """Return what is known of a run, and the likeliest reason for its state."""
        return await self._call(ops.DIAGNOSE_RUN, ops.DiagnoseRun(run_id))

    # --- events -------------------------------------------------------------------------------

    @takes(ops.ListEvents)
    async def list_events(self, request: ops.ListEvents) -> ops.EventPage:
        """Return a page of a session's log after a cursor.

        :param epoch: of the page before; a log that was restored from a backup since is then refused.
        :raises CursorAhead: if the log has no such cursor; ``details["resume_cursor"]`` is where to
            begin again.
        """
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
        return await self._call(ops.BACK_UP, ops.BackUp(fspath(path), force=force))

    async def check_store(self) -> ops.CheckReply:
        """Check that the store is sound, and that its log says what its rows say.

        :raises Forbidden: if the caller is not an administrator.
        """
        return await self._call(ops.CHECK_STORE, ops.CheckStore())

    async def doctor(self) -> ops.DoctorReport:
        """Return what is wrong or dangerous about the daemon, its providers, store and settings.

        :raises Forbidden: if the caller is not an administrator.
        """
        return await self._call(ops.DOCTOR, ops.Doctor())

    @takes(ops.ListAudit)
    async def list_audit(self, request: ops.ListAudit) -> ops.AuditPage:
        """Return a page of the audit trail, oldest first.

        :raises Forbidden: if the caller is no administrator.
        """
        return await self._call(ops.LIST_AUDIT, request)

    @takes(ops.CreateToken)
    async def create_token(self, request: ops.CreateToken) -> ops.NewToken:
        """Make a named token; the answer's ``secret`` is shown this once.

        :raises Forbidden: if the caller is no administrator.
        """
        return await self._call(ops.CREATE_TOKEN, request)

    @takes(ops.ListTokens)
    async def list_tokens(self, request: ops.ListTokens) -> ops.TokenPage:
        """Return a page of the named tokens, ended ones included, oldest first."""
        return await self._call(ops.LIST_TOKENS, request)

    async def revoke_token(self, token_id: str) -> AccessToken:
        """End a named token, and the streams and waits opened with it."""
        return (await self._call(ops.REVOKE_TOKEN, ops.RevokeToken(token_id))).token
