"""The contract suite for clients, over any transport."""

import json
import os
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest
from attrs import evolve

from agent_orchestrator.client import Client
from agent_orchestrator.domain.access import Grant
from agent_orchestrator.domain.audit import first_break
from agent_orchestrator.domain.errors import (
    AlreadyResolved,
    Conflict,
    CursorAhead,
    Gone,
    IdempotencyConflict,
    InvalidRequest,
    InvalidTransition,
    NotFound,
    SessionBusy,
    SessionClosed,
    Unauthorized,
)
from agent_orchestrator.domain.lifecycle import RunStatus
from agent_orchestrator.domain.model import (
    MANUAL,
    Event,
    Option,
    Request,
    RequestKind,
    Run,
    RunResult,
    Session,
)
from agent_orchestrator.operations import sessions as session_calls
from agent_orchestrator.operations.events import CaughtUp, StreamItem, StreamRequest
from agent_orchestrator.operations.messages import (
    SEND_MESSAGE,
    MessageReply,
    SendMessage,
    SpawnReply,
)
from agent_orchestrator.operations.options import ImageUpload
from agent_orchestrator.processes import process_start_id
from agent_orchestrator.testing.scripted import PROVIDER

PNG = b"\x89PNG\r\n\x1a\n"
"""The signature of a PNG file. The engine checks nothing else."""

TIMEOUT_S = 60.0
"""Seconds after which an operation has failed the contract."""


