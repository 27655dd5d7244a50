"""The engine in a simulated world: crashes at any await, whatever the seed."""

import os

from simulation import many, simulate

SEEDS = int(os.environ.get("SIMULATION_SEEDS", "100000"))
SECONDS = float(os.environ.get("SIMULATION_SECONDS", "10"))
START = int(os.environ.get("SIMULATION_START", "0"))

KEPT = [1312, 272, 105, 53, 35]
"""Seeds that found a fault once, which was fixed."""


def test_invariants_hold_for_random_seeds() -> None:
    done, faults = many(START, SEEDS, SECONDS)
    assert not faults, f"python tests/engine/simulation.py --start SEED --seeds 1: {faults}"
    assert done


def test_seeds_of_earlier_faults_have_none_now() -> None:
    faults = {seed: many(seed, 1, float("inf"))[1] for seed in KEPT}
    assert not any(faults.values())


def test_same_seed_gives_the_same_simulation() -> None:
    first, second = simulate(7), simulate(7)
    assert first.records is not None
    assert second.records is not None
    assert first.records.logs == second.records.logs
    assert first.records.runs == second.records.runs
