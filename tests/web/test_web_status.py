"""The screens behind More: the daemon's state, the button for emergencies, and who decided what."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import anyio
from attrs import evolve
from daemons import Daemon, daemon_at
from playwright.sync_api import Route, expect
from visits import DOUBLE_TAP, Visit, first_held, settled

from agent_orchestrator.domain.audit import DONE, AuditEntry, entry_hash
from agent_orchestrator.stores.registry import open_store


def test_everything_is_stopped_after_asking_twice(daemon: Daemon, visit: Visit) -> None:
    never = str(daemon.directory / "never")
    sessions = [daemon.begin([["file", never], ["end", ""]]) for _ in range(2)]
    sessions.append(
        daemon.begin([["ask", {"text": "May I?", "kind": "approval_request"}], ["end", ""]])
    )
    daemon.question(sessions[-1])
    page = visit.open(f"{daemon.url}/#/status")
    screen = page.locator("[data-screen=status]")
    # A question takes no worker.
    expect(screen.locator(".tiles")).to_contain_text("14of 16 workers free, 2 busy")
    expect(screen.locator(".provider", has_text="codex")).to_contain_text("ready")
    expect(screen).to_contain_text("What doctor found")
    expect(screen).to_contain_text("sqlite")
    # A double tap is one answer to one question.
    screen.get_by_role("button", name="Stop everything").evaluate(DOUBLE_TAP)
    expect(screen.get_by_role("button", name="Really stop every run?")).to_be_visible()
    assert all(
        run["cancel_requested_at"] is None
        for session in sessions
        for run in daemon.get("/runs", session_id=session)["runs"]
    )
    page.wait_for_timeout(600)
    screen.get_by_role("button", name="Really stop every run?").click()
    expect(page.locator(".toast", has_text="Asked 3 runs to stop.")).to_be_visible()
    for session in sessions:
        daemon.wait_idle(session)
        assert daemon.get("/runs", session_id=session)["runs"][0]["status"] == "canceled"


MISSING = '[providers.missing]\nrunner = "claude"\ncommand = "claude-that-is-not-there"\n'


def test_button_for_emergencies_stays_when_doctor_answers(tmp_path: Path, visit: Visit) -> None:
    with daemon_at(tmp_path, configuration=MISSING, default="missing") as daemon:
        page = visit.open("about:blank")
        held: list[Route] = []

        def hold(route: Route) -> None:
            held.append(route)

        page.route("**/daemon/doctor", hold)
        page.goto(f"{daemon.url}/#/status")
        screen = page.locator("[data-screen=status]")
        stop = screen.get_by_role("button", name="Stop everything")
        expect(stop).to_be_visible()
        settled(page)
        before = stop.bounding_box()
        first_held(page, held)
        page.unroute_all()  # lets all go on
        expect(screen.locator(".finding").first).to_be_visible()
        assert stop.bounding_box() == before


def test_problem_is_told_on_the_tab_and_in_the_menu(tmp_path: Path, visit: Visit) -> None:
    with daemon_at(tmp_path, configuration=MISSING, default="missing") as daemon:
        page = visit.open(f"{daemon.url}/#/inbox")
        tab = page.get_by_role("link", name=re.compile(r"More\s*, 1 problem"))
        expect(tab.locator(".badge.problem")).to_be_visible()
        tab.click()
        row = page.locator("[data-screen=more] .row", has_text="Status")
        expect(row).to_contain_text("1 problem: missing: ")
        row.click()
        expect(page.locator("[data-screen=status] .warn").first).to_contain_text("missing: ")


def test_audit_says_who_decided_what(daemon: Daemon, visit: Visit) -> None:
    session = daemon.begin([["ask", {"text": "May I?", "kind": "approval_request"}], ["end", ""]])
    request = daemon.question(session)["id"]
    page = settled(visit.open(f"{daemon.url}/#/r/{request}"))
    page.get_by_role("button", name="Deny", exact=True).click()
    expect(page.get_by_text("Denied by local, here")).to_be_visible()
    page.goto(f"{daemon.url}/#/audit")
    row = page.locator("[data-screen=audit] .row", has_text=request)
    expect(row).to_contain_text("local")
    expect(row).to_contain_text("deny")
    row.get_by_role("link", name=request).click()
    expect(page.locator("[data-screen=request]")).to_contain_text("Denied by local")


def test_audit_shows_the_newest_of_a_long_trail(tmp_path: Path, visit: Visit) -> None:
    async def fill() -> None:
        async with open_store(str(tmp_path / "data.db")) as store:
            await store.transact(lambda tx: [tx.add_audit(entry) for entry in trail(5_001)])

    # The browser's own loop runs in this thread.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(anyio.run, fill).result()
    with daemon_at(tmp_path) as daemon:
        page = visit.open(f"{daemon.url}/#/audit")
        rows = page.locator("[data-screen=audit] .row")
        expect(rows).to_have_count(300)
        expect(rows.first).to_contain_text("run_5001")
        expect(rows.last).to_contain_text("run_4702")


def trail(count: int) -> Iterator[AuditEntry]:
    previous = ""
    for seq in range(1, count + 1):
        at = datetime(2026, 1, 2, tzinfo=UTC)
        entry = AuditEntry(seq, at, "ann", "none", "cancel_run", f"run_{seq}", DONE, {}, "")
        previous = entry_hash(previous, entry)
        yield evolve(entry, hash=previous)
