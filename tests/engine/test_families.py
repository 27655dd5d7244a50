"""Children finishing, parents dying, cancels, answers and stops in any order, whatever the seed."""

import os

import pytest
from families import grow, many

from agent_orchestrator.domain.events import EventType

SEEDS = int(os.environ.get("FAMILY_SEEDS", "60"))
START = int(os.environ.get("FAMILY_START", "0"))
PARTS = 2

KEPT = [138, 232]
"""Seeds that once found something."""

EXPECTED = [
    *("request approved", "request denied", "request answered", "request expired"),
    *("request canceled", "decided by policy", EventType.REQUEST_UPDATED, "woken"),
    *(
        "run completed",
        "run failed",
        "run canceled",
        "a later attempt",
        "depth 3",
        "smaller limits",
    ),
]
"""What happens often enough for the property to be worth something."""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", range(PARTS))
def test_whatever_the_seed_nothing_is_lost_doubled_or_stuck(part: int) -> None:
    count = -(-SEEDS // PARTS)
    seen, faults = many(START + part * count, count)
    assert not faults, f"python tests/engine/families.py --start SEED --seeds 1: {faults}"
    rare = [kind for kind in EXPECTED if seen[kind] < count / 50]
    assert not rare, seen


def test_what_was_found_once_stays_mended() -> None:
    faults = {seed: many(seed, 1)[1] for seed in KEPT}
    assert not any(faults.values())


def test_a_seed_is_a_family() -> None:
    first, second = grow(7), grow(7)
    assert first.told is not None
    assert second.told is not None
    assert first.told.logs == second.told.logs
    assert first.told.runs == second.told.runs
