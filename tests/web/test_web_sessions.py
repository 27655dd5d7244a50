"""The list of sessions, with more sessions than the page reads at once."""

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from daemons import Daemon, daemon_at
from playwright.sync_api import APIResponse, Locator, Page, Route, expect
from scenes import command
from visits import PATIENCE_S, Visit, until

IDLE = 1_500
DONE = 210


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, dict[str, str]]]:
    """A daemon whose newest 1,500 sessions are idle, and the ids of older ones by their title."""
    with daemon_at(tmp_path_factory.mktemp("many")) as daemon, ThreadPoolExecutor(8) as pool:
        here = str(daemon.directory)
        ids = {"oldest": daemon.post("/sessions", title="oldest")["session"]["id"]}
        asking = [["ask", command("May I?", "make old", here)], ["end", "Done."]]
        ids["asks"] = daemon.begin(asking, title="asks", cwd=here)
        ids["sleeps"] = daemon.begin(asking, title="sleeps", cwd=here)
        daemon.post(f"/requests/{daemon.question(ids['sleeps'])['id']}/resolve", decision="approve")
        ids["fails"] = daemon.begin([["fail", "internal", "No."]], title="fails")
        ids["works"] = daemon.begin([["file", f"{here}/go"], ["end", ""]], title="works")
        ids["helper"] = daemon.post(
            f"/sessions/{ids['oldest']}/spawn", task="Help", title="helper"
        )["session"]["id"]
        done = list(
            pool.map(lambda n: daemon.begin([["end", "x"]], title=f"done {n}"), range(DONE))
        )
        for session in (*done, *(ids[title] for title in ("sleeps", "fails", "helper"))):
            daemon.wait_idle(session)
        daemon.question(ids["asks"])
        for title in ("sleeps", "helper"):
            daemon.post(f"/sessions/{ids[title]}/seen", seq=2**40)
        list(pool.map(lambda n: daemon.post("/sessions", title=f"idle {n}"), range(IDLE)))
        yield daemon, ids


def group(page: Page, name: str) -> Locator:
    return page.locator(f"[data-screen=sessions] section[aria-label='{name}']")


def row(page: Page, name: str, session: str) -> Locator:
    return group(page, name).locator(f"a[href$='s/{session}']")


def test_older_sessions_are_in_their_groups_at_the_first_look(
    many: tuple[Daemon, dict[str, str]], visit: Visit
) -> None:
    daemon, ids = many
    page = visit.open(f"{daemon.url}/#/sessions")
    until(page, "document.querySelectorAll('[data-screen=sessions] .row').length > 100")
    # With the newest at once, not some time after them.
    assert row(page, "Needs you", ids["asks"]).count() == 1
    assert row(page, "At work", ids["works"]).count() == 1
    expect(row(page, "Failed", ids["fails"])).to_have_count(1)
    expect(group(page, "Done since you looked").locator(".row")).to_have_count(200)
    group(page, "Done since you looked").get_by_role("button", name="More").click()
    expect(group(page, "Done since you looked").locator(".row")).to_have_count(DONE)
    expect(group(page, "Done since you looked").get_by_role("button", name="More")).to_have_count(0)
    inbox = visit.open(f"{daemon.url}/")
    expect(inbox.locator(".card.request")).to_contain_text("make old")


def test_search_finds_sessions_that_no_list_has_shown(
    many: tuple[Daemon, dict[str, str]], visit: Visit
) -> None:
    daemon, ids = many
    page = visit.open(f"{daemon.url}/#/sessions")
    screen = page.locator("[data-screen=sessions]")
    expect(group(page, "Failed")).to_be_visible()
    assert row(page, "Earlier", ids["oldest"]).count() == 0
    page.get_by_label("Search sessions").fill("OLD est")
    expect(row(page, "Earlier", ids["oldest"])).to_have_count(1)
    page.get_by_label("Search sessions").fill("no such words")
    expect(screen).to_contain_text("No session matches")
    page.get_by_label("Search sessions").fill("x" * 5_000)
    expect(screen).to_contain_text("No session matches")
    page.get_by_label("Search sessions").fill("")
    expect(group(page, "Needs you")).to_be_visible()