@pytest.mark.anyio
class ClientContract:
    """The contract of clients. Override the fixture ``client``: a :class:`Client` of a new engine.

    The engine must have :class:`~agent_orchestrator.testing.ScriptedRunner` as its default provider
    ``scripted``, and execute two runs at once. The caller must be its only principal.
    """

    # --- sessions -----------------------------------------------------------------------------

    async def test_a_created_session_has_the_given_fields(
        self, client: Client, tmp_path: Any
    ) -> None:
        session = await client.create_session(
            title="Ärger – 💥", cwd=str(tmp_path), metadata={"a": [1, {"b": None}]}, model="m1"
        )
        assert session.id.startswith("ses_")
        assert (session.title, session.cwd, session.model) == ("Ärger – 💥", str(tmp_path), "m1")
        assert session.metadata == {"a": [1, {"b": None}]}
        assert (session.status, session.last_seq, session.depth) == ("open", 1, 0)
        assert session.root_session_id == session.id
        assert await client.get_session(session.id) == session

    async def test_sessions_are_listed_in_pages(self, client: Client) -> None:
        made = [(await client.create_session(title=str(number))).id for number in range(5)]
        first = await client.list_sessions(limit=2)
        assert first.next_cursor is not None
        second = await client.list_sessions(limit=100, cursor=first.next_cursor)
        listed = [session.id for session in [*first.sessions, *second.sessions]]
        assert listed == made
        assert second.next_cursor is None

    async def test_lists_have_the_newest_first_and_page_both_ways(self, client: Client) -> None:
        made = [(await client.create_session(title=f"number {n}")).id for n in range(5)]
        newest = await client.list_sessions(order="newest", limit=2)
        assert [session.id for session in newest.sessions] == made[:2:-1]
        older = await client.list_sessions(order="newest", cursor=newest.next_cursor)
        assert ([session.id for session in older.sessions], older.next_cursor) == (
            made[2::-1],
            None,
        )
        # A cursor is a place in the list, from which the other order goes back.
        newer = await client.list_sessions(order="oldest", cursor=made[2])
        assert [session.id for session in newer.sessions] == made[3:]
        runs = [await _turn(client, made[n], f"say {n}") for n in (0, 1)]
        assert (await client.list_runs(order="newest")).runs == tuple(reversed(runs))

    async def test_lists_are_searched_by_words_and_provider(self, client: Client) -> None:
        wall, roof = [
            await client.create_session(title=title, provider=MANUAL)
            for title in ("Paint the WALL blue", "Mend the roof")
        ]
        await client.create_session()

        async def found(**search: Any) -> list[str]:
            return [session.id for session in (await client.list_sessions(**search)).sessions]

        assert await found(q="blue wall") == [wall.id]
        assert await found(q=" THE ", order="newest") == [roof.id, wall.id]
        assert await found(q=roof.id[-8:]) == [roof.id]
        assert await found(q="the", limit=1) == [wall.id]
        assert await found(q="the green") == await found(q="the", provider="nobody's") == []
        assert await found(provider=MANUAL) == [wall.id, roof.id]
        assert await found(provider=MANUAL, status="closed") == []
        run = await client.create_run(roof.id)
        failed = await client.transition_run(run.id, "running")
        error = {"code": "denied", "message": "No ladder"}
        failed = await client.transition_run(failed.id, "failed", error=error)
        await client.create_run(wall.id)
        for words in ("ladder", "denied mend", run.id[-8:]):
            assert (await client.list_runs(q=words)).runs == (failed,)
        assert len((await client.list_runs(provider=MANUAL)).runs) == 2
        assert not (await client.list_runs(q="roof", provider="demo")).runs

    async def test_what_sessions_contain_is_searched(self, client: Client) -> None:
        session = await client.create_session(title="Paint the café", metadata={"a": "café"})
        other = await client.create_session(title="Other")
        run = await _turn(client, session.id, "say the CAFE is blue\nsay it is 完成した")
        await _turn(client, other.id, "say cafeteria")
        page = await client.search("Cafe")
        assert page.complete
        assert [(hit.kind, hit.session_id, hit.run_id) for hit in page.hits] == [
            ("answer", session.id, run.id),
            ("message", session.id, run.id),
            ("title", session.id, None),
        ]
        answer, message, title = page.hits
        events = {event.seq: event for event in await _log(client, session.id)}
        assert events[answer.seq].data["text"] == answer.snippet.text == "the CAFE is blue"
        assert events[message.seq].data["message_id"] == message.message_id
        assert answer.created_at == events[answer.seq].created_at
        assert {hit.session_title for hit in page.hits} == {"Paint the café"}
        for hit in page.hits:
            marked = [hit.snippet.text[mark.start : mark.end] for mark in hit.snippet.marks]
            assert [word.casefold() for word in marked] in (["cafe"], ["café"])
        assert [hit.kind for hit in (await client.search("成し")).hits] == ["answer", "message"]
        first = await client.search('"cafe"', limit=2)
        assert first.hits == (answer, message)
        second = await client.search('"cafe"', limit=2, cursor=first.next_cursor)
        assert (second.hits, second.next_cursor) == ((title,), None)
        assert len((await client.search("cafe*")).hits) == 5
        assert (await client.search("cafe*", session_id=other.id, kind="answer")).hits[0].seq
        [both] = (await client.search("cafe paint")).hits
        assert (both.seq, [(mark.start, mark.end) for mark in both.snippet.marks]) == (
            title.seq,
            [(0, 5), (10, 14)],
        )
        await client.update_session(session.id, title="Paint it")
        await client.close_session(session.id)
        assert [hit.kind for hit in (await client.search("cafe paint")).hits] == []
        assert [hit.kind for hit in (await client.search("cafe")).hits] == ["answer", "message"]

    async def test_a_search_never_has_a_syntax_error(self, client: Client) -> None:
        session = await client.create_session(title='NEAR("fox" AND dog) OR -col:x^2')
        for words in (
            'NEAR("fox"',
            "AND dog)",
            "OR",
            "-col:x",
            '"x^2',
            "fox' OR 1=1",
            "*fox*",
            "(fox",
        ):
            expected = [] if "1=1" in words else [session.id]
            assert [hit.session_id for hit in (await client.search(words)).hits] == expected, words
        for words in ("***", '""', "🙂", "w " * 33 + "x y z " + " ".join(map(str, range(40)))):
            with pytest.raises(InvalidRequest) as caught:
                await client.search(words)
            assert caught.value.details["fields"].keys() == {"q"}, words
        with pytest.raises(NotFound):
            await client.search("fox", session_id="ses_none")
        with pytest.raises(InvalidRequest, match="cursor"):
            await client.search("fox", cursor="of another list")

    async def test_only_the_beginning_of_a_long_text_is_searched(self, client: Client) -> None:
        session = await client.create_session(provider=MANUAL)
        text = f"{'fill ' * 6_000}near\n{'fill ' * 100_000}far"
        await client.send_message(session.id, text)
        [hit] = (await client.search("near")).hits
        [mark] = hit.snippet.marks
        assert hit.snippet.text[mark.start : mark.end] == "near"
        assert len(hit.snippet.text) <= 160
        assert "near fill fill" in hit.snippet.text  # the line break is a space
        assert (await client.search("far")).hits == ()

    async def test_requests_are_listed_by_deadline_and_searched(self, client: Client) -> None:
        session = await client.create_session(title="Paint", provider=MANUAL)
        run = await client.create_run(session.id)
        await client.transition_run(run.id, "running")
        asked = []
        for text, expires_in_s in (("last?", 900.0), ("first?", 300.0), ("second?", 600.0)):
            reply = await client.reply_parent(
                run.id, text, request_kind="input_request", expires_in_s=expires_in_s
            )
            assert reply.request is not None
            asked.append(reply.request)
        last, first, second = asked
        page = await client.requests(order="deadline", limit=2)
        assert page.requests == (first, second)
        rest = await client.requests(order="deadline", cursor=page.next_cursor)
        assert (rest.requests, rest.next_cursor) == ((last,), None)
        assert (await client.requests(order="newest")).requests == (second, first, last)
        assert (await client.requests(q="SECOND paint")).requests == (second,)
        assert (await client.requests(q="t?", provider=MANUAL, order="deadline")).requests == (
            first,
            last,
        )
        assert (await client.requests(provider="demo")).requests == ()
        await client.resolve_request(first.id, "answer", text="yes")
        found = await client.requests(order="deadline", status="pending", session_id=session.id)
        assert found.requests == (second, last)
        with pytest.raises(InvalidRequest) as refused:
            await client.requests(order="deadline", status="answered")
        assert refused.value.details["fields"].keys() == {"order"}

    async def test_a_list_shows_the_activity_of_sessions(self, client: Client) -> None:
        idle = await client.create_session()
        ended = await client.create_session()
        run = await _turn(client, ended.id, "say one\nsay two")
        await client.create_run(ended.id, provider=MANUAL)
        asking = await client.create_session(provider=MANUAL, sandbox="read-only")
        active = await client.create_run(asking.id)
        await client.transition_run(active.id, "running")
        await client.create_run(asking.id)
        for text in ("May I?", "And this?"):
            await client.reply_parent(active.id, text, request_kind="input_request")
        assert (await client.list_sessions()).activity is None
        page = await client.list_sessions(activity=True)
        assert [session.id for session in page.sessions] == [idle.id, ended.id, asking.id]
        assert page.activity is not None
        of_idle, of_ended, of_asking = page.activity
        assert (of_idle.run, of_idle.open_request_count, of_idle.seen_seq) == (None, 0, 0)
        assert of_ended.run is not None
        assert (of_ended.run.status, of_ended.run.provider) == (RunStatus.QUEUED, MANUAL)
        assert of_asking.run is not None
        assert (of_asking.run.id, of_asking.run.status) == (active.id, RunStatus.RUNNING)
        assert (of_ended.run.sandbox, of_asking.run.sandbox) == (None, "read-only")
        assert of_asking.open_request_count == 2
        assert run.result is not None
        assert page.sessions[1].last_line == run.result.text.splitlines()[-1]

    async def test_a_session_has_the_last_line_of_an_agent_at_work(self, client: Client) -> None:
        session = await client.create_session()
        sent = await client.send_message(session.id, "say begun\nsay so far\nask May I?")
        assert sent.run is not None
        await client.wait_run(sent.run.id, timeout_s=TIMEOUT_S, until="attention")
        assert (await client.get_session(session.id)).last_line == "so far"

    async def test_what_a_caller_has_seen_only_goes_forward(self, client: Client) -> None:
        session = await client.create_session()
        await _turn(client, session.id, "say hello")
        last_seq = (await client.get_session(session.id)).last_seq
        for seq, marked in ((2, 2), (1, 2), (2**40, last_seq), (0, last_seq)):
            assert await client.mark_seen(session.id, seq) == marked
        reply = await client.transport.call(
            session_calls.GET_SESSION, session_calls.GetSession(session.id, activity=True)
        )
        assert reply.answer.activity is not None
        assert reply.answer.activity.seen_seq == last_seq
        with pytest.raises(NotFound):
            await client.mark_seen("ses_none", 1)

    async def test_a_device_is_let_in_once_and_revoked(self, client: Client) -> None:
        invited = await client.add_device(scopes=["approve", "read"])
        assert invited.device.scopes == ("read", "approve")
        assert (await client.list_devices()).devices == ()
        typed = f" {invited.code[:4].lower()}-{invited.code[4:]} "
        claimed = await client.claim_device(typed, name="a phone")
        device = claimed.device
        assert (device.id, device.name, device.purpose) == (invited.device.id, "a phone", "device")
        assert device.expires_at is None
        assert invited.code not in claimed.secret
        for code in (invited.code, "ABCDEFGH", " "):
            with pytest.raises(Unauthorized):
                await client.claim_device(code)
        named = await client.add_device(name="desk")
        assert (await client.claim_device(named.code, name="?")).device.name == "desk"
        assert device in (await client.list_devices()).devices
        revoked = await client.revoke_device(device.id)
        assert revoked.revoked_at is not None
        assert await client.revoke_device(device.id) == revoked
        token = await client.create_token("not-a-device")
        with pytest.raises(NotFound):
            await client.revoke_device(token.token.id)
        with pytest.raises(InvalidRequest) as refused:
            await client.add_device(scopes=["everything"])
        assert refused.value.details["fields"].keys() == {"scopes"}

    async def test_what_was_changed_is_read_from_the_log_without_a_checkout(
        self, client: Client, tmp_path: Path
    ) -> None:
        session = await client.create_session(cwd=str(tmp_path))
        diff = await client.get_diff(session.id)
        assert (diff.session_id, diff.cwd, diff.source) == (session.id, str(tmp_path), "events")
        assert (diff.base, diff.changes, diff.is_truncated) == (None, (), False)
        with pytest.raises(NotFound):
            await client.get_diff("ses_none")

    async def test_a_share_link_is_created_listed_and_revoked(self, client: Client) -> None:
        session, other = await client.create_session(title="roof"), await client.create_session()
        made = await client.create_link(session.id, expires_in_s=60)
        link = made.token
        assert (link.name, link.purpose, link.session_id) == ("roof", "link", session.id)
        assert link.scopes == ("read",)
        assert link.expires_at is not None
        assert (link.expires_at - link.created_at).total_seconds() == 60
        assert (await client.list_links(session.id)).tokens == (link,)
        assert (await client.list_links(other.id)).tokens == ()
        with pytest.raises(NotFound):
            await client.revoke_link(other.id, link.id)
        revoked = await client.revoke_link(session.id, link.id)
        assert revoked.revoked_at is not None
        assert (await client.list_links(session.id)).tokens == (revoked,)
        with pytest.raises(NotFound):
            await client.create_link("ses_none")
        with pytest.raises(InvalidRequest):
            await client.create_token("link-x")

    async def test_sessions_are_listed_by_status(self, client: Client) -> None:
        await client.create_session()
        closed = await client.create_session()
        await client.update_session(closed.id, status="closed")
        page = await client.list_sessions(status="closed")
        assert [session.id for session in page.sessions] == [closed.id]

    async def test_changing_a_session_logs_an_event(self, client: Client) -> None:
        session = await client.create_session(title="before")
        changed = await client.update_session(session.id, title="after", metadata={"k": 1})
        assert (changed.title, changed.metadata) == ("after", {"k": 1})
        await client.update_session(session.id, title="after")
        types = [event.event_type for event in await _log(client, session.id)]
        assert types == ["session.created", "session.updated"]

    async def test_a_session_gets_another_model_from_the_next_message_on(
        self, client: Client
    ) -> None:
        session = await client.create_session(model="first")
        queued = await client.create_run(session.id, provider=MANUAL)
        changed = await client.update_session(session.id, model="second")
        assert changed.model == "second"
        assert await client.update_session(session.id, model="second") == changed
        assert await client.get_session(session.id) == changed
        later = await client.create_run(session.id, provider=MANUAL)
        models = [(await client.get_run(run.id)).model for run in (queued, later)]
        assert models == [queued.model, later.model] == ["first", "second"]
        updates = [e for e in await _log(client, session.id) if e.event_type == "session.updated"]
        assert [event.data for event in updates] == [{"model": "second"}]
        with pytest.raises(InvalidRequest):
            await client.update_session(session.id, model="")

    async def test_a_session_is_moved_to_another_directory(
        self, client: Client, tmp_path: Path
    ) -> None:
        session = await client.create_session()
        child = (await client.spawn("say x", session_id=session.id, provider=MANUAL)).session
        queued = await client.create_run(session.id, provider=MANUAL)
        moved = await client.update_session(session.id, cwd=str(tmp_path))
        assert moved.cwd == str(tmp_path)
        # Moving it to its current directory has no effect.
        assert await client.update_session(session.id, cwd=str(tmp_path)) == moved
        assert await client.get_session(session.id) == moved
        assert (await client.get_session(child.id)).cwd == session.cwd
        assert (await client.get_run(queued.id)).status is RunStatus.QUEUED
        updates = [e for e in await _log(client, session.id) if e.event_type == "session.updated"]
        assert [event.data for event in updates] == [
            {"cwd": str(tmp_path), "previous_cwd": session.cwd}
        ]
        again = await client.update_session(session.id, cwd=session.cwd, title="both")
        assert (again.cwd, again.title) == (session.cwd, "both")
        assert (await client.create_session(cwd=moved.cwd)).cwd == moved.cwd

    @pytest.mark.parametrize("cwd", ["", "here", "/no/such/directory", "/etc/passwd", "/a\0b"])
    async def test_a_session_cannot_be_moved_to_a_path_that_is_not_a_directory(
        self, client: Client, cwd: str
    ) -> None:
        session = await client.create_session()
        for refused in (
            client.update_session(session.id, cwd=cwd, title="no"),
            client.create_session(cwd=cwd),
        ):
            with pytest.raises(InvalidRequest) as caught:
                await refused
            assert list(caught.value.details["fields"]) == ["cwd"]
        assert await client.get_session(session.id) == session

    async def test_a_session_with_an_active_run_cannot_be_moved(
        self, client: Client, tmp_path: Path
    ) -> None:
        session = await client.create_session(provider=MANUAL)
        run = await client.create_run(session.id)
        await client.transition_run(run.id, "running")
        with pytest.raises(SessionBusy) as caught:
            await client.update_session(session.id, cwd=str(tmp_path), title="no")
        assert caught.value.details["run_id"] == run.id
        kept = await client.update_session(session.id, cwd=session.cwd)
        assert (kept.cwd, kept.title) == (session.cwd, None)
        await client.transition_run(run.id, "completed")
        moved = await client.update_session(session.id, cwd=str(tmp_path), status="closed")
        assert (moved.cwd, moved.status) == (str(tmp_path), "closed")
        assert (await _log(client, session.id))[-1].data["previous_cwd"] == session.cwd

    async def test_a_closed_session_refuses_messages_until_it_is_reopened(
        self, client: Client
    ) -> None:
        session = await client.create_session()
        assert (await client.update_session(session.id, status="closed")).status == "closed"
        with pytest.raises(SessionClosed):
            await client.send_message(session.id, "say hi")
        with pytest.raises(SessionClosed):
            await client.create_run(session.id, provider=MANUAL)
        await client.update_session(session.id, status="open")
        assert (await _turn(client, session.id, "say hi")).status is RunStatus.COMPLETED

    async def test_closing_a_session_without_cascade_leaves_its_descendants_running(
        self, client: Client
    ) -> None:
        session, child = await _family(client)
        closed = await client.close_session(session.id)
        assert (closed.session.status, closed.canceled) == ("closed", ())
        assert (closed.closed_count, closed.at_work_count) == (1, 1)
        assert (await client.get_run(child.run.id)).status is RunStatus.QUEUED
        assert (await client.get_session(child.session.id)).status == "open"
        again = await client.close_session(session.id)
        assert again == evolve(closed, closed_count=0)
        types = [event.event_type for event in await _log(client, session.id)]
        assert types.count("session.closed") == 1

    async def test_closing_with_cascade_closes_the_tree_and_cancels_its_runs(
        self, client: Client
    ) -> None:
        session, child = await _family(client)
        below = await client.spawn("dig", session_id=child.session.id, provider=MANUAL)
        await client.transition_run(below.run.id, "running")
        asked = await client.reply_parent(
            below.run.id, "May I?", request_kind="approval_request", wait=True
        )
        manual = await client.create_run(session.id, provider=MANUAL)
        ended = await client.spawn("rest", session_id=session.id, provider=MANUAL)
        await client.cancel_run(ended.run.id)
        beside = await client.create_session()
        closed = await client.close_session(session.id, cascade=True, idempotency_key="k")
        assert set(closed.canceled) == {manual.id, child.run.id, below.run.id}
        assert (closed.closed_count, closed.at_work_count) == (4, 0)
        for member in (session, child.session, below.session, ended.session):
            assert (await client.get_session(member.id)).status == "closed"
            types = [event.event_type for event in await _log(client, member.id)]
            assert types.count("session.closed") == 1
            with pytest.raises(SessionClosed):
                await client.send_message(member.id, "more")
            with pytest.raises(SessionClosed):
                await client.spawn("more", session_id=member.id)
        for run_id in closed.canceled:
            run = await client.get_run(run_id)
            assert (run.status, run.cancel_reason) == (RunStatus.CANCELED, "its session was closed")
        message, *_ = (await client.list_messages(child.session.id)).messages
        assert message.delivery == "undeliverable"
        assert asked.request is not None
        request = await client.get_request(asked.request.id)
        assert (request.status, request.audience) == ("canceled", asked.request.audience)
        assert (await client.get_session(beside.id)).status == "open"
        assert await client.close_session(session.id, cascade=True, idempotency_key="k") == closed
        again = await client.close_session(session.id, cascade=True)
        assert (again.canceled, again.closed_count) == ((), 0)
        entries = (await client.list_audit(limit=1000)).entries
        noted = [entry.detail for entry in entries if entry.target == session.id]
        assert noted == [{"cascade": True}] * 2

    async def test_closing_with_cascade_works_below_a_closed_root(self, client: Client) -> None:
        session, child = await _family(client)
        await client.update_session(session.id, status="closed")
        closed = await client.close_session(session.id, cascade=True)
        assert (closed.canceled, closed.closed_count) == ((child.run.id,), 1)
        await client.update_session(session.id, status="open")
        assert (await client.get_session(child.session.id)).status == "closed"
        assert (await _turn(client, session.id, "say hi")).status is RunStatus.COMPLETED

    # --- messages and runs --------------------------------------------------------------------

    async def test_a_message_starts_a_run_that_has_a_result(self, client: Client) -> None:
        session = await client.create_session()
        sent = await client.send_message(session.id, "tool hammer\nusage 7 3\nsay done")
        assert sent.run is not None
        assert sent.message.run_id == sent.run.id
        assert sent.run.message_id == sent.message.id
        assert (sent.run.status, sent.run.attempt) == (RunStatus.QUEUED, 1)
        run = await _end(client, sent)
        assert run.result is not None
        assert run.usage is not None
        assert (run.status, run.result.text) == (RunStatus.COMPLETED, "done")
        assert (run.usage.input_tokens, run.usage.output_tokens) == (7, 3)
        assert run.created_at <= (run.started_at or run.created_at) <= (run.finished_at or 0)  # type: ignore[operator]
        log = await _log(client, session.id)
        assert [event.event_type for event in log] == [
            "session.created",
            "message.created",
            "run.queued",
            "run.started",
            "tool.started",
            "tool.completed",
            "usage.updated",
            "agent.message",
            "run.completed",
        ]
        assert [event.seq for event in log] == list(range(1, len(log) + 1))
        assert {event.run_id for event in log[1:]} == {run.id}
        messages = (await client.list_messages(session.id)).messages
        assert [(message.text, message.delivery) for message in messages] == [
            ("tool hammer\nusage 7 3\nsay done", "delivered")
        ]

    @pytest.mark.parametrize(
        "text",
        [
            "-x --help",
            "resume",
            "a\nb\r\nc",
            "nul \0 in it",
            "👩‍🚀 \u2028 \u0085 é",
            " lead",
            "x" * 1_000_000,
        ],
        ids=["dashes", "word", "lines", "nul", "unicode", "blank-led", "million"],
    )
    async def test_text_reaches_the_agent_unchanged(self, client: Client, text: str) -> None:
        session = await client.create_session()
        sent = await client.send_message(session.id, text, role="system")
        assert sent.run is None
        assert sent.message.text == text
        assert (await client.list_messages(session.id)).messages[0].text == text
        assert (await _log(client, session.id))[-1].data["text"] == text

    async def test_only_a_user_message_starts_a_run(self, client: Client) -> None:
        session = await client.create_session()
        for role in ("assistant", "system"):
            assert (await client.send_message(session.id, "note", role=role)).run is None
        assert (await client.list_runs(session_id=session.id)).runs == ()

    async def test_a_failed_run_has_an_error(self, client: Client) -> None:
        session = await client.create_session()
        run = await _turn(client, session.id, "fail rate_limited slow down")
        assert run.error is not None
        assert (run.status, run.error.code) == (RunStatus.FAILED, "rate_limited")
        assert run.error.message == "slow down"
        assert run.result is None

    async def test_an_exception_in_a_runner_fails_only_its_run(self, client: Client) -> None:
        session = await client.create_session()
        run = await _turn(client, session.id, "crash")
        assert run.error is not None
        assert run.error.code == "agent_crashed"
        assert (await _turn(client, session.id, "say alive")).status is RunStatus.COMPLETED

    async def test_a_session_resumes_its_thread(self, client: Client) -> None:
        session = await client.create_session()
        assert (await _turn(client, session.id, "which\nthread t-1")).thread_id == "t-1"
        run = await _turn(client, session.id, "which")
        assert run.result is not None
        assert run.result.text == "t-1"
        assert (await client.get_session(session.id)).threads == {PROVIDER: "t-1"}
        await _turn(client, session.id, "thread t-2")
        types = [event.event_type for event in await _log(client, session.id)]
        assert (types.count("thread.started"), types.count("thread.replaced")) == (1, 1)

    async def test_runs_are_listed_in_pages_and_by_state(self, client: Client) -> None:
        session = await client.create_session()
        other = await client.create_session()
        runs = [await _turn(client, session.id, f"say {number}") for number in range(3)]
        failed = await _turn(client, other.id, "fail provider_error no")
        page = await client.list_runs(limit=2)
        second = await client.list_runs(limit=2, cursor=page.next_cursor)
        assert [*page.runs, *second.runs] == [*runs, failed]
        assert (await client.list_runs(session_id=session.id)).runs == tuple(runs)
        assert (await client.list_runs(status="failed")).runs == (failed,)
        assert (await client.list_runs(session_id=other.id, status="queued")).runs == ()

    async def test_create_run_queues_a_run(self, client: Client) -> None:
        session = await client.create_session()
        run = await client.create_run(session.id, text="say by hand")
        ended = (await client.wait_run(run.id, timeout_s=TIMEOUT_S)).run
        assert ended.result is not None
        assert ended.result.text == "by hand"
        with pytest.raises(InvalidRequest) as refusal:
            await client.create_run(session.id)
        assert set(refusal.value.details["fields"]) == {"text"}

    # --- the queue ----------------------------------------------------------------------------

    async def test_messages_of_a_session_run_in_order_one_at_a_time(self, client: Client) -> None:
        session = await client.create_session()
        sent = [await client.send_message(session.id, f"say {number}") for number in range(6)]
        for reply in sent:
            await _end(client, reply)
        marks = [
            (event.event_type, event.run_id)
            for event in await _log(client, session.id)
            if event.event_type in ("run.started", "run.completed")
        ]
        assert marks == [
            (mark, reply.run.id if reply.run else None)
            for reply in sent
            for mark in ("run.started", "run.completed")
        ]

    async def test_at_most_max_concurrency_runs_are_active(self, client: Client) -> None:
        sessions = [await client.create_session() for _ in range(4)]
        held = [await client.send_message(session.id, "hold") for session in sessions]
        await _until(lambda: _counts(client, running=2, queued=2))
        third = _run_of(held[2])
        diagnosis = (await client.diagnose_run(third.id)).diagnostics
        assert diagnosis.likely_issue.code == "queued_no_capacity"
        assert (diagnosis.queue_position, diagnosis.max_concurrency) == (1, 2)
        assert (await client.diagnose_run(_run_of(held[3]).id)).diagnostics.queue_position == 2
        await client.cancel_run(_run_of(held[0]).id)
        await _until(lambda: _is(client, third.id, RunStatus.RUNNING))
        for reply in held:
            await client.cancel_run(_run_of(reply).id)
            await _end(client, reply)

    async def test_when_busy_queue_waits_for_the_active_run(self, client: Client) -> None:
        session = await client.create_session()
        held = await _hold(client, session.id)
        queued = await client.send_message(session.id, "say second")
        diagnosis = (await client.diagnose_run(_run_of(queued).id)).diagnostics
        assert diagnosis.likely_issue.code == "queued_behind_run"
        assert diagnosis.blocked_by_run_id == held.id
        await client.cancel_run(held.id)
        assert (await _end(client, queued)).status is RunStatus.COMPLETED

    async def test_when_busy_reject_writes_nothing(self, client: Client) -> None:
        session = await client.create_session()
        held = await _hold(client, session.id)
        before = await _log(client, session.id)
        with pytest.raises(SessionBusy) as refusal:
            await client.send_message(session.id, "say no", when_busy="reject")
        assert refusal.value.details["run_id"] == held.id
        assert await _log(client, session.id) == before
        await client.cancel_run(held.id)
        await client.wait_run(held.id)

    async def test_when_busy_interrupt_cancels_then_runs(self, client: Client) -> None:
        session = await client.create_session()
        held = await _hold(client, session.id)
        sent = await client.send_message(session.id, "say instead", when_busy="interrupt")
        assert (await _end(client, sent)).status is RunStatus.COMPLETED
        assert (await client.get_run(held.id)).status is RunStatus.CANCELED

    async def test_interrupts_run_before_queued_messages_and_the_newest_first(
        self, client: Client
    ) -> None:
        session = await client.create_session()
        held = await _hold(client, session.id)
        queued = await client.send_message(session.id, "say queued")
        # It does not end by itself: the next queued message would begin before the other interrupt.
        first = await client.send_message(session.id, "hold", when_busy="interrupt")
        last = await client.send_message(session.id, "say last", when_busy="interrupt")
        assert (await _end(client, last)).status is RunStatus.COMPLETED
        assert (await _end(client, queued)).status is RunStatus.COMPLETED
        assert (await client.get_run(held.id)).status is RunStatus.CANCELED
        assert (await client.get_run(_run_of(first).id)).status is RunStatus.CANCELED
        said = [event.data["text"] for event in await _agent_log(client, session.id)]
        assert said[-2:] == ["last", "queued"]

    async def test_when_busy_steer_reaches_the_running_agent(self, client: Client) -> None:
        session = await client.create_session()
        first = await client.send_message(session.id, "steered")
        await _until(lambda: _said(client, session.id, "listening"))
        steer = await client.send_message(session.id, "turn left", when_busy="steer")
        assert _run_of(steer).id == _run_of(first).id
        run = await _end(client, first)
        assert run.result is not None
        assert run.result.text == "turn left"
        delivered = [
            message.delivery for message in (await client.list_messages(session.id)).messages
        ]
        assert delivered == ["delivered", "delivered"]
        assert len((await client.list_runs(session_id=session.id)).runs) == 1
        log = (await client.list_events(session.id, limit=1000)).events
        steering = [
            event.data.get("is_steering", False)
            for event in log
            if event.event_type == "message.created"
        ]
        assert steering == [False, True]
        [receipt] = [event for event in log if event.event_type == "message.updated"]
        assert receipt.data == {
            "message_id": steer.message.id,
            "delivery": "delivered",
            "attempt": 1,
        }
        assert receipt.run_id == run.id

    async def test_when_busy_steer_queues_if_the_runner_cannot_steer(self, client: Client) -> None:
        session = await client.create_session()
        held = await _hold(client, session.id)
        steer = await client.send_message(session.id, "say later", when_busy="steer")
        assert _run_of(steer).id != held.id
        await client.cancel_run(held.id)
        assert (await _end(client, steer)).status is RunStatus.COMPLETED

    # --- cancel -------------------------------------------------------------------------------

    async def test_a_running_agent_is_canceled(self, client: Client) -> None:
        session = await client.create_session()
        held = await _hold(client, session.id)
        reply = await client.cancel_run(held.id, reason="enough")
        assert reply.canceled == (held.id,)
        assert reply.run.cancel_requested_at is not None
        run = (await client.wait_run(held.id, timeout_s=TIMEOUT_S)).run
        assert (run.status, run.result, run.error) == (RunStatus.CANCELED, None, None)
        diagnosis = (await client.diagnose_run(held.id)).diagnostics
        assert diagnosis.likely_issue.code == "canceled"

    async def test_a_queued_run_is_canceled_at_once(self, client: Client) -> None:
        session = await client.create_session()
        held = await _hold(client, session.id)
        queued = await client.send_message(session.id, "say never")
        reply = await client.cancel_run(_run_of(queued).id)
        assert reply.run.status is RunStatus.CANCELED
        message = (await client.list_messages(session.id)).messages[-1]
        assert message.delivery == "undeliverable"
        await client.cancel_run(held.id)
        await client.wait_run(held.id)
        assert not await _said(client, session.id, "never")

    async def test_a_terminal_run_does_not_change(self, client: Client) -> None:
        session = await client.create_session()
        run = await _turn(client, session.id, "say done")
        reply = await client.cancel_run(run.id)
        assert (reply.run, reply.canceled) == (run, ())
        for status in RunStatus:
            with pytest.raises(InvalidTransition):
                await client.transition_run(run.id, status.value)
        assert await client.get_run(run.id) == run

    # --- cooperating agents --------------------------------------------------------------------

    async def test_a_run_spawns_a_child_and_gets_its_outcome(self, client: Client) -> None:
        parent = await client.create_session(title="parent")
        run = await _turn(client, parent.id, "say ready")
        spawned = await client.spawn("say built", run_id=run.id, title="builder")
        child = spawned.session
        assert (child.parent_session_id, child.parent_run_id) == (parent.id, run.id)
        assert (child.root_session_id, child.depth, child.title) == (parent.id, 1, "builder")
        assert (child.owner, child.cwd) == (parent.owner, parent.cwd)
        assert spawned.message.source.kind == "parent"
        assert spawned.message.source.session_id == parent.id
        assert spawned.run.parent_run_id == run.id
        done = await _end_run(client, spawned.run)
        assert done.status is RunStatus.COMPLETED
        outcome = (await client.list_messages(parent.id)).messages[-1]
        assert (outcome.role, outcome.delivery) == ("system", "delivered")
        assert (outcome.source.kind, outcome.source.session_id) == ("child", child.id)
        assert (outcome.source.run_id, "built" in outcome.text) == (done.id, True)
        log = await _log(client, parent.id)
        started = next(event.data for event in log if event.event_type == "child.spawned")
        finished = next(event.data for event in log if event.event_type == "child.finished")
        assert (started["session_id"], started["run_id"]) == (child.id, done.id)
        assert (finished["status"], finished["result"]) == ("completed", {"text": "built"})
        assert len((await client.list_runs(session_id=parent.id)).runs) == 1

    async def test_a_spawned_child_has_the_given_metadata(self, client: Client) -> None:
        parent = await client.create_session(metadata={"of": "the parent"})
        kept = {"ticket": 7, "labels": ["slow"]}
        spawned = await client.spawn("say built", session_id=parent.id, metadata=kept)
        assert (await client.get_session(spawned.session.id)).metadata == kept
        other = await client.spawn("say built", session_id=parent.id)
        assert other.session.metadata == {}
        with pytest.raises(InvalidRequest) as caught:
            await client.spawn("say built", session_id=parent.id, metadata={"x": "y" * 70_000})
        assert list(caught.value.details["fields"]) == ["metadata"]

    async def test_a_session_without_a_run_can_spawn_a_child(self, client: Client) -> None:
        parent = await client.create_session()
        spawned = await client.spawn("fail provider_error no", session_id=parent.id)
        await _end_run(client, spawned.run)
        assert spawned.session.parent_run_id is None
        text = (await client.list_messages(parent.id)).messages[-1].text
        assert "provider_error" in text
        with pytest.raises(NotFound):
            await client.spawn("say x", session_id="ses_none")
        with pytest.raises(NotFound):
            await client.spawn("say x", run_id="run_none")

    async def test_a_childs_outcome_wakes_an_idle_parent(self, client: Client) -> None:
        parent = await client.create_session()
        spawned = await client.spawn("say built", session_id=parent.id, notify_parent="wake")
        await _end_run(client, spawned.run)
        outcome = (await client.list_messages(parent.id)).messages[-1]
        assert outcome.run_id is not None
        woken = await _end_run(client, await client.get_run(outcome.run_id))
        assert (woken.session_id, woken.status) == (parent.id, RunStatus.COMPLETED)
        said = [event.data["text"] for event in await _agent_log(client, parent.id)]
        assert said[-1] == "built"

    async def test_outcomes_wait_for_a_busy_parent_and_are_delivered_together(
        self, client: Client
    ) -> None:
        parent = await client.create_session()
        held = await _hold(client, parent.id)
        queued = await client.send_message(parent.id, "say queued")
        for name in ("one", "two"):
            spawned = await client.spawn(f"say {name}", session_id=parent.id, notify_parent="wake")
            await _end_run(client, spawned.run)
        await client.cancel_run(held.id)
        await _end(client, queued)
        outcomes = [
            message
            for message in (await client.list_messages(parent.id)).messages
            if message.source.kind == "child"
        ]
        # The outcomes join the next turn. A separate turn would delay the message that was sent before.
        assert queued.run is not None
        assert {message.run_id for message in outcomes} == {queued.run.id}
        assert {message.delivery for message in outcomes} == {"delivered"}
        said = [event.data["text"] for event in await _agent_log(client, parent.id)]
        assert [text for text in said if text in ("one", "two", "queued")] == [
            "queued",
            "one",
            "two",
        ]

    async def test_a_cancel_reaches_the_whole_subtree(self, client: Client) -> None:
        parent = await client.create_session(provider=MANUAL)
        root = await client.create_run(parent.id)
        await client.transition_run(root.id, "running")
        child = await client.spawn("x", run_id=root.id, provider=MANUAL)
        await client.transition_run(child.run.id, "running")
        grandchild = await client.spawn("x", run_id=child.run.id, provider=MANUAL)
        queued = await client.send(child.session.id, "say later")
        reply = await client.cancel_run(root.id, reason="stop all of it")
        expected = {root.id, child.run.id, grandchild.run.id, _run_of(queued).id}
        assert set(reply.canceled) == expected
        for run_id in expected:
            assert (await client.get_run(run_id)).status is RunStatus.CANCELED
        with pytest.raises(Conflict):
            await client.spawn("too late", run_id=root.id)
        alone = await client.create_run(parent.id)
        await client.transition_run(alone.id, "running")
        other = await client.spawn("x", run_id=alone.id, provider=MANUAL)
        assert (await client.cancel_run(alone.id, cascade=False)).canceled == (alone.id,)
        assert (await client.get_run(other.run.id)).status is RunStatus.QUEUED

    async def test_tree_limits_are_enforced(self, client: Client) -> None:
        deepest = await client.create_session(provider=MANUAL)
        for _ in range(5):
            deepest = (await client.spawn("x", session_id=deepest.id)).session
        with pytest.raises(Conflict) as refusal:
            await client.spawn("x", session_id=deepest.id)
        assert refusal.value.details["limit"] == "depth"
        wide = await client.create_session(provider=MANUAL)
        children = [await client.spawn("x", session_id=wide.id) for _ in range(16)]
        with pytest.raises(Conflict) as refusal:
            await client.spawn("x", session_id=wide.id)
        assert refusal.value.details == {"limit": "children", "most": 16}
        await client.cancel_run(children[0].run.id)
        await client.spawn("x", session_id=wide.id)

    async def test_a_child_cannot_raise_inherited_limits(self, client: Client) -> None:
        root = await client.create_session(
            provider=MANUAL, max_depth=3, max_children=4, max_descendants=5
        )
        assert _limits(root) == (3, 4, 5)
        first = await client.spawn("x", session_id=root.id)
        assert _limits(first.session) == (2, 4, 5)
        larger_ones = {"max_depth": 3, "max_children": 5, "max_descendants": 6}
        for name, number in larger_ones.items():
            with pytest.raises(InvalidRequest, match=f"at most {number - 1}") as larger:
                await client.spawn("x", session_id=root.id, **{name: number})  # type: ignore[arg-type]
            assert list(larger.value.details["fields"]) == [name]
        second = await client.spawn(
            "x", run_id=first.run.id, max_depth=1, max_children=2, max_descendants=1
        )
        assert _limits(second.session) == (1, 2, 1)
        third = await client.spawn("x", session_id=second.session.id)
        assert _limits(third.session) == (0, 2, 1)
        for parent, limit, most in ((third, "depth", 0), (second, "descendants", 1)):
            with pytest.raises(Conflict) as refusal:
                await client.spawn("x", session_id=parent.session.id)
            assert refusal.value.details == {"limit": limit, "most": most}
        # With two more children, the limit of the root is reached.
        for _ in range(2):
            await client.spawn("x", session_id=root.id)
        with pytest.raises(Conflict) as refusal:
            await client.spawn("x", run_id=first.run.id)
        assert refusal.value.details == {"limit": "descendants", "most": 5}
        await client.cancel_run(third.run.id)
        await client.spawn("x", run_id=first.run.id)
        assert _limits(await client.get_session(second.session.id)) == (1, 2, 1)

    async def test_a_sessions_limits_cannot_exceed_the_engines(self, client: Client) -> None:
        with pytest.raises(InvalidRequest) as larger:
            await client.create_session(max_depth=6, max_children=17, max_descendants=65)
        assert set(larger.value.details["fields"]) == {
            "max_depth",
            "max_children",
            "max_descendants",
        }
        alone = await client.create_session(provider=MANUAL, max_children=0)
        assert _limits(alone) == (None, 0, None)
        with pytest.raises(Conflict) as refusal:
            await client.spawn("x", session_id=alone.id)
        assert refusal.value.details == {"limit": "children", "most": 0}
        narrow = await client.create_session(provider=MANUAL, max_children=1)
        child = await client.spawn("x", session_id=narrow.id)
        for _ in range(2):  # the limit counts the children of each run
            await client.spawn("x", run_id=(await client.create_run(child.session.id)).id)
        await client.spawn("x", run_id=child.run.id)
        for more in (
            client.spawn("x", session_id=narrow.id),
            client.spawn("x", run_id=child.run.id),
        ):
            with pytest.raises(Conflict) as refusal:
                await more
            assert refusal.value.details == {"limit": "children", "most": 1}

    async def test_agents_send_messages_to_each_other(self, client: Client) -> None:
        parent = await client.create_session()
        run = await _turn(client, parent.id, "say ready")
        child = await client.spawn("say built", run_id=run.id)
        await _end_run(client, child.run)
        other = await client.create_session()
        down = await client.send(child.session.id, "say go on", from_run_id=run.id)
        up = await client.send(parent.id, "say done", from_run_id=child.run.id)
        across = await client.send(other.id, "say hello", from_run_id=run.id)
        plain = await client.send(other.id, "say hi")
        kinds = [reply.message.source.kind for reply in (down, up, across, plain)]
        assert kinds == ["parent", "child", "session", "client"]
        assert down.message.source.run_id == run.id
        for sent in (down, up, across, plain):
            assert (await _end(client, sent)).status is RunStatus.COMPLETED
        with pytest.raises(InvalidRequest):
            await client.send(parent.id, "say x", from_run_id=run.id)

    async def test_a_tree_has_the_sessions_and_their_runs(self, client: Client) -> None:
        root = await client.create_session(provider=MANUAL)
        first = await client.spawn("x", session_id=root.id)
        second = await client.spawn("x", session_id=root.id)
        inner = await client.spawn("x", session_id=first.session.id)
        tree = await client.get_tree(root.id)
        assert tree.session.id == root.id
        assert [child.session.id for child in tree.children] == [
            first.session.id,
            second.session.id,
        ]
        assert [run.id for run in tree.children[0].runs] == [first.run.id]
        assert tree.children[0].children[0].session.id == inner.session.id
        listed = await client.list_sessions(parent_session_id=root.id)
        assert [entry.id for entry in listed.sessions] == [
            first.session.id,
            second.session.id,
        ]

    async def test_a_repeated_spawn_with_the_same_key_makes_one_child(self, client: Client) -> None:
        root = await client.create_session(provider=MANUAL)
        first = await client.spawn("x", session_id=root.id, idempotency_key="k")
        assert await client.spawn("x", session_id=root.id, idempotency_key="k") == first
        assert len((await client.get_tree(root.id)).children) == 1

    # --- questions ----------------------------------------------------------------------------

    async def test_a_child_asks_and_its_parent_answers(self, client: Client) -> None:
        parent = await client.create_session()
        child = await client.spawn("ask May I?\nsay done", session_id=parent.id)
        reply = await client.wait_run(child.run.id, timeout_s=TIMEOUT_S, until="attention")
        request = reply.request
        assert request is not None
        assert not reply.timed_out
        assert (request.kind, request.text, request.status) == (
            "approval_request",
            "May I?",
            "pending",
        )
        assert (request.session_id, request.run_id) == (child.session.id, child.run.id)
        assert (request.parent_session_id, request.root_session_id) == (parent.id, parent.id)
        waiting = await client.get_run(child.run.id)
        assert (waiting.status, waiting.waiting_on) == (RunStatus.WAITING, request.id)
        diagnosis = (await client.diagnose_run(waiting.id)).diagnostics
        assert diagnosis.likely_issue.code == "waiting_on_request"
        assert diagnosis.pending_request == request
        assert (await client.requests(status="pending")).requests == (request,)
        asked = [event for event in await _log(client, parent.id) if event.data.get("text")]
        assert [event.event_type for event in asked] == ["message.created", "request.created"]
        resolved = await client.resolve_request(request.id, "approve", text="Go on")
        assert (resolved.status, resolved.answer) == ("approved", "Go on")
        assert await client.resolve_request(request.id, "approve", text="Go on") == resolved
        with pytest.raises(AlreadyResolved):
            await client.resolve_request(request.id, "deny")
        run = await _end_run(client, child.run)
        assert run.result is not None
        assert run.result.text == "done"
        log = await _log(client, child.session.id)
        assert "approved Go on" in [event.data.get("text") for event in log]
        marks = [event.event_type for event in log if event.event_type.startswith("re")]
        assert marks == ["request.created", "request.resolved"]
        states = [
            event.event_type
            for event in log
            if event.event_type in ("run.waiting", "run.resumed", "run.completed")
        ]
        assert states == ["run.waiting", "run.resumed", "run.completed"]
        assert (await client.requests(status="pending")).requests == ()

    async def test_waiting_for_attention_skips_ignored_requests(self, client: Client) -> None:
        parent = await client.create_session(provider=MANUAL)
        children = [await client.spawn("x", session_id=parent.id) for _ in range(2)]
        watched = await client.create_run(parent.id)
        asked = []
        for child in children:
            reply = await client.reply_parent(child.run.id, "?", request_kind="input_request")
            assert reply.request is not None
            asked.append(reply.request)
        first, second = asked

        async def next_request(ignore: Sequence[str], run_id: str = watched.id) -> Request | None:
            reply = await client.wait_run(run_id, timeout_s=0, until="attention", ignore=ignore)
            assert reply.timed_out == (reply.request is None)
            return reply.request

        assert await next_request(()) == first
        assert await next_request([first.id]) == second
        assert await next_request([second.id, "req_none"]) == first
        assert await next_request([first.id, second.id]) is None
        assert await next_request([first.id], children[0].run.id) is None
        news: list[Request | None] = []
        async with anyio.create_task_group() as tasks:
            with anyio.fail_after(TIMEOUT_S):

                async def wait() -> None:
                    reply = await client.wait_run(
                        watched.id,
                        timeout_s=TIMEOUT_S,
                        until="attention",
                        ignore=[first.id, second.id],
                    )
                    news.append(reply.request)

                tasks.start_soon(wait)
                third = await client.reply_parent(
                    children[0].run.id, "And?", request_kind="input_request"
                )
        assert news == [third.request]

    async def test_an_agent_delegates_work_through_its_context(self, client: Client) -> None:
        session = await client.create_session()
        task = "spawn spawn say deep;wait;say done\nwait\nsend say again\nwait\nsay led"
        run = await _turn(client, session.id, task)
        assert run.result is not None, run.error
        assert run.result.text == "led"
        texts = [
            event.data["text"]
            for event in await _log(client, session.id)
            if event.event_type == "agent.message"
        ]
        assert texts == ["done", "again", "led"]
        (child,) = (await client.get_tree(session.id)).children
        assert child.session.parent_run_id == run.id
        assert [node.parent_run_id for node in child.runs] == [run.id, run.id]
        (grandchild,) = child.children
        assert [node.result.text for node in grandchild.runs if node.result] == ["deep"]
        messages = (await client.list_messages(child.session.id)).messages
        sources = {message.source.kind for message in messages if message.role == "user"}
        assert sources == {"parent"}

    async def test_a_request_of_a_run_without_a_parent_goes_to_people(self, client: Client) -> None:
        session = await client.create_session()
        sent = await client.send_message(session.id, "ask Anyone?")
        reply = await client.wait_run(_run_of(sent).id, timeout_s=TIMEOUT_S, until="attention")
        assert reply.request is not None
        assert reply.request.parent_session_id is None
        await client.resolve_request(reply.request.id, "deny")
        run = await _end(client, sent)
        assert run.result is not None
        assert run.result.text == "denied"

    async def test_a_waiting_run_releases_its_worker(self, client: Client) -> None:
        sessions = [await client.create_session() for _ in range(3)]
        asking = [await client.send_message(session.id, "ask ok?") for session in sessions]
        await _until(lambda: _waiting(client, 3))
        other = await client.create_session()
        assert (await _turn(client, other.id, "say free")).status is RunStatus.COMPLETED
        for request in (await client.requests(status="pending")).requests:
            await client.resolve_request(request.id, "answer", text="yes")
        for sent in asking:
            run = await _end(client, sent)
            assert run.result is not None
            assert run.result.text == "answered yes"

    async def test_requests_expire_and_are_canceled_with_their_run(self, client: Client) -> None:
        session = await client.create_session(provider=MANUAL)
        run = await client.create_run(session.id)
        await client.transition_run(run.id, "running")
        asked = await client.reply_parent(
            run.id, "Quick?", request_kind="input_request", expires_in_s=0.05, wait=True
        )
        assert asked.request is not None
        expired = await client.get_request(asked.request.id, wait_s=TIMEOUT_S)
        assert expired.status == "expired"
        assert (await client.get_run(run.id)).status is RunStatus.RUNNING
        with pytest.raises(AlreadyResolved):
            await client.resolve_request(expired.id, "approve")
        again = await client.reply_parent(run.id, "Still?", request_kind="input_request", wait=True)
        assert again.request is not None
        await client.cancel_run(run.id)
        assert (await client.get_request(again.request.id)).status == "canceled"
        assert (await client.get_run(run.id)).status is RunStatus.CANCELED
        with pytest.raises(Conflict):
            await client.reply_parent(run.id, "More?", request_kind="input_request")

    async def test_an_input_request_is_answered_with_text(self, client: Client) -> None:
        session = await client.create_session(provider=MANUAL)
        run = await client.create_run(session.id)
        await client.transition_run(run.id, "running")

        async def ask(kind: RequestKind) -> str:
            asked = await client.reply_parent(run.id, "Which port?", request_kind=kind)
            assert asked.request is not None
            return asked.request.id

        question = await ask("input_request")
        for decision in ("approve", "answer"):
            for text in (None, "", " \n"):
                with pytest.raises(InvalidRequest) as refusal:
                    await client.resolve_request(question, decision, text=text)
                assert list(refusal.value.details["fields"]) == ["text"]
        assert (await client.get_request(question)).status == "pending"
        approved = await client.resolve_request(question, "approve", text="8080")
        assert (approved.status, approved.answer) == ("approved", "8080")
        assert (await client.resolve_request(await ask("input_request"), "deny")).status == "denied"
        for kind in ("approval_request", "permission_request"):
            approval = await ask(kind)
            with pytest.raises(InvalidRequest):
                await client.resolve_request(approval, "answer")
            assert (await client.resolve_request(approval, "approve")).status == "approved"

    async def test_a_decision_names_an_option_or_means_the_one_of_its_kind(
        self, client: Client
    ) -> None:
        session = await client.create_session(provider=MANUAL)
        run = await client.create_run(session.id)
        await client.transition_run(run.id, "running")
        lasting = Option("s", "For this session", "allow_session", "the same again")
        offered = (
            Option("y", "Yes", "allow_once"),
            lasting,
            Option("n", "No", "deny"),
            Option("halt", "Stop all", "deny_and_stop"),
            Option.named("later"),
        )

        async def ask(**more: Any) -> str:
            given = {"request_kind": "approval_request", "options": offered, **more}
            asked = await client.reply_parent(run.id, "May I?", **given)
            assert asked.request is not None
            assert asked.request.options == given["options"]
            return asked.request.id

        async def decided(*decision: Any, **more: Any) -> tuple[str | None, ...]:
            asked = await ask()
            request = await client.resolve_request(asked, *decision, **more)
            assert await client.get_request(asked) == request
            assert await client.resolve_request(asked, *decision, **more) == request
            with pytest.raises(AlreadyResolved):
                await client.resolve_request(asked, "answer", text="something else")
            return request.status, request.option, request.scope, request.answer

        assert await decided(option="y") == ("approved", "y", "once", None)
        assert await decided("approve", option="y", text="!") == ("approved", "y", "once", "!")
        assert await decided("approve", option=lasting.label) == ("approved", "s", "session", None)
        assert await decided("deny", option="halt") == ("denied", "halt", None, None)
        assert await decided(option="later") == ("answered", "later", None, "later")
        assert await decided(option="later", text="at 5") == ("answered", "later", None, "at 5")
        assert await decided("approve") == ("approved", "y", "once", None)
        assert await decided("approve", scope="session") == ("approved", "s", "session", None)
        assert await decided("deny", text="why?") == ("denied", "n", None, "why?")
        assert await decided("answer", text="Why?") == ("answered", None, None, "Why?")
        # as clients of earlier versions choose one
        assert await decided("answer", text="Yes") == ("approved", "y", "once", None)
        assert await decided("answer", text=" s\n") == ("approved", "s", "session", None)
        assert await decided("answer", text="halt") == ("denied", "halt", None, None)
        assert await decided("answer", text="later") == ("answered", "later", None, "later")

        open_one = await ask()
        for field, given in (
            ("option", {"option": "x"}),
            ("option", {"option": "o" * 2_000}),
            ("decision", {"option": "n", "decision": "approve"}),
            ("decision", {"option": "y", "decision": "answer"}),
            ("decision", {}),
            ("scope", {"option": "y", "scope": "session"}),
            ("scope", {"option": "s", "scope": "once"}),
        ):
            with pytest.raises(InvalidRequest) as refusal:
                await client.resolve_request(open_one, **given)  # type: ignore[arg-type]
            assert list(refusal.value.details["fields"]) == [field]
        with pytest.raises(InvalidRequest) as refusal:
            await client.resolve_request(open_one, option="x")
        assert "y, s, n, halt, later" in str(refusal.value)
        with pytest.raises(InvalidRequest):
            await client.resolve_request(await ask(options=None), option="y")
        # without an option of that scope, a smaller scope is used
        once_only = await client.resolve_request(
            await ask(options=offered[:1]), "approve", scope="session"
        )
        assert (once_only.option, once_only.scope) == ("y", "once")
        kept = await client.resolve_request(await ask(options=None), "approve", scope="session")
        assert (kept.option, kept.scope) == (None, "session")
        port = await ask(request_kind="input_request", options=(Option.named("80"),))
        assert (await client.resolve_request(port, option="80")).answer == "80"

        for field, wrong in (
            ("options[1].id", [Option("y", "Yes", "deny"), Option("y", "No", "deny")]),
            ("options[1].label", [Option("y", "Yes", "deny"), Option("n", "y", "deny")]),
            ("options[0].id", [Option("", "Yes", "deny")]),
            ("options[0].label", [Option("y", "o" * 2_000, "deny")]),
            ("options[0].kind", [Option("y", "Yes", "allow")]),  # type: ignore[arg-type]
            ("options[0].reaches", [Option("y", "Yes", "deny", "o" * 2_001)]),
            ("options[1]", ["fine", 5]),
        ):
            with pytest.raises(InvalidRequest) as refusal:
                await ask(options=tuple(wrong))
            assert list(refusal.value.details["fields"]) == [field]

    async def test_an_open_request_can_be_extended(self, client: Client) -> None:
        session = await client.create_session(provider=MANUAL)
        run = await client.create_run(session.id)
        await client.transition_run(run.id, "running")
        asked = await client.reply_parent(
            run.id, "May I?", request_kind="approval_request", expires_in_s=60
        )
        assert asked.request is not None
        extended = await client.extend_request(asked.request.id, 600, idempotency_key="k")
        assert (extended.expires_at - asked.request.expires_at).total_seconds() > 500
        assert await client.extend_request(asked.request.id, 600, idempotency_key="k") == extended
        assert await client.extend_request(asked.request.id, 1) == extended  # never shortened
        for seconds in (0, -1, 31 * 86_400):
            with pytest.raises(InvalidRequest) as refusal:
                await client.extend_request(asked.request.id, seconds)
            assert list(refusal.value.details["fields"]) == ["expires_in_s"]
        assert await client.get_request(asked.request.id) == extended
        await client.resolve_request(asked.request.id, "approve")
        with pytest.raises(AlreadyResolved):
            await client.extend_request(asked.request.id, 6000)
        logged = [
            event for event in await _log(client, session.id) if "request." in event.event_type
        ]
        assert [event.event_type for event in logged] == [
            "request.created",
            "request.extended",
            "request.resolved",
        ]
        [entry] = [
            entry
            for entry in (await client.list_audit(limit=1000)).entries
            if (entry.operation, entry.target) == ("extend_request", asked.request.id)
            and entry.detail["expires_in_s"] == 600
        ]
        assert entry.decision == "done"

    async def test_a_run_waits_until_all_its_requests_are_resolved(self, client: Client) -> None:
        session = await client.create_session(provider=MANUAL)
        run = await client.create_run(session.id)
        await client.transition_run(run.id, "running")
        ids = []
        for number in range(4):
            asked = await client.reply_parent(
                run.id, f"{number}?", request_kind="input_request", wait=number != 1
            )
            assert asked.request is not None
            assert asked.request.wait is (number != 1)
            ids.append(asked.request.id)
            assert (await client.get_run(run.id)).waiting_on == ids[0]
        first, aside, second, third = ids
        for closed, next_one in ((second, first), (first, third), (third, None)):
            await client.resolve_request(closed, "answer", text="x")
            now = await client.get_run(run.id)
            assert now.waiting_on == next_one
            assert now.status is (RunStatus.WAITING if next_one else RunStatus.RUNNING)
        assert (await client.get_request(aside)).status == "pending"
        marks = [
            (event.event_type, event.data["request_id"])
            for event in await _log(client, session.id)
            if event.event_type in ("run.waiting", "run.resumed")
        ]
        assert marks == [("run.waiting", first), ("run.waiting", third), ("run.resumed", third)]
        for text in ("again?", "and?"):
            await client.reply_parent(run.id, text, request_kind="input_request", wait=True)
        await client.transition_run(run.id, "queued")
        left = (await client.requests(session_id=session.id, status="pending")).requests
        assert [request.id for request in left] == [aside]

    async def test_a_child_messages_its_parent_without_its_id(self, client: Client) -> None:
        parent = await client.create_session()
        child = await client.spawn("say hi", session_id=parent.id)
        await _end_run(client, child.run)
        sent = await client.reply_parent(child.run.id, "all is well", idempotency_key="k")
        assert (sent.parent_session_id, sent.request) == (parent.id, None)
        assert sent.message is not None
        assert (sent.message.session_id, sent.message.source.kind) == (parent.id, "child")
        assert await client.reply_parent(child.run.id, "all is well", idempotency_key="k") == sent
        asked = await client.reply_parent(
            child.run.id,
            "Need approval to run: rm -rf ./tmp-cache",
            request_kind="approval_request",
            detail={"command": "rm -rf ./tmp-cache"},
            options=["once", "never"],
        )
        assert asked.request is not None
        assert asked.request.detail == {"command": "rm -rf ./tmp-cache"}
        assert asked.request.options == (Option.named("once"), Option.named("never"))
        assert await client.get_request(asked.request.id) == asked.request
        lonely = await client.create_session(provider=MANUAL)
        run = await client.create_run(lonely.id)
        with pytest.raises(Conflict):
            await client.reply_parent(run.id, "anyone?")
        with pytest.raises(InvalidRequest):
            await client.reply_parent(child.run.id, "x", wait=True)
        with pytest.raises(InvalidRequest):
            await client.resolve_request(asked.request.id, "answer")
        with pytest.raises(NotFound):
            await client.get_request("req_none")

    async def test_a_stream_can_start_at_the_end_of_the_log(self, client: Client) -> None:
        session = await client.create_session()
        for scope in ((session.id,), ()):
            await _turn(client, session.id, "say before")
            ids = scope[0] if scope else None
            assert [event async for event in client.events(ids, cursor="head")] == []
            request = StreamRequest(scope, "head")
            with anyio.fail_after(TIMEOUT_S):
                async with client.transport.subscribe(request) as subscription:
                    (caught_up,) = await subscription.receive()
                    assert isinstance(caught_up, CaughtUp)
                    updated = await client.update_session(session.id, title=f"now {scope}")
                    (item,) = await subscription.receive()
                    assert isinstance(item, StreamItem)
                    assert item.event.data == {"title": updated.title}
            again = [event async for event in client.events(ids, cursor=caught_up.cursor)]
            assert again == [item.event]

    async def test_an_interrupted_reader_continues_from_its_cursor(self, client: Client) -> None:
        session = await client.create_session()
        for scope in ((session.id,), ()):
            with anyio.fail_after(TIMEOUT_S):
                async with client.transport.subscribe(StreamRequest(scope)) as subscription:
                    items: list[object] = []
                    while not items or not isinstance(items[-1], CaughtUp):
                        items += await subscription.receive()
                    assert len(items) > 1
                    for title in ("one", "two", "three", "four"):
                        # Alternate between events that arrive during and between reads.
                        if title in ("two", "four"):
                            with anyio.move_on_after(0.05):
                                while True:
                                    (item,) = await subscription.receive()
                                    assert isinstance(item, CaughtUp)
                        await client.update_session(session.id, title=title)
                        items = []
                        while not any(isinstance(item, StreamItem) for item in items):
                            items += await subscription.receive()
                        received = [
                            item.event.data for item in items if isinstance(item, StreamItem)
                        ]
                        assert received == [{"title": title}]

    # --- approval policies ---------------------------------------------------------------------

    async def test_an_approval_policy_decides_immediately(self, client: Client) -> None:
        for policy, status in (("allow", "approved"), ("deny", "denied")):
            session = await client.create_session(provider=MANUAL, approvals=policy)  # type: ignore[arg-type]
            assert session.approvals == policy
            run = await client.create_run(session.id)
            await client.transition_run(run.id, "running")
            for kind in ("approval_request", "permission_request"):
                asked = await client.reply_parent(run.id, "May I?", request_kind=kind, wait=True)
                request = asked.request
                assert request is not None
                assert (request.status, request.decided_by) == (status, "policy")
                assert (request.approvals, request.audience) == (policy, None)
                assert await client.get_request(request.id) == request
            assert (await client.get_run(run.id)).status is RunStatus.RUNNING
            log = [event.event_type for event in await _log(client, session.id)]
            assert log[-4:] == ["request.created", "request.resolved"] * 2
            assert (await client.requests(status="pending")).requests == ()

    async def test_the_allow_policy_does_not_answer_input_requests(self, client: Client) -> None:
        for policy, status, audience in (("allow", "pending", "human"), ("deny", "denied", None)):
            session = await client.create_session(provider=MANUAL, approvals=policy)  # type: ignore[arg-type]
            run = await client.create_run(session.id)
            asked = await client.reply_parent(run.id, "Which?", request_kind="input_request")
            assert asked.request is not None
            assert (asked.request.status, asked.request.audience) == (status, audience)

    async def test_a_childs_approval_policy_is_at_least_as_strict_as_its_parents(
        self, client: Client
    ) -> None:
        root = await client.create_session(provider=MANUAL)
        plain = await client.spawn("x", session_id=root.id)
        assert plain.session.approvals == "ask-parent"
        strict = await client.spawn("x", session_id=root.id, approvals="ask-human")
        assert strict.session.approvals == "ask-human"
        with pytest.raises(InvalidRequest, match="ask-human") as caught:
            await client.spawn("x", session_id=strict.session.id, approvals="ask-parent")
        assert list(caught.value.details["fields"]) == ["approvals"]
        below = await client.spawn("x", run_id=strict.run.id)
        assert below.session.approvals == "ask-human"
        free = await client.create_session(provider=MANUAL, approvals="allow")
        assert (await client.spawn("x", session_id=free.id)).session.approvals == "allow"

    async def test_a_message_can_set_the_confinement_of_its_run(self, client: Client) -> None:
        session = await client.create_session(provider=MANUAL, sandbox="workspace-write")
        assert (session.approval_policy, session.sandbox) == (None, "workspace-write")
        first = (await client.send_message(session.id, "x")).run
        second = (
            await client.send_message(
                session.id, "x", approval_policy="never", sandbox="danger-full-access"
            )
        ).run
        assert first is not None
        assert second is not None
        assert (first.approval_policy, first.sandbox) == (None, "workspace-write")
        assert (second.approval_policy, second.sandbox) == ("never", "danger-full-access")
        assert await client.get_run(second.id) == second
        child = await client.spawn("x", run_id=second.id)
        assert (child.session.sandbox, child.run.sandbox) == ("danger-full-access",) * 2
        child = await client.spawn("x", session_id=session.id)
        assert (child.session.sandbox, child.run.approval_policy) == ("workspace-write", None)
        changed = await client.update_session(session.id, sandbox="read-only")
        assert await client.get_session(session.id) == changed
        assert changed.sandbox == "read-only"
        log = await _log(client, session.id)
        assert log[-1].data == {"sandbox": "read-only"}
        third = await client.create_run(session.id)
        assert third.sandbox == "read-only"

    async def test_a_provider_without_confinement_refuses_confinement_options(
        self, client: Client
    ) -> None:
        session = await client.create_session()
        with pytest.raises(InvalidRequest) as caught:
            await client.send_message(session.id, "say hi", sandbox="read-only")
        assert list(caught.value.details["fields"]) == ["sandbox"]
        strict = await client.create_session(approval_policy="never")
        with pytest.raises(InvalidRequest) as caught:
            await client.send_message(strict.id, "say hi")
        assert list(caught.value.details["fields"]) == ["approval_policy"]
        assert await _log(client, strict.id) == (await _log(client, strict.id))[:1]

    async def test_a_message_can_set_the_model_and_effort_of_its_run(self, client: Client) -> None:
        session = await client.create_session(provider=MANUAL, model="usual")
        first = (await client.send_message(session.id, "x", model="other", effort="high")).run
        second = (await client.send_message(session.id, "x")).run
        third = await client.create_run(session.id, model="third", effort="low")
        assert first is not None
        assert second is not None
        assert (first.model, first.effort) == ("other", "high")
        assert (second.model, second.effort) == ("usual", None)
        assert (third.model, third.effort) == ("third", "low")
        assert await client.get_run(first.id) == first
        started = await client.start_session("x", provider=MANUAL, model="m", effort="low")
        assert started.run is not None
        assert (started.run.model, started.run.effort) == ("m", "low")

    @pytest.mark.parametrize(
        "options",
        [
            {"model": "m"},
            {"effort": "high"},
            {"output_schema": {}},
            {"images": [PNG]},
            {"model": "m", "effort": "high", "output_schema": {"type": "object"}},
        ],
    )
    async def test_an_option_that_the_provider_does_not_support_is_refused(
        self, client: Client, options: dict[str, Any]
    ) -> None:
        session = await client.create_session()
        for send in (
            client.send_message(session.id, "say hi", **options),
            client.create_run(session.id, text="say hi", **options),
        ):
            with pytest.raises(InvalidRequest) as caught:
                await send
            assert sorted(caught.value.details["fields"]) == sorted(options)
        assert not (await client.list_messages(session.id)).messages

    async def test_spawn_and_send_set_options_of_one_run(self, client: Client) -> None:
        parent = await client.create_session(provider=MANUAL, model="usual")
        run = await client.create_run(parent.id)
        schema = {"type": "object"}
        options: dict[str, Any] = {"model": "m", "effort": "low", "output_schema": schema}
        by_run = await client.spawn("x", run_id=run.id, **options)
        by_session = await client.spawn("x", session_id=parent.id, **options)
        sent = await client.send(by_run.session.id, "x", **options)
        plain = await client.send(by_run.session.id, "x")
        assert sent.run is not None
        assert plain.run is not None
        for made in (by_run.run, by_session.run, sent.run):
            read = await client.get_run(made.id)
            assert (read.model, read.effort, read.output_schema) == ("m", "low", schema)
        assert (plain.run.model, plain.run.effort, plain.run.output_schema) == ("usual", None, None)

    @pytest.mark.parametrize("option", [{"model": "m"}, {"effort": "low"}, {"output_schema": {}}])
    async def test_a_spawn_option_that_the_provider_does_not_support_is_refused(
        self, client: Client, option: dict[str, Any]
    ) -> None:
        parent = await client.create_session()
        child = (await client.spawn("say hi", session_id=parent.id)).session
        for call in (
            client.spawn("say hi", session_id=parent.id, **option),
            client.send(child.id, "say hi", **option),
        ):
            with pytest.raises(InvalidRequest) as caught:
                await call
            assert list(caught.value.details["fields"]) == list(option)
        page = await client.list_sessions(parent_session_id=parent.id)
        assert [entry.id for entry in page.sessions] == [child.id]
        assert len((await client.list_messages(child.id)).messages) == 1

    @pytest.mark.parametrize(
        ("images", "field"),
        [
            ([b""], "images[0].data"),
            ([PNG, b"BM plain"], "images[1].data"),
            ([PNG[:7]], "images[0].data"),
            ([PNG] * 9, "images"),
            ([PNG + bytes(3 * 2**20), PNG + bytes(2 * 2**20)], "images"),
            ([PNG + bytes(5 * 2**20)], "images"),
        ],
    )
    async def test_invalid_or_too_large_images_are_refused(
        self, client: Client, images: list[bytes], field: str
    ) -> None:
        session = await client.create_session()
        for call in (
            client.send_message(session.id, "say hi", images=images),
            client.create_run(session.id, text="say hi", images=images),
            client.start_session("say hi", images=images),
        ):
            with pytest.raises(InvalidRequest) as caught:
                await call
            assert list(caught.value.details["fields"]) == [field]
        assert not (await client.list_messages(session.id)).messages
        assert len((await client.list_sessions()).sessions) == 1

    @pytest.mark.parametrize(
        ("upload", "field"),
        [
            (ImageUpload(b64encode(PNG).decode()[:-1]), "images[0].data"),
            (ImageUpload("é" * 8), "images[0].data"),
            (ImageUpload("data:image/png;base64,AAAA"), "images[0].data"),
            (ImageUpload(b64encode(PNG).decode() + "\n"), "images[0].data"),
            (ImageUpload("A" * 7_000_000), "images[0].data"),
            (ImageUpload(b64encode(PNG).decode(), media_type="image/jpeg"), "images[0].media_type"),
        ],
    )
    async def test_an_image_must_be_strict_base64_of_the_given_type(
        self, client: Client, upload: ImageUpload, field: str
    ) -> None:
        session = await client.create_session()
        with pytest.raises(InvalidRequest) as caught:
            await client.transport.call(
                SEND_MESSAGE, SendMessage(session.id, "say hi", images=(upload,))
            )
        assert list(caught.value.details["fields"]) == [field]

    async def test_images_are_refused_without_an_agent(self, client: Client) -> None:
        session = await client.create_session(provider=MANUAL)
        for call in (
            client.send_message(session.id, "x", images=[PNG]),
            client.send_message(session.id, "x", role="system", images=[PNG]),
            client.create_run(session.id, images=[PNG]),
        ):
            with pytest.raises(InvalidRequest) as caught:
                await call
            assert list(caught.value.details["fields"]) == ["images"]

    async def test_a_message_can_set_the_output_schema_of_its_run(self, client: Client) -> None:
        session = await client.create_session(provider=MANUAL)
        schema = {"type": "object", "properties": {"a": {"enum": ["é", 1.5, None]}}}
        first = (await client.send_message(session.id, "x", output_schema=schema)).run
        second = (await client.send_message(session.id, "x")).run
        third = await client.create_run(session.id, output_schema={})
        started = await client.start_session("x", provider=MANUAL, output_schema=schema)
        assert first is not None
        assert second is not None
        assert started.run is not None
        runs = [first, second, third, started.run]
        assert [run.output_schema for run in runs] == [schema, None, {}, schema]
        assert await client.get_run(first.id) == first

    @pytest.mark.parametrize("schema", [[], "{}", True, {"x": "y" * 32_768}])
    async def test_an_output_schema_is_an_object_of_bounded_size(
        self, client: Client, schema: Any
    ) -> None:
        session = await client.create_session(provider=MANUAL)
        with pytest.raises(InvalidRequest) as caught:
            await client.send_message(session.id, "x", output_schema=schema)
        assert list(caught.value.details["fields"]) == ["output_schema"]

    @pytest.mark.parametrize("effort", ["", "High", "high\n", "-c", "x" * 33])
    async def test_an_invalid_effort_is_refused(self, client: Client, effort: str) -> None:
        session = await client.create_session(provider=MANUAL)
        with pytest.raises(InvalidRequest) as caught:
            await client.send_message(session.id, "x", effort=effort)
        assert list(caught.value.details["fields"]) == ["effort"]

    async def test_a_session_can_be_created_with_its_first_message(self, client: Client) -> None:
        started = await client.start_session("say hi", title="t", idempotency_key="first")
        assert started.message is not None
        assert started.run is not None
        run = (await client.wait_run(started.run.id)).run
        assert run.result is not None
        assert (run.result.text, started.message.text) == ("hi", "say hi")
        again = await client.start_session("say hi", title="t", idempotency_key="first")
        assert (again.session.id, again.run) == (started.session.id, started.run)
        assert len((await client.list_runs(session_id=started.session.id)).runs) == 1

    @pytest.mark.parametrize(
        ("field", "fields"),
        [
            ("sandbox", {"sandbox": "read-only"}),
            ("approval_policy", {"approval_policy": "never"}),
            ("provider", {"provider": "nobody"}),
            ("cwd", {"cwd": "/no/such/directory"}),
            ("text", {"text": "x" * 1_000_001}),
            ("text", {"text": " "}),
            ("max_depth", {"max_depth": -1}),
            ("effort", {"effort": "high"}),
            ("output_schema", {"output_schema": {"type": "object"}}),
        ],
    )
    async def test_a_refused_first_message_leaves_no_session(
        self, client: Client, field: str, fields: dict[str, Any]
    ) -> None:
        with pytest.raises(InvalidRequest) as refusal:
            await client.start_session(**{"text": "say hi", **fields})
        assert list(refusal.value.details["fields"]) == [field]
        assert not (await client.list_sessions()).sessions

    async def test_a_session_refuses_confinement_that_its_provider_does_not_support(
        self, client: Client
    ) -> None:
        with pytest.raises(InvalidRequest) as refusal:
            await client.create_session(provider=PROVIDER, sandbox="read-only")
        assert list(refusal.value.details["fields"]) == ["sandbox"]

    async def test_an_unanswered_request_is_escalated_from_the_parent_to_people(
        self, client: Client
    ) -> None:
        parent = await client.create_session(provider=MANUAL)
        parent_run = await client.create_run(parent.id)
        await client.transition_run(parent_run.id, "running")
        child = await client.spawn("x", run_id=parent_run.id)

        async def ask(run_id: str) -> Request:
            reply = await client.reply_parent(run_id, "?", request_kind="approval_request")
            assert reply.request is not None
            return reply.request

        request = await ask(child.run.id)
        assert (request.audience, request.approvals) == ("parent", "ask-parent")
        assert request.human_at is not None
        assert request.created_at < request.human_at < request.expires_at
        strict = await client.spawn("x", run_id=parent_run.id, approvals="ask-human")
        assert (await ask(strict.run.id)).audience == "human"
        await client.transition_run(parent_run.id, "completed")
        asked = await client.get_request(request.id)
        assert (asked.audience, asked.status) == ("human", "pending")
        for session_id in (parent.id, child.session.id):
            passed = [
                event
                for event in await _log(client, session_id)
                if event.event_type == "request.updated"
            ]
            assert [event.data["id"] for event in passed] == [request.id]
            assert passed[0].data["audience"] == "human"
        assert (await ask(child.run.id)).audience == "human"
        await client.create_run(parent.id)
        again = await ask(child.run.id)
        assert again.audience == "parent"
        await client.update_session(parent.id, status="closed")
        assert (await client.get_request(again.id)).audience == "human"
        assert (await client.resolve_request(again.id, "approve")).status == "approved"

    async def test_an_outcome_waits_until_a_closed_parent_is_reopened(self, client: Client) -> None:
        parent = await client.create_session(provider=MANUAL)
        ends = []
        for text in ("first", "second"):
            child = await client.spawn(
                f"say {text}", session_id=parent.id, provider=MANUAL, notify_parent="wake"
            )
            await client.transition_run(child.run.id, "running")
            ends.append(child.run.id)
        await client.update_session(parent.id, status="closed")
        for number, run_id in enumerate(ends):
            await client.transition_run(run_id, "completed", result={"text": f"built {number}"})
        waiting = (await client.list_messages(parent.id)).messages
        assert [(message.delivery, message.run_id) for message in waiting] == [("queued", None)] * 2
        assert (await client.list_runs(session_id=parent.id)).runs == ()
        await client.update_session(parent.id, status="open")
        (run,) = (await client.list_runs(session_id=parent.id)).runs
        handed = (await client.list_messages(parent.id)).messages
        assert [(message.delivery, message.run_id) for message in handed] == [
            ("queued", run.id)
        ] * 2
        await client.transition_run(run.id, "running")
        messages = (await client.list_messages(parent.id)).messages
        assert [message.delivery for message in messages] == ["delivered"] * 2

    # --- manual runs ---------------------------------------------------------------------------

    async def test_a_manual_run_is_driven_by_transitions(self, client: Client) -> None:
        session = await client.create_session(provider=MANUAL)
        sent = await client.send_message(session.id, "do it yourself")
        run_id = _run_of(sent).id
        with pytest.raises(InvalidTransition):
            await client.transition_run(run_id, "completed", result={"text": "too early"})
        assert (await client.get_run(run_id)).status is RunStatus.QUEUED
        running = await client.transition_run(run_id, "running")
        assert running.status is RunStatus.RUNNING
        run = await client.transition_run(run_id, "completed", result={"text": "did it"})
        assert run.result is not None
        assert (run.status, run.result.text) == (RunStatus.COMPLETED, "did it")

    async def test_a_manual_run_can_fail_or_return_to_the_queue(self, client: Client) -> None:
        session = await client.create_session(provider=MANUAL)
        run = await client.create_run(session.id)
        await client.transition_run(run.id, "running")
        back = await client.transition_run(run.id, "queued", reason="lunch")
        assert (back.status, back.attempt) == (RunStatus.QUEUED, 2)
        await client.transition_run(run.id, "running")
        error = {"code": "denied", "message": "not today"}
        failed = await client.transition_run(run.id, "failed", error=error)
        assert failed.error is not None
        assert (failed.error.code, failed.error.message) == ("denied", "not today")

    async def test_a_client_can_only_cancel_a_run_that_is_not_manual(self, client: Client) -> None:
        session = await client.create_session()
        held = await _hold(client, session.id)
        with pytest.raises(InvalidTransition):
            await client.transition_run(held.id, "completed", result={"text": "forged"})
        canceled = await client.transition_run(held.id, "canceled")
        assert canceled.cancel_requested_at is not None
        assert (await client.wait_run(held.id)).run.status is RunStatus.CANCELED

    async def test_a_session_has_one_active_run(self, client: Client) -> None:
        session = await client.create_session(provider=MANUAL)
        first = await client.create_run(session.id)
        second = await client.create_run(session.id)
        await client.transition_run(first.id, "running")
        with pytest.raises(SessionBusy):
            await client.transition_run(second.id, "running")

    # --- takeovers ----------------------------------------------------------------------------

    async def test_a_process_holds_a_session_until_its_run_is_canceled(
        self, client: Client
    ) -> None:
        session = await client.create_session()
        await _turn(client, session.id, "thread t-1")
        start_id = process_start_id(os.getpid())
        assert start_id is not None
        holder: dict[str, Any] = {"pid": os.getpid(), "process_start_id": start_id}
        reply = await client.attach_session(session.id, **holder, idempotency_key="k")
        assert await client.attach_session(session.id, **holder, idempotency_key="k") == reply
        assert reply.program.argv == ("agent", "--resume", "t-1")
        assert (reply.program.cwd, reply.program.env) == (session.cwd, {"AGENT_HOME": "/agent"})
        held = await client.get_run(reply.run.id)
        assert held == reply.run
        assert (held.kind, held.status, held.is_held) == ("attach", RunStatus.WAITING, True)
        assert held.holder is not None
        assert held.holder.pid == os.getpid()
        sent = await client.send_message(session.id, "say next")
        with pytest.raises(SessionBusy):
            await client.send_message(session.id, "x", when_busy="interrupt")
        assert not (await client.cancel_run(held.id)).pending
        assert (await _end(client, sent)).status is RunStatus.COMPLETED

    async def test_a_process_that_the_daemon_does_not_see_holds_nothing(
        self, client: Client
    ) -> None:
        session = await client.create_session()
        await _turn(client, session.id, "thread t-1")
        with pytest.raises(InvalidRequest) as caught:
            await client.attach_session(session.id, pid=os.getpid(), process_start_id="another")
        assert list(caught.value.details["fields"]) == ["pid"]

    async def test_a_conversation_is_adopted_once(self, client: Client) -> None:
        adopted = await client.adopt_session(thread_id="t-9", title="from before")
        session, run = adopted.session, adopted.run
        assert run is not None
        assert (session.title, session.threads) == ("from before", {PROVIDER: "t-9"})
        assert (run.kind, run.message_id, adopted.message) == ("adopt", None, None)
        assert (await _end_run(client, run)).status is RunStatus.COMPLETED
        with pytest.raises(Conflict) as caught:
            await client.adopt_session(thread_id="t-9")
        assert caught.value.details == {"session_id": session.id}
        with pytest.raises(InvalidRequest):
            await client.adopt_session(thread_id="unknown")

    # --- waiting ------------------------------------------------------------------------------

    async def test_wait_returns_at_its_timeout_or_at_a_change(self, client: Client) -> None:
        session = await client.create_session(provider=MANUAL)
        run = await client.create_run(session.id)
        reply = await client.wait_run(run.id, timeout_s=0.05)
        assert (reply.timed_out, reply.run.status) == (True, RunStatus.QUEUED)
        await client.transition_run(run.id, "running")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._complete_soon, client, run.id)
            with anyio.fail_after(TIMEOUT_S):
                reply = await client.wait_run(run.id, timeout_s=TIMEOUT_S)
        assert (reply.timed_out, reply.run.status) == (False, RunStatus.COMPLETED)

    @staticmethod
    async def _complete_soon(client: Client, run_id: str) -> None:
        await client.transition_run(run_id, "completed", result={"text": "ok"})

    # --- idempotency --------------------------------------------------------------------------

    async def test_the_same_key_fifty_times_at_once_makes_one_run(self, client: Client) -> None:
        session = await client.create_session()
        replies: list[MessageReply] = []

        async def send() -> None:
            reply = await client.send_message(session.id, "say once", idempotency_key="k-1")
            replies.append(reply)

        with anyio.fail_after(TIMEOUT_S):
            async with anyio.create_task_group() as tasks:
                for _ in range(50):
                    tasks.start_soon(send)
        assert len(replies) == 50
        assert all(reply == replies[0] for reply in replies)
        assert len((await client.list_runs(session_id=session.id)).runs) == 1
        await _end(client, replies[0])

    async def test_an_idempotency_key_with_another_body_is_a_conflict(self, client: Client) -> None:
        session = await client.create_session(idempotency_key="k-2")
        again = await client.create_session(idempotency_key="k-2")
        assert again == session
        with pytest.raises(IdempotencyConflict):
            await client.create_session(title="other", idempotency_key="k-2")
        sent = await client.send_message(session.id, "note", role="system", idempotency_key="k-2")
        assert sent.message.session_id == session.id

    async def test_a_refused_call_does_not_use_up_its_key(self, client: Client) -> None:
        session = await client.create_session()
        await client.update_session(session.id, status="closed")
        with pytest.raises(SessionClosed):
            await client.send_message(session.id, "say hi", idempotency_key="k-3")
        await client.update_session(session.id, status="open")
        sent = await client.send_message(session.id, "say hi", idempotency_key="k-3")
        assert (await _end(client, sent)).status is RunStatus.COMPLETED

    # --- events -------------------------------------------------------------------------------

    async def test_the_log_can_be_read_from_any_cursor(self, client: Client) -> None:
        session = await client.create_session()
        await _turn(client, session.id, "count 30")
        log = await _log(client, session.id)
        for cursor in (0, 1, 17, len(log) - 1, len(log)):
            page = await client.list_events(session.id, cursor=cursor, limit=10)
            assert list(page.events) == log[cursor : cursor + 10]
            assert page.next_cursor == min(cursor + 10, len(log))
            assert page.has_more == (cursor + 10 < len(log))
            assert await _log(client, session.id, cursor) == log[cursor:]

    async def test_deeply_nested_event_data_can_be_read_or_is_refused(self, client: Client) -> None:
        session = await client.create_session()
        await _turn(client, session.id, "nest 400")
        for levels in (401, 500, 900):
            sent = await client.send_message(session.id, f"nest {levels}")
            assert (await _end(client, sent)).status is RunStatus.FAILED
        await _turn(client, session.id, "say on")
        said = [
            event for event in await _log(client, session.id) if event.event_type == "agent.message"
        ]
        assert [event.data["text"] for event in said] == ["400", "on"]
        deep, levels = dict(said[0].data), 1
        while "more" in deep:
            deep, levels = deep["more"], levels + 1
        assert levels == 400
        page = await client.list_events(session.id, limit=1000)
        assert list(page.events) == await _log(client, session.id)

    async def test_a_cursor_beyond_the_log_is_refused(self, client: Client) -> None:
        session = await client.create_session()
        with pytest.raises(CursorAhead):
            await client.list_events(session.id, cursor=2)
        with pytest.raises(CursorAhead):
            await _log(client, session.id, 2)

    async def test_events_that_are_no_longer_kept_are_gone(self, client: Client) -> None:
        session = await client.create_session(title="pruned")
        other = await client.create_session()
        await _turn(client, session.id, "count 5")
        await _turn(client, other.id, "say other")
        feed = [
            item async for item in _items(client) if item.event.session_id in (session.id, other.id)
        ]
        log = await _log(client, session.id)
        await _turn(client, session.id, "say last")
        whole = await _log(client, session.id)
        reply = await client.prune_session(session.id, retain_events=4)
        assert reply.deleted_count == len(whole) - 4
        assert reply.kept_by is None
        oldest = len(whole) - 4
        assert reply.session.oldest_cursor == oldest
        assert (await client.get_session(session.id)).oldest_cursor == oldest
        assert (await client.prune_session(session.id, retain_events=4)).deleted_count == 0

        # Without a cursor, a reader begins with the oldest event.
        assert list((await client.list_events(session.id)).events) == whole[oldest:]
        assert [event async for event in client.events(session.id)] == whole[oldest:]
        for cursor in (0, 1, oldest - 1):
            with pytest.raises(Gone) as raised:
                await client.list_events(session.id, cursor=cursor)
            assert raised.value.details["oldest"] == oldest
            with pytest.raises(Gone) as raised:
                await _log(client, session.id, cursor)
            assert raised.value.details["oldest"] == oldest
        assert await _log(client, session.id, oldest) == whole[oldest:]

        # A reader of several sessions, too. It loses nothing that is left.
        with pytest.raises(Gone) as raised:
            _ = [event async for event in client.events(cursor=feed[0].cursor)]
        later = client.events(cursor=raised.value.details["oldest"])
        left = [event async for event in later if event.session_id in (session.id, other.id)]
        kept = [item.event for item in feed if item.event not in log] + whole[oldest:]
        assert sorted(left, key=_place) == sorted(kept, key=_place)

        # Everything else is as before.
        assert len((await client.list_messages(session.id)).messages) == 2
        run = await _turn(client, session.id, "say on")
        assert run.result == RunResult("on")
        assert await _log(client, session.id, len(whole))
        assert (await client.check_store()).findings == ()

    async def test_events_of_what_has_not_ended_are_kept(self, client: Client) -> None:
        session = await client.create_session()
        await _turn(client, session.id, "count 3")
        before = (await client.get_session(session.id)).last_seq
        run = await _hold(client, session.id)
        waiting = await client.send_message(session.id, "say later", when_busy="queue")
        reply = await client.prune_session(session.id, retain_events=1)
        assert (reply.deleted_count, reply.kept_by) == (before, run.id)
        log = await _log(client, session.id, before)
        assert log[0].data["message_id"] == run.message_id
        await client.cancel_run(run.id)
        await _end(client, waiting)
        reply = await client.prune_session(session.id, retain_events=1)
        assert reply.kept_by is None
        assert len((await client.list_events(session.id)).events) == 1
        assert (await client.check_store()).findings == ()

    async def test_a_session_is_exported_and_imported(self, client: Client) -> None:
        session = await client.create_session(title="the story")
        await _turn(client, session.id, "say first")
        log = await _log(client, session.id)
        async with client.export_session(session.id) as parts:
            file = b"".join([part async for part in parts])
        kinds = [json.loads(line)["kind"] for line in file.splitlines()]
        assert kinds == ["header", "run", "message", *["event"] * len(log), "end"]

        async def cut(data: bytes) -> AsyncIterator[bytes]:
            for start in range(0, len(data), 100):
                yield data[start : start + 100]

        with pytest.raises(Conflict):
            await client.import_session(cut(file))
        before = (await client.list_sessions(limit=1000)).sessions
        with pytest.raises(InvalidRequest) as refused:
            await client.import_session(cut(file[:-1]), new_id=True)
        assert refused.value.details["line"] == len(kinds)
        with pytest.raises(InvalidRequest) as refused:
            await client.import_session(cut(file), new_id=True, cwd="/no/such/directory")
        assert list(refused.value.details["fields"]) == ["cwd"]
        assert (await client.list_sessions(limit=1000)).sessions == before
        reply = await client.import_session(cut(file), new_id=True)
        assert (reply.runs, reply.messages, reply.events) == (1, 1, len(log))
        assert (reply.session.title, reply.session.status) == ("the story", "closed")
        copied = await _log(client, reply.session.id)
        assert [(one.event_type, one.created_at) for one in copied[:-1]] == [
            (one.event_type, one.created_at) for one in log
        ]
        assert (await client.check_store()).findings == ()
        async with client.export_session(reply.session.id) as parts:
            await anext(parts)  # a reader may stop early
        with pytest.raises(NotFound):
            async with client.export_session("ses_none"):
                pass

    async def test_limits_of_a_session_and_of_a_call(self, client: Client) -> None:
        plain = await client.create_session()
        with pytest.raises(InvalidRequest) as refused:
            await client.prune_session(plain.id)
        assert list(refused.value.details["fields"]) == ["retain_days"]
        for wrong in (
            {"retain_events": -1},
            {"retain_days": 10**9},
            {"retain_bytes": 2**70},
            {"through": -1},
            {"through": 2**63},
            {"retain_events": 1.5},
        ):
            with pytest.raises(InvalidRequest) as refused:
                await client.prune_session(plain.id, **wrong)
            assert set(refused.value.details["fields"]) == set(wrong)
        with pytest.raises(InvalidRequest):  # 0 is no limit
            await client.prune_session(plain.id, retain_events=0, retain_days=0, retain_bytes=0)
        with pytest.raises(NotFound):
            await client.prune_session("ses_none", retain_events=1)
        session = await client.create_session(retain_events=5)
        assert session.retain_events == 5
        await _turn(client, session.id, "count 9")
        assert (await client.prune_session(session.id, retain_days=1)).deleted_count == 0
        assert (await client.prune_session(session.id, retain_bytes=10**9)).deleted_count == 0
        assert (await client.prune_session(session.id)).deleted_count > 0
        assert len((await client.list_events(session.id)).events) == 5
        changed = await client.update_session(session.id, retain_events=0, retain_bytes=1)
        assert (changed.retain_events, changed.retain_bytes) == (0, 1)
        spawned = await client.spawn("say x", session_id=session.id)
        assert (spawned.session.retain_events, spawned.session.retain_bytes) == (0, 1)
        await _end_run(client, spawned.run)
        await client.prune_session(session.id)
        last = (await client.get_session(session.id)).last_seq
        assert (await client.get_session(session.id)).oldest_cursor == last - 1
        assert (
            await client.prune_session(spawned.session.id, through=10**9)
        ).session.oldest_cursor > 0

    async def test_reading_events_waits_for_new_ones(self, client: Client) -> None:
        session = await client.create_session()
        assert (await client.list_events(session.id, cursor=1, wait_s=0.05)).events == ()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.send_message, session.id, "say hi")
            with anyio.fail_after(TIMEOUT_S):
                page = await client.list_events(session.id, cursor=1, wait_s=TIMEOUT_S)
        assert page.events[0].event_type == "message.created"

    async def test_a_follower_gets_every_event_once_as_it_happens(self, client: Client) -> None:
        session = await client.create_session()
        seen: list[Event] = []

        async def follow() -> None:
            async with client.events(session.id, follow=True) as events:
                async for event in events:
                    seen.append(event)
                    if event.event_type == "run.completed" and len(seen) > 400:
                        return

        with anyio.fail_after(TIMEOUT_S):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(follow)
                await _turn(client, session.id, "count 100")
                await _turn(client, session.id, "count 300")
        assert seen == await _log(client, session.id)

    async def test_all_sessions_are_followed_in_one_stream(self, client: Client) -> None:
        sessions = [await client.create_session() for _ in range(3)]
        for session in sessions:
            await _turn(client, session.id, "count 5")
        everything = [event async for event in client.events()]
        for session in sessions:
            mine = [event for event in everything if event.session_id == session.id]
            assert mine == await _log(client, session.id)
        assert len(everything) == sum([len(await _log(client, session.id)) for session in sessions])

    # --- errors --------------------------------------------------------------------------------

    async def test_unknown_ids_are_not_found(self, client: Client) -> None:
        calls: list[Awaitable[object]] = [
            client.get_session("ses_none"),
            client.update_session("ses_none", title="x"),
            client.send_message("ses_none", "hi"),
            client.list_messages("ses_none"),
            client.list_events("ses_none"),
            client.list_runs(session_id="ses_none"),
            client.create_run("ses_none", text="hi"),
            client.get_run("run_none"),
            client.wait_run("run_none"),
            client.cancel_run("run_none"),
            client.transition_run("run_none", "running"),
            client.diagnose_run("run_none"),
            client.extend_request("req_none", 60),
            client.close_session("ses_none", cascade=True),
            _log(client, "ses_none"),
        ]
        for call in calls:
            with pytest.raises(NotFound):
                await call

    @pytest.mark.parametrize(
        ("fields", "call"),
        [
            ({"text"}, lambda client, session: client.send_message(session, "  \n ")),
            ({"text"}, lambda client, session: client.send_message(session, "x" * 1_000_001)),
            ({"text"}, lambda client, session: client.send_message(session, "half \ud800 pair")),
            ({"text"}, lambda client, session: client.send_message(session, 7)),
            ({"role"}, lambda client, session: client.send_message(session, "hi", role="boss")),
            (
                {"when_busy"},
                lambda client, session: client.send_message(session, "x", when_busy="now"),
            ),
            (
                {"provider"},
                lambda client, session: client.send_message(session, "hi", provider="nobody"),
            ),
            ({"provider"}, lambda client, session: client.create_session(provider="nobody")),
            ({"provider"}, lambda client, session: client.create_run(session, provider="nobody")),
            (
                {"idempotency_key"},
                lambda client, session: client.create_session(idempotency_key=""),
            ),
            ({"cwd"}, lambda client, session: client.create_session(cwd="relative/path")),
            ({"cwd"}, lambda client, session: client.create_session(cwd="/no/such/directory")),
            (
                {"title", "metadata"},
                lambda client, session: client.create_session(title=1, metadata=[]),
            ),
            (
                {"metadata"},
                lambda client, session: client.create_session(metadata={"x": "y" * 70_000}),
            ),
            ({"cursor"}, lambda client, session: client.list_events(session, cursor=-1)),
            ({"cursor"}, lambda client, session: client.list_events(session, cursor=2**64)),
            ({"limit"}, lambda client, session: client.list_events(session, limit=0)),
            ({"limit"}, lambda client, session: client.list_runs(limit=1001)),
            ({"status"}, lambda client, session: client.list_runs(status="odd")),
            ({"session_id"}, lambda client, session: client.get_session("s" * 129)),
            ({"timeout_s"}, lambda client, session: client.wait_run("run_x", timeout_s=-1)),
            ({"to_status"}, lambda client, session: client.transition_run("run_x", "odd")),
            (
                {"result.text", "result.extra"},
                lambda client, session: client.transition_run(
                    "run_x", "completed", result={"text": 1, "extra": 2}
                ),
            ),
            (
                {"error.code"},
                lambda client, session: client.transition_run(
                    "run_x", "failed", error={"code": "odd", "message": "m"}
                ),
            ),
        ],
    )
    async def test_invalid_fields_are_named_and_nothing_is_written(
        self, client: Client, fields: set[str], call: Callable[[Client, str], Awaitable[object]]
    ) -> None:
        session = await client.create_session()
        before = (await client.status()).store.events
        with pytest.raises(InvalidRequest) as refusal:
            await call(client, session.id)
        assert set(refusal.value.details["fields"]) == fields
        assert (await client.status()).store.events == before

    # --- the engine ---------------------------------------------------------------------------

    async def test_status_describes_the_daemon(self, client: Client) -> None:
        status = await client.status()
        assert (status.alive_workers, status.max_concurrency) == (2, 2)
        assert status.daemon_health == "ok"
        assert status.machine
        assert status.user
        scripted = next(provider for provider in status.providers if provider.name == PROVIDER)
        assert (scripted.available, scripted.default) == (True, True)
        counts = status.queue_counts
        assert (counts.queued_count, counts.running_count, counts.waiting_count) == (0, 0, 0)

    async def test_doctor_reports_findings(self, client: Client) -> None:
        await client.create_token("forever", scopes=["admin"])
        report = await client.doctor()
        levels = {(finding.about, finding.level) for finding in report.findings}
        assert {(f"provider {PROVIDER}", "ok"), ("database", "ok")} <= levels
        (token,) = (finding for finding in report.findings if finding.about.startswith("token "))
        assert token.security
        assert token.level == "note"
        assert report.ok == all(finding.level != "error" for finding in report.findings)

    async def test_the_store_is_checked_and_copied_while_it_is_in_use(
        self, client: Client, tmp_path: Any
    ) -> None:
        session = await client.create_session(provider=PROVIDER)
        sent = await client.send_message(session.id, "hello")
        assert sent.run is not None
        run = (await client.wait_run(sent.run.id, timeout_s=TIMEOUT_S)).run
        report = await client.check_store()
        assert report.findings == ()
        assert report.ok
        assert report.sessions == report.runs == 1
        assert report.events == (await client.get_session(session.id)).last_seq
        assert run.status is RunStatus.COMPLETED
        target = tmp_path / "copy.db"
        if (await client.status()).store.backend != "sqlite":
            with pytest.raises(Conflict, match="cannot be backed up"):
                await client.back_up(target)
            assert not target.exists()
            return
        copied = await client.back_up(target)
        assert (copied.path, copied.size) == (str(target), target.stat().st_size)
        with pytest.raises(Conflict, match="already exists"):
            await client.back_up(target)
        assert (await client.back_up(target, force=True)).size == copied.size
        for path in ("relative.db", str(tmp_path / "no" / "copy.db"), str(tmp_path)):
            with pytest.raises(InvalidRequest, match="path"):
                await client.back_up(path)

    async def test_a_diagnosis_names_the_cause_of_a_failure(self, client: Client) -> None:
        session = await client.create_session()
        run = await _turn(client, session.id, "fail quota_exhausted used up")
        reply = await client.diagnose_run(run.id)
        assert reply.run == run
        issue = reply.diagnostics.likely_issue
        assert issue.code == "quota_exhausted"
        assert "used up" in issue.message
        assert [attempt.outcome for attempt in reply.diagnostics.attempts] == ["failed"]

    # --- steps the tests share ----------------------------------------------------------------------

    # --- named tokens -------------------------------------------------------------------------

    async def test_tokens_are_created_listed_and_revoked(self, client: Client) -> None:
        made = await client.create_token("phone", principal="ann", scopes=["approve", "read"])
        assert made.secret.startswith("apt_")
        token = made.token
        assert (token.name, token.principal, token.scopes) == ("phone", "ann", ("read", "approve"))
        assert (token.expires_at, token.revoked_at) == (None, None)
        other = (await client.create_token("bob", expires_in_s=60)).token
        assert other.expires_at is not None
        assert other.principal == "bob"
        first = await client.list_tokens(limit=1)
        second = await client.list_tokens(cursor=first.next_cursor)
        assert [*first.tokens, *second.tokens] == [token, other]
        revoked = await client.revoke_token(token.id)
        assert revoked.revoked_at is not None
        assert await client.revoke_token(token.id) == revoked
        with pytest.raises(NotFound):
            await client.revoke_token("tok_none")
        trail = (await client.list_audit()).entries
        assert [(entry.operation, entry.target) for entry in trail[:3]] == [
            ("create_token", token.id),
            ("create_token", other.id),
            ("revoke_token", token.id),
        ]
        assert made.secret not in str(trail)

    @pytest.mark.parametrize(
        ("fields", "named"),
        [
            ({"name": "two words"}, "name"),
            ({"name": "local"}, "name"),
            ({"name": "x", "principal": "run_1"}, "principal"),
            ({"name": "x", "principal": "token-1"}, "principal"),
            ({"name": "x", "principal": "-x"}, "principal"),
            ({"name": "x", "scopes": []}, "scopes"),
            ({"name": "x", "scopes": ["root"]}, "scopes"),
            ({"name": "x", "expires_in_s": 0}, "expires_in_s"),
        ],
    )
    async def test_invalid_tokens_are_refused(
        self, client: Client, fields: dict[str, Any], named: str
    ) -> None:
        with pytest.raises(InvalidRequest) as refusal:
            await client.create_token(**fields)
        assert set(refusal.value.details["fields"]) == {named}

    # --- grants -------------------------------------------------------------------------------

    async def test_grants_are_set_read_and_inherited(self, client: Client) -> None:
        session = await client.create_session()
        assert await client.get_access(session.id) == ()
        bob, carol = Grant("bob", "reader"), Grant("carol", "writer")
        assert await client.set_access(session.id, [carol, bob]) == (bob, carol)
        child = (await client.spawn("say hello", session_id=session.id)).session
        assert await client.get_access(child.id) == (bob, carol)
        assert await client.set_access(session.id, [bob]) == (bob,)
        assert await client.get_access(child.id) == (bob,)
        assert await client.set_access(child.id, []) == ()
        assert await client.get_access(session.id) == (bob,)
        set_ = [
            entry
            for entry in (await client.list_audit()).entries
            if entry.operation == "set_access"
        ]
        assert [entry.target for entry in set_] == [session.id, session.id, child.id]
        assert set_[1].detail == {"grants": [{"principal": "bob", "role": "reader"}]}
        for call in (client.get_access("ses_none"), client.set_access("ses_none", [])):
            with pytest.raises(NotFound):
                await call

    @pytest.mark.parametrize(
        ("grants", "problem"),
        [
            ([Grant("bob", "king")], "grants[0].role: must be one of reader, writer, owner"),  # type: ignore[arg-type]
            ([Grant("bob", "reader"), Grant("bob", "owner")], "grants[1].principal: "),
            ([Grant("two words", "reader")], "grants[0].principal: must match"),
            ([Grant("x" * 65, "reader")], "grants[0].principal: must match"),
            ([Grant("run_1", "reader")], "grants[0].principal: "),
            ([Grant("$owner", "reader")], "grants[0].principal: $owner owns the session"),
            ([Grant(7, "reader")], "grants[0].principal: must be a string"),  # type: ignore[arg-type]
            (
                [Grant(f"p{n}", "reader") for n in range(101)],
                "grants: must have at most 100 entries",
            ),
        ],
    )
    async def test_invalid_grants_are_refused(
        self, client: Client, grants: list[Grant], problem: str
    ) -> None:
        session = await client.create_session()
        problem = problem.replace("$owner", session.owner)
        named = [Grant(session.owner, g.role) if g.principal == "$owner" else g for g in grants]
        with pytest.raises(InvalidRequest) as refusal:
            await client.set_access(session.id, named)
        assert str(refusal.value).startswith(problem)
        assert await client.get_access(session.id) == ()

    # --- the audit trail ----------------------------------------------------------------------

    async def test_decisions_and_cancels_are_audited(self, client: Client) -> None:
        parent = await client.create_session(provider=MANUAL)
        child = await client.spawn("help", session_id=parent.id)
        asked = await client.reply_parent(child.run.id, "May I?", request_kind="approval_request")
        assert asked.request is not None
        for _ in range(2):
            await client.resolve_request(
                asked.request.id, "deny", text="no", idempotency_key="once"
            )
        await client.cancel_run(child.run.id, reason="enough")
        first = await client.list_audit(limit=1)
        second = await client.list_audit(cursor=first.next_cursor)
        newest = await client.list_audit(limit=1, order="newest")
        assert newest.entries == second.entries
        before = await client.list_audit(cursor=newest.next_cursor, order="newest")
        assert (before.entries, before.next_cursor) == (first.entries, None)
        entries = [*first.entries, *second.entries]
        assert second.next_cursor is None
        assert first_break(entries) is None
        assert [(entry.operation, entry.target, entry.decision) for entry in entries] == [
            ("resolve_request", asked.request.id, "done"),
            ("cancel_run", child.run.id, "done"),
        ]
        assert [dict(entry.detail) for entry in entries] == [
            {"decision": "deny", "option": None, "scope": None},
            {"cascade": True, "reason": "enough"},
        ]
        owner = {entry.principal for entry in entries}
        assert owner == {parent.owner}

    async def test_notices_need_a_target(self, client: Client) -> None:
        page = await client.list_notices(state="failed", order="newest", q="phone")
        assert (page.notices, page.next_cursor) == ((), None)
        with pytest.raises(Conflict):
            await client.test_notice()
        with pytest.raises(InvalidRequest) as caught:
            await client.test_notice("phone")
        assert "target" in caught.value.details["fields"]
        for call in (client.get_notice, client.retry_notice):
            with pytest.raises(NotFound):
                await call("ntc_1")

    async def test_notices_of_a_session_are_chosen_and_changed(self, client: Client) -> None:
        assert (await client.create_session()).notices == "default"
        session = await client.create_session(notices="all")
        assert session.notices == "all"
        for level in ("none", "requests", "default"):
            updated = await client.update_session(session.id, notices=level)
            assert updated.notices == level
        assert (await client.update_session(session.id, title="x")).notices == "default"
        log = (await client.list_events(session.id)).events
        changed = [event.data["notices"] for event in log if "notices" in event.data]
        assert changed == ["none", "requests", "default"]
        with pytest.raises(InvalidRequest) as caught:
            await client.update_session(session.id, notices="some")  # type: ignore[arg-type]
        assert caught.value.details["fields"].keys() == {"notices"}

    async def test_push_subscriptions_that_do_not_exist(self, client: Client) -> None:
        page = await client.list_push()
        assert (page.subscriptions, page.next_cursor) == ((), None)
        with pytest.raises(NotFound):
            await client.unsubscribe_push("psh_1")
        with pytest.raises(NotFound):
            await client.report_notice("ntc_1", "clicked")
        with pytest.raises(InvalidRequest) as caught:
            await client.report_notice("ntc_1", "eaten")  # type: ignore[arg-type]
        assert caught.value.details["fields"].keys() == {"state"}


