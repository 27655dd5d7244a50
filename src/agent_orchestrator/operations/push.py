"""Calls of browsers that are sent notices by Web Push."""

from collections.abc import Sequence
from typing import Final, Literal

from attrs import frozen

from agent_orchestrator.domain.notices import (
    DEFAULT_QUIET,
    NEVER_QUIET,
    PushDevice,
    PushSwitch,
)
from agent_orchestrator.fields import (
    MAX_NAME,
    QUIET_HOURS,
    command,
    identifier,
    optional_name,
    param,
    required,
)
from agent_orchestrator.operations.notices import NoticeReply
from agent_orchestrator.operations.options import Ordered
from agent_orchestrator.operations.table import Operation, _made

MAX_KEY: Final = 128
MAX_MUTED: Final = 200
"""Maximum number of sessions that are muted for a browser."""


@command
class SubscribePush:
    endpoint: str = required(
        "The `endpoint` of the browser's subscription. Its push service must be a known one, or in "
        "`push_services` of the settings.",
        kw_only=False,
        max_length=2_000,
        not_blank=True,
    )
    p256dh: str = required(
        "The `keys.p256dh` of the browser's subscription.", max_length=MAX_KEY, not_blank=True
    )
    auth: str = required(
        "The `keys.auth` of the browser's subscription.", max_length=MAX_KEY, not_blank=True
    )
    name: str | None = optional_name("The device's name in lists. Default: its push service.")
    events: Sequence[str] = param(
        "What it is notified of: `request`, `finished`, `failed`.",
        default=("request",),
        max_length=3,
        flag="--event",
    )


@command
class ListPush(Ordered):
    pass


@command
class UnsubscribePush:
    subscription_id: str = identifier("The push subscription.", kw_only=False)


@command
class UpdatePush:
    subscription_id: str = identifier("The push subscription.", kw_only=False)
    push: PushSwitch | None = param(
        "`off` keeps the subscription, but sends only tests.", default=None
    )
    events: Sequence[str] | None = param(
        "What it is notified of: `request`, `finished`, `failed`.",
        default=None,
        max_length=3,
        flag="--event",
    )
    quiet_hours: str | None = param(
        "Times of the day between which it gets no notices, such as `22:00-07:00`; `none`, or `default` for "
        "those of the settings.",
        default=None,
        pattern=f"{DEFAULT_QUIET}|{NEVER_QUIET}|{QUIET_HOURS}",
    )
    time_zone: str | None = param(
        "The time zone of `quiet_hours`, such as `Europe/Berlin`.",
        default=None,
        max_length=MAX_NAME,
    )
    muted: Sequence[str] | None = param(
        "Ids of sessions for which it gets no notices. This includes their descendants. Replaces the current ones.",
        default=None,
        max_length=MAX_MUTED,
        flag="--mute",
    )


@command
class GetPushKey:
    pass


@command
class ReportNotice:
    notice_id: str = identifier("The notice.", kw_only=False)
    state: Literal["shown", "clicked"] = required(
        "`shown`: the device shows it. `clicked`: somebody has opened it.", kw_only=False
    )


@frozen
class PushReply:
    subscription: PushDevice


@frozen
class PushPage:
    subscriptions: tuple[PushDevice, ...]
    next_cursor: str | None


@frozen
class PushKey:
    key: str
    """The `applicationServerKey` of a browser's subscription, in base64url."""


SUBSCRIBE_PUSH: Final = _made(
    Operation(
        "subscribe_push",
        "POST",
        "/push/subscriptions",
        SubscribePush,
        PushReply,
        "Send notices to this browser. A repeat with the same endpoint replaces its subscription.",
    )
)
LIST_PUSH: Final = Operation(
    "list_push",
    "GET",
    "/push/subscriptions",
    ListPush,
    PushPage,
    "List the caller's push subscriptions. An administrator sees all.",
)
UPDATE_PUSH: Final = Operation(
    "update_push",
    "PATCH",
    "/push/subscriptions/{subscription_id}",
    UpdatePush,
    PushReply,
    "Change what a browser is notified of, and when.",
)
UNSUBSCRIBE_PUSH: Final = Operation(
    "unsubscribe_push",
    "DELETE",
    "/push/subscriptions/{subscription_id}",
    UnsubscribePush,
    PushReply,
    "Stop sending notices to a browser.",
)
GET_PUSH_KEY: Final = Operation(
    "get_push_key",
    "GET",
    "/push/key",
    GetPushKey,
    PushKey,
    "Read the public key that a browser needs to subscribe.",
)
REPORT_NOTICE: Final = Operation(
    "report_notice",
    "POST",
    "/push/receipts",
    ReportNotice,
    NoticeReply,
    "Report that a device has shown a notice, or that somebody has opened it.",
)
