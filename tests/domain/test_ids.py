"""Identifiers sort as they were made."""

from concurrent.futures import ThreadPoolExecutor

from agent_orchestrator.domain.ids import SortableIds


def test_identifiers_sort_by_creation_and_never_repeat() -> None:
    ids = SortableIds()
    made = [ids("run") for _ in range(5_000)]
    assert made == sorted(made)
    assert len(set(made)) == len(made)
    assert all(one.startswith("run_") and len(one) == 30 for one in made)


def test_threads_share_a_source() -> None:
    ids = SortableIds()
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda _: [ids("msg") for _ in range(500)], range(8)))
    flat = [one for part in made for one in part]
    assert len(set(flat)) == len(flat)
    assert all(part == sorted(part) for part in made)
