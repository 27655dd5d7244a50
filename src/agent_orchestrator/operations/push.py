"""Calls of browsers that are sent notices by Web Push."""

from collections.abc import Sequence
from typing import Final, Literal

from attrs import frozen

from agent_orchestrator.domain.notices import PushDevice
from agent_orchestrator.fields import command, identifier, optional_name, param, required
from agent_orchestrator.operations.notices import NoticeReply
from agent_orchestrator.operations.options import Ordered
from agent_orchestrator.operations.table import Operation, _made

MAX_KEY: Final = 128


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
