"""The connection to the daemon: retried calls, and streams that survive restarts."""

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any, Final, TypeVar, cast

import anyio
import httpx
from attrs import evolve, frozen

from agent_orchestrator.client import Client
from agent_orchestrator.domain.errors import (
    ConfigError,
    Gone,
    OrchestratorError,
    Unavailable,
    Unreachable,
)
from agent_orchestrator.domain.model import Event
from agent_orchestrator.fields import check
from agent_orchestrator.operations.events import CaughtUp, StreamItem, StreamPart, StreamRequest
from agent_orchestrator.operations.table import Operation
from agent_orchestrator.ports.transport import Download, Reply, Subscription, Transport
from agent_orchestrator.remote import connect
from agent_orchestrator.transports.http import HttpTransport
from agent_orchestrator.user_state import read_private, user_state
from agent_orchestrator.wire.codec import command
from agentctl.failures import (
    Failure,
    failure_of,
    unknown_to_daemon,
    unreachable,
    usage_failure,
    version_mismatch,
)
from agentctl.output import Output
from agentctl.progress import waiting
from agentctl.settings import CallSettings
from agentctl.times import duration

Req = TypeVar("Req")
Res = TypeVar("Res")
T = TypeVar("T")

RETRY_S: Final = 15.0
"""Seconds to retry a call after a lost connection or a 503. A restart takes a second or two."""
FOLLOW_RETRY_S: Final = 60.0
"""Seconds to retry a lost stream. Used by commands that wait for a run."""

_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 2.0


class _Backoff:
    """Exponential pauses between retries, up to a deadline."""

    def __init__(self, retry_s: float | None) -> None:
        self._end = None if retry_s is None else anyio.current_time() + retry_s
        self._next = _FIRST_PAUSE_S

    async def pause(self, least_s: float = 0.0) -> bool:
        """Sleep before the next retry. Return False at once if that would exceed the deadline."""
        pause = max(self._next, least_s)
        if self._end is not None and anyio.current_time() + pause > self._end:
            return False
        self._next = min(self._next * 2, _LONGEST_PAUSE_S)
        await anyio.sleep(pause)
        return True


