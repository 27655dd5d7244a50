"""The reference says what the code does."""

import pytest
from reference import DOCS, PAGES, rendered


@pytest.mark.parametrize("name", PAGES)
def test_the_made_parts_are_up_to_date(name: str) -> None:
    assert rendered(name) == (DOCS / name).read_text(), "run: python tests/docs/reference.py"
