"""Views of API objects for agents: a subset of their fields, under the same names."""

from typing import Any, Final

from agent_orchestrator.domain.model import Message, Request, Run, Session
from agent_orchestrator.wire.codec import format_time, to_plain

MAX_SHORT: Final = 1_000
"""Maximum characters of a question in a list."""


def session_view(session: Session) -> dict[str, Any]:
    return {
        "id": session.id,
        "title": session.title,
        "status": session.status,
        "provider": session.provider,
        "cwd": session.cwd,
        "parent_session_id": session.parent_session_id,
    }


def run_view(run: Run, *, with_result: bool = True) -> dict[str, Any]:
    view: dict[str, Any] = {"id": run.id, "session_id": run.session_id, "status": str(run.status)}
    if run.waiting_on is not None:
        view["waiting_on"] = run.waiting_on
    if run.result is not None and with_result:
        view["result"] = to_plain(run.result)
    if run.error is not None:
        view["error"] = to_plain(run.error)
    return view


def message_view(message: Message) -> dict[str, Any]:
    return {
        "id": message.id,
        "session_id": message.session_id,
        "run_id": message.run_id,
        "delivery": message.delivery,
    }


def request_view(request: Request, *, in_short: bool = False) -> dict[str, Any]:
    """Return the view of a request.

    :param in_short: omit details, as in lists. ``session_wait`` returns them.
    """
    view: dict[str, Any] = {
        "id": request.id,
        "session_id": request.session_id,
        "run_id": request.run_id,
        "kind": request.kind,
        "text": request.text[:MAX_SHORT] if in_short else request.text,
        "status": request.status,
        "expires_at": format_time(request.expires_at),
    }
    if in_short:
        return view
    for name in ("detail", "options", "decision", "option", "answer", "scope", "decided_by"):
        if (value := getattr(request, name)) is not None:
            view[name] = to_plain(value)
    return view
