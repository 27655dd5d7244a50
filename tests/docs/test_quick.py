"""What ``./bin/test --quick`` leaves out."""

from pathlib import Path

from quick import AT_LENGTH


def test_what_is_left_out_is_there() -> None:
    """A file with a new name would come back in silence."""
    tests = Path(__file__).parents[1]
    assert [name for name in AT_LENGTH if not (tests / name).exists()] == []
