"""Bearer tokens the gateway makes itself: random, known by their beginning, kept as hashes."""

import hashlib
import secrets
from typing import Final

RUN_TOKEN_PREFIX: Final = "art_"  # noqa: S105 - what a token begins with
"""Begins the token of a run's attempt."""


def new_token(prefix: str) -> str:
    """Return a token nobody can guess: 256 bits behind the prefix."""
    return prefix + secrets.token_urlsafe(32)


def token_hash(token: str) -> str:
    """Return what is kept of a token.

    A plain hash will do: what is hashed is random, so that there is no list to try.
    """
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()