class DaemonConnection:
    """A transport to the daemon that retries where that is safe.

    A daemon that was never reached is reported at once. A call whose connection was lost is retried.
    Mutations carry an idempotency key, so a retry does not repeat their effect.
    """

    def __init__(self, transport: Transport, output: Output) -> None:
        self._transport = transport
        self.output = output
        self._was_reached = False
        self.retry_s = RETRY_S
        """Seconds to retry a call."""

    @property
    def url(self) -> str:
        """The daemon's URL."""
        return self.output.settings.url

    async def call(self, operation: Operation[Req, Res], **values: Any) -> Res:
        """Call an operation and return its answer. Values that are None are omitted.

        :raises OrchestratorError: if the call is refused.
        :raises Unreachable: if the daemon does not answer.
        """
        return (await self.reply(operation, **values)).answer

    async def reply(self, operation: Operation[Req, Res], **values: Any) -> Reply[Res]:
        """Call an operation like :meth:`call`. The reply also shows whether the answer is replayed."""
        from agentctl.ids import whole_ids

        present = {name: value for name, value in values.items() if value is not None}
        # Checked first, so that an invalid call is reported without a request to the daemon.
        check(operation.request, command(operation.request, present | _placeholders(present)))
        present = await whole_ids(self, present)
        return await self.perform(operation, command(operation.request, present))

    async def perform(self, operation: Operation[Req, Res], request: Req) -> Reply[Res]:
        """Call an operation with a prepared request."""
        if operation.is_mutation and getattr(request, "idempotency_key", "takes none") is None:
            key = secrets.token_hex(16)
            request = cast("Req", evolve(cast("Any", request), idempotency_key=key))
        with waiting(self.output, "waiting for agentd"):
            return await self._with_retry(lambda: self._transport.call(operation, request))

    def download(
        self, operation: Operation[Req, Res], request: Req
    ) -> AbstractAsyncContextManager[Download]:
        """Open the lines of an operation, without retries."""
        return self._transport.download(operation, request)

    async def upload(
        self, operation: Operation[Req, Res], request: Req, data: AsyncIterator[bytes]
    ) -> Reply[Res]:
        """Call an operation that takes lines, without retries."""
        return await self._transport.upload(operation, request, data)

    def subscribe(self, request: StreamRequest) -> AbstractAsyncContextManager[Subscription]:
        """Subscribe to a stream, without retries."""
        return self._transport.subscribe(request)

    def client(self) -> Client:
        """Return a client whose calls are retried."""
        return Client(_RetryingTransport(self))

    async def _with_retry(self, attempt: Callable[[], Awaitable[T]]) -> T:
        pauses = _Backoff(self.retry_s)
        while True:
            try:
                result = await attempt()
            except Unreachable as error:
                if not self._may_return(error) or not await pauses.pause():
                    raise
            except Unavailable as error:
                self._was_reached = True
                if not await pauses.pause(error.retry_after_s):
                    raise
            else:
                self._was_reached = True
                return result

    def _may_return(self, error: Unreachable) -> bool:
        """Return whether the daemon was reached before, so that a retry makes sense."""
        if not _is_refusal(error):
            self._was_reached = True
        return self._was_reached

    async def follow(
        self,
        session_id: str,
        cursor: int,
        take: Callable[[Event], bool],
        *,
        retry_s: float | None = FOLLOW_RETRY_S,
        epoch: str | None = None,
        has_ended: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        """Pass the events of a session to ``take`` until it returns True; see :meth:`stream`.

        :param has_ended: asked if the first events are no longer kept. If it returns True, what ``take``
            waits for may be among them, so this returns at the end of the log.
        """
        await self.stream(
            (session_id,),
            str(cursor),
            lambda item: isinstance(item, StreamItem) and take(item.event),
            retry_s=retry_s,
            epoch=epoch,
            has_ended=has_ended,
        )

    async def stream(
        self,
        session_ids: tuple[str, ...],
        cursor: str,
        take: Callable[[StreamPart], bool],
        *,
        retry_s: float | None = FOLLOW_RETRY_S,
        on_lost: Callable[[], None] = lambda: None,
        epoch: str | None = None,
        has_ended: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        """Pass everything after the cursor to ``take``, once and in order, until it returns True.

        Go on from the oldest event, with a word, if those after the cursor are no longer kept.

        :param session_ids: the sessions; none means all that the caller may read.
        :param retry_s: seconds to reconnect; None means forever.
        :param on_lost: called when the connection is lost.
        :param epoch: the epoch of the cursor, if known.
        :param has_ended: see :meth:`follow`.
        :raises OrchestratorError: if the stream is refused.
        :raises Unreachable: if the daemon was never reached, or reconnecting fails.
        """
        lost_at: float | None = None
        ends_when_caught_up = False
        pauses = _Backoff(retry_s)
        while True:
            try:
                request = StreamRequest(session_ids, cursor, epoch)
                async with self._transport.subscribe(request) as subscription:
                    epoch = subscription.epoch or epoch
                    self._was_reached = True
                    if lost_at is not None:
                        away = duration(anyio.current_time() - lost_at)
                        self.output.announce(f"agentctl: connected again after {away}")
                        lost_at, pauses = None, _Backoff(retry_s)
                    while True:
                        for item in await subscription.receive():
                            cursor = item.cursor
                            pauses = _Backoff(retry_s)
                            if take(item) or (ends_when_caught_up and isinstance(item, CaughtUp)):
                                return
            except Gone as error:
                cursor = str(error.details["oldest"])
                self.announce_gone()
                ends_when_caught_up = has_ended is not None and await has_ended()
            except (Unreachable, Unavailable) as error:
                lost = isinstance(error, Unavailable) or self._may_return(error)
                if lost and lost_at is None:
                    lost_at = anyio.current_time()
                    pauses = _Backoff(retry_s)
                    on_lost()
                    self.output.announce("agentctl: connection lost, connecting again …")
                if not lost or not await pauses.pause():
                    raise

    def announce_gone(self) -> None:
        """Say that events were deleted before they could be read."""
        self.output.announce("agentctl: earlier events are no longer kept, going on after them")


@frozen
class _RetryingTransport:
    """The transport interface of a connection."""

    connection: DaemonConnection

    async def call(self, operation: Operation[Req, Res], request: Req) -> Reply[Res]:
        return await self.connection.perform(operation, request)

    def download(
        self, operation: Operation[Req, Res], request: Req
    ) -> AbstractAsyncContextManager[Download]:
        return self.connection.download(operation, request)

    async def upload(
        self, operation: Operation[Req, Res], request: Req, data: AsyncIterator[bytes]
    ) -> Reply[Res]:
        return await self.connection.upload(operation, request, data)

    def subscribe(self, request: StreamRequest) -> AbstractAsyncContextManager[Subscription]:
        return self.connection.subscribe(request)


def _placeholders(values: Mapping[str, Any]) -> dict[str, str]:
    """Return ids in place of ``@last`` and ``@N``, for a check of the other fields."""
    return {
        name: "id" for name, value in values.items() if name.endswith("_id") and value[:1] == "@"
    }


def _is_refusal(error: Unreachable) -> bool:
    """Return whether the connection could not be established, so that nothing was sent."""
    return isinstance(error.__cause__, (httpx.ConnectError, httpx.ConnectTimeout))


def local_token(settings: CallSettings) -> str | None:
    """Return the token in the token file of the user's local daemon, if there is one."""
    state = user_state() if settings.is_local else None
    token = read_private(state.token_file(settings.port)) if state is not None else None
    return token.decode(errors="replace") if token else None


@asynccontextmanager
async def connected(settings: CallSettings, output: Output) -> AsyncIterator[DaemonConnection]:
    """Open a connection to the configured daemon."""
    # Read for each request, because a restarted daemon writes a new token.
    token = settings.token or partial(local_token, settings)
    async with connect(settings.url, token=token, ca_file=settings.ca_file) as client:
        yield DaemonConnection(client.transport, output)


def run(
    settings: CallSettings,
    output: Output,
    body: Callable[[DaemonConnection], Awaitable[int | None]],
) -> int:
    """Connect, run ``body`` and return its exit code.

    :raises Failure: if the daemon refuses a call or cannot be reached.
    """

    async def main() -> int:
        async with connected(settings, output) as connection:
            return await body(connection) or 0

    try:
        return anyio.run(main)
    except BaseException as error:
        raise _cause(error, settings) from error


async def _version_at(settings: CallSettings) -> str | None:
    """Return the version of the configured daemon, or None if it cannot be determined."""
    async with connect(settings.url, ca_file=settings.ca_file) as client:
        transport = client.transport
        return await transport.version() if isinstance(transport, HttpTransport) else None


def _cause(error: BaseException, settings: CallSettings) -> BaseException:
    """Return the exception to report. For a group, that is one of its members, a ``Failure`` if any."""
    while isinstance(error, BaseExceptionGroup):
        members = [member for member in error.exceptions if isinstance(member, Failure)]
        error = (members or error.exceptions)[0]
    if isinstance(error, Unreachable):
        return unreachable(error, settings)
    if isinstance(error, OrchestratorError):
        unknown = unknown_to_daemon(error)
        daemon_version = None if unknown is None else anyio.run(_version_at, settings)
        return (
            failure_of(error)
            if daemon_version is None
            else version_mismatch(error, settings, daemon_version)
        )
    if isinstance(error, ConfigError):
        return usage_failure(str(error))
    return error
