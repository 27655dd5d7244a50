"""The client: typed methods over any transport."""

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from os import PathLike, fspath
from types import TracebackType
from typing import Literal, Self, TypeVar

from agent_orchestrator.domain.access import Grant
from agent_orchestrator.domain.model import (
    Event,
    Request,
    Run,
    Session,
)
from agent_orchestrator.domain.notices import Notice, PushDevice
from agent_orchestrator.domain.tokens import AccessToken
from agent_orchestrator.fields import shared, takes
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
from agent_orchestrator.operations.events import CaughtUp, StreamItem
from agent_orchestrator.operations.table import Operation
from agent_orchestrator.ports.transport import Subscription, Transport

Req = TypeVar("Req")
Res = TypeVar("Res")


class EventStream:
    """An async iterator over events, in order. If you stop early, use it as a context manager."""

    def __init__(
        self, transport: Transport, request: event_calls.StreamRequest, *, follow: bool
    ) -> None:
        self._transport = transport
        self._request = request
        self._follow = follow
        self._stack = AsyncExitStack()
        self._subscription: Subscription | None = None
        self._ready: deque[Event] = deque()
        self._at_end = False
        self.epoch: str | None = None
        """The epoch of the log. Set when the first event is requested."""

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
        """End the subscription."""
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
    """A client for sessions, messages, runs and events. Returned by ``open_embedded`` and ``connect``.

    Every method raises a subclass of :class:`~agent_orchestrator.domain.errors.OrchestratorError` if
    the call is refused: for example ``InvalidRequest`` for invalid values, ``NotFound`` for objects
    that do not exist or are not visible to the caller, and ``Unavailable`` if the engine is full or
    stopping. A remote client also raises ``Unreachable``. A failed run raises nothing: check
    ``run.status`` and ``run.error``.

    Mutations accept an ``idempotency_key``. Repeating a call with the same key returns the first
    answer without repeating the effect, even from another process or after a restart.
    """

    def __init__(self, transport: Transport) -> None:
        self.transport = transport

    async def _call(self, operation: Operation[Req, Res], request: Req) -> Res:
        return (await self.transport.call(operation, request)).answer

    # --- sessions -----------------------------------------------------------------------------

    @takes(session_calls.SessionOptions)
    async def create_session(self, options: session_calls.SessionOptions) -> Session:
        """Create a session.

        :raises InvalidRequest: if a field is invalid, or a limit exceeds the engine's.
        """
        request = shared(session_calls.CreateSession, options)
        return (await self._call(session_calls.CREATE_SESSION, request)).session

    @takes(session_calls.StartSession)
    async def start_session(
        self, options: session_calls.StartSession
    ) -> session_calls.CreateSessionReply:
        """Create a session with its first message, atomically.

        :param images: the content of image files, as in :meth:`send_message`.
        :raises InvalidRequest: if a field is invalid, or the provider does not support an option.
        """
        return await self._call(
            session_calls.CREATE_SESSION, shared(session_calls.CreateSession, options)
        )

    async def get_session(self, session_id: str) -> Session:
        """Return a session."""
        return (
            await self._call(session_calls.GET_SESSION, session_calls.GetSession(session_id))
        ).session

    @takes(session_calls.ListSessions)
    async def list_sessions(self, request: session_calls.ListSessions) -> session_calls.SessionPage:
        """Return a page of sessions. ``next_cursor`` is None on the last page."""
        return await self._call(session_calls.LIST_SESSIONS, request)

    @takes(search_calls.SearchSessions)
    async def search(self, request: search_calls.SearchSessions) -> search_calls.SearchPage:
        """Return a page of the texts of all sessions that have some words, the newest first.

        ``next_cursor`` is None on the last page. To filter the list of sessions by title or directory, use
        ``q`` of :meth:`list_sessions`.

        :raises InvalidRequest: if ``q`` has no letter or digit.
        :raises NotFound: if the caller may not see the session of ``session_id``.
        """
        return await self._call(search_calls.SEARCH, request)

    async def get_diff(self, session_id: str) -> session_calls.SessionDiff:
        """Return what was changed in a session's directory since the session began.

        :raises Forbidden: if the caller is an agent.
        """
        return await self._call(session_calls.GET_DIFF, session_calls.GetDiff(session_id))

    async def mark_seen(self, session_id: str, seq: int) -> int:
        """Mark the events of a session up to ``seq`` as seen by this client's token, or its principal.

        :return: the last event that is marked; ``list_sessions(activity=True)`` has it as ``seen_seq``.
        """
        request = session_calls.MarkSeen(session_id, seq)
        return (await self._call(session_calls.MARK_SEEN, request)).seq

    @takes(session_calls.UpdateSession)
    async def update_session(self, request: session_calls.UpdateSession) -> Session:
        """Rename, move, close, reopen or annotate a session, or give it another model.

        Fields that are None keep their value.

        :param model: the model of its runs from the next message on. Queued runs keep theirs.
        :param cwd: the absolute path of the working directory from the next run on, queued runs
            included. Child sessions keep theirs.
        :param host: the host of its runs from the next one on, with a ``cwd`` there. The log and queued runs go
            along, the conversations of its agents do not.
        :raises InvalidRequest: if a field is invalid, or agents may not work in the directory.
        :raises Forbidden: if ``workspace_roots`` are set and a child would leave its parent's
            directory.
        :raises SessionBusy: if ``cwd`` or ``host`` changes while a run is active.
        """
        return (await self._call(session_calls.UPDATE_SESSION, request)).session

    @takes(session_calls.CloseSession)
    async def close_session(
        self, request: session_calls.CloseSession
    ) -> session_calls.CloseSessionReply:
        """Close a session, so that it accepts no further messages. Closing it again has no effect.

        Active and queued runs continue unless ``cascade`` is set.

        :raises Forbidden: if the caller does not own the session. Agents own none.
        """
        return await self._call(session_calls.CLOSE_SESSION, request)

    @asynccontextmanager
    async def export_session(self, session_id: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open the file of a session: its runs, messages, requests and events, as JSON lines.

        Iterate over its parts, which may end anywhere in a line. A file is complete only if it has its last
        line: :func:`~agent_orchestrator.session_files.write_session` checks that.

        :raises Forbidden: if the caller is an agent.
        """
        request = file_calls.ExportSession(session_id)
        async with self.transport.download(file_calls.EXPORT_SESSION, request) as lines:

            async def parts() -> AsyncGenerator[bytes]:
                while part := await lines.receive():
                    yield part

            async with aclosing(parts()) as iterator:
                yield iterator

    async def import_session(
        self, data: AsyncIterator[bytes], *, new_id: bool = False, cwd: str | None = None
    ) -> file_calls.ImportReply:
        """Import the file of a session, whole or not at all. It becomes a closed session of the caller.

        No run of it starts, and its directory, host, grants and conversations of agents are not used.

        :param data: the file, cut anywhere.
        :param new_id: give all new ids.
        :param cwd: its working directory; None means the engine's.
        :raises InvalidRequest: if the file is not valid; the error names the line and the field.
        :raises PayloadTooLarge: if it has more than 1 GiB or 200,000 lines.
        :raises Conflict: if the session exists already.
        """
        request = file_calls.ImportSession(new_id=new_id, cwd=cwd)
        return (await self.transport.upload(file_calls.IMPORT_SESSION, request, data)).answer

    @takes(takeover_calls.AttachSession)
    async def attach_session(
        self, request: takeover_calls.AttachSession
    ) -> takeover_calls.AttachReply:
        """Hold a session while a process of the daemon's machine uses its conversation.

        The run of the reply waits until that process has ended, then records what was said.

        :raises InvalidRequest: if the daemon does not see the process, or the provider has no such program.
        :raises SessionBusy: if a run of the session is active.
        :raises Conflict: if the session has no conversation that the program could open.
        """
        return await self._call(takeover_calls.ATTACH_SESSION, request)

    @takes(takeover_calls.AdoptSession)
    async def adopt_session(
        self, request: takeover_calls.AdoptSession
    ) -> session_calls.CreateSessionReply:
        """Create a session of a conversation that was begun in the agent's own program.

        The run of the reply records what was said so far.

        :raises Conflict: if a session has this conversation.
        :raises InvalidRequest: if there is no such conversation, or agents may not work in its directory.
        """
        return await self._call(takeover_calls.ADOPT_SESSION, request)

    async def get_access(self, session_id: str) -> tuple[Grant, ...]:
        """Return the grants on a session.

        :raises Forbidden: if the caller does not own it.
        """
        return (
            await self._call(session_calls.GET_ACCESS, session_calls.GetAccess(session_id))
        ).grants

    @takes(session_calls.SetAccess)
    async def set_access(self, request: session_calls.SetAccess) -> tuple[Grant, ...]:
        """Replace the grants on a session and all its descendants.

        :raises Forbidden: if the caller does not own it.
        """
        return (await self._call(session_calls.SET_ACCESS, request)).grants

    @takes(link_calls.CreateLink)
    async def create_link(self, request: link_calls.CreateLink) -> access_calls.NewToken:
        """Create a token that reads a session and its descendants. Its ``secret`` is returned only here.

        :raises Forbidden: if the caller does not own the session.
        """
        return await self._call(link_calls.CREATE_LINK, request)

    @takes(link_calls.ListLinks)
    async def list_links(self, request: link_calls.ListLinks) -> access_calls.TokenPage:
        """Return a page of the share links of a session, those that have ended too."""
        return await self._call(link_calls.LIST_LINKS, request)

    async def revoke_link(self, session_id: str, token_id: str) -> AccessToken:
        """Revoke a share link, and end its streams."""
        request = link_calls.RevokeLink(session_id, token_id)
        return (await self._call(link_calls.REVOKE_LINK, request)).token

    # --- messages -----------------------------------------------------------------------------

    @takes(message_calls.SendMessage)
    async def send_message(self, request: message_calls.SendMessage) -> message_calls.MessageReply:
        """Add a message to a session. A message of role ``user`` creates a run.

        :param images: the content of image files to show to the agent: PNG, JPEG, GIF or WebP, at most
            8 files and 5 MiB in all. They are deleted when the run has ended.
        :raises InvalidRequest: if a field is invalid, or the provider does not support an option.
        :raises SessionBusy: if the session is busy and ``when_busy`` is ``reject``.
        :raises SessionClosed: if the session is closed.
        """
        return await self._call(message_calls.SEND_MESSAGE, request)

    @takes(message_calls.ListMessages)
    async def list_messages(self, request: message_calls.ListMessages) -> message_calls.MessagePage:
        """Return a page of a session's messages, oldest first."""
        return await self._call(message_calls.LIST_MESSAGES, request)

    # --- cooperating agents --------------------------------------------------------------------

    @takes(message_calls.SpawnArguments)
    async def spawn(self, options: message_calls.SpawnArguments) -> message_calls.SpawnReply:
        """Create a child session of a run or a session, and give it a task.

        The child's outcome is recorded in the parent session as a message of source ``child`` and an
        event ``child.finished``.

        :param notify_parent: ``wake`` also sends the outcome to the parent's agent as its next message.
            Outcomes that arrive while the parent is busy are sent together.
        :param model: the model for this task. Later messages use the session's or the provider's.
        :raises InvalidRequest: if a field is invalid, ``approvals`` is looser than the parent's, a
            limit exceeds the inherited one, or the provider does not support an option.
        :raises Conflict: if a limit of the tree is reached (``details["limit"]``), or the run is
            canceled.
        :raises Forbidden: if an agent's child would exceed the depth limit, work in a directory that
            is not allowed, or use another model or more effort than was chosen for the agent's run.
        :raises TypeError: unless exactly one parent is given.
        """
        if (options.run_id is None) == (options.session_id is None):
            raise TypeError("spawn() needs either a run_id or a session_id")
        if options.run_id is not None:
            return await self._call(
                message_calls.SPAWN_FROM_RUN, shared(message_calls.SpawnFromRun, options)
            )
        return await self._call(
            message_calls.SPAWN_FROM_SESSION, shared(message_calls.SpawnFromSession, options)
        )

    @takes(message_calls.SendToSession)
    async def send(self, request: message_calls.SendToSession) -> message_calls.MessageReply:
        """Send a message from one agent to another agent's session.

        :param from_run_id: the sending run; None if the caller itself sends it.
        :raises InvalidRequest: if a field is invalid, or the provider does not support an option.
        :raises Forbidden: if an agent requests another model or more effort than was chosen for its
            own run.
        """
        return await self._call(message_calls.SEND_TO_SESSION, request)

    @takes(request_calls.ReplyParent)
    async def reply_parent(
        self, request: request_calls.ReplyParent
    ) -> request_calls.ReplyParentReply:
        """Send a message or a question to the parent of a run.

        :param request_kind: makes it a question. It is open until it is resolved, the run ends, or it
            expires, which counts as a denial.
        :param wait: set the run to ``waiting`` and release its worker until the question is closed.
        :raises Conflict: if a message has no parent to go to, a question's run is canceled, or a limit
            is reached.
        :raises InvalidTransition: if ``wait`` is set and the run is not running.
        """
        return await self._call(request_calls.REPLY_PARENT, request)

    @takes(request_calls.ListRequests)
    async def requests(self, request: request_calls.ListRequests) -> request_calls.RequestPage:
        """Return a page of requests.

        :param resolvable: True for requests the caller may resolve, False to include those it may only
            read. None means False if a session or tree is given, else True.
        """
        return await self._call(request_calls.LIST_REQUESTS, request)

    @takes(request_calls.GetRequest)
    async def get_request(self, request: request_calls.GetRequest) -> Request:
        """Return a request. With ``wait_s``, wait up to that many seconds until it is resolved."""
        return (await self._call(request_calls.GET_REQUEST, request)).request

    @takes(request_calls.ResolveRequest)
    async def resolve_request(self, request: request_calls.ResolveRequest) -> Request:
        """Approve, deny or answer a request. The first decision counts; repeating it succeeds.

        :param text: words for the agent. Required for an answer and to approve an ``input_request``.
        :raises AlreadyResolved: if another decision came first, or the request has expired.
        """
        return (await self._call(request_calls.RESOLVE_REQUEST, request)).request

    @takes(request_calls.ExtendRequest)
    async def extend_request(self, request: request_calls.ExtendRequest) -> Request:
        """Extend the time of an open request.

        :raises AlreadyResolved: if it is closed.
        """
        return (await self._call(request_calls.EXTEND_REQUEST, request)).request

    @takes(session_calls.GetTree)
    async def get_tree(self, request: session_calls.GetTree) -> session_calls.TreePage:
        """Return a page of a session's descendants, with the newest runs of each session."""
        return await self._call(session_calls.GET_TREE, request)

    # --- runs ---------------------------------------------------------------------------------

    @takes(run_calls.CreateRun)
    async def create_run(self, request: run_calls.CreateRun) -> Run:
        """Queue a run. A run of provider ``manual`` is driven with :meth:`transition_run`.

        :param images: the content of image files, as in :meth:`send_message`.
        """
        return (await self._call(run_calls.CREATE_RUN, request)).run

    async def get_run(self, run_id: str) -> Run:
        """Return a run."""
        return (await self._call(run_calls.GET_RUN, run_calls.GetRun(run_id))).run

    @takes(run_calls.ListRuns)
    async def list_runs(self, request: run_calls.ListRuns) -> run_calls.RunPage:
        """Return a page of runs."""
        return await self._call(run_calls.LIST_RUNS, request)

    @takes(run_calls.WaitRun)
    async def wait_run(self, request: run_calls.WaitRun) -> run_calls.WaitReply:
        """Wait until a run has ended, or until the timeout (``timed_out``).

        :param until: ``attention`` also returns when the run or a descendant asks a question, with the
            question as ``request``.
        :param ignore: ids of requests that do not end the wait.
        """
        return await self._call(run_calls.WAIT_RUN, request)

    @takes(run_calls.TransitionRun)
    async def transition_run(self, request: run_calls.TransitionRun) -> Run:
        """Change the status of a manual run, or cancel any run.

        :param result: ``{"text": …}`` for ``completed``.
        :param error: ``{"code": …, "message": …}`` for ``failed``.
        :raises InvalidTransition: if the lifecycle does not allow the change. Nothing is changed.
        """
        return (await self._call(run_calls.TRANSITION_RUN, request)).run

    @takes(run_calls.CancelRun)
    async def cancel_run(self, request: run_calls.CancelRun) -> run_calls.CancelReply:
        """Cancel a run. Its status is ``canceled`` when the agent's processes are gone."""
        return await self._call(run_calls.CANCEL_RUN, request)

    async def diagnose_run(self, run_id: str) -> run_calls.DiagnosisReply:
        """Return the state of a run, with evidence and its most likely explanation."""
        return await self._call(run_calls.DIAGNOSE_RUN, run_calls.DiagnoseRun(run_id))

    @takes(retention_calls.PruneSession)
    async def prune_session(
        self, request: retention_calls.PruneSession
    ) -> retention_calls.PruneReply:
        """Delete the events of a session that exceed limits: those given, or else the session's.

        :param through: delete the events up to this ``seq`` instead.
        :raises Forbidden: if the caller is not an owner of the session, or is an agent.
        """
        return await self._call(retention_calls.PRUNE_SESSION, request)

    # --- events -------------------------------------------------------------------------------

    @takes(event_calls.ListEvents)
    async def list_events(self, request: event_calls.ListEvents) -> event_calls.EventPage:
        """Return a page of a session's events after a cursor.

        :param epoch: the epoch of the previous page. It lets the engine detect a log that was restored
            from a backup since.
        :raises CursorAhead: if the log has no such cursor, or was restored from a backup since that
            epoch. ``details["resume_cursor"]`` is the cursor to resume at.
        :raises Gone: if events after the cursor are no longer kept. ``details["oldest"]`` is the cursor to go
            on from.
        """
        return await self._call(event_calls.LIST_EVENTS, request)

    def events(
        self,
        session_id: str | None = None,
        *,
        cursor: int | str | None = None,
        follow: bool = False,
        epoch: str | None = None,
    ) -> EventStream:
        """Iterate over the events after a cursor: ``async for event in client.events(…)``.

        :param session_id: None for all sessions the caller may read. The cursor is then an opaque
            string, which ``client.transport.subscribe`` returns with each event.
        :param cursor: None means the oldest event that is kept, ``"head"`` the current end of the log.
        :param follow: wait for new events, forever. Otherwise stop at the current end of the log.
        :param epoch: the epoch of the stream or page with the cursor (``EventStream.epoch``,
            ``EventPage.epoch``). Used with a single session.
        :raises CursorAhead: on the first iteration, if the log has no such cursor, or was restored from
            a backup since that epoch. ``details["resume_cursor"]`` is the cursor to resume at.
        :raises Gone: if events after the cursor are no longer kept. ``details["oldest"]`` is the cursor to go
            on from.
        """
        ids = () if session_id is None else (session_id,)
        starts_first = cursor is None or (session_id is None and cursor == 0)
        start = None if starts_first else str(cursor)
        return EventStream(
            self.transport, event_calls.StreamRequest(ids, start, epoch), follow=follow
        )

    # --- the engine ---------------------------------------------------------------------------

    async def status(self) -> daemon_calls.DaemonStatus:
        """Return the status of the engine, its workers, providers and store."""
        return await self._call(daemon_calls.STATUS, daemon_calls.GetStatus())

    async def back_up(
        self, path: str | PathLike[str], *, force: bool = False
    ) -> daemon_calls.BackupReply:
        """Write a consistent and checked copy of the store to a file on the engine's machine.

        :param path: an absolute path. The file is accessible to its owner only.
        :param force: replace an existing file.
        :raises Conflict: if the file exists and ``force`` is not set, or the store has no file.
        :raises Forbidden: if the caller is not an administrator.
        :raises InvalidRequest: if the path cannot be written.
        :raises Unavailable: if the disk is full.
        """
        return await self._call(
            daemon_calls.BACK_UP, daemon_calls.BackUp(fspath(path), force=force)
        )

    async def check_store(self) -> daemon_calls.CheckReply:
        """Check the integrity of the store.

        :raises Forbidden: if the caller is not an administrator.
        """
        return await self._call(daemon_calls.CHECK_STORE, daemon_calls.CheckStore())

    async def doctor(self) -> daemon_calls.DoctorReport:
        """Check the daemon, its providers, store and settings for errors and risks.

        :raises Forbidden: if the caller is not an administrator.
        """
        return await self._call(daemon_calls.DOCTOR, daemon_calls.Doctor())

    @takes(access_calls.ListAudit)
    async def list_audit(self, request: access_calls.ListAudit) -> access_calls.AuditPage:
        """Return a page of the audit trail.

        :raises Forbidden: if the caller is not an administrator.
        """
        return await self._call(access_calls.LIST_AUDIT, request)

    @takes(access_calls.CreateToken)
    async def create_token(self, request: access_calls.CreateToken) -> access_calls.NewToken:
        """Create a named token. Its ``secret`` is returned only here.

        :raises Forbidden: if the caller is not an administrator.
        """
        return await self._call(access_calls.CREATE_TOKEN, request)

    @takes(access_calls.ListTokens)
    async def list_tokens(self, request: access_calls.ListTokens) -> access_calls.TokenPage:
        """Return a page of the named tokens. Revoked and expired tokens are included."""
        return await self._call(access_calls.LIST_TOKENS, request)

    @takes(device_calls.AddDevice)
    async def add_device(self, request: device_calls.AddDevice) -> device_calls.NewInvitation:
        """Invite a device. Its ``code`` is returned only here, and valid for five minutes.

        :raises Forbidden: if the caller is not an administrator.
        """
        return await self._call(device_calls.ADD_DEVICE, request)

    @takes(device_calls.ClaimDevice)
    async def claim_device(self, request: device_calls.ClaimDevice) -> device_calls.NewDevice:
        """Exchange the code of an invitation for the secrets of a device. The caller needs no token.

        :raises Unauthorized: if the code is wrong, used or expired.
        """
        return await self._call(device_calls.CLAIM_DEVICE, request)

    @takes(device_calls.ListDevices)
    async def list_devices(self, request: device_calls.ListDevices) -> device_calls.DevicePage:
        """Return a page of the caller's devices, or of all for an administrator; revoked ones too."""
        return await self._call(device_calls.LIST_DEVICES, request)

    async def revoke_device(self, token_id: str) -> AccessToken:
        """Revoke a device, and end its streams.

        :raises NotFound: if it is not the caller's, unless the caller is an administrator.
        """
        request = device_calls.RevokeDevice(token_id)
        return (await self._call(device_calls.REVOKE_DEVICE, request)).device

    async def revoke_token(self, token_id: str) -> AccessToken:
        """Revoke a named token, and end the streams and waits that use it."""
        return (
            await self._call(access_calls.REVOKE_TOKEN, access_calls.RevokeToken(token_id))
        ).token

    # --- notices ------------------------------------------------------------------------------

    @takes(notice_calls.ListNotices)
    async def list_notices(self, request: notice_calls.ListNotices) -> notice_calls.NoticePage:
        """Return a page of the notices. Callers who are not administrators see those of their
        devices.
        """
        return await self._call(notice_calls.LIST_NOTICES, request)

    @takes(notice_calls.GetNotice)
    async def get_notice(self, request: notice_calls.GetNotice) -> Notice:
        """Return a notice. With ``wait_s``, wait until it is no longer ``queued``."""
        return (await self._call(notice_calls.GET_NOTICE, request)).notice

    async def test_notice(self, target: str | None = None) -> tuple[Notice, ...]:
        """Queue a test notice for one target of the settings or device of the caller, or for all.

        Only administrators can test targets of the settings.

        :raises Conflict: if there is none.
        :raises InvalidRequest: if there is no such target or device.
        """
        return (await self._call(notice_calls.TEST_NOTICE, notice_calls.TestNotice(target))).notices

    async def retry_notice(self, notice_id: str) -> Notice:
        """Send a failed notice again.

        :raises Conflict: if it has not failed.
        :raises Forbidden: if the caller is not an administrator.
        """
        return (
            await self._call(notice_calls.RETRY_NOTICE, notice_calls.RetryNotice(notice_id))
        ).notice

    @takes(push_calls.SubscribePush)
    async def subscribe_push(self, request: push_calls.SubscribePush) -> PushDevice:
        """Send notices to a browser. A repeat with the same endpoint replaces its subscription.

        :raises Conflict: if the engine does not send notices to browsers, or the caller has 20 subscriptions.
        :raises InvalidRequest: if the push service is not a known one, or a key is invalid.
        """
        return (await self._call(push_calls.SUBSCRIBE_PUSH, request)).subscription

    @takes(push_calls.ListPush)
    async def list_push(self, request: push_calls.ListPush) -> push_calls.PushPage:
        """Return a page of the caller's push subscriptions. An administrator sees all."""
        return await self._call(push_calls.LIST_PUSH, request)

    @takes(push_calls.UpdatePush)
    async def update_push(self, request: push_calls.UpdatePush) -> PushDevice:
        """Change what a browser is notified of, and when. None leaves a field as it is.

        :raises NotFound: if the subscription, or a session of ``muted``, is not the caller's to see.
        """
        return (await self._call(push_calls.UPDATE_PUSH, request)).subscription

    async def unsubscribe_push(self, subscription_id: str) -> PushDevice:
        """Stop sending notices to a browser, and return its subscription as it was."""
        command = push_calls.UnsubscribePush(subscription_id)
        return (await self._call(push_calls.UNSUBSCRIBE_PUSH, command)).subscription

    async def get_push_key(self) -> str:
        """Return the public key that a browser needs to subscribe, in base64url."""
        return (await self._call(push_calls.GET_PUSH_KEY, push_calls.GetPushKey())).key

    async def report_notice(self, notice_id: str, state: Literal["shown", "clicked"]) -> Notice:
        """Report that a device has shown a notice, or that somebody has opened it.

        :raises NotFound: if it is not for a device of the caller.
        """
        command = push_calls.ReportNotice(notice_id, state)
        return (await self._call(push_calls.REPORT_NOTICE, command)).notice
