"""A connection that speaks HTTP/1.1 only: hypercorn's, with fixes.

Hypercorn 0.18 does the parsing (h11), the WebSocket protocol (wsproto) and keep-alive. Changed here:

- HTTP/2 is off, also by prior knowledge and by upgrade. Hypercorn has no setting for that, and its
  HTTP/2 buffers everything that a stalled reader does not take.
- Hypercorn's own refusals get a body in the API's format.
- A request that specifies its end or its host in two ways is refused. So is one with too long headers,
  even if they arrive at once.
- A WebSocket has no extensions, and offers of them are not parsed. Hypercorn decompresses a message before
  it checks the size, so 200 KB of an unauthenticated caller could become 200 MB. An offer with a
  wrong number makes it log a traceback.
- A WebSocket message that is too long, in bytes, is discarded and its sender cut off. Hypercorn buffers all of it,
  and counts characters.
- Bytes are read in small pieces, and other tasks run in between. Hypercorn reads 64 KiB at
  a time; as WebSocket frames of six bytes, these block the event loop for half a second.
- Data for a finished request is dropped. Hypercorn waits forever to deliver it, and
  keeps the connection open.
- The number of lines of a head or a trailer is limited; h11 has no limit.
- A failed WebSocket handshake ends its connection; hypercorn leaves it open.
- A request with a target that is no URL, or a WebSocket handshake that is not ASCII, is refused. Quart and
  hypercorn log a traceback.
- A WebSocket frame that is not valid is answered with a close code. Hypercorn only disconnects.
- Nothing is written to a lost connection.
"""

import asyncio
import logging
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable, Generator
from contextlib import suppress
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import anyio
import h11
from h11._receivebuffer import ReceiveBuffer
from hypercorn.asyncio.task_group import TaskGroup
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.events import Response
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.protocol.ws_stream import FrameTooLargeError, WebsocketBuffer, WSStream
from hypercorn.typing import (
    AppWrapper,
    ASGIReceiveEvent,
    ASGISendEvent,
    ConnectionState,
    H11SendableEvent,
    Scope,
)
from wsproto.connection import Connection as SocketState
from wsproto.connection import ConnectionState as SocketPhase
from wsproto.connection import ConnectionType
from wsproto.events import CloseConnection, Message, TextMessage
from wsproto.events import Event as SocketEvent
from wsproto.handshake import WEBSOCKET_VERSION

from agent_orchestrator.domain import errors
from agent_orchestrator.wire import problems, strict_json
from agentd.lockout import Peer

STALL_S: Final = 60.0
STALLED_BYTES: Final = 4 * 1024
"""A reader that takes less than ``STALLED_BYTES`` in ``STALL_S`` seconds is cut off. Its unread data, up to
the longest possible event, occupies memory, and its connection a file descriptor."""

CLOSE_S: Final = 1.0
"""Seconds to wait for the peer to close the connection too, over TLS and after a message that was too
long."""

SECURED_BUFFER: Final = 64 * 1024
"""Bytes buffered for a reader over TLS, besides the kernel's buffer."""

READ_BYTES: Final = 64 * 1024
"""Bytes read at a time from an authenticated caller."""

UNAUTHENTICATED_BYTES: Final = 4 * 1024
"""Bytes read at a time from any other caller."""

WRITE_BYTES: Final = 64 * 1024
"""Bytes written at a time."""

FRAME_BYTES: Final = 256
"""Bytes of a WebSocket parsed before other tasks get a turn: at most some 40 frames."""

MAX_LINES: Final = 512
"""Maximum number of lines of a request's head, and of a trailer."""

_log = logging.getLogger("agentd.server")

