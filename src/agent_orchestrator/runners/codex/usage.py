"""The usage of a run, computed from the token counts of its thread."""

from collections.abc import Mapping
from itertools import islice
from typing import Any, Final

from agent_orchestrator.domain.model import Usage
from agent_orchestrator.fields import MAX_NAME
from agent_orchestrator.runners.numbers import whole

_MAX_COUNTS: Final = 100
"""Maximum number of counts to keep. Codex 0.169 reports five."""


def counts(usage: Mapping[str, Any]) -> Mapping[str, int]:
    """Return the token counts in codex's usage."""
    return {
        name: count
        for name, count in islice(usage.items(), _MAX_COUNTS)
        if whole(count) is not None and len(name) <= MAX_NAME
    }


def usage_between(before: Mapping[str, Any], totals: Mapping[str, int]) -> Usage:
    """Return the usage of a run, from the thread's token counts before and after it.

    Codex 0.169 counts all turns of a thread. If the counts are lower than before, codex has started to
    count anew, and they are returned unchanged.
    """
    names = ("input_tokens", "cached_input_tokens", "output_tokens")
    used = [totals.get(name, 0) - before.get(name, 0) for name in names]
    if min(used) < 0:
        used = [totals.get(name, 0) for name in names]
    return Usage(*used)
