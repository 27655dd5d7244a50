"""How values become what a database holds: JSON as compact text, times as RFC 3339 in UTC."""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from agent_orchestrator.domain.errors import CursorAhead, InvalidRequest
from agent_orchestrator.wire.codec import format_time, parse_time
from agent_orchestrator.wire.strict_json import dumps


def plain(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy as a reader of the stored JSON would see it.

    :raises ValueError: if JSON in UTF-8 cannot say the value (NaN, a lone surrogate).
    :raises TypeError: likewise (an object of a class of its own).
    """
    text = dumps(value)
    text.encode()
    copy: dict[str, Any] = json.loads(text)
    return copy


def optional_time_text(at: datetime | None) -> str | None:
    return None if at is None else format_time(at)


def optional_time_from(text: str | None) -> datetime | None:
    return None if text is None else parse_time(text)


def position_after(cursor: str | None, head: int) -> int:
    """Return the position a feed cursor stands for; the first event has position 1.

    :raises InvalidRequest: if it is not a cursor.
    :raises CursorAhead: if it is beyond ``head``, the position of the last event.
    """
    if cursor is None:
        return 0
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) <= 19):
        raise InvalidRequest.of({"cursor": "is not a cursor of this stream"})
    position = int(cursor)
    if position > head:
        raise CursorAhead(
            "the cursor is beyond the last event", {"cursor": cursor, "head": str(head)}
        )
    return position
