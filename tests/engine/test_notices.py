"""The outbox of notices: filled by the log, sent in time, once, and taken away when answered."""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
import trio
import trio.testing
from notices import NOON, Clock, Recorder, World, target, until, world

from agent_orchestrator.domain.notices import Notice
from agent_orchestrator.engine import notice_delivery, notice_feed, notice_states, retention
from agent_orchestrator.ports.channel import NoticeContent, SendFailed
from agent_orchestrator.ports.store import Store
from agent_orchestrator.stores.memory import MemoryStore
from agent_orchestrator.stores.sqlite import SqliteStore
from agent_orchestrator.testing.stores.samples import a_notice

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notice_feed, "PAUSE_S", 0.0)


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    opened: Any = MemoryStore() if request.param == "memory" else SqliteStore(tmp_path / "data.db")
    async with opened:
        yield opened


async def test_request_has_a_notice_after_the_dwell_and_a_receipt(store: Store) -> None:
    desk = Recorder()
    async with world(store, {"desk": desk}) as here:
        request = await here.ask(title="fix the build")
        [notice] = await here.until_states("queued")
        assert notice.next_at == NOON + timedelta(seconds=5)
        assert desk.given == []
        here.pass_time(4.9)
        here.pass_time(0.1)
        [notice] = await here.until_states("sent")
        [content] = desk.given
        assert (content.action, content.kind) == ("show", "request")
        assert content.title == "Approval needed: fix the build"
        assert content.link == f"/r/{request.id}"
        assert (content.request_id, content.run_id) == (request.id, request.run_id)
        assert content.deadline == request.expires_at
        assert content.seconds_left() == 3595
        assert content.text is None
        assert (notice.attempts, notice.sent_at) == (1, NOON + timedelta(seconds=5))
        assert await here.receipts(request) == [("desk", "sent")]


async def test_request_answered_within_the_dwell_has_no_notice(store: Store) -> None:
    desk = Recorder()
    async with world(store, {"desk": desk}) as here:
        request = await here.ask()
        await here.until_states("queued")
        await here.client.resolve_request(request.id, "deny")
        await here.until_states("gone")
        other = await here.ask()
        await here.until_states("gone", "queued")
        here.pass_time(5)
        await here.until_states("gone", "sent")
        assert desk.actions == [("show", other.id)]
        assert await here.receipts(request) == []


async def test_request_closed_before_the_log_was_read_is_not_sent(store: Store) -> None:
    """The request's own state decides, not how far the log was read."""
    desk = Recorder()
    async with world(store, {"desk": desk}) as here:
        request = await here.ask()
        [notice] = await here.until_states("queued")
        resolved = await here.client.resolve_request(request.id, "approve")
        assert not resolved.is_open
        await notice_delivery.send(here.engine.core, notice)
        assert desk.given == []
        await here.until_states("gone")


async def test_answered_request_takes_its_notice_away(store: Store) -> None:
    able, unable = Recorder(), Recorder(withdraws=False)
    async with world(store, {"able": able, "unable": unable}) as here:
        request = await here.ask()
        await here.until_states("queued", "queued")
        here.pass_time(5)
        await here.until_states("sent", "sent")
        await here.client.resolve_request(request.id, "deny")
        await here.until_states("gone", "sent")
        assert able.actions == [("show", request.id), ("withdraw", request.id)]
        assert unable.actions == [("show", request.id)]
        assert [one.notice_id for one in able.given] == [able.given[0].notice_id] * 2


def slow_desk() -> tuple[Recorder, anyio.Event, anyio.Event]:
    """Return a target, the event that it begins to show a notice, and one for which it waits then."""
    begun, go_on = anyio.Event(), anyio.Event()

    async def slowly(content: NoticeContent) -> None:
        if content.action == "show":
            begun.set()
            await go_on.wait()

    return Recorder(then=slowly), begun, go_on


