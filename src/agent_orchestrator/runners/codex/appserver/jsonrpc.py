"""The protocol of ``codex app-server``: JSON-RPC in lines, with requests from both sides.

Codex 0.169 sends no ``jsonrpc`` field. Each side numbers its requests, so both can use the same id.
"""

import itertools
import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final, Protocol

import anyio
from attrs import define, field, frozen

from agent_orchestrator.domain.errors import AgentFailed
from agent_orchestrator.runners.bulk import LONG_LINE, Text, read, read_object, read_text
from agent_orchestrator.runners.lines import Line
from agent_orchestrator.wire import strict_json

METHOD_NOT_FOUND: Final = -32601

WRITE_TIMEOUT_S: Final = 30.0
"""Seconds for codex to read a message. It normally reads at once, even when it is busy."""

MAX_UNWRITTEN: Final = 64 * 2**20
"""Bytes that may wait to be written before the other side counts as stuck."""


_ENCODE: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class RpcError(Exception):
    """The other side answered a request with an error."""

    def __init__(self, method: str, code: int, message: str) -> None:
        super().__init__(message)
        self.method = method
        self.code = code
        self.message = message


class PeerTimeout(Exception):
    """The other side does not read, or does not answer."""


@frozen
class Notification:
    """A message of the other side that takes no answer.

    :param size: bytes of its line.
    """

    method: str
    params: Mapping[str, Any]
    size: int = 0

    @property
    def is_long(self) -> bool:
        """Whether reading it takes long: see :mod:`agent_orchestrator.runners.bulk`."""
        return self.size >= LONG_LINE or strict_json.is_long(self.params)


@frozen
class ServerRequest:
    """A request of the other side.

    Answer it with :meth:`JsonRpcPeer.respond` or :meth:`JsonRpcPeer.refuse`.
    """

    id: str | int
    method: str
    params: Mapping[str, Any]
    size: int = 0

    @property
    def is_long(self) -> bool:
        """Whether reading it takes long."""
        return self.size >= LONG_LINE or strict_json.is_long(self.params)


@frozen
class Malformed:
    """A line that is not a message, or one too large to be read."""

    text: Text


Incoming = Notification | ServerRequest | Malformed


class Channel(Protocol):
    """The transport of lines to and from the other side."""

    def lines(self) -> AsyncIterator[Line]: ...

    async def write(self, data: bytes) -> None: ...


@define(eq=False)
class _PendingCall:
    method: str
    done: anyio.Event = field(factory=anyio.Event)
    answer: Mapping[str, Any] | None = None


@define(eq=False)
class JsonRpcPeer:
    """One side of the connection. Its user must run :meth:`read` and :meth:`write` as tasks."""

    _channel: Channel
    _on_message: Callable[[Incoming], Awaitable[None]]
    _calls: dict[int, _PendingCall] = field(factory=dict, init=False)
    _ids: "itertools.count[int]" = field(factory=lambda: itertools.count(1), init=False)
    _unwritten: deque[bytes] = field(factory=deque, init=False)
    _size: int = field(default=0, init=False)
    _work: anyio.Event = field(factory=anyio.Event, init=False)
    _failure: AgentFailed | None = field(default=None, init=False)

    async def request(self, method: str, params: Mapping[str, Any], *, timeout_s: float) -> Any:
        """Send a request and return the result.

        :raises Refused: if the answer is an error.
        :raises PeerTimeout: if there is no answer in time.
        :raises AgentFailed: if the other side is gone; see :meth:`end`.
        """
        self._check()
        number = next(self._ids)
        call = self._calls[number] = _PendingCall(method)
        try:
            self._send({"id": number, "method": method, "params": params})
            with anyio.move_on_after(timeout_s):
                await call.done.wait()
        finally:
            self._calls.pop(number, None)
        if call.answer is None:
            self._check()
            raise PeerTimeout(f"codex did not answer {method} in {timeout_s:g} s")
        if "error" in call.answer:
            raise _error_message(method, call.answer["error"])
        return call.answer.get("result")

    def notify(self, method: str) -> None:
        """Send a notification."""
        self._send({"method": method})

    def respond(self, request: ServerRequest, result: Mapping[str, Any]) -> None:
        """Answer a request."""
        self._send({"id": request.id, "result": result})

    def refuse(self, request: ServerRequest, message: str, code: int = METHOD_NOT_FOUND) -> None:
        """Answer a request with an error."""
        self._send({"id": request.id, "error": {"code": code, "message": message}})

    def end(self, failure: AgentFailed) -> None:
        """Fail all pending requests, and all later ones."""
        self._failure = failure
        for call in self._calls.values():
            call.done.set()

    def _check(self) -> None:
        if self._failure is not None:
            raise AgentFailed(self._failure.code, self._failure.message)

    async def read(self) -> None:
        """Read messages until the other side closes."""
        async for line in self._channel.lines():
            incoming = await self._parse(line)
            del line  # may be large, and so may what follows
            if incoming is not None:
                await self._on_message(incoming)

    async def _parse(self, line: Line) -> Incoming | None:
        """Return the message of a line; None for a response, which goes to its waiting request."""
        message = await read(line, read_object)
        if isinstance(message, Text):
            return Malformed(message) if message.text.strip() else None
        if isinstance(method := message.get("method"), str):
            params = message.get("params")
            fields = params if isinstance(params, dict) else {}
            if "id" not in message:
                return Notification(method, fields, len(line.data))
            if isinstance(message["id"], (str, int)):
                return ServerRequest(message["id"], method, fields, len(line.data))
            return Malformed(await read(line, read_text))  # cannot be answered
        return None if self._resolve_call(message) else Malformed(await read(line, read_text))

    def _resolve_call(self, response: Mapping[str, Any]) -> bool:
        number = response.get("id")
        if not isinstance(number, int) or not ("result" in response or "error" in response):
            return False
        call = self._calls.get(number)
        if call is not None and not call.done.is_set():
            call.answer = response
            call.done.set()
        return True  # also if the waiting request was canceled

    async def write(self) -> None:
        """Write queued messages until canceled.

        :raises PeerTimeout: if the other side does not read.
        :raises OSError: if it is gone.
        """
        while True:
            await self._work.wait()
            self._work = anyio.Event()
            while self._unwritten:
                data = b"".join(self._unwritten)
                self._unwritten.clear()
                self._size = 0
                with anyio.move_on_after(WRITE_TIMEOUT_S) as time_limit:
                    await self._channel.write(data)
                if time_limit.cancelled_caught:
                    raise PeerTimeout("codex does not read its input")

    def _send(self, message: Mapping[str, Any]) -> None:
        if self._failure is not None:
            return
        data = _ENCODE(message).encode() + b"\n"
        if self._size + len(data) > MAX_UNWRITTEN:
            raise PeerTimeout("codex does not read its input")
        self._unwritten.append(data)
        self._size += len(data)
        self._work.set()


def _error_message(method: str, error: Any) -> RpcError:
    if not isinstance(error, dict):
        return RpcError(method, 0, json.dumps(error))
    code = error.get("code")
    message = error.get("message")
    return RpcError(
        method,
        code if isinstance(code, int) else 0,
        message if isinstance(message, str) else json.dumps(error),
    )
