"""What the main thread of a page does, by the browser's own trace, in processor time.

Processor time says the same on a busy machine: other programs make a task last longer, but not take more of it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from attrs import define, field
from playwright.sync_api import Page

_TASKS = "disabled-by-default-devtools.timeline"


@define
class Tasks:
    """The tasks of a page, filled when the scope is left.

    :param durations: milliseconds of processor time of each.
    :param later: those of them that end after the first contentful paint; none without one.
    """

    durations: list[float] = field(factory=list)
    later: list[float] = field(factory=list)

    @property
    def longest(self) -> float:
        return max(self.durations, default=0.0)

    @property
    def total(self) -> float:
        return sum(self.durations)

    @property
    def blocking(self) -> float:
        """What tasks took beyond 50 ms each after the first paint, as the Total Blocking Time counts it."""
        return sum(max(0.0, one - 50) for one in self.later)


@contextmanager
def tasks_of(page: Page) -> Iterator[Tasks]:
    """Record the tasks of a page's main thread."""
    found = Tasks()
    mains: set[tuple[int, int]] = set()
    threads: dict[tuple[int, int], list[tuple[float, float]]] = {}
    paints: list[float] = []
    ended: list[Any] = []

    def collect(part: dict[str, Any]) -> None:
        for event in part["value"]:
            thread = (event["pid"], event["tid"])
            if event["name"] == "RunTask":
                end = event["ts"] + event.get("dur", 0)
                threads.setdefault(thread, []).append((end, event.get("tdur", 0) / 1000))
            elif event["name"] == "firstContentfulPaint":
                paints.append(event["ts"])
            elif event["name"] == "thread_name" and event["args"]["name"] == "CrRendererMain":
                mains.add(thread)

    def note_end(event: dict[str, Any]) -> None:
        ended.append(event)

    assert page.context.browser is not None
    session = page.context.browser.new_browser_cdp_session()
    session.on("Tracing.dataCollected", collect)
    session.on("Tracing.tracingComplete", note_end)
    config = {"includedCategories": [_TASKS, "loading", "__metadata"], "excludedCategories": ["*"]}
    session.send("Tracing.start", {"traceConfig": config, "transferMode": "ReportEvents"})
    try:
        yield found
    finally:
        session.send("Tracing.end")
        while not ended:
            page.wait_for_timeout(20)
        session.detach()
    # The page's process is the one that works; those of earlier pages are idle.
    tasks = max(
        (threads.get(one, []) for one in mains), key=lambda one: sum(took for _, took in one)
    )
    found.durations = [took for _, took in tasks]
    if paints:
        found.later = [took for end, took in tasks if end > min(paints)]