async def test_request_answered_while_it_is_sent_takes_its_notice_away(store: Store) -> None:
    desk, begun, go_on = slow_desk()
    async with world(store, {"desk": desk}) as here:
        request = await here.ask()
        await here.until_states("queued")
        here.pass_time(5)
        await begun.wait()
        await here.client.resolve_request(request.id, "deny")
        await here.until_states("gone")
        go_on.set()
        await until(lambda: _gave(desk, 2))
        await here.until_states("gone")
        assert desk.actions == [("show", request.id), ("withdraw", request.id)]
        assert await here.receipts(request) == [("desk", "sent")]


async def test_receipt_after_the_end_of_its_run_is_no_damage(store: Store) -> None:
    """Retention may leave it as the only event of the run, and it comes back from a file."""
    desk, begun, go_on = slow_desk()
    async with world(store, {"desk": desk}) as here:
        request = await here.ask()
        await here.until_states("queued")
        here.pass_time(5)
        await begun.wait()
        await here.client.resolve_request(request.id, "deny")
        await here.client.transition_run(request.run_id, "completed", result={"text": "done"})
        await here.until_states("gone")
        go_on.set()
        await until(lambda: _gave(desk, 2))
        assert await here.receipts(request) == [("desk", "sent")]
        assert (await here.client.check_store()).findings == ()

        for kept in (1000, 1):
            await here.client.prune_session(request.session_id, retain_events=kept)
            log = (await here.client.list_events(request.session_id, limit=1000)).events
            assert (log[-1].event_type, log[-1].run_id) == ("request.notified", request.run_id)
            assert (await here.client.check_store()).findings == ()
            async with here.client.export_session(request.session_id) as parts:
                file = b"".join([part async for part in parts])

            async def whole(data: bytes = file) -> AsyncIterator[bytes]:
                yield data

            assert (await here.client.import_session(whole(), new_id=True)).events == len(log)
            assert (await here.client.check_store()).findings == ()


async def _gave(channel: Recorder, count: int) -> bool:
    return len(channel.given) == count


async def test_notices_are_sent_in_order_of_their_deadlines(store: Store) -> None:
    desk = Recorder()
    async with world(store, {"desk": desk}) as here:
        requests = [await here.ask(expires_in_s=seconds) for seconds in (900, 300, 600)]
        await here.until_states(*["queued"] * 3)
        here.pass_time(5)
        await here.until_states(*["sent"] * 3)
        late, soon, later = requests
        assert [subject for _, subject in desk.actions] == [soon.id, later.id, late.id]


async def test_target_that_hangs_delays_no_other_target_and_no_run(store: Store) -> None:
    async def hang(_: NoticeContent) -> None:
        await anyio.sleep_forever()

    stuck, desk = Recorder(then=hang), Recorder()
    async with world(store, {"stuck": stuck, "desk": desk}) as here:
        for _ in range(3):
            await here.ask()
        await here.until_states(*["queued"] * 6)
        here.pass_time(5)
        await here.until_states(*["queued", "sent"] * 3)
        await until(lambda: _gave(stuck, 1))  # perhaps after the desk
        assert await run_status(here) == "completed"
        assert len(stuck.given) == 1  # one after another


async def test_too_slow_target_fails_its_attempt(store: Store) -> None:
    async def hang(_: NoticeContent) -> None:
        await anyio.sleep_forever()

    async with world(store, {"stuck": target(Recorder(then=hang), timeout_s=0.01)}) as here:
        await here.ask()
        await here.until_states("queued")
        here.pass_time(5)
        await until(lambda: _has_error(here, "no answer within 0.01 s"))
        [notice] = await here.notices()
        assert (notice.state, notice.attempts) == ("queued", 1)
        assert notice.next_at == here.clock.now + timedelta(seconds=5)


async def run_status(here: World) -> str:
    """Run an agent, and return how its run ended."""
    session = await here.client.create_session()
    sent = await here.client.send_message(session.id, "say done")
    assert sent.run is not None
    return (await here.client.wait_run(sent.run.id, timeout_s=60)).run.status


