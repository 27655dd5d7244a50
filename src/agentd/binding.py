"""Routes for the table of operations: convert requests to commands and answers to responses."""

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from functools import partial
from typing import Any

from quart import Quart, Response, request

from agent_orchestrator.domain.errors import (
    InvalidRequest,
    Unauthorized,
    UnsupportedMediaType,
)
from agent_orchestrator.fields import specs
from agent_orchestrator.operations import OPERATIONS
from agent_orchestrator.operations.devices import NewDevice
from agent_orchestrator.operations.session_files import LINES
from agent_orchestrator.operations.table import Operation
from agent_orchestrator.ports.transport import Gateway
from agent_orchestrator.wire import codec
from agentd import devices
from agentd.admission import Admission
from agentd.auth import Guard
from agentd.lifetime import Lifetime
from agentd.requests import HttpRequest, body_object, current_request, peer_of, query_pairs
from agentd.responses import LinesResponse, as_json, json_response, stopping
from agentd.streaming import StreamLimiter
from agentd.web.routes import base_path_of

View = Callable[..., Awaitable[Response]]

REPLAYED = {"Idempotent-Replayed": "true"}


def bind_operations(
    app: Quart,
    gateway: Gateway,
    guard: Guard,
    lifetime: Lifetime,
    admission: Admission,
    limiter: StreamLimiter,
) -> None:
    """Add one route to the app for each operation."""
    for operation in OPERATIONS:
        if operation.answers_lines:
            view = _download(operation, gateway, lifetime, limiter)
        elif operation.takes_lines:
            view = _upload(operation, gateway, lifetime)
        elif operation.is_mutation:
            view = _mutation(operation, gateway, guard, admission)
        else:
            view = _query(operation, gateway, lifetime)
        app.add_url_rule(
            operation.path.replace("{", "<").replace("}", ">"),
            operation.name,
            view,
            methods=[operation.method],
        )


def _mutation(
    operation: Operation[Any, Any], gateway: Gateway, guard: Guard, admission: Admission
) -> View:
    path_fields = frozenset(operation.path_fields)
    kind: type = operation.request
    takes_key = "idempotency_key" in specs(kind)

    async def view(**path_values: str) -> Response:
        received = current_request(request, HttpRequest)
        if received.query_string:
            _refuse_parameters(received.query_string)
        values = await body_object(received)
        if path_fields:
            _merge(values, path_values)
        if takes_key and "Idempotency-Key" in received.headers:
            _add_key(values, received.headers.getlist("Idempotency-Key"))
        command = codec.command(operation.request, values)
        caller = gateway.acting_as(received.principal)
        try:
            # The body is here: a slow one takes no place.
            with admission.change(received.principal, peer_of(received)):
                reply = await caller.call(operation, command)
        except Unauthorized:
            if operation.public:
                guard.count_failure(peer_of(received))
            raise
        if isinstance(reply.answer, NewDevice):
            return await _new_device(received, operation, reply.answer)
        return json_response(
            await as_json(reply.answer) if reply.text is None else reply.text,
            operation.status_of(reply.answer),
            REPLAYED if reply.replayed else None,
        )

    return view


async def _new_device(
    received: HttpRequest, operation: Operation[Any, Any], answer: NewDevice
) -> Response:
    """Return the answer to a device: one of its secrets in a cookie, the other in the body."""
    body = await as_json(devices.without_cookie(answer))
    response = json_response(body, operation.status_of(answer))
    # A proxy with TLS may be in front of a daemon without: the page's origin shows it.
    secure = received.headers.get("Origin", received.scheme).startswith("https")
    # Other applications behind the same proxy should not get the cookie.
    path = f"{base_path_of(received.scope)}/"
    devices.set_cookie(response, answer, secure=secure, path=path)
    return response


def _query(operation: Operation[Any, Any], gateway: Gateway, lifetime: Lifetime) -> View:
    async def view(**path_values: str) -> Response:
        received = current_request(request, HttpRequest)
        command = _command(operation, received, path_values)
        with lifetime.until_closing():
            reply = await gateway.acting_as(received.principal).call(operation, command)
            return json_response(await as_json(reply.answer), operation.status_of(reply.answer))
        raise stopping()

    return view


def _download(
    operation: Operation[Any, Any], gateway: Gateway, lifetime: Lifetime, limiter: StreamLimiter
) -> View:
    async def view(**path_values: str) -> Response:
        received = current_request(request, HttpRequest)
        command = _command(operation, received, path_values)
        caller = gateway.acting_as(received.principal)
        if received.method == "HEAD":
            async with caller.download(operation, command):
                return Response(b"", 200, content_type=LINES)
        slot = limiter.slot(received.principal.id)
        return LinesResponse(partial(caller.download, operation, command), lifetime, slot)

    return view


def _upload(operation: Operation[Any, Any], gateway: Gateway, lifetime: Lifetime) -> View:
    async def view(**path_values: str) -> Response:
        received = current_request(request, HttpRequest)
        command = _command(operation, received, path_values)
        if received.headers.getlist("Content-Type") not in ([], [LINES]):
            raise UnsupportedMediaType(f"the body must be {LINES}")
        if "Content-Encoding" in received.headers:
            raise UnsupportedMediaType("the body must not be encoded (Content-Encoding)")
        caller = gateway.acting_as(received.principal)
        with lifetime.until_closing():
            async with aclosing(received.body.parts(received.body_timeout or 0)) as parts:
                reply = await caller.upload(operation, command, parts)
            return json_response(await as_json(reply.answer), operation.status_of(reply.answer))
        raise stopping()

    return view


def _command(
    operation: Operation[Any, Any], received: HttpRequest, path_values: dict[str, str]
) -> Any:
    """Return the command in the path and the query of a request."""
    values = codec.query_values(operation.request, query_pairs(received.query_string))
    _merge(values, path_values)
    return codec.command(operation.request, values)


def _merge(values: dict[str, Any], path_values: dict[str, str]) -> None:
    if repeated := values.keys() & path_values.keys():
        raise InvalidRequest.of(
            dict.fromkeys(sorted(repeated), "must not be given besides the path")
        )
    values.update(path_values)


def _refuse_parameters(query_string: bytes) -> None:
    names = [name for name, _ in query_pairs(query_string)]
    raise InvalidRequest.of(dict.fromkeys(names or ["query"], "is not a parameter of this call"))


def _add_key(values: dict[str, Any], keys: list[str]) -> None:
    if len(set(keys)) != 1:
        raise InvalidRequest.of(
            {"idempotency_key": "is given in several headers with different values"}
        )
    key = values.setdefault("idempotency_key", keys[0])
    if key != keys[0]:
        raise InvalidRequest.of({"idempotency_key": "differs between header and body"})
