"""The engine in a simulated world: crashes at any await, whatever the seed."""

import os

from simulation import many, simulate

SEEDS = int(os.environ.get("SIMULATION_SEEDS", "100000"))
SECONDS = float(os.environ.get("SIMULATION_SECONDS", "10"))
START = int(os.environ.get("SIMULATION_START", "0"))

KEPT = [1312, 272, 105, 53, 35]
"""Seeds that once found something."""


def test_whatever_the_seed_the_invariants_hold() -> None:
    done, faults = many(START, SEEDS, SECONDS)
    assert not faults, f"python tests/engine/simulation.py --start SEED --seeds 1: {faults}"
    assert done


def test_what_was_found_once_stays_mended() -> None:
    faults = {seed: many(seed, 1, float("inf"))[1] for seed in KEPT}
    assert not any(faults.values())


def test_a_seed_is_a_world() -> None:
    first, second = simulate(7), simulate(7)
    assert first.told is not None
    assert second.told is not None
    assert first.told.logs == second.told.logs
    assert first.told.runs == second.told.runs
