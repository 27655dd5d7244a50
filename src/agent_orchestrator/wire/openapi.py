"""The OpenAPI 3.1 description, generated from the table of operations."""

from collections.abc import Iterable
from http import HTTPStatus
from typing import Any, Final

from agent_orchestrator.domain.model import Event
from agent_orchestrator.fields import FieldSpec, specs
from agent_orchestrator.operations import OPERATIONS
from agent_orchestrator.operations.session_files import LINES
from agent_orchestrator.operations.table import Operation
from agent_orchestrator.wire.problems import STATUSES
from agent_orchestrator.wire.schema import Components, Schema, body_schema, field_schema

_JSON: Final = "application/json"
_ERROR: Final = {"$ref": "#/components/schemas/Error"}

_LINES: Final = {
    LINES: {
        "schema": {
            "type": "string",
            "description": "JSON lines: `header`, then `run`, `message`, `request` and `event` lines, and `end` with "
            "the number of lines and the SHA-256 of all lines before it. A file without `end` is incomplete.",
        }
    }
}

_COMMON_STATUSES: Final = (400, 401, 403, 421, 429, 500, 503)
"""Error statuses that every call can return."""

_TEXT: Final = """\
A gateway for CLI coding agents: sessions, durable runs, and an event log without gaps for each session.

Every error is `{"error": {"code", "message", "details"}}`. `details.fields` of `invalid_request` names
each bad field. Methods that are not listed for a path return 405. Requests that are not valid HTTP/1.1 get an error
of the same form, which may also have the status 426, 431, 501 or 505. If tokens are configured, every call needs one,
except those whose only `security` is `{}`. A call that takes `idempotency_key` also takes it as the header
`Idempotency-Key`. A repeat returns the first answer with the header `Idempotent-Replayed: true`."""


def openapi_document(version: str) -> dict[str, Any]:
    """Return the OpenAPI description of the HTTP API.

    :param version: the version of the program.
    """
    components = Components()
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        item = paths.setdefault(operation.path, {})
        item[operation.method.lower()] = _operation(operation, components)
    paths["/stream"] = {"get": _stream(components)}
    paths["/mcp"] = {"post": _mcp()}
    paths["/health"] = {"get": _health()}
    paths["/metrics"] = {"get": _metrics()}
    paths["/openapi.json"] = {"get": _openapi()}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "agent-orchestrator",
            "version": version,
            "description": _TEXT,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "security": [{"bearer": []}, {"device": []}, {}],
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": dict(sorted((components.schemas | {"Error": _error_schema()}).items())),
            "responses": _error_responses(),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "device": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "Agentd-Device",
                    "description": "The id of a device, a dot, and its secret. The device's cookie is "
                    "needed too.",
                },
            },
        },
    }


def _operation(operation: Operation[Any, Any], components: Components) -> dict[str, Any]:
    command: type = operation.request
    fields = specs(command)
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "parameters": [_parameter(fields[name], "path") for name in operation.path_fields],
    }
    if operation.public:
        described["security"] = [{}]
    errors = {*_COMMON_STATUSES, *_error_statuses_of(operation)}
    if operation.takes_lines:
        described["requestBody"] = {"required": True, "content": _LINES}
    if not operation.has_query:
        schema = body_schema(command, operation.path_fields)
        described["requestBody"] = {
            "required": "required" in schema or "oneOf" in schema,
            "content": {_JSON: {"schema": schema}},
        }
        if "idempotency_key" in fields:
            key = _parameter(fields["idempotency_key"], "header")
            described["parameters"].append(key | {"name": "Idempotency-Key"})
    else:
        described["parameters"] += [
            _parameter(spec, "query")
            for name, spec in fields.items()
            if name not in operation.path_fields
        ]
    content = (
        _LINES if operation.answers_lines else {_JSON: {"schema": components.of(operation.answer)}}
    )
    described["responses"] = {
        str(status): {"description": HTTPStatus(status).phrase, "content": content}
        for status in operation.statuses
    } | _error_answers(errors)
    return described


def _error_statuses_of(operation: Operation[Any, Any]) -> set[int]:
    """Return the error statuses of an operation that not every call can return."""
    command: type = operation.request
    fields, statuses = specs(command), set[int]()
    if any(name.endswith("_id") and str in spec.kinds for name, spec in fields.items()):
        # The session, run or other object may not exist.
        statuses.add(404)
    if operation.is_mutation:
        statuses |= {409, 413, 415}
    if "cursor" in fields and int in fields["cursor"].kinds:
        # The cursor may be after the last event, or before the oldest retained one.
        statuses |= {409, 410}
    return statuses


def _parameter(spec: FieldSpec, location: str) -> dict[str, Any]:
    schema = field_schema(spec)
    if isinstance(schema["type"], list):
        # URLs and headers have no null. Omitting the parameter means the same.
        schema["type"] = next(kind for kind in schema["type"] if kind != "null")
        if "enum" in schema:
            schema["enum"] = [choice for choice in schema["enum"] if choice is not None]
    parameter: dict[str, Any] = {"name": spec.name, "in": location}
    if text := schema.pop("description", ""):
        parameter["description"] = text
    return parameter | {"required": spec.required or location == "path", "schema": schema}


