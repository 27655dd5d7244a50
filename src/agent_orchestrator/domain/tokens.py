"""Bearer tokens that the gateway creates: random, with a prefix for the kind, stored as hashes."""

import hashlib
import secrets
from datetime import datetime
from typing import Final

from attrs import frozen

from agent_orchestrator.domain.access import Principal, Scope

RUN_TOKEN_PREFIX: Final = "art_"  # noqa: S105 - a prefix, not a secret
"""Prefix of the token of an attempt."""

NAMED_TOKEN_PREFIX: Final = "apt_"  # noqa: S105
"""Prefix of a token that an administrator created."""

LOCAL_TOKEN_PREFIX: Final = "alt_"  # noqa: S105
"""Prefix of the token that a daemon writes to a file for its own user. It is not in the store."""

STORED_PREFIXES: Final = (RUN_TOKEN_PREFIX, NAMED_TOKEN_PREFIX)


def new_token(prefix: str) -> str:
    """Return a token of the prefix and 256 random bits."""
    return prefix + secrets.token_urlsafe(32)


def token_hash(token: str) -> str:
    """Return the hash under which a token is stored.

    A plain hash is enough, because tokens are random: there is no dictionary to try.
    """
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()


@frozen
class AccessToken:
    """A named token, without its secret, which is not stored."""

    id: str
    name: str
    principal: str
    scopes: tuple[Scope, ...]
    created_by: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None = None

    def holder(self) -> Principal:
        """Return the caller that the token stands for."""
        return Principal(
            self.principal,
            admin="admin" in self.scopes,
            kind="named",
            scopes=frozenset(self.scopes),
            token_id=self.id,
            expires_at=self.expires_at,
        )
