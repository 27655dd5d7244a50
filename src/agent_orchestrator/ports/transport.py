"""Transports: connections to an engine."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Generic, Protocol, TypeVar

from attrs import frozen

from agent_orchestrator.domain.access import Principal
from agent_orchestrator.operations.events import StreamPart, StreamRequest
from agent_orchestrator.operations.table import Operation

Req = TypeVar("Req")
Res = TypeVar("Res")


@frozen
class Reply(Generic[Res]):
    """An answer, and whether it repeats an earlier one because of its idempotency key."""

    answer: Res
    replayed: bool = False
    text: str | None = None
    """The answer as JSON, if it is already encoded."""


class Subscription(Protocol):
    """A reader of a stream. Cancelling :meth:`receive` loses nothing."""

    @property
    def epoch(self) -> str | None:
        """The epoch of the log. Send it with a cursor to resume the stream."""
        ...

    async def receive(self) -> Sequence[StreamPart]:
        """Wait for the next parts, at least one, and return them.

        :raises OrchestratorError: if the reader has lost access.
        """
        ...

    async def wait_revoked(self) -> None:
        """Wait until the reader has lost access. For a server whose client does not read.

        :raises OrchestratorError: then. It never returns.
        """
        ...


class Download(Protocol):
    """A reader of a stream of JSON lines. Cancelling :meth:`receive` may lose a part."""

    async def receive(self) -> bytes:
        """Return the next part, at line ends or not; empty at the end.

        :raises OrchestratorError: if the reader has lost access, or the rest cannot be read.
        :raises Unreachable: if the connection broke.
        """
        ...


class Transport(Protocol):
    """A connection to an engine: in the same process, or over HTTP."""

    async def call(self, operation: Operation[Req, Res], request: Req) -> Reply[Res]:
        """Call an operation and return its reply.

        :raises OrchestratorError: if it is refused.
        :raises Unreachable: if there is no answer.
        """
        ...

    def download(
        self, operation: Operation[Req, Res], request: Req
    ) -> AbstractAsyncContextManager[Download]:
        """Open the answer of an operation that answers with lines.

        :raises OrchestratorError: on entering, if it is refused.
        """
        ...

    async def upload(
        self, operation: Operation[Req, Res], request: Req, data: AsyncIterator[bytes]
    ) -> Reply[Res]:
        """Call an operation that takes lines, and return its reply.

        :param data: the lines, cut anywhere.
        :raises OrchestratorError: if it is refused.
        :raises Unreachable: if there is no answer.
        """
        ...

    def subscribe(self, request: StreamRequest) -> AbstractAsyncContextManager[Subscription]:
        """Open a stream.

        :raises OrchestratorError: on entering, if it is refused.
        """
        ...


class Gateway(Protocol):
    """The engine's interface for a server: a transport for each caller."""

    def acting_as(self, principal: Principal) -> Transport: ...

    async def holder(self, token_hash: str) -> Principal | None:
        """Return the caller that one of the engine's tokens stands for; None if it is not valid.

        :param token_hash: from :func:`agent_orchestrator.domain.tokens.token_hash`.
        """
        ...

    def has_tokens(self) -> bool:
        """Return True if a named token was ever created: from then on callers need one."""
        ...