def test_list_is_scrolled_to_its_end(many: tuple[Daemon, dict[str, str]], visit: Visit) -> None:
    daemon, ids = many
    page = visit.open(f"{daemon.url}/#/sessions")
    screen = page.locator("[data-screen=sessions]")
    expect(group(page, "Failed")).to_be_visible()
    last = row(page, "Earlier", ids["oldest"])
    deadline = time.monotonic() + PATIENCE_S
    while not last.count() and time.monotonic() < deadline:
        screen.evaluate("(screen) => screen.scrollTo(0, screen.scrollHeight)")
        page.wait_for_timeout(100)
    expect(last).to_have_count(1)
    expect(row(page, "Earlier", ids["sleeps"])).to_have_count(1)
    titles = screen.locator(".row-title").all_inner_texts()
    assert len([title for title in titles if title.startswith("idle ")]) == IDLE
    # A helper is below the session that started it, though it is newer and was read first.
    assert "helper" not in titles
    expect(group(page, "Earlier").get_by_role("button", name="More")).to_have_count(0)


def test_older_session_moves_to_its_group_by_events_alone(
    many: tuple[Daemon, dict[str, str]], visit: Visit
) -> None:
    daemon, ids = many
    page = visit.open(f"{daemon.url}/#/sessions")
    expect(group(page, "Failed")).to_be_visible()
    asked: list[Any] = []
    page.on("request", lambda request: asked.append(request.url))
    deadline = time.monotonic() + PATIENCE_S
    while asked or time.monotonic() < deadline - PATIENCE_S + 1:  # the first look may go on
        assert time.monotonic() < deadline, f"no polling: {asked}"
        asked.clear()
        page.wait_for_timeout(1500)
    # It is in none of the pages that were read.
    assert page.locator(f"a[href$='s/{ids['sleeps']}']").count() == 0
    daemon.post(f"/sessions/{ids['sleeps']}/messages", text="Again")
    expect(row(page, "Needs you", ids["sleeps"])).to_have_count(1)
    request = daemon.question(ids["sleeps"])["id"]
    daemon.post(f"/requests/{request}/resolve", decision="approve")
    expect(row(page, "Done since you looked", ids["sleeps"])).to_have_count(1)
    expect(row(page, "Needs you", ids["sleeps"])).to_have_count(0)
    daemon.post(
        f"/sessions/{ids['sleeps']}/seen",
        seq=daemon.get(f"/sessions/{ids['sleeps']}")["session"]["last_seq"],
    )


def test_rows_say_what_is_new_and_where_it_runs(daemon: Daemon, visit: Visit) -> None:
    session = daemon.begin([["file", f"{daemon.directory}/go"], ["end", ""]], title="here")
    other = daemon.post("/sessions", title="there")["session"]
    page = visit.open(f"{daemon.url}/#/sessions")
    at_work = row(page, "At work", session)
    expect(at_work.locator(".unread")).to_have_text("new")
    # Nothing was said in the other.
    expect(row(page, "Earlier", other["id"])).to_be_visible()
    expect(row(page, "Earlier", other["id"]).locator(".unread")).to_have_count(0)
    # Where it runs is told if there are several machines.
    expect(at_work.locator(".row-state")).to_have_text(re.compile(r"at work\s+codex$"))
    page.evaluate(
        """async (id) => {
          const { sessions } = await import("./web/app/state.js");
          sessions.value = new Map(sessions.value).set(id, { ...sessions.value.get(id), host: "desk" });
        }""",
        other["id"],
    )
    expect(row(page, "Earlier", other["id"]).locator(".row-state")).to_contain_text("on desk")
    expect(at_work.locator(".row-state")).to_contain_text(f"codex · on {other['host']}")


def test_answers_that_events_overtook_are_not_the_last_word(daemon: Daemon, visit: Visit) -> None:
    """The session is read twice, because events come meanwhile; then its end overtakes the second answer."""
    script = [["emit", "agent.message", {"text": "Begun."}], ["file", f"{daemon.directory}/go"]]
    page = visit.open(f"{daemon.url}/#/sessions")
    expect(page.get_by_text("No sessions yet")).to_be_visible()
    held: list[tuple[Route, APIResponse]] = []
    page.route(
        re.compile(r"/sessions/[^/?]+\?activity"),
        lambda route: held.append((route, route.fetch())),
    )

    def wait_held(count: int = 1) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while len(held) < count:
            assert time.monotonic() < deadline, "the session is not read"
            page.wait_for_timeout(20)

    def release(index: int = 0) -> None:
        wait_held(index + 1)
        route, response = held.pop(index)
        route.fulfill(response=response)

    session = daemon.begin([*script, ["end", "Done."]], title="overtaken")
    daemon.until(lambda: daemon.events(session)[-1]["event_type"] == "agent.message")
    daemon.post("/sessions", title="later")
    release(1)  # a later session is read: the events before are there
    release()
    expect(row(page, "At work", session)).to_be_visible()
    wait_held()
    (daemon.directory / "go").touch()
    expect(row(page, "Done since you looked", session)).to_be_visible()
    release()
    page.wait_for_timeout(300)
    expect(row(page, "Done since you looked", session)).to_be_visible()
