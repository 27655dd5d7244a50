"""Bearer tokens the gateway makes itself: random, known by their beginning, kept as hashes."""

import hashlib
import secrets
from datetime import datetime
from typing import Final

from attrs import frozen

from agent_orchestrator.domain.access import Principal, Scope

RUN_TOKEN_PREFIX: Final = "art_"  # noqa: S105 - what a token begins with
"""Begins the token of a run's attempt."""

NAMED_TOKEN_PREFIX: Final = "apt_"  # noqa: S105
"""Begins a token somebody had made."""

LOCAL_TOKEN_PREFIX: Final = "alt_"  # noqa: S105
"""Begins the token that a daemon leaves for its own user; the store does not know it."""

MADE_HERE: Final = (RUN_TOKEN_PREFIX, NAMED_TOKEN_PREFIX)


def new_token(prefix: str) -> str:
    """Return a token nobody can guess: 256 bits behind the prefix."""
    return prefix + secrets.token_urlsafe(32)


def token_hash(token: str) -> str:
    """Return what is kept of a token.

    A plain hash will do: what is hashed is random, so that there is no list to try.
    """
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()


@frozen
class AccessToken:
    """A token somebody had made, without its secret, which is nowhere."""

    id: str
    name: str
    principal: str
    scopes: tuple[Scope, ...]
    created_by: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None = None

    def holder(self) -> Principal:
        """Return whom the token stands for."""
        return Principal(
            self.principal,
            admin="admin" in self.scopes,
            kind="named",
            scopes=frozenset(self.scopes),
            token_id=self.id,
            expires_at=self.expires_at,
        )
