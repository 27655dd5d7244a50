"""Notices: what people are told outside of a client, one for each subject and target."""

from datetime import datetime
from typing import Final, Literal

from attrs import frozen

NoticeKind = Literal["request", "finished", "failed", "test"]
NoticeState = Literal["queued", "sent", "shown", "withdrawing", "failed", "gone"]
Occasion = Literal["request", "finished", "failed"]
"""What a target can be notified of."""

PushSwitch = Literal["on", "off"]

DEFAULT_QUIET: Final = "default"
NEVER_QUIET: Final = "none"

OCCASIONS: Final[tuple[Occasion, ...]] = ("request", "finished", "failed")


@frozen
class Notice:
    """One row of the outbox. There is at most one for each subject and target."""

    id: str
    kind: NoticeKind
    target: str
    """The name of a target of the settings, or the id of a push subscription."""
    subject: str
    """The id of the request or run that it is about; of a test, the notice's own id."""
    session_id: str | None
    run_id: str | None
    request_id: str | None
    state: NoticeState
    """``queued``: not sent yet. ``sent``: the channel took it. ``shown``: a device showed it.
    ``withdrawing``: its request was closed, and the channel is asked to take it away. ``failed``: given up.
    ``gone``: not sent because its request was closed, or taken away."""
    created_at: datetime
    updated_at: datetime
    """When the state changed."""
    principal: str | None = None
    """The principal of the push subscription. None for a target of the settings."""
    deadline: datetime | None = None
    """When the request expires."""
    next_at: datetime | None = None
    """When to send or withdraw it. None if nothing is left to do."""
    attempts: int = 0
    """Number of times that it was sent or withdrawn, or that this failed."""
    is_fallback: bool = False
    """Whether it is only sent if no device shows the notice."""
    sent_at: datetime | None = None
    shown_at: datetime | None = None
    clicked_at: datetime | None = None
    error: str | None = None
    """Why the last attempt failed."""
    claimed_by: str | None = None
    """The engine that is sending it. Other engines may send it after ``next_at``."""


@frozen
class PushSubscription:
    """A browser that is sent notices by Web Push (RFC 8030)."""

    id: str
    principal: str
    admin: bool
    """Whether the principal may do everything."""
    token_id: str | None
    """The named token that subscribed. Its end ends the subscription. None for callers without one."""
    name: str
    endpoint: str
    """The URL of the push service for this browser. Anyone who knows it can send to it."""
    p256dh: str
    """The browser's public key, in base64url."""
    auth: str
    """The browser's secret, in base64url."""
    events: tuple[Occasion, ...]
    created_at: datetime
    seen_at: datetime
    """When it subscribed last, or showed a notice."""
    push: PushSwitch = "on"
    """``off``: it keeps its subscription, and is sent only tests."""
    quiet_hours: str = DEFAULT_QUIET
    """Times of the day between which it gets no notices, such as ``22:00-07:00``. ``none``: never.
    ``default``: those of the settings."""
    time_zone: str | None = None
    """The time zone of ``quiet_hours``. None means that of the settings."""
    muted: tuple[str, ...] = ()
    """Ids of sessions for which it gets no notices. This includes their descendants."""


@frozen
class PushDevice:
    """A push subscription as its owner sees it: without the secrets."""

    id: str
    name: str
    principal: str
    service: str
    """The host of its push service."""
    events: tuple[Occasion, ...]
    created_at: datetime
    seen_at: datetime
    token_id: str | None = None
    """The device or named token that subscribed."""
    push: PushSwitch = "on"
    """`off`: it keeps its subscription, and is sent only tests."""
    quiet_hours: str = DEFAULT_QUIET
    """Times of the day between which it gets no notices. `none`: never. `default`: those of the settings."""
    time_zone: str | None = None
    """The time zone of `quiet_hours`. None means that of the settings."""
    muted: tuple[str, ...] = ()
    """Ids of sessions for which it gets no notices. This includes their descendants."""
