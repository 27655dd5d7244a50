"""Encoding of JSON values and feed cursors, shared by all stores."""

import json
import re
import secrets
from collections.abc import Callable, Mapping
from typing import Any, Final

from agent_orchestrator.domain.errors import CursorAhead, Gone, InvalidRequest
from agent_orchestrator.wire.strict_json import dumps

_CURSOR: Final = re.compile(r"[0-9]{1,19}(\.[0-9a-f]{12})?(~[0-9]{1,18})?")


def new_epoch() -> str:
    """Return a random id for a new epoch of a store's log (see :meth:`.ports.View.epoch`)."""
    return secrets.token_hex(6)


def plain(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a JSON object as it reads after encoding and decoding.

    :raises ValueError: if it contains NaN, an infinity or a lone surrogate.
    :raises TypeError: if it contains an object that has no JSON form.
    """
    text = dumps(value)
    text.encode()
    copy: dict[str, Any] = json.loads(text)
    return copy


def feed_cursor(position: int, epoch: str | None, mark: int = 0) -> str:
    """Return the feed cursor for a position.

    :param epoch: the log's epoch, if known.
    :param mark: number of deletions from the beginnings of logs until now. So a reader learns of later ones,
        and not of those that it was told of, or that were before its first event.
    """
    cursor = str(position) if epoch is None else f"{position}.{epoch}"
    return f"{cursor}~{mark}" if mark else cursor


def mark_of(cursor: str) -> int:
    """Return the mark in a feed cursor (:func:`feed_cursor`)."""
    return int(cursor.partition("~")[2] or 0)


def events_gone(cursor: str, position: int, epoch: str | None, mark: int) -> Gone:
    """Return the error for a feed cursor after which events were deleted."""
    return Gone(
        "some events after this cursor are no longer kept: go on from the cursor in `oldest`, and read"
        " sessions anew if you keep their logs",
        {"cursor": cursor, "oldest": feed_cursor(position, epoch, mark)},
    )


def position_after(cursor: str | None, head: int, end_of: Callable[[str], int | None]) -> int:
    """Return the position a feed cursor refers to. The first event has position 1; None means 0.

    :param head: the position of the last event.
    :param end_of: takes an epoch and returns the last position this log shares with it; None if
        the epoch is unknown.
    :raises InvalidRequest: if it is not a cursor.
    :raises CursorAhead: if it is beyond ``head``, or beyond what the log shares with its epoch.
    """
    if cursor is None:
        return 0
    if not _CURSOR.fullmatch(cursor):
        raise InvalidRequest.of({"cursor": "is not a cursor of this stream"})
    number, _, epoch = cursor.partition("~")[0].partition(".")
    position = int(number)
    common = 0
    if epoch and position > (common := end_of(epoch) or 0):
        raise CursorAhead.restored(
            {"cursor": cursor, "head": str(head), "resume_cursor": str(common)}
        )
    if position > head:
        raise CursorAhead(
            "the cursor is beyond the last event",
            {"cursor": cursor, "head": str(head), "resume_cursor": "0"},
        )
    return position


LAST: Final = 2**63 - 1
"""A position after all others."""


def position_before(cursor: str | None) -> int:
    """Return the position that a cursor of a search refers to. None means :data:`LAST`.

    :raises InvalidRequest: if it is not a cursor.
    """
    if cursor is None:
        return LAST
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) < len(str(LAST))):
        raise InvalidRequest.of({"cursor": "is not a cursor of a search"})
    return int(cursor)
