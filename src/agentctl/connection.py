"""The way to the daemon: calls that outlive a lost connection, and logs followed across restarts."""

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any, Final, TypeVar, cast

import anyio
import httpx
from attrs import evolve, frozen

from agent_orchestrator.client import Client
from agent_orchestrator.domain.errors import (
    ConfigError,
    OrchestratorError,
    Unavailable,
    Unreachable,
)
from agent_orchestrator.domain.model import Event
from agent_orchestrator.operations import Operation, StreamItem, StreamPart, StreamRequest
from agent_orchestrator.ports import Reply, Subscription, Transport
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
"""How long a call goes on trying after a connection was lost or the daemon said "not now": a
restart takes a second or two."""

FOLLOW_RETRY_S: Final = 60.0
"""How long a command that waits for a run's end goes on looking for a daemon that went away."""

_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 2.0


class _Backoff:
    """Growing pauses between tries, up to a moment at which it is given up."""

    def __init__(self, retry_s: float | None) -> None:
        self._end = None if retry_s is None else anyio.current_time() + retry_s
        self._next = _FIRST_PAUSE_S

    async def pause(self, least_s: float = 0.0) -> bool:
        """Wait before the next try; False when there should be none."""
        pause = max(self._next, least_s)
        if self._end is not None and anyio.current_time() + pause > self._end:
            return False
        self._next = min(self._next * 2, _LONGEST_PAUSE_S)
        await anyio.sleep(pause)
        return True


class DaemonConnection:
    """A transport to the daemon that tries again where that is safe and makes sense.

    A daemon that was never reached is reported at once. A connection that was lost later, or in
    the middle of a call, is tried again: a mutation carries its idempotency key, so that it happens
    once however often it is sent.
    """

    def __init__(self, transport: Transport, output: Output) -> None:
        self._transport = transport
        self._output = output
        self._was_reached = False
        self.retry_s = RETRY_S
        """How long a call is tried again after its connection was lost."""

    async def call(self, operation: Operation[Req, Res], **values: Any) -> Res:
        """Carry out an operation; values that are None are left to their defaults.

        :raises OrchestratorError: if it is refused.
        :raises Unreachable: if there was no answer.
        """
        return (await self.reply(operation, **values)).answer

    async def reply(self, operation: Operation[Req, Res], **values: Any) -> Reply[Res]:
        """Carry out an operation and tell whether the answer is a repetition."""
        given = {name: value for name, value in values.items() if value is not None}
        return await self.perform(operation, command(operation.request, given))

    async def perform(self, operation: Operation[Req, Res], request: Req) -> Reply[Res]:
        """Carry out an operation."""
        if operation.is_mutation and getattr(request, "idempotency_key", "takes none") is None:
            key = secrets.token_hex(16)
            request = cast("Req", evolve(cast("Any", request), idempotency_key=key))
        with waiting(self._output, "waiting for agentd"):
            return await self._with_retry(lambda: self._transport.call(operation, request))

    def subscribe(self, request: StreamRequest) -> AbstractAsyncContextManager[Subscription]:
        """Open a stream."""
        return self._transport.subscribe(request)

    def client(self) -> Client:
        """Return a client whose calls are tried again likewise."""
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
        """Tell whether a daemon that does not answer was there a moment ago."""
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
    ) -> None:
        """Hand over every event of a session; see :meth:`stream`."""
        await self.stream(
            (session_id,),
            str(cursor),
            lambda item: isinstance(item, StreamItem) and take(item.event),
            retry_s=retry_s,
            epoch=epoch,
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
    ) -> None:
        """Hand over what comes after the cursor, once and in order, until ``pause`` returns True.

        :param session_ids: of which sessions; of all that may be read, without any.
        :param retry_s: how long to look for a daemon that went away; None means for ever.
        :param on_lost: called when it went away.
        :param epoch: in which the cursor was read, if that is known.
        :raises OrchestratorError: if the stream is refused.
        :raises Unreachable: if the daemon was never there, or stays away.
        """
        lost_at: float | None = None
        pauses = _Backoff(retry_s)
        while True:
            try:
                request = StreamRequest(session_ids, cursor, epoch)
                async with self._transport.subscribe(request) as subscription:
                    epoch = subscription.epoch or epoch
                    self._was_reached = True
                    if lost_at is not None:
                        away = duration(anyio.current_time() - lost_at)
                        self._output.announce(f"agentctl: connected again after {away}")
                        lost_at, pauses = None, _Backoff(retry_s)
                    while True:
                        for item in await subscription.receive():
                            cursor = item.cursor
                            pauses = _Backoff(retry_s)
                            if take(item):
                                return
            except (Unreachable, Unavailable) as error:
                lost = isinstance(error, Unavailable) or self._may_return(error)
                if lost and lost_at is None:
                    lost_at = anyio.current_time()
                    pauses = _Backoff(retry_s)
                    on_lost()
                    self._output.announce("agentctl: connection lost, connecting again …")
                if not lost or not await pauses.pause():
                    raise


@frozen
class _RetryingTransport:
    """A connection as a transport."""

    connection: DaemonConnection

    async def call(self, operation: Operation[Req, Res], request: Req) -> Reply[Res]:
        return await self.connection.perform(operation, request)

    def subscribe(self, request: StreamRequest) -> AbstractAsyncContextManager[Subscription]:
        return self.connection.subscribe(request)


def _is_refusal(error: Unreachable) -> bool:
    """Tell whether no connection came about, so that nothing can have been sent."""
    return isinstance(error.__cause__, (httpx.ConnectError, httpx.ConnectTimeout))


def local_token(settings: CallSettings) -> str | None:
    """Return the token that a daemon of this user and machine has left in its file."""
    state = user_state() if settings.is_local else None
    token = read_private(state.token_file(settings.port)) if state is not None else None
    return token.decode(errors="replace") if token else None


@asynccontextmanager
async def connected(settings: CallSettings, output: Output) -> AsyncIterator[DaemonConnection]:
    """Open a connection to the daemon the settings name."""
    # Read for each request: the daemon makes a new one when it starts again.
    token = settings.token or partial(local_token, settings)
    async with connect(settings.url, token=token, ca_file=settings.ca_file) as client:
        yield DaemonConnection(client.transport, output)


def run(
    settings: CallSettings,
    output: Output,
    body: Callable[[DaemonConnection], Awaitable[int | None]],
) -> int:
    """Run a call from its connection to its end and return the exit code.

    :raises Failure: if the daemon refuses or cannot be reached.
    """

    async def main() -> int:
        async with connected(settings, output) as connection:
            return await body(connection) or 0

    try:
        return anyio.run(main)
    except BaseException as error:
        raise _cause(error, settings) from error


async def _version_at(settings: CallSettings) -> str | None:
    """Return the version of the daemon that the settings name; None where it does not say."""
    async with connect(settings.url, ca_file=settings.ca_file) as client:
        transport = client.transport
        return await transport.version() if isinstance(transport, HttpTransport) else None


def _cause(error: BaseException, settings: CallSettings) -> BaseException:
    """Return what a call ended with; of a group, which a task group raises, its first member."""
    while isinstance(error, BaseExceptionGroup):
        members = [member for member in error.exceptions if isinstance(member, Failure)]
        error = (members or error.exceptions)[0]
    if isinstance(error, Unreachable):
        return unreachable(error, settings)
    if isinstance(error, OrchestratorError):
        what = unknown_to_daemon(error)
        theirs = None if what is None else anyio.run(_version_at, settings)
        return failure_of(error) if theirs is None else version_mismatch(error, settings, theirs)
    if isinstance(error, ConfigError):
        return usage_failure(str(error))
    return error
