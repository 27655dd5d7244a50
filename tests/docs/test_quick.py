"""The lists of tests that a part of the runs makes or leaves out."""

import re
from pathlib import Path

import pytest
from pages import ROOT
from quick import AT_LENGTH


def test_files_left_out_of_the_quick_tier_exist() -> None:
    """A renamed file would silently be in the quick tier again."""
    tests = Path(__file__).parents[1]
    assert [name for name in AT_LENGTH if not (tests / name).exists()] == []


def _spelled_out(word: str) -> list[str]:
    """Return what bash makes of a word with at most one list in braces."""
    start, brace, rest = word.partition("{")
    names, _, end = rest.partition("}")
    return [f"{start}{name}{end}" for name in names.split(",")] if brace else [word]


@pytest.mark.parametrize("script", ["quick-tests", "test-lowest", "test-pythons", "test-install"])
def test_tests_that_a_script_names_exist(script: str) -> None:
    """pytest runs nothing if one of the files is missing."""
    words = re.findall(r"\btests/[\w./*{},-]+", (ROOT / "bin" / script).read_text())
    named = [name for word in words for name in _spelled_out(word)]
    assert named
    assert [name for name in named if not any(ROOT.glob(name))] == []