def _stream(components: Components) -> dict[str, Any]:
    event = components.of(Event)
    session_ids: Schema = {"type": "array", "items": {"type": "string", "maxLength": 128}}
    text: Schema = {"type": "string", "maxLength": 256}
    return {
        "operationId": "stream",
        "summary": "Follow the log of sessions: server-sent events, or text frames of a WebSocket.",
        "description": (
            "Each server-sent event has `id` (the cursor), `event` (the event's type) and `data` (the "
            "event). Comment lines keep the connection alive. After an upgrade to a WebSocket, "
            'the frames are `{"type": "event", "cursor", "event"}`, '
            '`{"type": "caught_up", "cursor", "epoch"}`, `{"type": "ping"}`, '
            '`{"type": "draining"}` and `{"type": "error", "error"}`. The epoch is also in the header '
            "`Log-Epoch`."
        ),
        "parameters": [
            {
                "name": "sessionId",
                "in": "query",
                "description": "A session to follow; repeatable. Default: all.",
                "required": False,
                "schema": session_ids,
                "explode": True,
            },
            {
                "name": "cursor",
                "in": "query",
                "description": "Resume after this cursor. With one session it is a `seq`, otherwise opaque.",
                "required": False,
                "schema": text,
            },
            {
                "name": "epoch",
                "in": "query",
                "description": "With one session: the epoch in which this cursor or an earlier one was read. If the log was "
                "restored from a backup since then, the call fails with 409 `cursor_ahead`.",
                "required": False,
                "schema": text,
            },
            {
                "name": "Last-Event-ID",
                "in": "header",
                "description": "Resume after this cursor. Overrides `cursor`.",
                "required": False,
                "schema": text,
            },
        ],
        "responses": {
            "200": {
                "description": "The events after the cursor, then new events as they happen.",
                "content": {"text/event-stream": {"schema": event}},
            }
        }
        | _error_answers({*_COMMON_STATUSES, 404, 409, 410}),
    }


def _mcp() -> dict[str, Any]:
    message: Schema = {"type": "object", "description": "An MCP message in JSON-RPC 2.0."}
    return {
        "operationId": "mcp",
        "summary": "Call the tools for agents: MCP over streamable HTTP, without sessions.",
        "description": (
            "For runs only: the tools act for the run whose token is used. An answer that takes longer "
            "than a second is sent as an event stream. Comment lines keep the connection alive until then."
        ),
        "parameters": [
            {
                "name": "hold_s",
                "in": "query",
                "description": "Default maximum wait of a tool call, in seconds.",
                "required": False,
                "schema": {"type": "integer", "minimum": 0, "maximum": 86_400, "default": 50},
            }
        ],
        "requestBody": {"required": True, "content": {_JSON: {"schema": message}}},
        "responses": {
            "200": {
                "description": "The answer to a request.",
                "content": {_JSON: {"schema": message}, "text/event-stream": {"schema": message}},
            },
            "202": {"description": "The notification was accepted."},
        }
        | _error_answers({*_COMMON_STATUSES, 413, 415})
        | {
            "400": {
                "description": "Bad request: invalid HTTP, or not a JSON-RPC message.",
                "content": {_JSON: {"schema": {"anyOf": [_ERROR, message]}}},
            }
        },
    }


def _health() -> dict[str, Any]:
    return {
        "operationId": "health",
        "summary": "Check that the daemon is running. Needs no token.",
        "security": [{}],
        "responses": _answer(
            {
                "type": "object",
                "properties": {
                    "status": {"type": "string", "enum": ["ok", "draining"]},
                    "version": {"type": "string"},
                },
                "required": ["status", "version"],
            }
        )
        | _error_answers({400, 403, 421, 500}),
    }


def _metrics() -> dict[str, Any]:
    text: Schema = {"type": "string"}
    return {
        "operationId": "metrics",
        "summary": "Return the daemon's metrics in Prometheus' text format 0.0.4.",
        "description": "For callers that may read the daemon's status; not for runs.",
        "responses": {"200": {"description": "OK", "content": {"text/plain": {"schema": text}}}}
        | _error_answers(_COMMON_STATUSES),
    }


def _openapi() -> dict[str, Any]:
    return {
        "operationId": "openapi",
        "summary": "Return this description.",
        "responses": _answer({"type": "object"}) | _error_answers({400, 401, 403, 421, 429, 500}),
    }


def _answer(schema: Schema) -> dict[str, Any]:
    return {"200": {"description": "OK", "content": {_JSON: {"schema": schema}}}}


def _error_answers(statuses: Iterable[int]) -> dict[str, Any]:
    return {
        str(status): {"$ref": f"#/components/responses/Error{status}"}
        for status in sorted(statuses)
    }


def _codes() -> dict[int, list[str]]:
    codes: dict[int, list[str]] = {}
    for kind, status in STATUSES.items():
        codes.setdefault(status, []).append(kind.code)
    return codes


def _error_schema() -> Schema:
    return {
        "type": "object",
        "properties": {
            "error": {
                "type": "object",
                "properties": {
                    "code": {"type": "string", "enum": sorted(kind.code for kind in STATUSES)},
                    "message": {"type": "string"},
                    "details": {"type": "object", "additionalProperties": True},
                },
                "required": ["code", "message", "details"],
            }
        },
        "required": ["error"],
    }


def _error_responses() -> dict[str, Any]:
    retry_after = {
        "Retry-After": {
            "description": "Seconds to wait before the next try.",
            "schema": {"type": "integer"},
        }
    }
    return {
        f"Error{status}": {
            "description": " | ".join(f"`{code}`" for code in codes),
            **({"headers": retry_after} if status in (429, 503) else {}),
            "content": {_JSON: {"schema": _ERROR}},
        }
        for status, codes in sorted(_codes().items())
    }
