"""A short fixed set of the experiments: what ``./bin/chaos --ci`` makes.

It is no part of ``./bin/test``, as it takes minutes of processor time.
"""

import os

import pytest
from tests.chaos import __main__ as chaos
from tests.chaos.outcome import Effort

SEED = 20_251


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.codex] if name == "codex" else [])
        for name in chaos.EXPERIMENTS
        if name != "model"  # tests/engine/test_model.py is a test itself
    ],
)
def test_it_holds(name, tmp_path):
    outcome = chaos.make(name, Effort(SEED, 0), str(tmp_path))
    if outcome.skipped is not None:
        if name == "codex" and os.environ.get("REQUIRE_REAL_AGENTS") == "1":
            pytest.fail(outcome.skipped)
        pytest.skip(outcome.skipped)
    assert outcome.passed, outcome.problems
    assert outcome.tries > 0
