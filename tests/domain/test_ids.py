"""Identifiers sort by their creation."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from agent_orchestrator.domain.ids import SortableIds


def test_identifiers_sort_by_creation_and_never_repeat() -> None:
    ids = SortableIds()
    made = [ids("run") for _ in range(5_000)]
    assert made == sorted(made)
    assert len(set(made)) == len(made)
    assert all(one.startswith("run_") and len(one) == 30 for one in made)


def test_threads_can_share_a_source_of_identifiers() -> None:
    ids = SortableIds()
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda _: [ids("msg") for _ in range(500)], range(8)))
    flat = [one for part in made for one in part]
    assert len(set(flat)) == len(flat)
    assert all(part == sorted(part) for part in made)


@pytest.mark.parametrize("jump_s", [-86_400, -3600, -1, 0, 1, 3600, 86_400])
def test_identifiers_stay_sorted_when_the_clock_is_set(jump_s: int) -> None:
    now = [time.time_ns()]
    ids = SortableIds(lambda: now[0])
    made = [ids("run") for _ in range(100)]
    now[0] += jump_s * 10**9
    made += [ids("run") for _ in range(100)]
    now[0] -= jump_s * 10**9
    made += [ids("run") for _ in range(100)]
    assert made == sorted(set(made))


@pytest.mark.parametrize("jump_s", [-86_400, -3600, 0, 3600])
def test_identifiers_sort_after_those_that_the_source_follows(jump_s: int) -> None:
    now = [time.time_ns()]
    before = SortableIds(lambda: now[0])
    made = [before(kind) for kind in ("ses", "run", "msg", "req") for _ in range(10)]
    now[0] += jump_s * 10**9
    after = SortableIds(lambda: now[0])
    after.follow(made[::-1])
    texts = [one[4:] for one in made] + [after("run")[4:] for _ in range(100)]
    assert texts == sorted(set(texts))


def test_sources_that_follow_the_same_identifier_make_different_ones() -> None:
    now = time.time_ns()
    sources = [SortableIds(lambda: now) for _ in range(100)]
    newest = SortableIds(lambda: now + 10**12)
    newest("run")
    for ids in sources:
        ids.follow([newest.newest])
    made = {ids("run") for ids in sources}
    assert len(made) == len(sources)
    assert min(made)[3:] > newest.newest


def test_identifiers_of_another_form_are_not_followed() -> None:
    ids = SortableIds()
    ids.follow(["", "ses_1", "x", "run_" + "z" * 26, "run_" + "é" * 26, "ses_" + "v" * 25])
    assert ids("run") < "run_1"
