"""Notices to browsers by Web Push (RFC 8030).

The endpoint of a subscription comes from a client. Only endpoints of known push services are accepted, so a
client cannot make the engine send requests to other addresses.
"""

import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from anyio import Lock
from anyio.to_thread import run_sync
from attrs import define, evolve, field

from agent_orchestrator.domain.errors import Unavailable
from agent_orchestrator.domain.notices import PushSubscription
from agent_orchestrator.notice_settings import NotifyOptions
from agent_orchestrator.notifiers.http import HttpChannel
from agent_orchestrator.notifiers.payload import payload
from agent_orchestrator.ports.channel import NoticeContent, SendFailed
from agent_orchestrator.user_state import make_private_directory, read_private, write_private

if TYPE_CHECKING:  # cryptography takes 50 ms to load: not before a browser subscribes
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

KNOWN_HOSTS: Final = (
    "fcm.googleapis.com",
    "updates.push.services.mozilla.com",
    ".push.services.mozilla.com",
    ".push.apple.com",
    ".notify.windows.com",
)
"""Hosts of push services. A name with a leading dot allows all subdomains of that name."""

MAX_ENDPOINT: Final = 2_000
MAX_TEXT: Final = 300
"""Maximum number of characters of a request's text: a message has at most 4 KiB."""

TOKEN_LIFETIME: Final = timedelta(hours=12)
DEFAULT_TTL_S: Final = 86_400
MIN_TTL_S: Final = 60
MAX_TTL_S: Final = 2_419_200
"""Seconds that a push service keeps a message for a device that is offline."""

_GONE: Final = frozenset({404, 410})


@define(eq=False)
class WebPush(HttpChannel):
    """Sends notices to browsers, and makes the key that identifies this engine to push services.

    :param key_file: the file of the key. None keeps the key in memory: then subscriptions end with the
        engine.
    """

    options: NotifyOptions = field(kw_only=True)
    key_file: Path | None = field(kw_only=True)
    timeout_s: float = field(default=10.0, kw_only=True)
    _key: "EllipticCurvePrivateKey | None" = field(default=None, init=False, repr=False)
    _lock: Lock = field(factory=Lock, init=False)

    async def public_key(self) -> str:
        """Return the public key that a browser needs to subscribe; see
        :meth:`agent_orchestrator.ports.channel.PushService.public_key`.
        """
        from agent_orchestrator.notifiers.push_encryption import encode, point_of

        return encode(point_of(await self._signing_key()))

    async def _signing_key(self) -> "EllipticCurvePrivateKey":
        async with self._lock:
            if self._key is None:
                self._key = await run_sync(_load_key, self.key_file)
            return self._key

    def problems(self, endpoint: str, p256dh: str, auth: str) -> dict[str, str]:
        """Return what is wrong with the fields of a subscription, by field."""
        from agent_orchestrator.notifiers.push_encryption import AUTH_SIZE, decode, public_key_from

        found: dict[str, str] = {}
        if not is_known(endpoint, self.options.push_services):
            found["endpoint"] = (
                "is not an https URL of a known push service; see `push_services` in the settings"
            )
        try:
            public_key_from(decode(p256dh))
        except ValueError:
            found["p256dh"] = "must be a point of the curve P-256, uncompressed, in base64url"
        try:
            if len(decode(auth)) != AUTH_SIZE:
                found["auth"] = f"must be {AUTH_SIZE} bytes in base64url"
        except ValueError:
            found["auth"] = "must be base64url"
        return found

    async def send(self, subscription: PushSubscription, content: NoticeContent) -> None:
        """Send a notice to a browser; see :meth:`agent_orchestrator.ports.channel.PushService.send`."""
        from agent_orchestrator.notifiers.push_encryption import (
            MAX_PLAINTEXT,
            authorization,
            decode,
            encrypt,
        )

        if not is_known(subscription.endpoint, self.options.push_services):
            raise SendFailed("the settings do not allow its push service", is_final=True)
        text = None if content.text is None else content.text[:MAX_TEXT]
        message = payload(evolve(content, text=text))
        if len(message) > MAX_PLAINTEXT:
            message = payload(evolve(content, text=None, session_title=None))
        body = encrypt(message, decode(subscription.p256dh), decode(subscription.auth))
        expires_at = int((content.at + TOKEN_LIFETIME).timestamp())
        origin = "{0.scheme}://{0.netloc}".format(urlsplit(subscription.endpoint))
        key = await self._signing_key()
        headers = {
            "Authorization": authorization(key, origin, expires_at, self._contact()),
            "Content-Encoding": "aes128gcm",
            "Content-Type": "application/octet-stream",
            "TTL": str(_ttl(content)),
            "Topic": content.subject[:32],
            "Urgency": "high" if content.kind == "request" else "normal",
        }
        await self.request("POST", subscription.endpoint, headers, body, gone=_GONE)

    def _contact(self) -> str | None:
        base = self.options.link_base
        if self.options.push_contact is None and base is not None and base.startswith("https:"):
            return base
        return self.options.push_contact


def _ttl(content: NoticeContent) -> int:
    remaining_s = content.seconds_left()
    seconds = DEFAULT_TTL_S if remaining_s is None else int(remaining_s)
    return min(max(seconds, MIN_TTL_S), MAX_TTL_S)


def is_known(endpoint: str, further: Sequence[str]) -> bool:
    """Return whether an endpoint is a URL of a known push service.

    :param further: the origins of services besides the known ones.
    """
    if len(endpoint) > MAX_ENDPOINT or not endpoint.isascii() or not endpoint.isprintable():
        return False
    if any(character in endpoint for character in " \\#"):
        return False
    try:
        parts = urlsplit(endpoint)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return False
    if parts.username is not None or parts.password is not None:
        return False
    if f"{parts.scheme}://{parts.netloc}".lower() in {origin.lower() for origin in further}:
        return True
    if parts.scheme != "https" or port not in (None, 443):
        return False
    return any(
        host.endswith(known) if known.startswith(".") else host == known for known in KNOWN_HOSTS
    )


def _load_key(path: Path | None) -> "EllipticCurvePrivateKey":
    """Return the key in a file. If there is no file, make both."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        load_pem_private_key,
    )

    if path is None:
        return ec.generate_private_key(ec.SECP256R1())
    if os.path.lexists(path):
        content = read_private(path)
        if content is None:
            raise Unavailable(f"{path} must be a file that only you can read")
        try:
            key = load_pem_private_key(content, password=None)
        except (ValueError, TypeError):
            raise Unavailable(f"{path} does not contain a key") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp256r1":
            raise Unavailable(f"{path} does not contain a key of the curve P-256")
        return key
    made = ec.generate_private_key(ec.SECP256R1())
    pem = made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        if not path.parent.exists():
            make_private_directory(path.parent)
        write_private(path, pem)
    except OSError as error:
        raise Unavailable(f"{path} cannot be written: {error.strerror}") from None
    return made