async def _family(client: Client) -> tuple[Session, SpawnReply]:
    """Create a session with a child whose manual run is queued."""
    session = await client.create_session()
    return session, await client.spawn("work", session_id=session.id, provider=MANUAL)


async def _log(client: Client, session_id: str, cursor: int = 0) -> list[Event]:
    with anyio.fail_after(TIMEOUT_S):
        return [event async for event in client.events(session_id, cursor=cursor)]


async def _items(client: Client) -> AsyncIterator[StreamItem]:
    """Yield the events of all sessions so far, with their cursors."""
    async with client.transport.subscribe(StreamRequest()) as subscription:
        while True:
            for part in await subscription.receive():
                if not isinstance(part, StreamItem):
                    return
                yield part


def _place(event: Event) -> tuple[str, int]:
    return event.session_id, event.seq


def _run_of(sent: MessageReply) -> Run:
    assert sent.run is not None
    return sent.run


async def _end(client: Client, sent: MessageReply) -> Run:
    reply = await client.wait_run(_run_of(sent).id, timeout_s=TIMEOUT_S)
    assert not reply.timed_out
    return reply.run


async def _end_run(client: Client, run: Run) -> Run:
    reply = await client.wait_run(run.id, timeout_s=TIMEOUT_S)
    assert not reply.timed_out
    return reply.run


