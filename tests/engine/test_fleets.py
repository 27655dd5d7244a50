"""Several engines on one store in a simulated world: lost, paused and drained, whatever the seed."""

import os

from fleets import simulate_fleet
from simulation import many

SEEDS = int(os.environ.get("SIMULATION_SEEDS", "30"))
SECONDS = float(os.environ.get("SIMULATION_SECONDS", "10")) / 2
START = int(os.environ.get("SIMULATION_START", "0"))

KEPT = [10, 20, 32]
"""Seeds that led to a fault of the product once: a queued run that no engine started."""


def test_invariants_hold_for_several_engines() -> None:
    done, faults = many(START, SEEDS, SECONDS, simulate_fleet)
    assert not faults, f"python tests/engine/fleets.py --start SEED --seeds 1: {faults}"
    assert done


def test_seeds_of_earlier_faults_have_none_now() -> None:
    faults = {seed: many(seed, 1, float("inf"), simulate_fleet)[1] for seed in KEPT}
    assert not any(faults.values())


def test_same_seed_gives_the_same_simulation() -> None:
    first, second = simulate_fleet(3), simulate_fleet(3)
    assert first.records is not None
    assert second.records is not None
    assert first.records.logs == second.records.logs
    assert first.lives == second.lives > 2