async def _has_error(here: World, error: str) -> bool:
    return [notice.error for notice in await here.notices()] == [error]


async def test_failed_notice_is_retried_then_is_a_dead_letter(store: Store) -> None:
    async def refuse(_: NoticeContent) -> None:
        raise SendFailed(f"status 503, attempt {len(desk.given)}")

    desk = Recorder(then=refuse)
    async with world(store, {"desk": desk}) as here:
        request = await here.ask(expires_in_s=86_400)
        await here.until_states("queued")
        pauses = []
        here.pass_time(5)
        for attempt in range(1, notice_states.MAX_ATTEMPTS):
            await until(lambda n=attempt: _has_error(here, f"status 503, attempt {n}"))
            [notice] = await here.notices()
            assert notice.next_at is not None
            pauses.append((notice.next_at - here.clock.now).total_seconds())
            here.pass_time(pauses[-1])
        [notice] = await here.until_states("failed")
        assert pauses == [5, 20, 80, 320, 1280, 1800, 1800]
        assert (notice.attempts, notice.next_at) == (8, None)
        assert notice.error == "status 503, attempt 8"
        assert await here.receipts(request) == [("desk", "failed")]


@pytest.mark.parametrize(
    ("failure", "deadline_s", "pause_s"),
    [
        (SendFailed("unknown topic", is_final=True), 3600, None),
        (SendFailed("gone", is_gone=True), 3600, None),
        (SendFailed("slow down", retry_after_s=100), 3600, 100),
        (SendFailed("slow down", retry_after_s=1e9), 3600, 1800),
        (SendFailed("down"), 10, None),  # the next attempt would come after the request's end
        (RuntimeError("a bug"), 3600, 5),
    ],
)
async def test_failure_decides_about_the_next_attempt(
    failure: Exception, deadline_s: float, pause_s: float | None
) -> None:
    async def fail(_: NoticeContent) -> None:
        raise failure

    async with MemoryStore() as store, world(store, {"desk": Recorder(then=fail)}) as here:
        await here.ask(expires_in_s=deadline_s)
        await here.until_states("queued")
        here.pass_time(5)
        await until(lambda: _was_tried(here))
        [notice] = await here.notices()
        assert notice.state == ("failed" if pause_s is None else "queued")
        assert notice.next_at == (
            None if pause_s is None else here.clock.now + timedelta(seconds=pause_s)
        )
        assert "a bug" not in str(notice.error)  # it may contain secrets


async def _was_tried(here: World) -> bool:
    return all(notice.attempts for notice in await here.notices())


async def test_notices_survive_a_restart(store: Store) -> None:
    """What was queued, and what the log got after the last read, is sent by the next engine, once."""
    desk, clock = Recorder(), Clock()
    async with world(store, {"desk": desk}, clock=clock) as here:
        first = await here.ask()
        await here.until_states("queued")
        here.pass_time(5)
        await here.until_states("sent")
        second = await here.ask()
        await here.until_states("sent", "queued")
        third = await here.ask()  # it may or may not have a row when the engine ends
    async with world(store, {"desk": desk}, clock=clock) as here:
        await here.until_states("sent", "queued", "queued")
        here.pass_time(5)
        await here.until_states("sent", "sent", "sent")
    async with world(store, {"desk": desk}, clock=clock) as here:
        await here.client.resolve_request(first.id, "deny")
        await here.until_states("gone", "sent", "sent")
    shown = [subject for action, subject in desk.actions if action == "show"]
    assert sorted(shown) == sorted([first.id, second.id, third.id])


async def test_engine_that_dies_while_sending_sends_again_with_the_same_id(store: Store) -> None:
    async def hang(_: NoticeContent) -> None:
        await anyio.sleep_forever()

    stuck, desk, clock = Recorder(then=hang), Recorder(), Clock()
    async with world(store, {"desk": stuck}, clock=clock) as here:
        await here.ask()
        await here.until_states("queued")
        here.pass_time(5)
        await until(lambda: _gave(stuck, 1))
    async with world(store, {"desk": desk}, clock=clock) as here:
        await here.until_states("sent")
    assert [one.notice_id for one in desk.given] == [one.notice_id for one in stuck.given]


