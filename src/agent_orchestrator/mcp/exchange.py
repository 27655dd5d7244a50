"""Stateless MCP over HTTP: one message in, at most one message out.

The HTTP transport of the ``mcp`` package starts a task and two streams for each message, and answers with an
event stream. This module calls the package's ``serve_one`` directly.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import anyio
import mcp_types as types
from attrs import define, field, frozen
from mcp.server.connection import Connection
from mcp.server.runner import modern_error_data, serve_one
from mcp.shared.exceptions import NoBackChannelError
from mcp.shared.inbound import (
    ERROR_CODE_HTTP_STATUS,
    MCP_PROTOCOL_VERSION_HEADER,
    InboundLadderRejection,
    classify_inbound_request,
)
from mcp.shared.transport_context import TransportContext
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS
from pydantic import ValidationError

from agent_orchestrator.mcp.server import ToolServer
from agent_orchestrator.ports.runner import Toolbox, ToolResult, ToolSpec
from agent_orchestrator.wire import strict_json

EncodeLong = Callable[[object, str, Any], Awaitable[Any]]


@frozen
class ExchangeReply:
    """The answer to a message.

    :param status: the HTTP status. Not used if the response has already begun.
    :param text: JSON in UTF-8; empty if there is nothing to answer.
    :param long: the value of ``encode_long`` for a long result. The body is then the text, the result and ``}``.
    """

    status: int
    text: bytes = b""
    long: Any = field(default=None, repr=False)


@define
class _RecordingTools:
    """Tools that record their last result, because callers of the same result share its encoding."""

    tools: Toolbox
    result: ToolResult | None = field(default=None, init=False)

    def list(self) -> Sequence[ToolSpec]:
        return self.tools.list()

    def holding(self, seconds: float) -> Toolbox:
        return self.tools.holding(seconds)

    async def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        self.result = await self.tools.call(name, arguments)
        return self.result


async def exchange(
    server: ToolServer,
    tools: Toolbox,
    message: Mapping[str, Any],
    headers: Mapping[str, str],
    encode_long: EncodeLong,
) -> ExchangeReply:
    """Process a message and return its answer.

    :param headers: HTTP headers by lowercase name.
    :param encode_long: encodes a long result. Its arguments are the tool's result, the protocol version and the
        result to encode. The first two determine the third.
    """
    if "id" not in message or "method" not in message:
        # A notification or a response. Neither has an effect here.
        try:
            types.jsonrpc_message_adapter.validate_python(dict(message), by_name=False)
        except ValidationError:
            return _refusal(None, types.INVALID_REQUEST, "not a JSON-RPC 2.0 message")
        return ExchangeReply(202)
    try:
        request = types.JSONRPCRequest.model_validate(message)
        # The answer contains both. A lone surrogate cannot be encoded.
        for text in (request.method, str(request.id)):
            strict_json.check_unicode(text)
    except ValueError:  # also a validation error of pydantic
        return _refusal(None, types.INVALID_REQUEST, "not a JSON-RPC 2.0 request")
    connection = _connection(message, headers)
    if isinstance(connection, InboundLadderRejection):
        return _refusal(request.id, connection.code, connection.message, connection.data)
    context = _Context(TransportContext(kind="streamable-http", can_send_request=False), request.id)
    recording = _RecordingTools(tools)
    is_modern = connection.protocol_version not in HANDSHAKE_PROTOCOL_VERSIONS
    try:
        result = await serve_one(
            server,
            context,
            request.method,
            request.params,
            connection=connection,
            lifespan_state=recording,
        )
    except Exception as error:  # noqa: BLE001 - the package logs the unexpected
        rpc_error = modern_error_data(error)
        refused = _refusal(request.id, rpc_error.code, rpc_error.message, rpc_error.data)
        # Before protocol version 2026-07-28, protocol errors had HTTP status 200.
        return refused if is_modern else ExchangeReply(200, refused.text)
    answer = {"jsonrpc": "2.0", "id": request.id, "result": result}
    if not strict_json.is_long(answer):
        return ExchangeReply(200, strict_json.dumps(answer).encode())
    head = strict_json.dumps({**answer, "result": None}).encode().removesuffix(b"null}")
    source = result if recording.result is None else recording.result
    long = await encode_long(source, connection.protocol_version, result)
    return ExchangeReply(200, head, long)


def _connection(
    message: Mapping[str, Any], headers: Mapping[str, str]
) -> Connection | InboundLadderRejection:
    version = headers.get(MCP_PROTOCOL_VERSION_HEADER)
    if version is None or version in HANDSHAKE_PROTOCOL_VERSIONS:
        version = version or types.DEFAULT_NEGOTIATED_VERSION
        return Connection.from_envelope(version, None, None)
    route = classify_inbound_request(message, headers=headers)
    if isinstance(route, InboundLadderRejection):
        return route
    return Connection.from_envelope(
        route.protocol_version, route.client_info, route.client_capabilities
    )


def _refusal(id_: int | str | None, code: int, message: str, data: Any = None) -> ExchangeReply:
    error = {"code": code, "message": message} | ({} if data is None else {"data": data})
    text = strict_json.dumps({"jsonrpc": "2.0", "id": id_, "error": error}).encode()
    return ExchangeReply(ERROR_CODE_HTTP_STATUS.get(code, 400), text)


@define
class _Context:
    """The context of a request. It has no channel for messages to the client."""

    transport: TransportContext
    request_id: int | str
    message_metadata: None = None
    cancel_requested: anyio.Event = field(factory=anyio.Event)
    can_send_request: bool = False

    async def send_raw_request(
        self,
        method: str,
        params: Mapping[str, Any] | None,  # noqa: ARG002 - the package's signature
        opts: Any = None,  # noqa: ARG002
    ) -> dict[str, Any]:
        raise NoBackChannelError(method)

    async def notify(self, method: str, params: Mapping[str, Any] | None, opts: Any = None) -> None:
        """Do nothing."""

    async def progress(
        self, progress: float, total: float | None = None, message: str | None = None
    ) -> None:
        """Do nothing."""
