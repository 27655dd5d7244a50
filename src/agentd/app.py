"""The web app: guard, routes, streams and errors, over any gateway."""

from time import perf_counter
from typing import Final

import anyio.to_thread
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, Scope
from quart import Quart, Response, has_request_context, request, websocket
from quart import Request as QuartRequest
from quart.globals import request_ctx
from quart.typing import ResponseTypes
from quart.wrappers.base import BaseRequestWebsocket
from werkzeug.exceptions import HTTPException
from werkzeug.routing import MapAdapter

from agent_orchestrator.domain.access import Principal
from agent_orchestrator.domain.errors import NotFound, Unauthorized
from agent_orchestrator.operations import OPERATIONS
from agent_orchestrator.operations.daemon import STATUS, GetStatus
from agent_orchestrator.ports.transport import Gateway
from agent_orchestrator.wire import strict_json
from agent_orchestrator.wire.openapi import openapi_document
from agentd import cors, devices
from agentd.admission import MAX_ALL_STREAMS, MAX_CHANGES, Admission
from agentd.auth import Guard
from agentd.binding import bind_operations
from agentd.connections import HttpConnection, WebSocketConnection
from agentd.descriptors import Descriptors
from agentd.exposition import CONTENT_TYPE
from agentd.lifetime import Lifetime
from agentd.lockout import Peer
from agentd.mcp import ToolEndpoint
from agentd.metrics import Metrics
from agentd.requests import HttpRequest, WebSocket, current_request, peer_of, query_names
from agentd.responses import (
    STREAM_HEADERS,
    from_http_exception,
    json_response,
    problem_of,
    problem_response,
)
from agentd.streaming import (
    AUTH_FRAME_S,
    KEEPALIVE_S,
    MAX_STREAMS,
    EventStreamResponse,
    SocketStream,
    StreamLimiter,
    stream_request,
)
from agentd.web.routes import ENDPOINTS as PAGE_ENDPOINTS
from agentd.web.routes import add_page, without_base_path

BODY_S: Final = 30.0
"""Maximum duration of a request's body, in seconds."""

DEFAULT_MAX_BODY: Final = 8 * 1024 * 1024
"""Maximum length of a request's body, in bytes."""

_BEARER: Final = "bearer."

_OPEN: Final = frozenset({"health"}) | PAGE_ENDPOINTS
"""The routes that need no token, and that tell nothing."""

_PUBLIC: Final = frozenset(operation.name for operation in OPERATIONS if operation.public)
"""The operations that need no token."""