async def test_reading_the_log_again_changes_nothing(store: Store) -> None:
    desk = Recorder()
    async with world(store, {"desk": desk}) as here:
        start = await store.read(lambda view: view.notice_cursor())
        request = await here.ask()
        await here.until_states("queued")
        here.pass_time(5)
        await here.until_states("sent")
        await here.client.extend_request(request.id, 7200)
        await here.client.resolve_request(request.id, "deny")
        [before] = await here.until_states("gone")
        cursor, is_at_end = start, False
        while not is_at_end:
            cursor, is_at_end = await notice_feed.handle_events(here.engine.core, cursor)
        assert await here.notices() == [before]


async def test_first_start_with_targets_notifies_of_open_requests_only(store: Store) -> None:
    clock, desk = Clock(), Recorder()
    async with world(store, {}, clock=clock) as here:
        request = await here.ask()
        closed = await here.ask()
        await here.client.resolve_request(closed.id, "deny")
        assert await run_status(here) == "completed"
        assert await here.notices() == []
    every = target(desk, events=frozenset({"request", "finished", "failed"}))
    async with world(store, {"desk": every}, clock=clock) as here:
        [notice] = await here.until_states("queued")
        assert notice.subject == request.id


@pytest.mark.parametrize("cursor", ["999999", "999999.0123456789ab", "no cursor"])
async def test_restored_backup_starts_over(store: Store, cursor: str) -> None:
    await store.transact(lambda tx: tx.set_notice_cursor(cursor))
    async with world(store, {"desk": Recorder()}) as here:
        await here.ask()
        await here.until_states("queued")


async def test_removed_target_fails_its_notices(store: Store) -> None:
    clock = Clock()
    async with world(store, {"desk": Recorder()}, clock=clock) as here:
        await here.ask()
        await here.until_states("queued")
    clock.now += timedelta(seconds=5)
    async with world(store, {"phone": Recorder()}, clock=clock) as here:
        [notice] = await here.until_states("failed")
        assert "no longer have this target" in str(notice.error)


async def test_ends_of_runs_are_noticed_where_asked_for(store: Store) -> None:
    finished = Recorder()
    failed, requests = Recorder(), Recorder()
    targets = {
        "finished": target(finished, events=frozenset({"finished"})),
        "failed": target(failed, events=frozenset({"failed"})),
        "requests": requests,
    }
    async with world(store, targets, include_text=True) as here:
        good = await here.client.create_session(title="good", provider="manual")
        run = await here.client.create_run(good.id)
        child = await here.client.spawn("x", session_id=good.id, provider="manual")
        bad = await here.client.create_session(provider="manual")
        broken = await here.client.create_run(bad.id)
        canceled = await here.client.create_run(
            (await here.client.create_session(provider="manual")).id
        )
        for one in (run, child.run, broken, canceled):
            await here.client.transition_run(one.id, "running")
        await here.client.transition_run(child.run.id, "completed", result={"text": "of the child"})
        await here.client.transition_run(run.id, "completed", result={"text": "all\ngreen"})
        error = {"code": "provider_error", "message": "the model is \x1b[31mgone"}
        await here.client.transition_run(broken.id, "failed", error=error)
        await here.client.transition_run(canceled.id, "canceled")
        await until(lambda: _subjects_are(here, {run.id, broken.id}))
        here.pass_time(5)
        await here.until_states("sent", "sent")
        assert [one.title for one in finished.given] == ["Finished: good"]
        assert [one.text for one in finished.given] == ["all green"]
        assert [one.link for one in finished.given] == [f"/s/{good.id}"]
        assert [(one.title, one.text) for one in failed.given] == [
            ("Failed", "the model is [31mgone")
        ]
        assert requests.given == []


