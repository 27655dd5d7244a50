"""What a run used, from what its thread has."""

from collections.abc import Mapping
from typing import Any

from agent_orchestrator.domain.model import Usage


def usage_between(before: Mapping[str, Any], totals: Mapping[str, int]) -> Usage:
    """Return what a run used, from the thread's token counts before and after it.

    Codex 0.169 counts over the whole thread, all its turns together. Counts that went down belong
    to another count, and are taken as they are.
    """
    names = ("input_tokens", "cached_input_tokens", "output_tokens")
    used = [totals.get(name, 0) - before.get(name, 0) for name in names]
    if min(used) < 0:
        used = [totals.get(name, 0) for name in names]
    return Usage(*used)
