"""Notices as signed requests, by the Standard Webhooks specification (https://www.standardwebhooks.com)."""

import base64
import hashlib
import hmac
from typing import Final

from attrs import define, field

from agent_orchestrator.notice_settings import WebhookOptions, signing_key
from agent_orchestrator.notifiers.http import HttpChannel
from agent_orchestrator.notifiers.payload import payload
from agent_orchestrator.ports.channel import NoticeContent

USER_AGENT: Final = "agent-orchestrator"


@define(eq=False)
class WebhookChannel(HttpChannel):
    """Posts each notice to a URL, and another message when it is withdrawn."""

    options: WebhookOptions = field(kw_only=True)

    @property
    def withdraws(self) -> bool:
        return True

    async def send(self, content: NoticeContent) -> None:
        body = payload(content)
        suffix = "_withdrawn" if content.action == "withdraw" else ""
        message_id, timestamp = content.notice_id + suffix, str(int(content.at.timestamp()))
        headers = {
            "Content-Type": "application/json",
            "User-Agent": USER_AGENT,
            "webhook-id": message_id,
            "webhook-timestamp": timestamp,
            "webhook-signature": signature(
                signing_key(self.options.secret), message_id, timestamp, body
            ),
        }
        await self.request("POST", self.options.url, headers, body)


def signature(key: bytes, message_id: str, timestamp: str, body: bytes) -> str:
    """Return the value of ``webhook-signature``: ``v1,`` and an HMAC-SHA256 in base64."""
    signed = b".".join([message_id.encode(), timestamp.encode(), body])
    digest = hmac.digest(key, signed, hashlib.sha256)
    return f"v1,{base64.b64encode(digest).decode()}"
