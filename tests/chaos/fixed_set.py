"""A short fixed set of the experiments: what ``./bin/chaos --ci`` makes.

It is no part of ``./bin/test``, as it takes minutes of processor time.
"""

import os

import pytest
from tests.chaos import __main__ as chaos
from tests.chaos.outcome import Effort

SEED = 20_251

REAL = {"codex": "codex", "claude": "claude", "opencode": "acp"}
"""Experiments with a real agent, and their marks."""


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[getattr(pytest.mark, REAL[name])] if name in REAL else [])
        for name in chaos.EXPERIMENTS
        if name != "model"  # tests/engine/test_model.py is a test itself
    ],
)
def test_an_experiment_of_the_fixed_set_passes(name, tmp_path):
    outcome = chaos.make(name, Effort(SEED, 0), str(tmp_path))
    if outcome.skipped is not None:
        if name in REAL and os.environ.get("REQUIRE_REAL_AGENTS") == "1":
            pytest.fail(outcome.skipped)
        pytest.skip(outcome.skipped)
    assert outcome.passed, outcome.problems
    assert outcome.tries > 0
