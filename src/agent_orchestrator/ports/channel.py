"""Channels: the ways in which a notice reaches people."""

from datetime import datetime
from typing import Literal, Protocol

from attrs import frozen

from agent_orchestrator.domain.model import RequestKind
from agent_orchestrator.domain.notices import NoticeKind, Occasion, PushSubscription


@frozen(kw_only=True)
class NoticeContent:
    """What a channel sends.

    :param notice_id: the same in each attempt, so that a receiver can drop repeats.
    :param action: ``show`` the notice, or ``withdraw`` one that was shown.
    :param subject: the request or run that it is about.
    :param title: one line, such as ``Approval needed: fix the build``.
    :param link: the page of the request or session: a URL, or a path if no ``link_base`` is configured.
    :param deadline: when the request expires.
    :param text: the request's text, the result or the error; only with ``include_text``.
    """

    notice_id: str
    action: Literal["show", "withdraw"]
    kind: NoticeKind
    subject: str
    title: str
    link: str
    created_at: datetime
    at: datetime
    """Now."""
    session_id: str | None = None
    session_title: str | None = None
    run_id: str | None = None
    request_id: str | None = None
    request_kind: RequestKind | None = None
    deadline: datetime | None = None
    text: str | None = None

    def seconds_left(self) -> float | None:
        """Return the seconds until the deadline, at least 0; None without a deadline."""
        if self.deadline is None:
            return None
        return max((self.deadline - self.at).total_seconds(), 0.0)


class SendFailed(Exception):
    """A notice was not sent. The message says why, without secrets.

    :param is_final: another attempt is useless.
    :param retry_after_s: minimum seconds until the next attempt, if the receiver named them.
    :param is_gone: the receiver no longer exists.
    """

    def __init__(
        self,
        message: str,
        *,
        is_final: bool = False,
        retry_after_s: float | None = None,
        is_gone: bool = False,
    ) -> None:
        super().__init__(message)
        self.is_final = is_final or is_gone
        self.retry_after_s = retry_after_s
        self.is_gone = is_gone


class Channel(Protocol):
    """Sends notices to one target. If it is an async context manager, the engine enters it."""

    @property
    def withdraws(self) -> bool:
        """Whether it can take a notice away again."""
        ...

    async def send(self, content: NoticeContent) -> None:
        """Send a notice, or withdraw one. It may be sent again after a crash.

        :raises SendFailed: if the receiver did not accept it.
        """
        ...


class PushService(Protocol):
    """Sends notices to browsers by Web Push."""

    @property
    def timeout_s(self) -> float:
        """Maximum seconds of one attempt."""
        ...

    async def public_key(self) -> str:
        """Return the public key that a browser needs to subscribe, in base64url. The first call makes it.

        :raises Unavailable: if its file cannot be read or written.
        """
        ...

    def problems(self, endpoint: str, p256dh: str, auth: str) -> dict[str, str]:
        """Return what is wrong with the fields of a subscription, by field."""
        ...

    async def send(self, subscription: PushSubscription, content: NoticeContent) -> None:
        """Send a notice to a browser, or withdraw one.

        :raises SendFailed: if the push service did not accept it.
        """
        ...


@frozen(kw_only=True)
class Target:
    """A target of the settings.

    :param kind: the kind of its channel, for people.
    :param timeout_s: maximum seconds of one attempt.
    :param events: what it is notified of.
    :param fallback: whether to notify it only if no device shows the notice.
    :param quiet: whether quiet hours apply to it.
    """

    channel: Channel
    kind: str
    timeout_s: float
    events: frozenset[Occasion] = frozenset({"request"})
    fallback: bool = True
    quiet: bool = True
