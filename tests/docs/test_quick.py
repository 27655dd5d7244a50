"""What ``./bin/test --quick`` leaves out."""

from pathlib import Path

from quick import AT_LENGTH


def test_files_left_out_of_the_quick_tier_exist() -> None:
    """A renamed file would silently be in the quick tier again."""
    tests = Path(__file__).parents[1]
    assert [name for name in AT_LENGTH if not (tests / name).exists()] == []
