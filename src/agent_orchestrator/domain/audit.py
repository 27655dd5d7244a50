"""The audit trail: who did what with which kind of token, on what, and what was decided.

Entries are only ever added, and each holds a hash over itself and the one before: an entry that is
changed or taken out from among others shows, whoever did it.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final

from attrs import frozen

from agent_orchestrator.domain.access import TokenKind

DONE: Final = "done"
"""The decision about what was carried out; any other is the code of the refusal."""


@frozen
class AuditEntry:
    """One line of the trail."""

    seq: int
    """1, 2, 3 … with no gap."""
    at: datetime
    principal: str
    token: TokenKind
    operation: str
    target: str | None
    """The id of what it was done to."""
    decision: str
    detail: Mapping[str, Any]
    hash: str
    """SHA-256 over the entry before's and all of the above."""


def entry_hash(previous: str, entry: AuditEntry) -> str:
    """Return the hash an entry must have behind one of the hash ``previous`` ("" is the first)."""
    content = [
        previous,
        entry.seq,
        entry.at.isoformat(timespec="microseconds"),
        entry.principal,
        entry.token,
        entry.operation,
        entry.target,
        entry.decision,
        entry.detail,
    ]
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def first_break(entries: Iterable[AuditEntry], after: AuditEntry | None = None) -> int | None:
    """Return the ``seq`` at which a trail is not what was written.

    None means that it is whole; that its end was not cut off is for a backup to show.

    :param after: the entry before the first; None begins with the trail itself.
    """
    seq, previous = (after.seq, after.hash) if after is not None else (0, "")
    for entry in entries:
        seq += 1
        if entry.seq != seq or entry.hash != entry_hash(previous, entry):
            return seq
        previous = entry.hash
    return None