_MESSAGES: Final = {
    426: "only version 13 of the WebSocket protocol is supported",
    431: "the request line and headers are too long",
    501: "the only supported transfer coding is `chunked`",
    505: "only HTTP/1.1 is supported",
}
_NO_LINGER: Final = struct.pack("ii", 1, 0)
_INVALID: Final = "the request is not valid HTTP/1.1"
_NO_HANDSHAKE: Final = "the WebSocket handshake is not valid, or frames came before its answer"
_EMPTY_ANSWER_HEADERS: Final = {(b"content-length", b"0"), (b"connection", b"close")}
_EXTENSIONS: Final = b"sec-websocket-extensions"
_ASCII_HEADERS: Final = (b"connection", b"sec-websocket-protocol")
"""The headers that hypercorn decodes as ASCII when a WebSocket is opened."""


class MessageBuffer(WebsocketBuffer):
    """The buffer for a WebSocket message. A message that is too long is discarded.

    :param too_long: called once for such a message.
    """

    def __init__(self, max_length: int, too_long: Callable[[], None]) -> None:
        super().__init__(max_length)
        self._too_long = too_long

    def extend(self, event: Message[Any]) -> None:
        """Add the next part.

        :raises FrameTooLargeError: if the message is too long with it, and for all later parts.
        """
        was_too_long = self.length > self.max_length
        if isinstance(event.data, str):  # hypercorn counts its characters
            self.length += len(event.data.encode()) - len(event.data)
        try:
            super().extend(event)
        except FrameTooLargeError:
            self.value = None
            if not was_too_long:
                self._too_long()
            raise


class Fragment(str):
    """Text that is sent as a part of a message, but not the last part."""

    __slots__ = ()


class _SocketState(SocketState):
    def send(self, event: SocketEvent) -> bytes:
        """Return the bytes to send for an event."""
        if isinstance(event, TextMessage) and isinstance(event.data, Fragment):
            event = TextMessage(event.data, message_finished=False)
        return super().send(event)

    def events(self) -> Generator[SocketEvent]:
        """Yield what the peer has sent. Frames that are not valid end it, with the code that says why."""
        for event in super().events():
            if isinstance(event, CloseConnection) and self.state is SocketPhase.OPEN:
                # Not sent by the peer. Hypercorn answers it as if it were, so the peer gets the code.
                self._state = SocketPhase.REMOTE_CLOSING
            yield event


class _HeadBuffer(ReceiveBuffer):
    """The buffer from which h11 reads, with a limit on the number of lines."""

    def maybe_extract_lines(self) -> list[bytearray] | None:
        """Return the lines of a head or trailer when it is complete.

        :raises RemoteProtocolError: if there are too many lines.
        """
        lines = super().maybe_extract_lines()
        if lines is not None and len(lines) > MAX_LINES:
            raise h11.RemoteProtocolError("too many lines", error_status_hint=431)
        return lines


def _can_be_split(path: bytes) -> bool:
    """Return whether a target without a slash at its beginning can be split as a URL, as quart does."""
    try:
        urlsplit(unquote(path.decode("ascii")))
    except ValueError:
        return False
    return path != b""