async def _subjects_are(here: World, subjects: set[str]) -> bool:
    return {notice.subject for notice in await here.notices()} == subjects


async def test_question_to_a_parents_agent_is_noticed_when_people_are_asked(store: Store) -> None:
    desk = Recorder()
    async with world(store, {"desk": desk}) as here:
        parent = await here.client.create_session(provider="manual")
        run = await here.client.create_run(parent.id)
        await here.client.transition_run(run.id, "running")
        child = await here.client.spawn("x", session_id=parent.id, provider="manual")
        await here.client.transition_run(child.run.id, "running")
        asked = await here.ask_from(child.run)
        assert asked.audience == "parent"
        here.pass_time(100)
        people = await here.ask()
        await here.until_states("queued")  # of the request to people, which came later
        here.pass_time(20)  # the parent's two minutes are over
        await here.until_states("queued", subject=asked.id)
        here.pass_time(5)
        await here.until_states("sent", subject=asked.id)
        assert {subject for _, subject in desk.actions} == {people.id, asked.id}
        assert await here.receipts(asked) == [("desk", "sent")]


async def test_hostile_titles_stay_one_short_line(store: Store) -> None:
    desk = Recorder()
    async with world(store, {"desk": desk}, link_base="https://desk.example/base/") as here:
        request = await here.ask(title="a\x1b[2J\r\nb\u202e\u2066c\u200b" + "x" * 200)
        await here.until_states("queued")
        here.pass_time(5)
        await here.until_states("sent")
        [content] = desk.given
        assert content.session_title is not None
        assert content.session_title.startswith("a [2J b c x")
        assert len(content.session_title) == 120
        assert content.session_title.isprintable()
        assert content.link == f"https://desk.example/base/r/{request.id}"


async def test_extension_moves_the_deadline_of_a_notice(store: Store) -> None:
    async with world(store, {"desk": Recorder()}) as here:
        request = await here.ask(expires_in_s=100)
        await here.until_states("queued")
        extended = await here.client.extend_request(request.id, 5000)
        await until(lambda: _deadline_is(here, extended.expires_at))


async def _deadline_is(here: World, deadline: Any) -> bool:
    return [notice.deadline for notice in await here.notices()] == [deadline]


async def test_expired_request_takes_its_notice_away(store: Store) -> None:
    desk = Recorder()
    async with world(store, {"desk": desk}) as here:
        request = await here.ask(expires_in_s=60)
        await here.until_states("queued")
        here.pass_time(5)
        await here.until_states("sent")
        here.pass_time(60)
        await here.until_states("gone")
        assert desk.actions == [("show", request.id), ("withdraw", request.id)]


async def test_full_outbox_is_sent_with_bounded_concurrency(store: Store) -> None:
    at_once, most = 0, 0
    is_full = anyio.Event()

    async def count(_: NoticeContent) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        if at_once == notice_delivery.MAX_AT_ONCE:
            is_full.set()
        await is_full.wait()
        await anyio.sleep(0.001)  # so that one too many would be seen
        at_once -= 1

    targets = {f"t{n}": Recorder(then=count) for n in range(notice_delivery.MAX_AT_ONCE + 4)}
    async with world(store, targets) as here:
        await here.ask()
        await here.until_states(*["queued"] * len(targets))
        here.pass_time(5)
        await here.until_states(*["sent"] * len(targets))
        assert most == notice_delivery.MAX_AT_ONCE
        assert all(len(one.given) == 1 for one in targets.values())


async def test_old_notices_are_deleted(store: Store) -> None:
    async with world(store, {"desk": Recorder(withdraws=False)}) as here:
        request = await here.ask()
        await here.until_states("queued")
        here.pass_time(5)
        await here.until_states("sent")
        await here.client.resolve_request(request.id, "deny")
        kept: list[Notice] = await here.notices()
        here.clock.now += retention.NOTICE_LIFETIME
        await retention.delete_due(here.engine.core)
        assert await here.notices() == kept
        here.clock.now += timedelta(seconds=1)
        await retention.delete_due(here.engine.core)
        assert await here.notices() == []


