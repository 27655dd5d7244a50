"""An MCP server of a run's tools, for agents that start such servers as commands.

Agents of a daemon reach their tools at its address. Without a daemon, they start a small program
(:mod:`.tool_pipe`), which connects to this process.
"""

import hmac
import secrets
import sys
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import anyio
import anyio.lowlevel
from anyio.abc import SocketAttribute, SocketStream, TaskGroup
from anyio.streams.buffered import BufferedByteReceiveStream
from attrs import define, field

from agent_orchestrator.domain.errors import AgentFailed
from agent_orchestrator.long_work import run_long
from agent_orchestrator.ports.runner import Toolbox
from agent_orchestrator.runners import tool_pipe
from agent_orchestrator.runners.bulk import read, read_object
from agent_orchestrator.runners.events import JsonObject
from agent_orchestrator.runners.lines import Line, LineFramer
from agent_orchestrator.runners.mcp_messages import CALL, CANCEL, call_tool, canceled_call, reply
from agent_orchestrator.runners.mcp_messages import failure as error_response
from agent_orchestrator.wire import strict_json

MAX_MESSAGE: Final = 8 * 2**20
"""Maximum bytes of a message, as of a request's body to agentd."""

MAX_CALLS: Final = 64
"""Maximum number of calls of a connection at the same time."""

MAX_CONNECTIONS: Final = 64
"""Maximum number of connections at the same time. An agent needs one, or one for each of its own agents; any program of
this machine can open others."""

KEY_S: Final = 10.0
"""Seconds within which a connection must send the key."""

_MAX_KEY: Final = 200

_GONE: Final = (anyio.BrokenResourceError, anyio.ClosedResourceError)
"""What is raised if the agent has closed the connection."""

_INVALID_REQUEST: Final = -32600
_SERVER_ERROR: Final = -32000


@define(eq=False)
class ToolServer:
    """The server of a run.

    :param port: where it listens, on this machine only.
    :ivar key: what a connection must send first.
    :ivar is_used: whether an agent has connected.
    """

    port: int
    tools: Toolbox
    key: str = field(factory=partial(secrets.token_urlsafe, 32), repr=False, init=False)
    is_used: bool = field(default=False, init=False)
    _connections: int = field(default=0, init=False)

    @property
    def argv(self) -> tuple[str, ...]:
        """The command that an agent starts. Others may see it, so it does not contain the key."""
        return (sys.executable, "-I", "-S", str(Path(tool_pipe.__file__)), str(self.port))

    @property
    def env(self) -> Mapping[str, str]:
        """The environment variables that the command needs."""
        return {tool_pipe.KEY: self.key}

    async def serve(self, stream: SocketStream) -> None:
        """Serve a connection until it is closed."""
        async with stream:
            if self._connections >= MAX_CONNECTIONS:
                return
            self._connections += 1
            try:
                await _Connection(stream, self).serve()
            finally:
                self._connections -= 1

    def accepts(self, line: bytes) -> bool:
        """Return whether the first line of a connection is the key."""
        is_key = hmac.compare_digest(line, self.key.encode())
        self.is_used |= is_key
        return is_key


@asynccontextmanager
async def tool_server(tools: Toolbox) -> AsyncIterator[ToolServer]:
    """Serve tools while the scope is open.

    :raises AgentFailed: if this machine has no free port.
    """
    failure: Exception | None = None
    try:
        listening = await anyio.create_tcp_listener(local_host="127.0.0.1")
    except OSError as problem:
        note = f"the agent cannot get its tools: {problem}"
        raise AgentFailed("provider_error", note) from problem
    async with listening as listener:
        server = ToolServer(listener.extra(SocketAttribute.local_port), tools)  # noqa: S610 - no query of Django's
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, server.serve)
            try:
                yield server
            except Exception as error:  # noqa: BLE001 - raised below, because the group would wrap it
                failure = error
            finally:
                tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure


@define(eq=False)
class _Connection:
    """The messages of one agent."""

    stream: SocketStream
    server: ToolServer
    _input: BufferedByteReceiveStream = field(init=False)
    _framer: LineFramer = field(factory=partial(LineFramer, MAX_MESSAGE), init=False)
    _received: deque[Line] = field(factory=deque, init=False)
    _calls: dict[str, anyio.CancelScope] = field(factory=dict, init=False)
    """The calls without an answer, by their ids as text."""
    _sending: anyio.Lock = field(factory=anyio.Lock, init=False)

    def __attrs_post_init__(self) -> None:
        self._input = BufferedByteReceiveStream(self.stream)

    async def serve(self) -> None:
        """Check the key, and answer until the agent closes the connection."""
        if not self.server.accepts(await self._first_line()):
            return
        async with anyio.create_task_group() as tasks:
            try:
                while (line := await self._next_line()) is not None:
                    await self._take(tasks, line)
            except _GONE:
                pass
            tasks.cancel_scope.cancel()  # nobody reads the answers

    async def _first_line(self) -> bytes:
        """Return the first line; empty if it is too long, or does not come in time."""
        with anyio.move_on_after(KEY_S):
            try:
                return await self._input.receive_until(b"\n", _MAX_KEY)
            except (anyio.DelimiterNotFound, anyio.IncompleteRead, *_GONE):
                pass
        return b""

    async def _next_line(self) -> Line | None:
        """Return the next line; None at the end."""
        while not self._received:
            try:
                piece = await self._input.receive()
            except anyio.EndOfStream:
                return None
            self._received.extend(self._framer.feed(piece))
        await anyio.lowlevel.checkpoint()  # many short lines may have come at once
        return self._received.popleft()

    async def _take(self, tasks: TaskGroup, line: Line) -> None:
        message = await read(line, read_object)
        if not isinstance(message, dict):
            if line.data.strip():
                reason = f"not a JSON object of at most {MAX_MESSAGE} bytes"
                await self._send(error_response({"id": None}, _INVALID_REQUEST, reason))
            return
        match message.get("method"):
            case method if method == CALL and "id" in message:
                if len(self._calls) >= MAX_CALLS:
                    reason = f"at most {MAX_CALLS} calls at the same time"
                    await self._send(error_response(message, _SERVER_ERROR, reason))
                else:
                    scope = self._calls[str(message["id"])] = anyio.CancelScope()
                    tasks.start_soon(self._call, message, scope)
            case method if method == CANCEL:
                if (found := self._calls.get(canceled_call(message))) is not None:
                    found.cancel()
            case _ if "id" in message and "method" in message:
                await self._send(reply(message, self.server.tools.list()))
            case _:
                pass  # a notification or a response. Neither has an effect here.

    async def _call(self, message: JsonObject, scope: anyio.CancelScope) -> None:
        key = str(message["id"])
        with scope:
            try:
                await self._send(await call_tool(self.server.tools, message, is_structured=True))
            except _GONE:
                pass
            finally:
                if self._calls.get(key) is scope:
                    del self._calls[key]

    async def _send(self, response: JsonObject) -> None:
        if strict_json.is_long(response):
            data = await run_long(_encoded, response)
        else:
            data = _encoded(response)
        async with self._sending:
            await self.stream.send(data)


def _encoded(response: JsonObject) -> bytes:
    return strict_json.dumps(response).encode() + b"\n"
