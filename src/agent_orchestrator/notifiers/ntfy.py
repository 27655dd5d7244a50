"""Notices as messages of an ntfy topic (https://ntfy.sh)."""

from base64 import b64encode
from collections.abc import Mapping
from typing import Final

from attrs import define, field

from agent_orchestrator.domain.notices import NoticeKind
from agent_orchestrator.notice_settings import NtfyOptions
from agent_orchestrator.notifiers.http import HttpChannel
from agent_orchestrator.ports.channel import NoticeContent

URGENT_S: Final = 600.0
HIGH_S: Final = 3600.0
"""Seconds until its deadline at which a request has the priority ``urgent``, and ``high``."""

_URGENT, _HIGH, _DEFAULT = "5", "4", "3"

_TAGS: Final[Mapping[NoticeKind, str]] = {
    "request": "question",
    "finished": "white_check_mark",
    "failed": "x",
    "test": "bell",
}
"""Names of emoji that ntfy shows before the title."""


@define(eq=False)
class NtfyChannel(HttpChannel):
    """Publishes each notice, and deletes it when it is withdrawn.

    The notice's id is the message's sequence id. Servers before 2.16 do not know it: there a notice stays.
    """

    options: NtfyOptions = field(kw_only=True)

    @property
    def withdraws(self) -> bool:
        return True

    async def send(self, content: NoticeContent) -> None:
        token = self.options.token
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        url = self.options.url.rstrip("/")
        if content.action == "withdraw":
            await self.request(
                "DELETE", f"{url}/{content.notice_id}", headers, accepted=_UNKNOWN_SEQUENCE
            )
            return
        headers |= {
            "X-Sequence-ID": content.notice_id,
            "Title": _encoded(content.title),
            "Priority": _priority(content),
            "Tags": _TAGS[content.kind],
            "Content-Type": "text/plain; charset=utf-8",
        }
        if content.link.startswith(("http://", "https://")):
            headers["Click"] = content.link
        await self.request("POST", url, headers, _message(content).encode())


_UNKNOWN_SEQUENCE: Final = frozenset({400, 404, 405})
"""Answers of servers that cannot delete a message."""


def _priority(content: NoticeContent) -> str:
    remaining_s = content.seconds_left()
    if remaining_s is None:
        return _HIGH if content.kind == "failed" else _DEFAULT
    if remaining_s <= URGENT_S:
        return _URGENT
    return _HIGH if remaining_s <= HIGH_S else _DEFAULT


def _message(content: NoticeContent) -> str:
    if content.text is not None:
        return content.text
    if content.deadline is not None:
        return f"It waits for an answer until {content.deadline:%H:%M} UTC."
    return content.session_title or content.title


def _encoded(text: str) -> str:
    """Return a text for a header: unchanged if it is ASCII, else an encoded word (RFC 2047)."""
    return text if text.isascii() else f"=?UTF-8?B?{b64encode(text.encode()).decode()}?="
