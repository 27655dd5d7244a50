"""Stored values are read back unchanged."""

from collections.abc import Callable
from datetime import timedelta
from operator import methodcaller
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from agent_orchestrator.domain.audit import AuditEntry
from agent_orchestrator.domain.errors import (
    Conflict,
    NotFound,
)
from agent_orchestrator.domain.lifecycle import RunStatus
from agent_orchestrator.domain.model import (
    Attempt,
    ChoiceLimits,
    Event,
    Holder,
    Invocation,
    RunError,
    RunResult,
    Source,
    Thread,
    Usage,
)
from agent_orchestrator.domain.tokens import AccessToken
from agent_orchestrator.ports.changes import Draft, Transaction
from agent_orchestrator.ports.queries import View
from agent_orchestrator.ports.store import Store
from agent_orchestrator.testing.stores.opening import Opening
from agent_orchestrator.testing.stores.samples import (
    HARD_TEXT,
    NOW,
    a_message,
    a_record,
    a_run,
    a_session,
    drafts,
    put,
)


class Values(Opening):
    async def test_a_session_is_read_as_it_was_written(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:
            parent = a_session()
            session = a_session(
                title=HARD_TEXT,
                owner="ann",
                provider="demo",
                model="m",
                cwd="/a b/ü",
                status="closed",
                parent_session_id=parent.id,
                parent_run_id="run_x",
                root_session_id=parent.id,
                depth=3,
                metadata={"ü": [1, 2.5, None, True, {"deep": HARD_TEXT}], "": -(2**53)},
                updated_at=NOW + timedelta(microseconds=1),
            )
            await put(store, parent, session)
            assert await store.read(lambda view: view.session(session.id)) == session
            assert await store.read(lambda view: view.session("ses_none")) is None
            changed = evolve(session, title=None, metadata={}, status="open", provider=None)
            await store.transact(lambda tx: tx.put_session(changed))
            assert await store.read(lambda view: view.session(session.id)) == changed
            assert await store.read(lambda view: view.session(parent.id)) == parent

    async def test_replacing_a_session_keeps_its_log_and_threads(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:
            session = a_session(last_seq=7, threads={"demo": "x"})
            await put(store, session)
            stored = await store.read(lambda view: view.session(session.id))
            assert stored == evolve(session, last_seq=0, last_line=None, threads={})
            await store.transact(lambda tx: tx.append(session.id, drafts("a", "b"), NOW))
            await store.transact(lambda tx: tx.put_thread(session.id, "demo", Thread("t", {})))
            await store.transact(lambda tx: tx.put_session(evolve(session, title="new")))
            stored = await store.read(lambda view: view.session(session.id))
            assert stored == evolve(
                session, title="new", last_seq=2, last_line="b", threads={"demo": "t"}
            )

    async def test_a_session_has_the_last_line_of_its_agent(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:
            session = a_session()
            await put(store, session)

            async def line_after(*events: tuple[str, Any]) -> str | None:
                said = [Draft(kind, {"text": text}) for kind, text in events]
                await store.transact(lambda tx: tx.append(session.id, said, NOW))
                stored = await store.read(lambda view: view.session(session.id))
                assert stored is not None
                return stored.last_line

            assert await line_after(("run.started", "x")) is None
            assert await line_after(("agent.message", "one\ntwo  \n\n")) == "two"
            assert await line_after(("agent.message", " \n"), ("agent.message.delta", "y")) == "two"
            said = ("agent.message", HARD_TEXT), ("subagent.message", "z"), ("agent.message", None)
            assert await line_after(*said) == '\ufeff "quoted" \\ \'; DROP TABLE runs; --'
            assert await line_after(("agent.message", "é" * 1_000_000)) == "é" * 200
            await store.transact(lambda tx: tx.put_session(evolve(session, last_line="?")))
            assert await line_after(("run.failed", "x")) == "é" * 200
            ended = [Draft("run.completed", {"result": {"text": "done\nat last"}})]
            await store.transact(lambda tx: tx.append(session.id, ended, NOW))
            assert await line_after(("run.completed", "x")) == "at last"

    async def test_readers_have_their_own_marks(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:
            one, two = a_session(), a_session()
            await put(store, one, two)
            for reader, session, seq in (("ann", one, 3), ("tok_1", one, 2), ("ann", one, 5)):
                await store.transact(methodcaller("put_seen", reader, session.id, seq))
            found = await store.read(
                lambda view: [
                    view.seen(reader, session.id)
                    for reader in ("ann", "tok_1", "bob")
                    for session in (one, two)
                ]
            )
            assert found == [5, 0, 2, 0, 0, 0]
            with pytest.raises(NotFound):
                await store.transact(lambda tx: tx.put_seen("ann", "ses_none", 1))

    async def test_a_message_is_read_as_it_was_written(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:
            session = a_session()
            message = a_message(
                session.id,
                role="assistant",
                source=Source("child", "ses_c", "run_c", "ann"),
                text=HARD_TEXT,
                run_id="run_x",
                delivery="delivered",
                own_run_id="run_y",
                request_id="req_x",
            )
            await put(store, session, message)
            assert await store.read(lambda view: view.message(message.id)) == message
            changed = evolve(message, delivery="undeliverable", run_id=None)
            await store.transact(lambda tx: tx.put_message(changed))
            assert await store.read(lambda view: view.message(message.id)) == changed
            assert await store.read(lambda view: view.message("msg_none")) is None

    async def test_a_run_is_read_as_it_was_written(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:
            session = a_session()
            run = a_run(session.id)
            await put(store, session, run)
            assert await store.read(lambda view: view.run(run.id)) == run
            changed = evolve(
                run,
                message_id="msg_x",
                parent_run_id="run_p",
                provider="claude",
                model="m",
                status=RunStatus.FAILED,
                waiting_on="req_x",
                attempt=3,
                worker_id="dmn_1/2",
                thread_id="t",
                result=RunResult(""),
                error=RunError("timeout", HARD_TEXT),
                usage=Usage(1, 2, 3, 0.1),
                exit_code=-9,
                cancel_requested_at=NOW,
                cancel_reason=HARD_TEXT,
                started_at=NOW + timedelta(seconds=1),
                finished_at=NOW + timedelta(days=400),
                effort="low",
                output_schema={"type": "object"},
                chosen=ChoiceLimits("low", {"claude": "m", HARD_TEXT: "n"}),
                kind="attach",
                holder=Holder(HARD_TEXT, 2**40, "boot/7"),
            )
            await store.transact(lambda tx: tx.put_run(changed))
            stored = await store.read(lambda view: view.run(run.id))
            assert stored == changed
            assert stored.status is RunStatus.FAILED
            assert await store.read(lambda view: view.run("run_none")) is None

    async def test_events_are_read_as_they_were_written(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:
            session = a_session()
            await put(store, session)
            odd = {"": [], "n": 1e-7, "big": 2**60, "t": HARD_TEXT, "nest": {"a": [{"b": None}]}}
            appended = [Draft("some.unknown.type", odd, "run_x", 2), Draft("backend.event", {})]
            last = await store.transact(lambda tx: tx.append(session.id, appended, NOW))
            assert last == 2
            assert await store.read(lambda view: view.events(session.id, after=0, limit=9)) == [
                Event(1, session.id, "run_x", 2, "some.unknown.type", odd, NOW),
                Event(2, session.id, None, None, "backend.event", {}, NOW),
            ]

    async def test_very_large_messages_and_events_are_stored(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:
            session = a_session()
            message = a_message(session.id, text="😀\0é" * 333_333 + "x")
            await put(store, session, message)
            stored = await store.read(lambda view: view.message(message.id))
            assert stored is not None
            assert stored.text == message.text
            large = {"text": "ß" * 25_000_000}
            draft = Draft("tool.output", large)
            await store.transact(lambda tx: tx.append(session.id, [draft], NOW))
            [event] = await store.read(lambda view: view.events(session.id, after=0, limit=1))
            assert event.data == large

    async def test_long_and_short_data_are_read_as_they_were_written(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:
            session = a_session()
            await put(store, session)
            texts = ["short", "ü" * 100_000, "", "😀\\\n" * 40_000, "x" * 70_000, "last"]
            batch = drafts(*texts)
            await store.transact(lambda tx: tx.append(session.id, batch, NOW))
            await store.transact(lambda tx: tx.append(session.id, batch, NOW))
            events = await store.read(lambda view: view.events(session.id, after=0, limit=99))
            assert [event.data for event in events] == [{"text": text} for text in texts * 2]
            assert [event.seq for event in events] == [*range(1, 13)]
            items = await store.read(lambda view: view.feed(after=None, limit=99))
            assert [item.event for item in items] == events
            few = await store.read(lambda view: view.events(session.id, after=0, limit=99, size=80))
            assert len(few) == 2

    @pytest.mark.parametrize("character", ["x", "é", "中", "😀"])
    async def test_a_long_result_is_read_as_it_was_written(
        self, tmp_path: Path, character: str
    ) -> None:
        async with self.opened(tmp_path) as store:
            session = a_session()
            run = a_run(session.id, status=RunStatus.COMPLETED)
            await put(store, session, run)
            for text in (character * 70_000, character * 99_999, "short", character * 70_001):
                changed = evolve(run, result=RunResult(text))
                await store.transact(lambda tx, run=changed: tx.put_run(run))  # type: ignore[misc]
                assert await store.read(lambda view: view.run(run.id)) == changed
                assert await store.read(
                    lambda view: view.runs(session_id=session.id, limit=9, size=100)
                ) == [changed]
                [cut], size = await store.read(
                    lambda view: view.latest_runs(session.id, limit=9, cut=100, size=10**9)
                )
                assert cut.result == RunResult(text[:100])
                assert size == len(text.encode())

    @pytest.mark.parametrize(
        "bad",
        [float("nan"), float("inf"), "\ud800", object()],
        ids=["nan", "inf", "surrogate", "object"],
    )
    async def test_data_that_json_cannot_express_is_refused(
        self, tmp_path: Path, bad: object
    ) -> None:
        async with self.opened(tmp_path) as store:
            session = a_session()
            await put(store, session)

            def change(tx: Transaction) -> None:
                with pytest.raises((ValueError, TypeError)):
                    tx.append(session.id, [*drafts("fine"), Draft("x", {"bad": bad})], NOW)
                tx.append(session.id, drafts("after"), NOW)

            await store.transact(change)
            [event] = await store.read(lambda view: view.events(session.id, after=0, limit=9))
            assert (event.seq, event.data) == (1, {"text": "after"})

    async def test_a_stored_value_does_not_change_with_its_source(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:
            metadata, data = {"a": [1]}, {"b": [1]}
            session = a_session(metadata=metadata)
            await put(store, session)
            await store.transact(lambda tx: tx.append(session.id, [Draft("x", data)], NOW))
            metadata["a"].append(2)
            data["b"].append(2)
            stored = await store.read(lambda view: view.session(session.id))
            [event] = await store.read(lambda view: view.events(session.id, after=0, limit=9))
            assert stored is not None
            assert (stored.metadata, event.data) == ({"a": [1]}, {"b": [1]})

    async def test_attempts_are_read_as_they_were_written(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:
            session = a_session()
            run = a_run(session.id)
            await put(store, session, run)
            first = Attempt(run.id, 1, "dmn_1/1", "demo", NOW)
            second = Attempt(
                run_id=run.id,
                attempt=2,
                worker_id="dmn_2/1",
                provider="demo",
                started_at=NOW,
                ended_at=NOW + timedelta(seconds=2),
                outcome="failed",
                pid=4711,
                process_start_id="boot/4711",
                invocation=Invocation("demo", ("demo", "-x", "ü"), "/", "p", ("-x",)),
                delivered_at=NOW,
                stderr_tail=HARD_TEXT,
                steerable=True,
                token_hash="ab" * 32,
                host="north",
            )
            await store.transact(methodcaller("put_attempt", second))
            await store.transact(methodcaller("put_attempt", first))
            assert await store.read(lambda view: view.attempts(run.id)) == [first, second]
            ended = evolve(first, ended_at=NOW, outcome="queued")
            await store.transact(lambda tx: tx.put_attempt(ended))
            assert await store.read(lambda view: view.attempts(run.id)) == [ended, second]
            assert await store.read(lambda view: view.attempts("run_none")) == []

    async def test_an_attempt_is_found_by_its_token(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:
            session = a_session()
            run = a_run(session.id)
            await put(store, session, run)
            first = Attempt(run.id, 1, "dmn_1/1", "demo", NOW, token_hash="11" * 32)
            second = evolve(first, attempt=2, token_hash="22" * 32)
            for attempt in (first, second, evolve(first, attempt=3, token_hash=None)):
                await store.transact(methodcaller("put_attempt", attempt))
            await store.transact(lambda tx: tx.put_attempt(evolve(second, token_hash=None)))
            looked = [methodcaller("attempt_of_token", digit * 64) for digit in "123"]
            assert [await store.read(query) for query in looked] == [first, second, None]
            with pytest.raises(Conflict):
                await store.transact(lambda tx: tx.put_attempt(evolve(first, attempt=4)))

    async def test_named_tokens_are_read_as_they_were_written(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:
            plain = AccessToken("tok_1", "n", "ann", ("read",), "bob", NOW, None)
            full = AccessToken("tok_2", HARD_TEXT, "ann", ("read", "admin"), "b", NOW, NOW, NOW)
            for digit, token in (("2", full), ("1", plain)):
                await store.transact(methodcaller("add_token", token, digit * 64))
            for again, digit in ((plain, "3"), (evolve(plain, id="tok_3"), "1")):
                with pytest.raises(Conflict):
                    await store.transact(methodcaller("add_token", again, digit * 64))
            assert await store.read(lambda view: view.tokens(limit=9)) == [plain, full]
            assert await store.read(lambda v: v.tokens(after="tok_1", limit=9)) == [full]
            ended = evolve(plain, revoked_at=NOW)
            notified: list[frozenset[str]] = []
            with store.listen(notified.append):
                await store.transact(methodcaller("put_token", ended))
            assert notified == [frozenset({"token:tok_1"})]
            assert await store.read(lambda view: view.token("tok_1")) == ended
            looked = [methodcaller("token_of_hash", digit * 64) for digit in "123"]
            assert [await store.read(query) for query in looked] == [ended, full, None]
            with pytest.raises(NotFound):
                await store.transact(methodcaller("put_token", evolve(plain, id="tok_none")))

    async def test_the_use_of_a_token_is_marked(self, tmp_path: Path) -> None:
        """Marks of several engines may arrive in any order."""
        async with self.opened(tmp_path) as store:
            token = AccessToken("tok_1", "n", "ann", ("read",), "bob", NOW, None)
            other = evolve(token, id="tok_2")
            await store.transact(methodcaller("add_token", token, "1" * 64))
            await store.transact(methodcaller("add_token", other, "2" * 64))
            later = NOW + timedelta(minutes=1)
            notified: list[frozenset[str]] = []
            with store.listen(notified.append):
                for token_id, at in (("tok_1", later), ("tok_1", NOW), ("tok_none", later)):
                    await store.transact(methodcaller("mark_token_used", token_id, at))
            assert not any(notified)  # streams need not check their access
            marked = [evolve(token, seen_at=later), other]
            assert await store.read(lambda view: view.tokens(limit=9)) == marked

    async def test_the_audit_trail_is_append_only(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:
            assert await store.read(lambda view: view.last_audit()) is None
            plain = AuditEntry(1, NOW, "ann", "run", "cancel_run", None, "done", {}, "h1")
            full = evolve(
                plain, seq=2, target=HARD_TEXT, detail={"a": [HARD_TEXT, None]}, hash="h2"
            )
            for entry in (plain, full):
                await store.transact(methodcaller("add_audit", entry))
            for seq in (0, 1, 2, 4):
                with pytest.raises(Conflict):
                    await store.transact(lambda tx, n=seq: tx.add_audit(evolve(plain, seq=n)))  # type: ignore[misc]
            assert await store.read(lambda view: view.last_audit()) == full
            assert await store.read(lambda view: view.audit(after=0, limit=9)) == [plain, full]
            assert await store.read(lambda view: view.audit(after=0, limit=1)) == [plain]
            assert await store.read(lambda view: view.audit(after=1, limit=9)) == [full]
            for after, found in ((None, [full, plain]), (9, [full, plain]), (2, [plain]), (1, [])):
                newest = methodcaller("audit", order="newest", after=after, limit=9)
                assert await store.read(newest) == found
            assert await store.read(methodcaller("audit", order="newest", limit=1)) == [full]

    async def test_the_messages_of_a_child_are_counted(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:
            session = a_session()
            sources = [Source("child", "ses_c", "run_c")] * 3 + [
                Source("child", "ses_c", "run_d"),
                Source("session", "ses_c", "run_c"),
                Source(),
            ]
            await put(store, session, *(a_message(session.id, source=source) for source in sources))
            for run_id, limit, count in (
                ("run_c", 9, 3),
                ("run_c", 2, 2),
                ("run_d", 9, 1),
                ("run_e", 9, 0),
            ):
                asked = methodcaller("child_message_count", run_id, limit=limit)
                assert await store.read(asked) == count

    async def test_threads_are_read_as_they_were_written(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:
            session, other = a_session(), a_session()
            await put(store, session, other)
            thread = Thread("t-1", {"tokens": {"in": 1}})
            await store.transact(lambda tx: tx.put_thread(session.id, "demo", Thread("t-0", {})))
            await store.transact(lambda tx: tx.put_thread(session.id, "demo", thread))
            await store.transact(lambda tx: tx.put_thread(session.id, "more", Thread("t-2", {})))

            def query(view: View) -> object:
                stored = view.session(session.id)
                assert stored is not None
                return view.thread(session.id, "demo"), dict(stored.threads)

            assert await store.read(query) == (thread, {"demo": "t-1", "more": "t-2"})
            assert await store.read(lambda view: view.thread(other.id, "demo")) is None

            def owners(view: View) -> list[str | None]:
                return [view.session_of_thread(thread_id) for thread_id in ("t-1", "t-2", "t-0")]

            assert await store.read(owners) == [session.id, session.id, None]
            await store.transact(lambda tx: tx.put_thread(other.id, "demo", Thread("t-3", {})))

            def forget(tx: Transaction) -> object:
                tx.forget_threads(session.id)
                return query(tx)

            assert await store.transact(forget) == (None, {})
            assert await store.read(query) == (None, {})
            assert await store.read(lambda view: view.session_of_thread("t-3")) == other.id

    async def test_a_token_is_removed(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:
            first = AccessToken("tok_1", "n", "ann", ("read",), "bob", NOW, None)
            for digit, token in (("1", first), ("2", evolve(first, id="tok_2"))):
                await store.transact(methodcaller("add_token", token, digit * 64))
            for _ in range(2):  # removing a missing token has no effect
                await store.transact(methodcaller("remove_token", "tok_1"))
            assert await store.read(methodcaller("token", "tok_1")) is None
            assert await store.read(methodcaller("token_of_hash", "1" * 64)) is None
            assert [token.id for token in await store.read(methodcaller("tokens", limit=9))] == [
                "tok_2"
            ]
            with pytest.raises(LookupError):
                await store.transact(_undone(methodcaller("remove_token", "tok_2")))
            assert await store.read(methodcaller("token_of_hash", "2" * 64)) is not None
            await store.transact(methodcaller("add_token", first, "1" * 64))

    async def test_an_idempotency_record_is_stored_once(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:
            assert await store.read(methodcaller("oldest_record_at")) is None
            record = a_record(answer=HARD_TEXT, key=HARD_TEXT)
            await store.transact(methodcaller("add_record", record, max_count=9, max_size=99))
            records = await store.read(
                lambda view: [
                    view.idempotency(*key)
                    for key in (
                        (record.caller, record.call, record.key),
                        ("other", record.call, record.key),
                        (record.caller, "other", record.key),
                        (record.caller, record.call, "other"),
                    )
                ]
            )
            assert records == [record, None, None, None]
            assert await store.read(methodcaller("oldest_record_at")) == NOW
            again = evolve(record, answer="second")
            with pytest.raises(Conflict):
                await store.transact(methodcaller("add_record", again, max_count=9, max_size=99))
            assert await store.transact(methodcaller("delete_records_of", "other", limit=9)) == 0
            assert await self._kept(store, record.key) == {("local", record.key)}
            assert await store.transact(methodcaller("delete_records_of", "local", limit=9)) == 1
            await store.transact(methodcaller("add_record", again, max_count=9, max_size=99))

    async def test_records_of_ended_runs_are_found_and_deleted_in_batches(
        self, tmp_path: Path
    ) -> None:
        async with self.opened(tmp_path) as store:
            session = a_session()
            statuses = (RunStatus.COMPLETED, RunStatus.RUNNING, RunStatus.FAILED, RunStatus.QUEUED)
            runs = [a_run(session.id, status=status) for status in statuses]
            await put(store, session, *runs)
            ended = sorted((runs[0].id, runs[2].id))
            assert await store.read(methodcaller("ended_callers", limit=9)) == []
            callers = ("local", *(run.id for run in runs))
            for caller in callers:
                for key in "312":
                    record = a_record(caller=caller, key=key)
                    await store.transact(
                        methodcaller("add_record", record, max_count=9, max_size=99)
                    )
            assert await store.read(methodcaller("ended_callers", limit=9)) == ended
            assert await store.read(methodcaller("ended_callers", limit=1)) == ended[:1]
            forget = methodcaller("delete_records_of", ended[0], limit=2)
            with pytest.raises(LookupError):
                await store.transact(_undone(forget))
            assert await store.transact(forget) == 2
            assert await self._kept(store, *"312", callers=(ended[0],)) == {(ended[0], "2")}
            assert await store.read(methodcaller("ended_callers", limit=9)) == ended
            assert await store.transact(forget) == 1
            assert await store.read(methodcaller("ended_callers", limit=9)) == ended[1:]
            others = tuple(set(callers) - {ended[0]})
            assert len(await self._kept(store, *"312", callers=others)) == 3 * len(others)

    async def test_the_oldest_records_of_a_caller_are_deleted_beyond_the_bounds(
        self, tmp_path: Path
    ) -> None:
        async with self.opened(tmp_path) as store:
            keys = [str(number) for number in range(8)]
            for key in keys:
                for caller, max_count, max_size in (
                    ("many", 3, 999),
                    ("long", 99, 20),
                    ("one", 99, 1),
                    ("all", 99, 999),
                ):
                    record = a_record(caller=caller, key=key, answer="éééé")  # 8 bytes
                    await store.transact(
                        methodcaller("add_record", record, max_count=max_count, max_size=max_size)
                    )
            kept = await self._kept(store, *keys, callers=("many", "long", "one", "all"))
            expected = {"many": keys[-3:], "long": keys[-3:], "one": keys[-1:], "all": keys}
            assert kept == {(caller, key) for caller, some in expected.items() for key in some}
            record = a_record(caller="many", key="new")
            with pytest.raises(LookupError):
                await store.transact(
                    _undone(methodcaller("add_record", record, max_count=1, max_size=9))
                )
            assert kept == await self._kept(
                store, *keys, "new", callers=("many", "long", "one", "all")
            )

    async def test_a_long_answer_deletes_a_limited_number_of_records(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:
            keys = [str(number) for number in range(150)]

            async def remember(key: str, answer: str) -> None:
                record = a_record(key=key, answer=answer)
                await store.transact(
                    methodcaller("add_record", record, max_count=999, max_size=1000)
                )

            for key in keys:
                await remember(key, "{}")
            for key, gone in (("long", 64), ("longer", 128), ("longest", 150)):
                await remember(key, "x" * 1000)
                assert await self._kept(store, *keys) == {("local", key) for key in keys[gone:]}
            records = await self._kept(store, "long", "longer", "longest")
            assert records == {("local", "longest")}

    async def test_the_limit_of_deleted_records_grows_with_the_answer(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:
            keys = [str(number) for number in range(99)]
            size = 32 * 2**14
            for key in keys:
                record = a_record(key=key, answer="{}")
                await store.transact(
                    methodcaller("add_record", record, max_count=999, max_size=size)
                )
            record = a_record(key="long", answer="x" * size)
            await store.transact(methodcaller("add_record", record, max_count=999, max_size=size))
            assert await self._kept(store, *keys) == {("local", key) for key in keys[64 + 32 :]}

    async def test_old_records_are_deleted_and_new_ones_kept(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:
            keys = [str(number) for number in range(40)]
            for number, key in enumerate(keys):
                record = a_record(key=key, created_at=NOW + timedelta(hours=number))
                await store.transact(methodcaller("add_record", record, max_count=99, max_size=999))
            forget = methodcaller("delete_records", before=NOW + timedelta(hours=25), limit=10)
            assert [await store.transact(forget) for _ in range(4)] == [10, 10, 5, 0]
            assert await self._kept(store, *keys) == {("local", key) for key in keys[25:]}
            assert await store.read(methodcaller("oldest_record_at")) == NOW + timedelta(hours=25)

    @staticmethod
    async def _kept(
        store: Store, *keys: str, callers: tuple[str, ...] = ("local",)
    ) -> set[tuple[str, str]]:
        """Return the callers and keys of existing records."""
        return await store.read(
            lambda view: {
                (caller, key)
                for caller in callers
                for key in keys
                if view.idempotency(caller, "POST /sessions", key)
            }
        )


def _undone(change: Callable[[Transaction], object]) -> Callable[[Transaction], None]:
    def undone(tx: Transaction) -> None:
        change(tx)
        raise LookupError("undo")

    return undone
