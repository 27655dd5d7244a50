"""The usage of a run. Agents report it in different places."""

from collections.abc import Mapping
from typing import Any, Final

from attrs import define, evolve, field, frozen

from agent_orchestrator.domain.model import Usage
from agent_orchestrator.fields import MAX_INTEGER
from agent_orchestrator.runners.acp.agent import UsageSource
from agent_orchestrator.runners.acp.values import value_at
from agent_orchestrator.runners.events import JsonObject
from agent_orchestrator.runners.numbers import MAX_COST_USD, amount, whole

_NAMES: Final = ("inputTokens", "cachedReadTokens", "outputTokens")
_QUOTA_NAMES: Final = ("input_tokens", "cached_input_tokens", "output_tokens")


@frozen
class Totals:
    """The usage that a process has reported since its start.

    :param tokens: input, cached input and output.
    """

    tokens: tuple[int, int, int] = (0, 0, 0)
    cost_usd: float | None = None


@define
class UsageMeter:
    """Counts the usage of one run.

    :param before: the totals of the process before the run.
    """

    source: UsageSource
    before: Totals = Totals()
    totals: Totals = field(init=False)
    _tokens: tuple[int, int, int] | None = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self.totals = self.before

    def add_result(self, result: JsonObject) -> None:
        """Add the usage in the answer to a prompt."""
        match self.source:
            case "turn" | "last_call":
                self._add(_counts(result.get("usage"), _NAMES))
            case "quota":
                self._add(
                    _counts(value_at(result, ["_meta", "quota", "token_count"]), _QUOTA_NAMES)
                )
            case "process" if (found := _counts(result.get("usage"), _NAMES)) is not None:
                old = self.before.tokens
                # A smaller total means that the agent has begun to count again.
                is_new = any(now < then for now, then in zip(found, old, strict=True))
                base = (0, 0, 0) if is_new else old
                self._tokens = tuple(now - then for now, then in zip(found, base, strict=True))  # type: ignore[assignment]
                self.totals = evolve(self.totals, tokens=found)

    def add_chunk(self, update: JsonObject) -> None:
        """Add the usage in a piece of a message."""
        if self.source == "chunks":
            self._add(_counts(value_at(update, ["_meta", "usage"]), _NAMES))

    def add_cost(self, update: JsonObject) -> None:
        """Add the cost in a ``usage_update``."""
        cost = amount(value_at(update, ["cost", "amount"]), MAX_COST_USD)
        if cost is not None and value_at(update, ["cost", "currency"]) == "USD":
            self.totals = evolve(self.totals, cost_usd=cost)

    def usage(self) -> Usage | None:
        """Return the usage so far; None if the agent has not reported any."""
        cost = self.totals.cost_usd
        if cost is not None:
            before = self.before.cost_usd or 0.0
            cost = max(cost - before, 0.0) if cost >= before else cost
        if self._tokens is None and cost is None:
            return None
        return Usage(*(self._tokens or (0, 0, 0)), cost_usd=cost)

    def _add(self, found: tuple[int, int, int] | None) -> None:
        if found is not None:
            now = self._tokens or (0, 0, 0)
            first, second, third = (
                min(sum(both), MAX_INTEGER) for both in zip(now, found, strict=True)
            )
            self._tokens = (first, second, third)


def _counts(value: Any, names: tuple[str, str, str]) -> tuple[int, int, int] | None:
    """Return three counts; None if there are none."""
    if not isinstance(value, Mapping):
        return None
    first, second, third = (whole(value.get(name)) or 0 for name in names)
    return first, second, third
