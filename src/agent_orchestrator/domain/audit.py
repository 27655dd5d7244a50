"""The audit trail: for each decision the caller, the kind of its token, the operation and the target.

Entries are only added. Each has a hash over its fields and the hash of the entry before, so that a changed
or removed entry is detected.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final

from attrs import frozen

from agent_orchestrator.domain.access import TokenKind

DONE: Final = "done"
"""The ``decision`` of an operation that was carried out. Any other is the code of the refusal."""


@frozen
class AuditEntry:
    """One entry of the trail."""

    seq: int
    """1, 2, 3 … without gaps."""
    at: datetime
    principal: str
    token: TokenKind
    operation: str
    target: str | None
    """The id of the operation's object."""
    decision: str
    detail: Mapping[str, Any]
    hash: str
    """SHA-256 over the previous entry's hash and the fields above, in hexadecimal."""


def entry_hash(previous: str, entry: AuditEntry) -> str:
    """Return the hash that an entry must have.

    :param previous: the hash of the entry before; "" for the first.
    """
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
    """Return the ``seq`` of the first entry that was changed or is missing; None if there is none.

    Missing entries at the end are not detected.

    :param after: the entry before the first; None at the beginning of the trail.
    """
    seq, previous = (after.seq, after.hash) if after is not None else (0, "")
    for entry in entries:
        seq += 1
        if entry.seq != seq or entry.hash != entry_hash(previous, entry):
            return seq
        previous = entry.hash
    return None
