"""The reference says what the code does."""

from reference import PAGE, rendered


def test_the_reference_is_up_to_date() -> None:
    page = PAGE.read_text()
    assert rendered(page) == page, "run: python tests/docs/reference.py"