@pytest.mark.parametrize(
    ("level", "told"),
    [
        ("default", {("requests", "request"), ("ends", "finished")}),
        ("none", set()),
        ("requests", {("requests", "request")}),
        ("all", {("requests", "request"), ("requests", "finished"), ("ends", "finished")}),
    ],
)
async def test_session_chooses_what_people_are_notified_of(
    store: Store, level: Any, told: set[tuple[str, str]]
) -> None:
    targets = {
        "requests": Recorder(withdraws=False),
        "ends": target(Recorder(withdraws=False), events=frozenset({"finished"})),
    }
    async with world(store, targets) as here:
        session = await here.client.create_session(provider="manual", notices=level)
        run = await here.client.create_run(session.id)
        await here.client.transition_run(run.id, "running")
        request = await here.ask_from(run)
        last = await here.ask()  # the log was read when this one has a notice
        await until(lambda: _subject_has(here, last.id))
        here.pass_time(5)
        await until(lambda: _all_sent(here))
        await here.client.resolve_request(request.id, "deny")
        await here.client.transition_run(run.id, "completed", result={"text": "done"})
        final = await here.ask()
        await until(lambda: _subject_has(here, final.id))
        here.pass_time(5)
        await until(lambda: _all_sent(here))
        found = {
            (notice.target, notice.kind)
            for notice in await here.notices()
            if notice.session_id == session.id
        }
        assert found == told


async def _subject_has(here: World, subject: str) -> bool:
    return bool(await here.notices(subject))


async def _all_sent(here: World) -> bool:
    return "queued" not in await here.states()


async def test_children_inherit_what_people_are_notified_of(store: Store) -> None:
    desk = Recorder()
    async with world(store, {"desk": desk}) as here:
        parent = await here.client.create_session(provider="manual", notices="none")
        child = await here.client.spawn("x", session_id=parent.id, provider="manual")
        await here.client.transition_run(child.run.id, "running")
        muted = await here.ask_from(child.run)
        assert muted.audience == "human"
        heard = await here.ask()
        await here.until_states("queued")
        await here.client.update_session(child.session.id, notices="requests")
        again = await here.ask_from(child.run)
        await here.until_states("queued", "queued")
        here.pass_time(5)
        await here.until_states("sent", "sent")
        assert {subject for _, subject in desk.actions} == {heard.id, again.id}


async def test_session_that_is_muted_meanwhile_sends_nothing(store: Store) -> None:
    desk = Recorder()
    async with world(store, {"desk": desk}) as here:
        request = await here.ask()
        await here.until_states("queued")
        await here.client.update_session(request.session_id, notices="none")
        here.pass_time(5)
        await here.until_states("gone")
        assert desk.given == []
        assert await here.receipts(request) == []


async def test_notices_wait_for_the_end_of_quiet_hours(store: Store) -> None:
    ringing = Recorder()
    loud, desk = target(ringing, quiet=False), Recorder()
    quiet = {"quiet_hours": "11:00-14:00", "time_zone": "UTC"}
    async with world(store, {"desk": desk, "loud": loud}, **quiet) as here:
        short = await here.ask(expires_in_s=3600)
        long = await here.ask(expires_in_s=86_400)
        await here.until_states(*["queued"] * 4)
        here.pass_time(5)
        await here.until_states("queued", "sent", "queued", "sent")
        here.pass_time(3600)
        await here.until_states("gone", "gone", "queued", "sent")  # the short one is over
        here.pass_time(3594)
        here.pass_time(1)
        await here.until_states("gone", "gone", "sent", "sent")
        assert here.clock.now == NOON + timedelta(hours=2)
        assert desk.actions == [("show", long.id)]
        assert ringing.actions[0] == ("show", short.id)