class Protocol(H11Protocol):
    """HTTP/1.1 on one connection."""

    cut_soon: Callable[[], None]
    """Ends the connection, after the peer had time to read the reason."""

    _is_head_request = False

    def __init__(self, *hypercorns: Any) -> None:
        super().__init__(*hypercorns)
        assert isinstance(self.connection, h11.Connection)
        self.connection._receive_buffer = _HeadBuffer()  # noqa: SLF001 - h11 offers no other way

    async def handle(self, event: Event) -> None:
        """Process data from the network, or its end."""
        if isinstance(event, RawData) and isinstance(self.stream, WSStream):
            data = event.data
            for start in range(0, len(data), FRAME_BYTES):
                await self._handle_part(RawData(data[start : start + FRAME_BYTES]))
                await asyncio.sleep(0)
        else:
            await self._handle_part(event)

    async def _handle_part(self, event: Event) -> None:
        try:
            await super().handle(event)
        except h11.RemoteProtocolError as error:
            await self._send_error_response(error.error_status_hint)
            await self.send(Closed())
        if isinstance(self.stream, WSStream) and self.stream.closed:
            # Refused by hypercorn, which reports the end neither to the app nor to the network.
            self.stream.closed = False
            await self._maybe_recycle()

    async def _check_protocol(self, event: h11.Request) -> None:
        # Replaces hypercorn's check, which switches to HTTP/2. `Upgrade: h2c` is an offer (RFC 9110,
        # 7.8), and is ignored.
        self._is_head_request = event.method == b"HEAD"
        if event.http_version not in (b"1.0", b"1.1"):
            raise h11.RemoteProtocolError("not HTTP/1", error_status_hint=505)
        # RFC 9112, 6.3: a proxy may have used the other header for the request's end.
        if {b"transfer-encoding", b"content-length"} <= {name for name, _ in event.headers}:
            raise h11.RemoteProtocolError("two ends", error_status_hint=400)
        # h11 only limits incomplete heads: one that arrives in a single read can be longer.
        size = len(event.target) + sum(len(name) + len(value) + 4 for name, value in event.headers)
        if size > self.config.h11_max_incomplete_size:
            raise h11.RemoteProtocolError("too long", error_status_hint=431)
        # RFC 9112, 3.2.2: a host in the target replaces the Host header, so both must be equal.
        scheme, separator, after_scheme = event.target.partition(b"://")
        if separator and b"/" not in scheme:
            named = after_scheme.partition(b"/")[0].partition(b"?")[0].lower()
            hosts = [value.lower() for name, value in event.headers if name == b"host"]
            if hosts != [named]:
                raise h11.RemoteProtocolError("two hosts", error_status_hint=400)
        path = event.target.partition(b"?")[0]
        if not path.startswith(b"/") and not _can_be_split(path):
            raise h11.RemoteProtocolError("no path", error_status_hint=400)
        if any(name in _ASCII_HEADERS and not value.isascii() for name, value in event.headers):
            raise h11.RemoteProtocolError("not ASCII", error_status_hint=400)

    async def _create_stream(self, request: h11.Request) -> None:
        if any(name == _EXTENSIONS for name, _ in request.headers):
            request = h11.Request(
                method=request.method,
                target=request.target,
                headers=[header for header in request.headers if header[0] != _EXTENSIONS],
                http_version=request.http_version,
            )
        await super()._create_stream(request)

    async def stream_send(self, event: StreamEvent) -> None:
        """Send an event of the connection's only request."""
        if (
            isinstance(event, Response)
            and isinstance(self.stream, WSStream)
            and event.status_code == HTTPStatus.SWITCHING_PROTOCOLS
        ):
            # Set before a frame is parsed: a compressed frame is an error.
            self.stream.connection = _SocketState(ConnectionType.SERVER)
            max_length = self.config.websocket_max_message_size
            self.stream.buffer = MessageBuffer(max_length, self.cut_soon)
        await super().stream_send(event)

    async def _send_h11_event(self, event: H11SendableEvent) -> None:
        # Hypercorn's own answers have a Connection header; the app's have none.
        if (
            not isinstance(event, h11.Response)
            or self._is_head_request
            or event.status_code < 400
            or not _EMPTY_ANSWER_HEADERS.issubset(event.headers)
        ):
            await super()._send_h11_event(event)
            return
        status, message = event.status_code, _MESSAGES.get(event.status_code, _INVALID)
        headers = [header for header in event.headers if header not in _EMPTY_ANSWER_HEADERS]
        if isinstance(self.stream, WSStream) and status == 400:
            message = _NO_HANDSHAKE
            if self.stream.handshake.version not in (None, WEBSOCKET_VERSION):
                status, message = 426, _MESSAGES[426]
                # RFC 6455, 4.4, and RFC 9110, 15.5.22.
                headers += [
                    (b"sec-websocket-version", WEBSOCKET_VERSION),
                    (b"upgrade", b"websocket"),
                ]
        problem = (
            errors.Internal("an internal error; the daemon's log has the details")
            if status == 500
            else errors.InvalidRequest(message)
        )
        body = strict_json.dumps(problems.to_body(problem)).encode()
        headers += [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close" if status != 426 else b"close, upgrade"),
        ]
        await super()._send_h11_event(h11.Response(status_code=status, headers=headers))
        await super()._send_h11_event(h11.Data(data=body))


