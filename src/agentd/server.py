"""The web server: its socket, its limits and its log."""

import asyncio
import errno
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Final

import anyio
from hypercorn.asyncio import serve as serve_hypercorn
from hypercorn.config import Config, Sockets
from hypercorn.logging import Logger
from hypercorn.typing import ResponseSummary, WWWScope
from quart import Quart

from agent_orchestrator.domain.errors import ConfigError

BACKLOG: Final = 1024

SEND_BUFFER: Final = 128 * 1024
"""Bytes the kernel takes for a connection whose reader lags. Left to itself it takes megabytes."""

_access = logging.getLogger("agentd.access")


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that takes connections from now on; they wait until they are served.

    :raises ConfigError: if the address cannot be listened on.
    """
    place = f"{host}:{port}"
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigError(f"cannot listen on {place}: {error.strerror}") from None
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Connections inherit these from the socket that took them (tcp(7), socket(7)).
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        listener.bind(address)
        listener.listen(BACKLOG)
        listener.setblocking(False)  # noqa: FBT003
    except OSError as error:
        listener.close()
        hint = (
            "; another agentd? --port names another one" if error.errno == errno.EADDRINUSE else ""
        )
        raise ConfigError(f"cannot listen on {place}: {error.strerror}{hint}") from None
    return listener


def url_of(listener: socket.socket, host: str) -> str:
    """Return the URL that leads to a listening socket."""
    port = listener.getsockname()[1]
    if host in ("0.0.0.0", "::"):  # noqa: S104
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Log(Logger):
    """Hypercorn's log, through ours. Query strings are left out."""

    async def access(
        self, request: WWWScope, response: ResponseSummary | None, request_time: float
    ) -> None:
        if not _access.isEnabledFor(logging.INFO):
            return
        status = "-" if response is None else response["status"]
        method = request["method"] if request["type"] == "http" else "WS"
        path = request["raw_path"].decode("ascii", "backslashreplace")
        took = round(request_time * 1000, 1)
        fields = {"method": method, "path": path, "status": status, "ms": took}
        _access.info("request", extra={"fields": fields})

    async def info(self, message: str, *args: Any, **kwargs: Any) -> None:
        """Pass on as a detail: what matters of it the daemon says itself."""
        await self.debug(message, *args, **kwargs)


class _Config(Config):
    """Hypercorn's settings, serving a socket that is listening already."""

    listener: socket.socket

    def create_sockets(self) -> Sockets:
        return Sockets([], [self.listener], [])


def _config(listener: socket.socket) -> Config:
    config = _Config()
    config.listener = listener
    config.backlog = BACKLOG
    config.accesslog = None
    config.errorlog = logging.getLogger("agentd.server")
    config.logger_class = _Log
    config.include_server_header = False
    config.h11_max_incomplete_size = 16 * 1024
    config.keep_alive_timeout = 75
    config.keep_alive_max_requests = 1_000_000
    # Not hypercorn's pings: its task for them (0.18) outlives the socket by up to the interval, and
    # holds up the server's end. The frames a quiet stream sends find a dead reader just as well.
    config.websocket_ping_interval = None
    # What a reader may send is one short frame; what is longer closes the connection.
    config.websocket_max_message_size = 64 * 1024
    config.graceful_timeout = 2
    return config


async def serve(app: Quart, listener: socket.socket, stopped: Callable[[], Awaitable[Any]]) -> None:
    """Serve the app until ``stopped`` returns, then let answers under way be finished."""
    asyncio.get_running_loop().set_exception_handler(_report)
    # In a task of its own: when it stops, hypercorn 0.18 cancels its lifespan task (and, past the
    # graceful timeout, its connections), awaits them, and lets that cancellation out.
    server = asyncio.ensure_future(
        serve_hypercorn(app, _config(listener), shutdown_trigger=stopped)
    )
    try:
        await asyncio.wait([server])
    finally:
        if not server.done():
            server.cancel()
            with anyio.CancelScope(shield=True), anyio.move_on_after(1):
                await asyncio.wait([server])
    if not server.cancelled():
        server.result()


def _report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    # CPython 3.11 reports a connection whose task was cancelled, as those that do not close in time
    # are at the end, as if that were an error (asyncio/streams.py; mended in 3.12).
    if not isinstance(context.get("exception"), asyncio.CancelledError):
        loop.default_exception_handler(context)
