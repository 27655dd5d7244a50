"""Views of notices for people. No I/O."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

from agent_orchestrator.domain.notices import Notice, PushDevice
from agentctl.document import Block, Column, Table, Text
from agentctl.times import ago

STYLES: Final[Mapping[str, str]] = {
    "queued": "dim",
    "sent": "blue",
    "shown": "green",
    "withdrawing": "dim",
    "failed": "red",
    "gone": "dim",
}


def notice_table(notices: Sequence[Notice], now: datetime) -> list[Block]:
    def about(notice: Notice) -> str:
        return "test" if notice.kind == "test" else f"{notice.kind} {notice.subject}"

    def next_try(notice: Notice) -> str:
        return "" if notice.next_at is None else ago(notice.next_at, now)

    columns = [
        Column("NOTICE", lambda one: one.id),
        Column("STATE", lambda one: Text(one.state, STYLES.get(one.state, ""))),
        Column("TARGET", lambda one: one.target),
        Column("ABOUT", about),
        Column("TRIES", lambda one: str(one.attempts), right=True),
        Column("NEXT", next_try, right=True),
        Column("MADE", lambda one: ago(one.created_at, now), right=True),
        Column("ERROR", lambda one: one.error or "", flexible=True),
    ]
    return [
        Table(columns, notices, "no notices", "STATE TARGET ABOUT ERROR TRIES MADE NEXT NOTICE")
    ]


def browser_table(browsers: Sequence[PushDevice], now: datetime) -> list[Block]:
    columns = [
        Column("BROWSER", lambda one: one.id),
        Column("PRINCIPAL", lambda one: one.principal),
        Column("PUSH", lambda one: Text(one.push, "" if one.push == "on" else "yellow")),
        Column("QUIET", lambda one: one.quiet_hours),
        Column("EVENTS", lambda one: ",".join(one.events)),
        Column("SERVICE", lambda one: one.service),
        Column("SEEN", lambda one: ago(one.seen_at, now), right=True),
        Column("NAME", lambda one: one.name, flexible=True),
    ]
    return [
        Table(
            columns,
            browsers,
            "no browsers",
            "NAME PUSH EVENTS QUIET SEEN PRINCIPAL SERVICE BROWSER",
        )
    ]
