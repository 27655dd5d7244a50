"""Tokens that the gateway creates: random, with a prefix for the kind, stored as hashes.

A device has two secrets: a cookie, which its browser sends and no script can read, and one that the
page keeps and sends in a header. Only both together are a token, so that neither a stolen cookie nor a
page's storage alone gives access. A device gets them for a short code that an administrator shows it.
"""

import hashlib
import secrets
from datetime import datetime
from typing import Final, Literal

from attrs import frozen

from agent_orchestrator.domain.access import Principal, Scope

RUN_TOKEN_PREFIX: Final = "art_"  # noqa: S105 - a prefix, not a secret
"""Prefix of the token of an attempt."""

NAMED_TOKEN_PREFIX: Final = "apt_"  # noqa: S105
"""Prefix of a token that an administrator created."""

LOCAL_TOKEN_PREFIX: Final = "alt_"  # noqa: S105
"""Prefix of the token that a daemon writes to a file for its own user. It is not in the store."""

COOKIE_PREFIX: Final = "adc_"
DEVICE_SECRET_PREFIX: Final = "ads_"  # noqa: S105
"""Prefixes of the two secrets of a device."""

STORED_PREFIXES: Final = (RUN_TOKEN_PREFIX, NAMED_TOKEN_PREFIX)


def new_token(prefix: str) -> str:
    """Return a token of the prefix and 256 random bits."""
    return prefix + secrets.token_urlsafe(32)


def token_hash(token: str) -> str:
    """Return the hash under which a token is stored.

    A plain hash is enough, because tokens are random: there is no dictionary to try.
    """
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()


CODE_LENGTH: Final = 8
_CODE_ALPHABET: Final = "23456789ABCDEFGHJKMNPQRSTVWXYZ"
"""Without characters that look like others. A code has 39 random bits: it is valid for minutes, and
wrong ones lock an address out."""


def new_code() -> str:
    """Return a code for a device to present once."""
    return "".join(secrets.choice(_CODE_ALPHABET) for _ in range(CODE_LENGTH))


def code_hash(code: str) -> str:
    """Return the hash under which a code is stored. Case, spaces and hyphens do not matter."""
    return token_hash(f"code {code.upper().translate({ord(' '): None, ord('-'): None})}")


def device_hash(cookie: str, secret: str) -> str:
    """Return the hash under which a device's token is stored."""
    return token_hash(f"device {cookie} {secret}")


Purpose = Literal["token", "device", "invitation", "link"]


@frozen
class AccessToken:
    """A named token, a device, its invitation, or a share link; without its secret, which is not stored."""

    id: str
    name: str
    principal: str
    scopes: tuple[Scope, ...]
    created_by: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None = None
    purpose: Purpose = "token"
    """`token`, `device`, `invitation`: a code that becomes a device, or `link`: a share link."""
    session_id: str | None = None
    """The session that a share link may read, with its descendants."""
    seen_at: datetime | None = None
    """When it was used last. It may be up to a minute too early. None if it was not used yet."""

    def holder(self) -> Principal:
        """Return the caller that the token stands for."""
        return Principal(
            self.principal,
            admin="admin" in self.scopes,
            kind=self.purpose if self.purpose in ("device", "link") else "named",
            scopes=frozenset(self.scopes),
            token_id=self.id,
            expires_at=self.expires_at,
            session_id=self.session_id,
        )
