"""A notice as JSON, for webhooks and programs."""

from typing import Any

from agent_orchestrator.ports.channel import NoticeContent
from agent_orchestrator.wire.codec import format_time
from agent_orchestrator.wire.strict_json import dumps


def payload(content: NoticeContent) -> bytes:
    """Return the JSON of a notice. Fields without a value are left out."""
    withdrawn = content.action == "withdraw"
    data: dict[str, Any] = {
        "notice_id": content.notice_id,
        "kind": content.kind,
        "title": content.title,
        "link": content.link,
        "session_id": content.session_id,
        "session_title": content.session_title,
        "run_id": content.run_id,
        "request_id": content.request_id,
        "request_kind": content.request_kind,
        "created_at": format_time(content.created_at),
        "expires_at": None if content.deadline is None else format_time(content.deadline),
        "text": content.text,
    }
    document = {
        "type": "notice.withdrawn" if withdrawn else f"notice.{content.kind}",
        "timestamp": format_time(content.at),
        "data": {name: value for name, value in data.items() if value is not None},
    }
    return dumps(document).encode()