class RequestTasks(TaskGroup):
    """The tasks of a connection. Data left in the queue of a finished request is dropped."""

    async def spawn_app(
        self,
        app: AppWrapper,
        config: Config,
        scope: Scope,
        send: Callable[[ASGISendEvent | None], Awaitable[None]],
    ) -> Callable[[ASGIReceiveEvent], Awaitable[None]]:
        """Handle a request in a task, and return the function that delivers messages to it."""
        queues: list[asyncio.Queue[ASGIReceiveEvent]] = []

        async def send_or_end(message: ASGISendEvent | None) -> None:
            if message is None:
                while not queues[0].empty():
                    queues[0].get_nowait()
            await send(message)

        put = await super().spawn_app(app, config, scope, send_or_end)
        queues.append(put.__self__)  # type: ignore[attr-defined]  # the method of a queue
        return put


class TcpConnection(TCPServer):
    """One connection, from its first byte to its end.

    :param peer: the caller at its other end.
    :param first_s: idle seconds, also within a request, allowed before it is authenticated.
    :param tls: the TLS settings, applied before anything is read from it.
    """

    def __init__(
        self, *hypercorns: Any, peer: Peer, first_s: float, tls: ssl.SSLContext | None = None
    ) -> None:
        super().__init__(*hypercorns)
        self.peer = peer
        self._first_s = first_s
        self._tls = tls
        self._handshake = anyio.CancelScope()
        self._is_open = tls is None
        self._ended = False

    _reading: "asyncio.Task[None]"

    async def _secure(self, tls: ssl.SSLContext) -> None:
        # Not in the server that accepts the connection: here it is already counted and can be closed.
        # Nothing was read from the socket yet.
        with self._handshake:
            try:
                await self.writer.start_tls(tls, ssl_handshake_timeout=self._first_s)
            except (
                OSError,
                EOFError,
            ) as error:  # includes ssl.SSLError
                _log.debug("no TLS with %s: %s", self.peer.address, error)
                return
            # Unread data of a slow reader is buffered here, too; asyncio's default is 512 KiB.
            self.writer.transport.set_write_buffer_limits(SECURED_BUFFER)
            self._is_open = True

    async def run(self) -> None:
        """Serve until either side closes."""
        if self._tls is not None:
            await self._secure(self._tls)
            if not self._is_open:
                self.writer.transport.abort()
                return
        try:
            async with RequestTasks(self.loop) as tasks:
                self._task_group = tasks
                # As hypercorn's wrapper of it, which only adds the choice between protocols.
                self.protocol = Protocol(  # type: ignore[assignment]
                    self.app,
                    self.config,
                    self.context,
                    tasks,
                    ConnectionState(self.state),
                    self._tls is not None,
                    self._address("peername"),
                    self._address("sockname"),
                    self.protocol_send,
                )
                self.protocol.cut_soon = self._cut_soon  # type: ignore[attr-defined]
                await self.idle_task.restart(tasks, self._idle_timeout)
                self._reading = tasks._task_group.create_task(self._read())  # noqa: SLF001
        finally:
            await self._close()

    async def _read(self) -> None:
        try:
            with suppress(OSError):  # includes ssl.SSLError
                while not self.reader.at_eof():
                    size = READ_BYTES if self.peer.is_authenticated else UNAUTHENTICATED_BYTES
                    data = await self.reader.read(size)
                    if self.peer.quiet_until:
                        await anyio.sleep_until(self.peer.quiet_until)
                        self.peer.quiet_until = 0.0
                    await self.protocol.handle(RawData(data))
                    # Reading does not suspend if data is there: let other tasks run.
                    await asyncio.sleep(0)
            await self.protocol.handle(Closed())
        finally:
            # The client sends no more, so the idle timeout is not needed. This also runs if a failed
            # write canceled this task.
            self._ended = True
            await self.idle_task.stop()

    async def _idle_timeout(self) -> None:
        # Runs from the connection's start, or the end of an answer, until a request is complete.
        deadline = self.config.keep_alive_timeout if self.peer.is_authenticated else self._first_s
        with anyio.move_on_after(deadline):
            await self.context.terminated.wait()
        await asyncio.shield(self._initiate_server_close())

    @property
    def idle(self) -> bool:
        """Whether no request is in progress."""
        protocol = getattr(self, "protocol", None)
        return protocol is not None and protocol.stream is None

    @property
    def is_closing(self) -> bool:
        """Whether this side is closing it."""
        return bool(self.writer.transport.is_closing())

    def abort(self) -> None:
        """Close at once. Data that is not sent yet is dropped; the kernel's buffer is still sent."""
        if self._is_open:
            self.writer.transport.abort()
        else:
            self._handshake.cancel()

    def cut(self) -> None:
        """Reset the connection. All unsent data is dropped, also in the kernel's buffer."""
        if self._is_open:
            connection = self.writer.get_extra_info("socket")
            with suppress(OSError):  # closed already
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self.abort()

    async def _close(self) -> None:
        self._closing()
        await super()._close()

    async def _initiate_server_close(self) -> None:
        await super()._initiate_server_close()
        self._closing()

    def _closing(self) -> None:
        # Over TLS, asyncio waits 30 s for the peer's close_notify.
        if self._tls is not None:
            self._cut_soon()

    def _cut_soon(self) -> None:
        self.loop.call_later(CLOSE_S, self.writer.transport.abort)

    async def protocol_send(self, event: Event) -> None:
        """Send data, or handle the connection's end or its becoming idle."""
        if not isinstance(event, RawData):
            if not (self._ended and isinstance(event, Updated) and event.idle):
                await super().protocol_send(event)
            return
        async with self.send_lock:
            if not self.writer.is_closing():
                try:
                    await self._write(event.data)
                except (ConnectionError, RuntimeError):
                    pass
                else:
                    return
        # Not sent. Writing to a lost connection would fill the log (asyncio/selector_events.py).
        await self.protocol.handle(Closed())
        # A request that waits on this connection will not be read.
        self._reading.cancel()
        # Let the sender receive the message about the end first.
        await asyncio.sleep(0)

    async def _write(self, data: bytes) -> None:
        # In parts, because asyncio copies everything that cannot be sent at once.
        view = memoryview(data)
        for start in range(0, len(data), WRITE_BYTES):
            if start:
                await asyncio.sleep(0)
            self.writer.write(view[start : start + WRITE_BYTES])
            await self._drain()

    async def _drain(self) -> None:
        """Wait until the write buffer is empty.

        :raises ConnectionAbortedError: if the reader takes less than ``STALLED_BYTES`` in ``STALL_S``.
        """
        while unsent := self.writer.transport.get_write_buffer_size():
            try:
                async with asyncio.timeout(STALL_S):
                    await self.writer.drain()
            except TimeoutError:
                # After a pause of the daemon (SIGSTOP) the timeout comes first, so count the bytes.
                if unsent - self.writer.transport.get_write_buffer_size() < STALLED_BYTES:
                    self.cut()
                    raise ConnectionAbortedError from None
            else:
                return

    def _address(self, name: str) -> tuple[str, int] | None:
        address = self.writer.get_extra_info(name)
        return (str(address[0]), int(address[1])) if address else None
