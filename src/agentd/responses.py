"""The daemon's answers: JSON, event streams and errors."""

import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from http import HTTPStatus
from typing import Any, Final, cast

from hypercorn.typing import ASGISendCallable, HTTPResponseBodyEvent, HTTPResponseStartEvent
from quart import Response
from werkzeug.exceptions import HTTPException

from agent_orchestrator.domain import errors
from agent_orchestrator.operations.session_files import LINES
from agent_orchestrator.ports.transport import Download
from agent_orchestrator.wire import codec, problems, strict_json
from agent_orchestrator.wire.sse import EPOCH_HEADER
from agentd import cors
from agentd.lifetime import Lifetime
from agentd.long_bodies import LongBody, long_body

_log = logging.getLogger("agentd")

_COMMON = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


def json_response(
    body: str | bytes | LongBody, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return an answer with a JSON text as its body."""
    response = Response(
        body.encode() if isinstance(body, str) else body,
        status,
        {**_COMMON, **headers} if headers else _COMMON,
        content_type="application/json",
    )
    if isinstance(body, LongBody):
        response.content_length = body.size
    return response


async def as_json(value: Any) -> str | LongBody:
    """Return an object as compact JSON text. A long one is encoded in a thread."""
    plain = codec.to_plain(value)
    return await long_body(plain) if strict_json.is_long(plain) else strict_json.dumps(plain)


class LiveResponse(Response):
    """An answer that sends itself in parts, such as a stream."""

    def __init__(self) -> None:
        super().__init__(b"")
        self.timeout = None

    @abstractmethod
    async def send_all(self, send: ASGISendCallable) -> Response | None:
        """Send it all. Canceled if the client disconnects.

        :return: a response to send instead, if nothing was sent yet.
        """


def stream_start(response: Response, epoch: str | None = None) -> HTTPResponseStartEvent:
    """Return the ASGI event that begins an event stream.

    :param response: the answer, with its CORS headers.
    :param epoch: the epoch of the log.
    """
    extra = [*cors.cors_headers(response), *([] if epoch is None else [(EPOCH_HEADER, epoch)])]
    headers = (
        *STREAM_HEADERS,
        *((name.lower().encode(), value.encode()) for name, value in extra),
    )
    start = {"type": "http.response.start", "status": 200, "headers": headers}
    return cast("HTTPResponseStartEvent", start)


def stream_part(data: bytes, *, more: bool = True) -> HTTPResponseBodyEvent:
    """Return the ASGI event for a part of a stream."""
    return {"type": "http.response.body", "body": data, "more_body": more}


class LinesResponse(LiveResponse):
    """JSON lines, sent as they are read.

    :param lines: opens them.
    :param lifetime: the daemon's. The answer ends early when it closes.
    :param slot: the stream slot, entered while they are sent.
    """

    def __init__(
        self,
        lines: Callable[[], AbstractAsyncContextManager[Download]],
        lifetime: Lifetime,
        slot: AbstractContextManager[None],
    ) -> None:
        super().__init__()
        self._lines = lines
        self._lifetime = lifetime
        self._slot = slot

    async def send_all(self, send: ASGISendCallable) -> Response | None:
        """Send the lines. If they cannot be read to the end, the last one is missing."""
        if self._lifetime.closing:
            return problem_response(stopping())
        started = False
        try:
            with self._slot:
                async with self._lines() as lines:
                    with self._lifetime.until_closing():
                        await send(self._start())
                        started = True
                        while part := await lines.receive():
                            for start in range(0, len(part), PART_BYTES):
                                await send(stream_part(part[start : start + PART_BYTES]))
        except Exception as error:  # noqa: BLE001 - `problem_of` logs unexpected errors
            problem = problem_of(error)
            if not started:
                return problem_response(problem)
            _log.warning("a file of a session was not sent to its end: %s", problem)
        await send(stream_part(b"", more=False))
        return None

    def _start(self) -> HTTPResponseStartEvent:
        extra = [*_COMMON.items(), ("Content-Type", LINES), *cors.cors_headers(self)]
        headers = tuple((name.lower().encode(), value.encode()) for name, value in extra)
        start = {"type": "http.response.start", "status": 200, "headers": headers}
        return cast("HTTPResponseStartEvent", start)


PART_BYTES: Final = 256 * 2**10
"""Maximum bytes that are sent at once."""

STREAM_HEADERS: Final = tuple(
    (name.lower().encode(), value.encode())
    for name, value in (
        *_COMMON.items(),
        ("Content-Type", "text/event-stream; charset=utf-8"),
        # Proxies such as nginx buffer an answer otherwise.
        ("X-Accel-Buffering", "no"),
    )
)
"""The headers of a server-sent event stream, in ASGI's format."""


def stopping() -> errors.Unavailable:
    """Return the error for a call that a daemon does not answer because it closes."""
    return errors.Unavailable("the daemon is stopping: try again shortly", retry_after_s=5)


def problem_response(
    error: errors.OrchestratorError, headers: Mapping[str, str] | None = None
) -> Response:
    """Return the answer for an error."""
    extra = dict(headers or {})
    if isinstance(error, errors.Unauthorized):
        extra["WWW-Authenticate"] = "Bearer"
    elif isinstance(error, errors.Unavailable):
        extra["Retry-After"] = str(error.retry_after_s)
    elif isinstance(error, errors.RateLimited):
        extra["Retry-After"] = str(error.details.get("retry_after_s", 1))
    body = strict_json.dumps(problems.to_body(error))
    return json_response(body, problems.status_of(error), extra)


_BY_STATUS: dict[int, tuple[type[errors.OrchestratorError], str]] = {
    404: (errors.NotFound, "unknown path"),
    413: (errors.PayloadTooLarge, "the body is too large"),
    421: (errors.MisdirectedRequest, "the request is for another server"),
}


def from_http_exception(error: HTTPException) -> tuple[errors.OrchestratorError, dict[str, str]]:
    """Return the API's error for a refusal by the web framework, and its headers."""
    status = error.code or 500
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        methods = getattr(error, "valid_methods", None) or ()
        allowed = sorted({*methods, "OPTIONS"})
        details: dict[str, Any] = {"allowed": allowed}
        message = f"allowed methods of this path: {', '.join(allowed)}"
        return errors.MethodNotAllowed(message, details), {"Allow": ", ".join(allowed)}
    if status in _BY_STATUS:
        kind, message = _BY_STATUS[status]
        return kind(message), {}
    if 400 <= status < 500:
        return errors.InvalidRequest(error.name), {}
    return errors.Internal("an internal error; the daemon's log has the details"), {}


def problem_of(error: Exception) -> errors.OrchestratorError:
    """Return the API's error for an exception. An unexpected exception is logged."""
    if isinstance(error, errors.OrchestratorError):
        return error
    if isinstance(error, errors.Unreachable):
        return errors.Unavailable(str(error) or "the engine cannot be reached")
    _log.error("unexpected error in a request", exc_info=error)
    return errors.Internal("an internal error; the daemon's log has the details")
