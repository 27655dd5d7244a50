"""Numbers of agents that cannot be: none reaches a client, or makes a text of hundreds of digits."""

import math

import pytest

from agent_orchestrator.domain.model import Usage
from agent_orchestrator.fields import MAX_INTEGER
from agent_orchestrator.runners.acp.usage import UsageMeter
from agent_orchestrator.runners.claude.file_changes import completed
from agent_orchestrator.runners.claude.turns import RunReader
from agent_orchestrator.runners.claude.usage import usage_of
from agent_orchestrator.runners.codex.item_events import ItemReader
from agent_orchestrator.runners.codex.usage import counts
from agent_orchestrator.runners.live.messages import Notification
from agent_orchestrator.runners.numbers import amount, exit_code, whole

ODD = [
    1e308,
    -1,
    -1e308,
    math.nan,
    math.inf,
    10**90,
    -(10**90),
    "9" * 500,
    True,
    None,
    [1],
    {"a": 1},
]


@pytest.mark.parametrize("value", ODD, ids=lambda value: repr(value)[:12])
class TestOdd:
    def test_an_invalid_number_is_ignored(self, value):
        assert whole(value, 1_000) is None
        assert amount(value, 1_000) is None
        assert exit_code(value) is None or value == -1

    def test_a_retry_of_claude_is_reported_without_invalid_numbers(self, value):
        names = ("attempt", "max_retries", "retry_delay_ms", "error_status")
        retry = {**dict.fromkeys(names, value), "error": "overloaded"}
        (event,) = RunReader().feed(Notification("system/api_retry", retry))
        assert event.data["message"] == "retrying: overloaded"

    def test_usage_has_no_invalid_number(self, value):
        names = ("inputTokens", "outputTokens", "cacheReadInputTokens", "cacheCreationInputTokens")
        model = {**dict.fromkeys(names, value), "costUSD": value}
        assert usage_of({"model_usage_since_last_result": {"m": model}}) == Usage()
        assert counts({"input_tokens": value}) == {}
        meter = UsageMeter("turn")
        meter.add_result({"usage": {"inputTokens": value, "outputTokens": value}})
        meter.add_cost({"cost": {"amount": value, "currency": "USD"}})
        assert meter.usage() == Usage()

    def test_items_have_no_invalid_number(self, value):
        item = {"id": "i", "type": "command_execution", "exit_code": value}
        (end,) = ItemReader().read("completed", item)
        assert end.data.get("exit_code") in (None, -1)
        hunk = {**dict.fromkeys(("oldStart", "oldLines", "newStart"), value), "newLines": 1}
        edit = {"structuredPatch": [{**hunk, "lines": ["+x"]}]}
        change = completed("Edit", {"file_path": "/f"}, edit)
        assert change["diff"] == "@@ -0,0 +0,1 @@\n+x\n"


def test_a_retry_says_its_delay_attempt_and_reason():
    retry = {
        "attempt": 2,
        "max_retries": 4,
        "retry_delay_ms": 1234.5,
        "error_status": 529,
        "error": "overloaded",
    }
    (event,) = RunReader().feed(Notification("system/api_retry", retry))
    assert event.data["message"] == "retrying in 1.2 s, attempt 2 of 4: overloaded (529)"
    assert event.data["extra"] == {"will_retry": True}


def test_a_sum_of_counts_stays_a_number_that_can_be_stored():
    meter = UsageMeter("chunks")
    for _ in range(3):
        meter.add_chunk({"_meta": {"usage": {"inputTokens": MAX_INTEGER, "outputTokens": 1}}})
    assert meter.usage() == Usage(MAX_INTEGER, 0, 3)
