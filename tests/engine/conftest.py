"""What the tests of the engine share."""

import itertools
import os
from pathlib import Path

import pytest

_numbers = itertools.count()


@pytest.fixture(autouse=True)
def _no_daemons(_state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin as a user that never had a daemon, whatever other tests left: it shows in the status."""
    monkeypatch.setitem(os.environ, "XDG_STATE_HOME", str(_state / f"engine-{next(_numbers)}"))