class App(Quart):
    """Quart with the API's error format and metrics."""

    request_class = HttpRequest
    websocket_class = WebSocket
    asgi_http_class = HttpConnection
    asgi_websocket_class = WebSocketConnection

    metrics: Metrics
    base_path: str = ""

    async def __call__(
        self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        """Serve a connection. Its path may begin with the base path, whether or not a proxy removes it."""
        if scope["type"] != "lifespan" and self.base_path:
            scope = without_base_path(scope, self.base_path)
        await super().__call__(scope, receive, send)

    def create_url_adapter(self, request: BaseRequestWebsocket | None) -> MapAdapter | None:
        """Return the adapter that finds a request's route, which does not depend on the host.

        The framework's own raises for a host such as `a..b`, before the guard can refuse it.
        """
        if request is None:
            return super().create_url_adapter(request)
        return self.url_map.bind(
            "localhost",
            request.root_path,
            "",
            request.scheme,
            request.method,
            request.path,
            request.query_string.decode(),
        )

    async def handle_request(self, request: QuartRequest) -> ResponseTypes:
        """Answer a request, and count it."""
        began = perf_counter()
        response = await super().handle_request(request)
        rule, status = request.url_rule, response.status_code
        route = "none" if rule is None else rule.rule
        # Only known routes have a label for the method: a stranger may invent any number of methods.
        method = request.method if rule is not None else "any"
        self.metrics.answered(method, route, status or 0, perf_counter() - began)
        return response

    async def handle_user_exception(self, error: Exception) -> Response:
        """Return the answer for an error in a request's handler."""
        if has_request_context():
            await current_request(request, HttpRequest).body.linger()
        if isinstance(error, HTTPException):
            problem, headers = from_http_exception(error)
            return problem_response(problem, headers)
        return problem_response(problem_of(error))

    async def handle_exception(self, error: Exception) -> Response:
        """Return the answer for an error outside of a request's handling."""
        return problem_response(problem_of(error))

    async def handle_websocket_exception(self, error: Exception) -> Response:
        """Return the answer that refuses the upgrade."""
        return problem_response(problem_of(error))

    async def make_default_options_response(self) -> Response:
        """Return the methods that a path takes."""
        adapter = request_ctx.url_adapter
        assert adapter is not None
        response = Response(b"", 204, {"Allow": ", ".join(sorted(adapter.allowed_methods()))})
        # RFC 9110, 8.6: an answer without content has no length.
        del response.headers["Content-Type"], response.headers["Content-Length"]
        return response


def create_app(
    gateway: Gateway,
    *,
    guard: Guard,
    lifetime: Lifetime | None = None,
    version: str = "0",
    max_body: int = DEFAULT_MAX_BODY,
    keepalive_s: float = KEEPALIVE_S,
    auth_frame_s: float = AUTH_FRAME_S,
    body_s: float = BODY_S,
    max_streams: int = MAX_STREAMS,
    max_all_streams: int = MAX_ALL_STREAMS,
    max_changes: int = MAX_CHANGES,
    metrics: Metrics | None = None,
    descriptors: Descriptors | None = None,
    base_path: str = "",
) -> App:
    """Return the web app in front of a gateway.

    :param max_body: maximum length of a request's body, in bytes.
    :param keepalive_s: interval of keepalives on a quiet stream, in seconds.
    :param auth_frame_s: seconds a socket without a token in its headers has to send one.
    :param body_s: maximum duration of a request's body, in seconds.
    :param max_streams: maximum number of open streams for each principal.
    :param max_all_streams: maximum number of open streams of all principals.
    :param max_changes: maximum number of changes in progress.
    :param metrics: counts requests and streams; served at ``/metrics``.
    :param descriptors: limits streams by the free file descriptors.
    :param base_path: a path before all others, such as ``/agents``, for a proxy that does not remove it.
    """
    lifetime = lifetime or Lifetime()
    app = App("agentd", static_folder=None)
    app.metrics = metrics or Metrics()
    app.base_path = base_path
    app.config["MAX_CONTENT_LENGTH"] = max_body
    app.config["BODY_TIMEOUT"] = body_s
    # http1 cuts off slow readers. A limit here would also start one task for each answer.
    app.config["RESPONSE_TIMEOUT"] = None
    app.url_map.merge_slashes = False
    _add_checks(app, gateway, guard)
    limiter = StreamLimiter(max_streams, max_all_streams, app.metrics, descriptors or Descriptors())
    bind_operations(app, gateway, guard, lifetime, Admission(max_changes), limiter)
    sockets = SocketStream(gateway, guard, lifetime, keepalive_s, auth_frame_s, limiter)
    _add_streams(app, sockets)
    _add_tools(app, ToolEndpoint(gateway, lifetime, version=version, keepalive_s=keepalive_s))
    _add_metrics(app, gateway)
    _add_descriptions(app, lifetime, version)
    add_page(app, base_path)
    return app


def _add_checks(app: App, gateway: Gateway, guard: Guard) -> None:
    @app.before_request
    async def check_request() -> Response | None:
        received = current_request(request, HttpRequest)
        headers = received.headers
        peer = peer_of(received)
        with guard.logging_refusals(peer):
            # The page's files are the same for everyone. It says itself that its origin is not allowed.
            origins = [] if received.endpoint in PAGE_ENDPOINTS else headers.getlist("Origin")
            guard.check_host_and_origin(headers.getlist("Host"), origins, received.scheme)
        peer.is_forwarded = guard.is_forwarded(headers.getlist("Host"), headers.keys())
        if received.query_string:
            guard.check_query(query_names(received.query_string))
        if guard.origins and "Origin" in headers and cors.is_preflight(received.method, headers):
            return cors.preflight(headers)
        if received.endpoint in _PUBLIC:
            with guard.logging_refusals(peer):
                received.principal = await guard.stranger(peer)
        elif received.endpoint not in _OPEN:
            with guard.logging_refusals(peer):
                received.principal = await _caller(received, guard, gateway, peer)
            peer.is_authenticated = True
        _check_path(received)
        return None

    if guard.origins:

        @app.after_request
        async def add_cors_headers(response: Response) -> Response:
            origins = current_request(request, HttpRequest).headers.getlist("Origin")
            cors.add_cors_headers(response, origins, guard.origins)
            return response

    @app.before_websocket
    async def check_socket() -> None:
        socket = current_request(websocket, WebSocket)
        headers, peer = socket.headers, peer_of(socket)
        scheme = socket.scheme.replace("ws", "http")
        with guard.logging_refusals(peer):
            guard.check_host_and_origin(headers.getlist("Host"), headers.getlist("Origin"), scheme)
            guard.check_query(query_names(socket.query_string))
            peer.is_forwarded = guard.is_forwarded(headers.getlist("Host"), headers.keys())
            socket.principal = await _socket_caller(socket, guard, gateway, peer)
        _check_path(socket)


async def _caller(received: HttpRequest, guard: Guard, gateway: Gateway, peer: Peer) -> Principal:
    """Return the caller of a request, by its Authorization header or as a device."""
    headers = received.headers
    authorization = headers.getlist("Authorization")
    if authorization or devices.HEADER not in headers:
        return await guard.caller(authorization, gateway, peer)
    presented = devices.PresentedDevice.of(headers[devices.HEADER], received.cookies)
    devices.check_page(
        received.method, headers.getlist("Origin"), headers.getlist("Sec-Fetch-Site")
    )
    return await guard.device(presented, gateway, peer)


async def _socket_caller(
    socket: WebSocket, guard: Guard, gateway: Gateway, peer: Peer
) -> Principal | None:
    """Return the caller of an upgrade; None if it may send a token in its first frame."""
    headers = socket.headers
    kinds = (_BEARER, devices.SUBPROTOCOL)
    offered = [name for name in socket.requested_subprotocols if name.startswith(kinds)]
    if offered:
        socket.subprotocol = offered[0]
    kind, _, secret = offered[0].partition(".") if offered else ("", "", "")
    authorization = headers.getlist("Authorization")
    device = secret if f"{kind}." == devices.SUBPROTOCOL else headers.get(devices.HEADER)
    if device is not None and not authorization:
        return await guard.device(devices.PresentedDevice.of(device, socket.cookies), gateway, peer)
    if offered and not authorization:
        return await guard.holder(secret, gateway, peer)
    if authorization or await guard.token_reason(gateway, peer) is None:
        principal = await guard.caller(authorization, gateway, peer)
        peer.is_authenticated = True
        return principal
    if socket.routing_exception is not None:
        raise Unauthorized("this call needs a token: Authorization: Bearer …")
    return None


def _check_path(received: HttpRequest | WebSocket) -> None:
    # The framework (werkzeug 3) merges slashes at a path's beginning, and sees the path only after
    # decoding. An escaped slash is not a separator.
    if received.scope["path"].startswith("//") or b"%2f" in received.scope["raw_path"].lower():
        raise NotFound("unknown path")


def _add_streams(app: App, sockets: SocketStream) -> None:
    @app.get("/stream")
    async def stream() -> Response:
        received = current_request(request, HttpRequest)
        params = stream_request(received.query_string, received.headers.get("Last-Event-ID"))
        if received.method == "HEAD":
            headers = {name.decode(): value.decode() for name, value in STREAM_HEADERS}
            return Response(b"", 200, headers)
        caller = received.principal
        return EventStreamResponse(
            sockets.gateway.acting_as(caller),
            params,
            sockets.lifetime,
            sockets.keepalive_s,
            sockets.limiter.slot(caller.id),
            app.metrics,
            sockets.limiter.frames,
            peer_of(received),
        )

    @app.websocket("/stream")
    async def socket_stream() -> None:
        await sockets.serve(current_request(websocket, WebSocket))


def _add_tools(app: App, tools: ToolEndpoint) -> None:
    @app.post("/mcp")
    async def mcp() -> Response:
        return await tools.answer(current_request(request, HttpRequest))


def _add_metrics(app: App, gateway: Gateway) -> None:
    @app.get("/metrics")
    async def metrics() -> Response:
        # The metrics need the same access as the status.
        caller = gateway.acting_as(current_request(request, HttpRequest).principal)
        status = (await caller.call(STATUS, GetStatus())).answer
        text = await anyio.to_thread.run_sync(app.metrics.document, status)
        headers = {"Content-Type": CONTENT_TYPE, "Cache-Control": "no-store"}
        return Response(text.encode(), 200, headers)


def _add_descriptions(app: App, lifetime: Lifetime, version: str) -> None:
    document: list[str] = []

    @app.get("/health")
    async def health() -> Response:
        status = "draining" if lifetime.draining else "ok"
        return json_response(strict_json.dumps({"status": status, "version": version}))

    @app.get("/openapi.json")
    async def openapi() -> Response:
        if not document:
            document.append(strict_json.dumps(openapi_document(version)))
        return json_response(document[0])