async def test_notice_of_an_unknown_session_is_sent(store: Store) -> None:
    async with world(store, {"desk": Recorder()}) as here:
        await store.transact(lambda tx: tx.add_notice(a_notice("run_1", kind="finished")))
        here.pass_time(0)
        await here.until_states("sent")


async def test_fault_in_the_delivery_stops_neither_other_targets_nor_runs(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    content_of = notice_delivery.content_of

    def broken(core: Any, view: Any, notice: Notice) -> Any:
        if notice.target == "broken":
            raise ZeroDivisionError
        return content_of(core, view, notice)

    monkeypatch.setattr(notice_delivery, "content_of", broken)
    async with world(store, {"broken": Recorder(), "desk": Recorder()}) as here:
        await here.ask()
        await here.until_states("queued", "queued")
        here.pass_time(5)
        await here.until_states("queued", "sent")
        assert await run_status(here) == "completed"


@pytest.mark.parametrize("with_waiting", [False, True])
def test_nothing_is_read_while_nothing_happens(with_waiting: bool) -> None:
    """On a virtual clock: an hour passes at once. A notice that is due later is looked at once a minute."""

    class Counting(MemoryStore):
        reads = 0

        async def read(self, query: Any) -> Any:
            self.reads += 1
            return await super().read(query)

    async def live() -> int:
        clock: Any = lambda: NOON + timedelta(seconds=trio.current_time())  # noqa: E731
        quiet = {"quiet_hours": "11:00-20:00", "time_zone": "UTC"}
        desk = Recorder()
        async with Counting() as store, world(store, {"desk": desk}, clock=clock, **quiet) as here:
            if with_waiting:
                await here.ask(expires_in_s=86_400)
                await here.until_states("queued")
            # Only now, as the threads of the start take no virtual time: it would be a later hour of the day, with its chores.
            virtual.rate, virtual.autojump_threshold = 0.0, 0.0
            await anyio.sleep(10)
            before = store.reads
            await anyio.sleep(3600)
            return store.reads - before

    virtual = trio.testing.MockClock(rate=1.0)
    reads = trio.run(live, clock=virtual)
    # One look at the clock reads what is due, and when the next is; the deadlines of requests are looked at, too.
    # Once an hour, an engine looks whether a log has got limits.
    assert reads <= (60 * 3 if with_waiting else 0) + 1


async def test_doctor_warns_of_a_notice_that_has_failed() -> None:
    async def refuse(_: NoticeContent) -> None:
        raise SendFailed("answered 403", is_final=True)

    async with MemoryStore() as store, world(store, {"desk": Recorder(then=refuse)}) as here:
        await here.client.test_notice()  # whoever tests sees the failure
        await here.until_states("failed")
        assert await warnings(here) == []
        await here.ask()
        await here.until_states("failed", "queued")
        here.pass_time(5)
        await here.until_states("failed", "failed")
        await here.client.test_notice()
        await here.until_states("failed", "failed", "failed")
        assert await warnings(here) == ["a notice was not sent to desk: answered 403"]
        here.clock.now += timedelta(days=2)
        assert await warnings(here) == []


async def warnings(here: World) -> list[str]:
    findings = (await here.client.doctor()).findings
    return [finding.message for finding in findings if finding.about == "notices"]


@pytest.mark.parametrize("with_target", [False, True])
async def test_store_that_fails_delays_notices_and_stops_nothing(with_target: bool) -> None:
    """Also before it is known whether there is anybody to notify."""

    class Failing(MemoryStore):
        is_broken = True

        async def read(self, query: Any) -> Any:
            if self.is_broken and query.__module__.startswith("agent_orchestrator.engine.notice"):
                raise ZeroDivisionError
            return await super().read(query)

    desk = Recorder()
    async with Failing() as store, world(store, {"desk": desk} if with_target else {}) as here:
        assert await run_status(here) == "completed"
        store.is_broken = False
        assert await run_status(here) == "completed"
