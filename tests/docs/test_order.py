"""The order in which the processes of a run take the tests."""

from itertools import groupby

import pytest
from order import long_first
from quick import AT_LENGTH

LONG = [f"long{module}/{number}" for module in range(6) for number in range(5)]
SHORT = [f"short{module}/{number}" for module in range(10) for number in range(7)]


def module(test: str) -> str:
    return test.partition("/")[0]


def is_long(name: str) -> bool:
    return name.startswith("long")


@pytest.mark.parametrize("count", [1, 3, 6])
@pytest.mark.parametrize("tests", [LONG + SHORT, SHORT + LONG, SHORT[:35] + LONG + SHORT[35:]])
def test_each_process_begins_with_long_modules_and_ends_with_short_ones(
    count: int, tests: list[str]
) -> None:
    ordered = long_first(tests, count, module, is_long)
    assert sorted(ordered) == sorted(tests)
    sizes = [
        len(tests) // count + (number >= count - len(tests) % count) for number in range(count)
    ]
    end = 0
    for size in sizes:
        begun, end = end, end + size
        part = [is_long(module(test)) for test in ordered[begun:end]]
        assert part == sorted(part, reverse=True)
        assert part[0]
        assert not part[-1]


@pytest.mark.parametrize("count", [1, 4])
def test_tests_of_a_module_are_neighbours(count: int) -> None:
    ordered = long_first(LONG + SHORT, count, module, is_long)
    names = [name for name, _ in groupby(ordered, module)]
    # A part may end within a module.
    assert len(names) <= len({*names}) + count - 1
    for name in names:
        own = [test for test in ordered if module(test) == name]
        assert own == [test for test in LONG + SHORT if module(test) == name]


def test_only_long_modules_are_taken_in_any_number() -> None:
    assert sorted(long_first(LONG, 4, module, is_long)) == sorted(LONG)
    assert long_first([], 4, module, is_long) == []


def test_this_file_is_short_for_the_run_itself(request: pytest.FixtureRequest) -> None:
    conftest = request.config.pluginmanager.get_plugin(
        str(request.config.rootpath / "tests/conftest.py")
    )
    assert conftest is not None
    assert not conftest._is_long("tests/docs/test_order.py")
    assert conftest._is_long("tests/agents/test_agents_turns.py")
    assert conftest._is_long("tests/docs/test_documents.py")
    assert "docs/test_documents.py" in AT_LENGTH
