"""The web server: sockets, connection limits and access log."""

import asyncio
import errno
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final

import anyio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config
from hypercorn.logging import Logger
from hypercorn.typing import ResponseSummary, WWWScope
from quart import Quart

from agent_orchestrator.descriptors import SHORTAGES
from agent_orchestrator.domain.errors import ConfigError
from agentd.auth import is_wildcard
from agentd.callers import ends_of
from agentd.descriptors import Descriptors
from agentd.http1 import TcpConnection
from agentd.lockout import Peer
from agentd.memory import Reclaimer
from agentd.requests import PEER

BACKLOG: Final = 1024

SEND_BUFFER: Final = 128 * 1024
"""Size of the kernel's send buffer of a connection, in bytes. Its default is megabytes."""

GRACEFUL_S: Final = 2.0
"""Seconds at the end for answers in progress, before their connections are aborted."""

ACCEPT_STEPS: Final = 5
"""Steps of the event loop from a connection that asyncio has accepted to its task, with one to spare."""

ABORT_S: Final = 1.0
"""Seconds that the handlers of aborted connections have to end."""

FIRST_REQUEST_S: Final = 15.0
"""Seconds that an unauthenticated connection may be idle."""

MAX_UNAUTHENTICATED: Final = 512
"""Maximum number of unauthenticated connections; at most a quarter of the descriptor limit. A further
connection ends the oldest."""

MAX_FRAME: Final = 4 * 1024
"""Maximum length of a WebSocket message in bytes. Readers send only their token."""

_access = logging.getLogger("agentd.access")


def resolve(host: str, port: int) -> list[Any]:
    """Resolve an address to listen on, like :func:`socket.getaddrinfo`.

    :raises ConfigError: if it is neither an address nor a known host name.
    """
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise ConfigError(
            f"cannot listen on {host}: it is neither an address nor a known host name; "
            "an example is --host 127.0.0.1"
        ) from None


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket. Connections wait in its queue until they are served.

    :raises ConfigError: if the address cannot be listened on.
    """
    family, kind, protocol, _, address = resolve(host, port)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Connections inherit these options from the listening socket (tcp(7), socket(7)).
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        listener.bind(address)
        listener.listen(BACKLOG)
        listener.setblocking(False)  # noqa: FBT003
    except OSError as error:
        listener.close()
        hint = (
            "; another agentd may be running: choose another port with --port"
            if error.errno == errno.EADDRINUSE
            else ""
        )
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}{hint}") from None
    return listener


def url_of(listener: socket.socket, host: str, *, secured: bool = False) -> str:
    """Return the URL of a listening socket."""
    scheme = "https" if secured else "http"
    port = listener.getsockname()[1]
    if is_wildcard(host):
        host = _own_address(listener)
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _own_address(listener: socket.socket) -> str:
    """Return a loopback address that reaches a socket which listens on all addresses."""
    is_ipv6 = listener.family == socket.AF_INET6
    accepts_ipv4 = not (
        is_ipv6 and listener.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    ) and _has_address(socket.AF_INET, "127.0.0.1")
    return "127.0.0.1" if accepts_ipv4 or not is_ipv6 else "::1"


def _has_address(family: socket.AddressFamily, address: str) -> bool:
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True


class _Log(Logger):
    """Hypercorn's access log, written to the daemon's log. Query strings are omitted."""

    async def access(
        self, request: WWWScope, response: ResponseSummary | None, request_time: float
    ) -> None:
        # Health checks are frequent and uninteresting. Refused callers decide how often they call;
        # the guard logs their number once a minute.
        peer = request.get("state", {}).get(PEER)
        is_refused = isinstance(peer, Peer) and peer.is_refused
        is_minor = is_refused or request["path"] == "/health"
        level = logging.DEBUG if is_minor else logging.INFO
        if not _access.isEnabledFor(level):
            return
        status = "-" if response is None else response["status"]
        method = request["method"] if request["type"] == "http" else "WS"
        path = request["raw_path"].decode("ascii", "backslashreplace")
        duration_ms = round(request_time * 1000, 1)
        fields = {"method": method, "path": path, "status": status, "ms": duration_ms}
        _access.log(level, "request", extra={"fields": fields})


def _config() -> Config:
    config = Config()
    config.accesslog = None
    config.errorlog = logging.getLogger("agentd.server")
    config.logger_class = _Log
    config.include_server_header = False
    config.h11_max_incomplete_size = 16 * 1024
    config.keep_alive_timeout = 75
    config.keep_alive_max_requests = 1_000_000
    # No pings by hypercorn: its task for them (0.18) outlives the socket by up to the interval, and
    # delays the server's end. The keepalives of a quiet stream detect a dead reader too.
    config.websocket_ping_interval = None
    config.websocket_max_message_size = MAX_FRAME
    return config


class _ConnectionSet:
    """The open connections by their tasks."""

    def __init__(self, descriptors: Descriptors, reclaimer: Reclaimer) -> None:
        self.all: dict[asyncio.Task[Any], TcpConnection] = {}
        self._unauthenticated: dict[asyncio.Task[Any], TcpConnection] = {}
        self._descriptors = descriptors
        self._reclaimer = reclaimer
        self._max_unauthenticated = min(MAX_UNAUTHENTICATED, descriptors.limit // 4)

    def add(self, connection: TcpConnection) -> None:
        """Add the current task's connection until the task ends, and make room for it."""
        task = asyncio.current_task()
        assert task is not None
        self.all[task] = self._unauthenticated[task] = connection
        self._descriptors.connections += 1
        self._reclaimer.update(len(self.all))
        task.add_done_callback(self._forget)
        self._make_room()

    def _forget(self, task: "asyncio.Task[Any]") -> None:
        self.all.pop(task)
        self._unauthenticated.pop(task, None)
        self._descriptors.connections -= 1
        self._reclaimer.update(len(self.all))

    def _make_room(self) -> None:
        """Abort connections if there are too many: old unauthenticated, idle, or of the busiest run."""
        while len(self._unauthenticated) > self._max_unauthenticated:
            oldest = self._unauthenticated.pop(next(iter(self._unauthenticated)))
            if not oldest.peer.is_authenticated:
                oldest.abort()
        if self._descriptors.is_short:
            self._descriptors.warn(
                "ended a connection that is idle, or one of the many of an agent"
            )
            active = [connection for connection in self.all.values() if not connection.is_closing]
            idle = next((connection for connection in active if connection.idle), None)
            if (chosen := idle or _oldest_of_busiest_run(active)) is not None:
                chosen.abort()

    async def wait_ended(self, seconds: float) -> None:
        """Wait until all have ended, at most this many seconds."""
        if self.all:
            await asyncio.wait(list(self.all), timeout=seconds)


