"""The usage of a run, from the results of its turns."""

from collections.abc import Iterable, Mapping
from typing import Any

from agent_orchestrator.domain.model import Usage
from agent_orchestrator.fields import MAX_INTEGER
from agent_orchestrator.runners.numbers import MAX_COST_USD, amount, whole


def usage_of(result: Mapping[str, Any]) -> Usage | None:
    """Return the usage of a turn with its sub-agents; None if Claude Code does not say.

    ``modelUsage`` and ``total_cost_usd`` of 2.1.332 count the whole conversation, and ``usage`` leaves out
    sub-agents.
    """
    models = result.get("model_usage_since_last_result")
    if not isinstance(models, dict):
        return None
    used = [one for one in models.values() if isinstance(one, dict)]
    cached = _sum(used, "cacheReadInputTokens")
    tokens_in = _sum(used, "inputTokens") + cached + _sum(used, "cacheCreationInputTokens")
    return Usage(
        min(tokens_in, MAX_INTEGER),
        cached,
        _sum(used, "outputTokens"),
        _total(amount(one.get("costUSD"), MAX_COST_USD) for one in used),
    )


def plus(one: Usage | None, other: Usage) -> Usage:
    """Return the sum of two usages."""
    if one is None:
        return other
    return Usage(
        min(one.input_tokens + other.input_tokens, MAX_INTEGER),
        min(one.cached_input_tokens + other.cached_input_tokens, MAX_INTEGER),
        min(one.output_tokens + other.output_tokens, MAX_INTEGER),
        _total([one.cost_usd, other.cost_usd]),
    )


def _sum(used: Iterable[Mapping[str, Any]], name: str) -> int:
    return min(sum(whole(one.get(name)) or 0 for one in used), MAX_INTEGER)


def _total(costs: Iterable[float | None]) -> float | None:
    known = [cost for cost in costs if cost is not None]
    return sum(known) if known else None
