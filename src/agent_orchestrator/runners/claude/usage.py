"""The usage of a run, from the results of its turns."""

from collections.abc import Mapping
from typing import Any

from agent_orchestrator.domain.model import Usage
from agent_orchestrator.fields import MAX_INTEGER


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
    costs = [one["costUSD"] for one in used if isinstance(one.get("costUSD"), (int, float))]
    cost = float(sum(costs)) if costs else None
    return Usage(min(tokens_in, MAX_INTEGER), cached, _sum(used, "outputTokens"), cost)


def plus(one: Usage | None, other: Usage) -> Usage:
    """Return the sum of two usages."""
    if one is None:
        return other
    costs = [cost for cost in (one.cost_usd, other.cost_usd) if cost is not None]
    return Usage(
        one.input_tokens + other.input_tokens,
        one.cached_input_tokens + other.cached_input_tokens,
        one.output_tokens + other.output_tokens,
        sum(costs) if costs else None,
    )


def _sum(used: list[dict[str, Any]], name: str) -> int:
    counts = [one.get(name) for one in used]
    return sum(count for count in counts if type(count) is int and 0 <= count <= MAX_INTEGER // 100)