def _oldest_of_busiest_run(connections: Sequence[TcpConnection]) -> TcpConnection | None:
    """Return the oldest connection of the run that has the most; None if no run has one."""
    runs = Counter(
        connection.peer.run_id for connection in connections if connection.peer.run_id is not None
    )
    if not runs:
        return None
    [(run_id, _)] = runs.most_common(1)
    return next(connection for connection in connections if connection.peer.run_id == run_id)


async def serve(
    app: Quart,
    listener: socket.socket,
    stopped: Callable[[], Awaitable[Any]],
    *,
    tls: ssl.SSLContext | None = None,
    agents: socket.socket | None = None,
    first_request_s: float = FIRST_REQUEST_S,
    descriptors: Descriptors | None = None,
) -> None:
    """Serve the app until ``stopped`` returns, then finish the answers in progress.

    :param tls: TLS settings for the listener's connections.
    :param agents: another listener, without TLS, that accepts only tokens of runs.
    :param first_request_s: seconds that an unauthenticated connection may be idle.
    :param descriptors: counts connections and limits their number.
    """
    loop = asyncio.get_running_loop()
    descriptors = descriptors or Descriptors()
    loop.set_exception_handler(partial(_report, descriptors))
    wrapped, config, context = ASGIWrapper(app), _config(), WorkerContext(None)
    connections = _ConnectionSet(descriptors, Reclaimer(loop.call_later))

    async def connected(
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        tls: ssl.SSLContext | None = None,
        agents_only: bool = False,
    ) -> None:
        address = writer.get_extra_info("peername") or ("",)
        ends = ends_of(address, writer.get_extra_info("sockname"))
        peer = Peer(str(address[0]), ends, agents_only=agents_only)
        state = {PEER: peer}
        connection = TcpConnection(
            wrapped,
            loop,
            config,
            context,
            state,
            reader,
            writer,
            peer=peer,
            first_s=first_request_s,
            tls=tls,
        )
        peer.cut = connection.cut
        connections.add(connection)
        await connection.run()

    async def start(listening: socket.socket, **options: Any) -> asyncio.Server:
        # asyncio accepts up to `backlog` connections at a time, and without free descriptors it
        # logs as many errors (asyncio/selector_events.py). So 1 here; the kernel's queue is long.
        server = await asyncio.start_server(
            partial(connected, **options), sock=listening, backlog=1
        )
        listening.listen(BACKLOG)
        return server

    servers = [await start(listener, tls=tls)]
    try:
        if agents is not None:
            servers.append(await start(agents, agents_only=True))
        await stopped()
        await _close(servers)
        await context.terminated.set()
        await connections.wait_ended(GRACEFUL_S)
    finally:
        await _close(servers)
        for connection in connections.all.values():
            connection.abort()
        with anyio.CancelScope(shield=True):
            await connections.wait_ended(ABORT_S)
            for task in connections.all:
                task.cancel()
            await connections.wait_ended(ABORT_S)


async def _close(servers: list[asyncio.Server]) -> None:
    """Accept no more connections.

    CPython 3.11 forgets to close a connection whose server closes while it is being accepted
    (asyncio/selector_events.py), so what was accepted becomes a connection first.
    """
    loop = asyncio.get_running_loop()
    for server in servers:
        for listener in server.sockets:
            loop.remove_reader(listener.fileno())
    with anyio.CancelScope(shield=True):
        for _ in range(ACCEPT_STEPS):
            await asyncio.sleep(0)
    for server in servers:
        server.close()


def _report(
    descriptors: Descriptors, loop: asyncio.AbstractEventLoop, context: dict[str, Any]
) -> None:
    error = context.get("exception")
    if isinstance(error, OSError) and error.errno in SHORTAGES:
        # The connection waits in the queue; asyncio tries again after a second.
        descriptors.warn("a connection waits to be accepted")
    # CPython 3.11 reports a canceled connection task as an error (asyncio/streams.py; fixed in 3.12).
    elif not isinstance(error, asyncio.CancelledError):
        loop.default_exception_handler(context)