async def _turn(client: Client, session_id: str, text: str) -> Run:
    return await _end(client, await client.send_message(session_id, text))


async def _hold(client: Client, session_id: str) -> Run:
    sent = await client.send_message(session_id, "hold")
    await _until(lambda: _said(client, session_id, "holding"))
    return await client.get_run(_run_of(sent).id)


async def _said(client: Client, session_id: str, text: str) -> bool:
    return any(event.data.get("text") == text for event in await _agent_log(client, session_id))


async def _agent_log(client: Client, session_id: str) -> list[Event]:
    log = await _log(client, session_id)
    return [event for event in log if event.event_type == "agent.message"]


async def _is(client: Client, run_id: str, status: RunStatus) -> bool:
    return (await client.get_run(run_id)).status is status


async def _counts(client: Client, *, running: int, queued: int) -> bool:
    counts = (await client.status()).queue_counts
    return (counts.running_count, counts.queued_count) == (running, queued)


async def _waiting(client: Client, count: int) -> bool:
    return (await client.status()).queue_counts.waiting_count == count


async def _until(holds: Callable[[], Awaitable[bool]]) -> None:
    with anyio.fail_after(TIMEOUT_S):
        while not await holds():  # noqa: ASYNC110  # the condition may depend on another process
            await anyio.sleep(0.01)


def _limits(session: Session) -> tuple[int | None, int | None, int | None]:
    return session.max_depth, session.max_children, session.max_descendants
