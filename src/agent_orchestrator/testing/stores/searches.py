"""Searches of what sessions contain."""

import contextlib
from collections.abc import Mapping
from operator import methodcaller
from pathlib import Path
from typing import Any

import anyio
import pytest

from agent_orchestrator.domain.access import EVERYTHING, Grant, Visibility
from agent_orchestrator.domain.errors import InvalidRequest
from agent_orchestrator.domain.model import Session
from agent_orchestrator.domain.search import MAX_SEARCHED, Search, SearchKind, phrases_of
from agent_orchestrator.ports.changes import Draft, Transaction
from agent_orchestrator.ports.queries import View
from agent_orchestrator.ports.store import Store
from agent_orchestrator.testing.stores.opening import Opening
from agent_orchestrator.testing.stores.samples import HARD_TEXT, NOW, a_run, a_session, drafts, put

HARD_SEARCHES = (
    '""x',
    'NEAR("a" "b", 2) x',
    "x AND",
    "OR x",
    "NOT x",
    "words : x",
    "x)",
    "(x",
    "^x",
    "-x",
    "x + x",
    "{a b}:x",
    "x' OR 1=1 --",
    "x:* <-> | & !",
    "\\x'",
    "*x*",
    "x\0x",
    "search_index",
)
"""Texts that the languages of SQLite and PostgreSQL for searches would refuse, or understand otherwise."""


async def say(store: Store, session: Session, *texts: str, run_id: str | None = None) -> None:
    """Append a message of an agent for each text, in one commit."""
    await store.transact(methodcaller("append", session.id, drafts(*texts, run_id=run_id), NOW))


async def log(store: Store, session: Session, event_type: str, data: Mapping[str, Any]) -> int:
    """Append an event and return its ``seq``."""
    seq: int = await store.transact(
        methodcaller("append", session.id, [Draft(event_type, data)], NOW)
    )
    return seq


async def find(
    store: Store,
    text: str,
    *,
    within: Visibility = EVERYTHING,
    kind: SearchKind | None = None,
    session_id: str | None = None,
    limit: int = 100,
) -> list[str]:
    """Return the texts that a search finds on all its pages."""
    search = Search(phrases_of(text), kind, session_id)
    found: list[str] = []
    after: str | None = None
    while True:
        texts, after = await store.read(
            lambda view, after=after: view.search(search, within=within, after=after, limit=limit)  # type: ignore[misc]
        )
        assert len(texts) <= limit
        found += [one.text for one in texts]
        if after is None:
            return found


async def until_complete(store: Store) -> None:
    """Wait until the texts of an earlier version are in the index."""
    with anyio.fail_after(60):
        while not await store.read(methodcaller("search_is_complete")):  # noqa: ASYNC110
            await anyio.sleep(0.01)


class Searches(Opening):
    async def test_words_are_found_without_case_accents_and_signs(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:
            session = a_session()
            await put(store, session)
            texts = [
                "Crème BRÛLÉE",
                "see src/main_loop.py",
                "Straße; naïve ﬁx",
                "e\u0301tude no. 12",
            ]
            await say(store, session, *texts)
            for text, index in (
                ("creme", 0),
                ("brulee CRÈME", 0),
                ("loop", 1),
                ("main_loop.py", 1),
                ("strasse", 2),
                ("fix naive", 2),
                ("étude", 3),
                ("12", 3),
            ):
                assert await find(store, text) == [texts[index]], text
            for text in ("crem", "creme loop", "main.src", "ain"):
                assert await find(store, text) == [], text

    async def test_phrases_and_beginnings_of_words(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:
            session = a_session()
            await put(store, session)
            await say(store, session, "the build fails", "fails the build", "builder")
            assert await find(store, "build fails") == ["fails the build", "the build fails"]
            assert await find(store, '"build fails"') == ["the build fails"]
            assert await find(store, '"build fa*"') == ["the build fails"]
            assert await find(store, '"build fa"*') == ["the build fails"]
            assert await find(store, '"build fa"') == []
            assert await find(store, "buil*") == ["builder", "fails the build", "the build fails"]
            assert await find(store, "b*") == []  # too short for a beginning: the word

    async def test_any_part_of_a_text_without_spaces_is_found(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:
            session = a_session()
            await put(store, session)
            texts = ["全文検索を実装する", "검색을 합니다", "ค้นหาข้อความ", "がぎ"]
            await say(store, session, *texts)
            for text, index in (
                ("検索", 0),
                ("実装する", 0),
                ("검색", 1),
                ("ข้อความ", 2),
                ("が", 3),
            ):
                assert await find(store, text) == [texts[index]], text
            assert await find(store, "索検") == []
            assert await find(store, "か") == []

    @pytest.mark.parametrize("text", HARD_SEARCHES)
    async def test_no_sign_is_an_operator(self, tmp_path: Path, text: str) -> None:
        async with self.opened(tmp_path) as store:
            session = a_session()
            await put(store, session)
            await say(store, session, text, HARD_TEXT, "other")
            assert (await find(store, text))[-1:] == [text]

    async def test_hard_texts_are_found(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:
            session = a_session(title=HARD_TEXT)
            await put(store, session)
            await say(
                store, session, HARD_TEXT, "\0", "\x01", "x" * 100_000 + " end", "検\u0301 \u0301"
            )
            assert await find(store, "検") == ["検\u0301 \u0301"]
            assert await find(store, "drop table") == [HARD_TEXT]
            assert await find(store, "x" * 1000) == ["x" * MAX_SEARCHED]

    async def test_each_kind_of_text_is_found(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:
            session = a_session(title="needle title")
            await put(store, session)
            seqs = {
                "title": await log(store, session, "session.created", {"title": "needle title"}),
                "message": await log(
                    store,
                    session,
                    "message.created",
                    {
                        "message_id": "msg_1",
                        "role": "user",
                        "source": {},
                        "text": "needle question",
                    },
                ),
                "answer": await log(store, session, "agent.message", {"text": "needle answer"}),
                "file": await log(
                    store,
                    session,
                    "file.changed",
                    {
                        "changes": [
                            {"path": "/a/b.py"},
                            {"path": "/c/needle.md", "diff": "elsewhere"},
                        ]
                    },
                ),
            }
            for event_type, data in (
                ("agent.message.delta", {"text": "needle"}),
                ("agent.reasoning", {"text": "needle"}),
                ("tool.output", {"text": "needle"}),
                ("message.created", {"text": ["needle"]}),
                ("file.changed", {"changes": {"path": "needle"}}),
                ("file.changed", {"changes": [None, {"path": 1}]}),
                ("run.completed", {"result": "needle"}),
                ("session.created", {"title": None}),
            ):
                await log(store, session, event_type, data)

            def query(view: View) -> Any:
                return view.search(Search(phrases_of("needle")), limit=10)

            found, cursor = await store.read(query)
            assert cursor is None
            assert {one.kind: one.seq for one in found} == seqs
            assert [one.seq for one in found] == sorted(seqs.values(), reverse=True)
            assert {one.kind: one.message_id for one in found if one.message_id} == {
                "message": "msg_1"
            }
            assert found[0].text == "/a/b.py\n/c/needle.md"
            for one in found:
                assert (one.session_id, one.session_title) == (session.id, "needle title")
                assert one.created_at == NOW
                assert await find(store, "needle", kind=one.kind) == [one.text]
            assert await find(store, "elsewhere") == []

    async def test_a_long_message_is_found_with_its_id(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:
            session = a_session()
            await put(store, session)
            data = {"message_id": "msg_1", "role": "user", "source": {}, "text": "needle " * 20_000}
            await log(store, session, "message.created", data)
            search = Search(phrases_of("needle"))
            found, _ = await store.read(lambda view: view.search(search, limit=9))
            assert [one.message_id for one in found] == ["msg_1"]

    async def test_only_the_present_title_is_found(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:
            session, other = a_session(title="red"), a_session(title="red")
            await put(store, session, other)
            await log(store, other, "session.created", {"title": "red"})
            for title in ("red", "blue", "red"):
                changed = a_session(id=session.id, title=title)
                await store.transact(methodcaller("put_session", changed))
                await log(store, session, "session.updated", {"title": title})
            assert await find(store, "red") == ["red", "red"]
            assert await find(store, "red", session_id=session.id) == ["red"]
            assert await find(store, "blue") == []

    async def test_a_result_that_its_agent_said_is_found_once(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:
            session = a_session()
            run, other = a_run(session.id), a_run(session.id)
            await put(store, session, run, other)
            long = "needle " * 20_000
            for said, result in (("needle", "needle"), (long, long), ("needle one", "needle two")):
                await say(store, session, "before", said, run_id=run.id)
                for run_id in (run.id, other.id):
                    end = Draft("run.completed", {"result": {"text": result}}, run_id, 1)
                    await store.transact(methodcaller("append", session.id, [end], NOW))
            cut = long[:MAX_SEARCHED]
            expected = ["needle", "needle", cut, cut, "needle one", "needle two", "needle two"]
            assert await find(store, "needle") == expected[::-1]

    async def test_a_result_is_found_once_the_message_with_its_text_is_deleted(
        self, tmp_path: Path
    ) -> None:
        async with self.opened(tmp_path) as store:
            session = a_session()
            runs = [a_run(session.id) for _ in range(3)]
            await put(store, session, *runs)
            texts = ["needle", "needle " * 20_000, "needle again"]
            for run, text in zip(runs, texts, strict=True):
                await say(store, session, text, run_id=run.id)
                end = Draft("run.completed", {"result": {"text": text}}, run.id, 1)
                await store.transact(methodcaller("append", session.id, [end], NOW))
            texts[1] = texts[1][:MAX_SEARCHED]
            # One event less each time: a message, its result, the next message …
            for through, left in enumerate((texts, texts[1:], texts[1:], texts[2:], texts[2:]), 1):
                await store.transact(methodcaller("delete_events", session.id, through=through))
                assert await find(store, "needle") == left[::-1], through

    async def test_pages_go_from_the_newest_to_the_oldest(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:
            session = a_session()
            await put(store, session)
            texts = [f"needle {number}" for number in range(130)]
            await say(store, session, *texts)
            for limit in (1, 7, 65, 130, 200):
                assert await find(store, "needle", limit=limit) == texts[::-1]

            def sized(view: View) -> Any:
                return view.search(Search(phrases_of("needle")), limit=100, size=30)

            found, cursor = await store.read(sized)
            assert [one.text for one in found] == texts[:-4:-1]
            assert cursor == found[-1].cursor
            for cursor in ("", "x", "-1", "1.5", "9" * 30, "¹"):  # the last is a digit to Python
                with pytest.raises(InvalidRequest, match="cursor"):
                    await store.read(
                        lambda view, cursor=cursor: view.search(  # type: ignore[misc]
                            Search(phrases_of("needle")), after=cursor, limit=1
                        )
                    )

    async def test_only_what_may_be_seen_is_found(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:
            root = a_session(owner="ann")
            below = {"root_session_id": root.id, "owner": "ann"}
            child = a_session(parent_session_id=root.id, **below)
            grandchild = a_session(parent_session_id=child.id, **below)
            other = a_session(owner="bob")
            named = {"root": root, "child": child, "grandchild": grandchild, "other": other}
            await put(store, *named.values())
            for name, session in named.items():
                await say(store, session, f"needle {name}")
            await store.transact(methodcaller("put_grants", child.id, [Grant("cid", "reader")]))

            async def seen(**within: str) -> list[str]:
                texts = await find(store, "needle", within=Visibility(**within), limit=2)
                return sorted(text.removeprefix("needle ") for text in texts)

            assert await seen() == ["child", "grandchild", "other", "root"]
            assert await seen(principal="ann") == ["child", "grandchild", "root"]
            assert await seen(principal="bob") == ["other"]
            assert await seen(principal="cid") == ["child", "grandchild"]
            assert await seen(principal="dan") == []
            assert await seen(tree=child.id) == ["child", "grandchild"]
            assert await seen(tree=root.id, principal="cid") == ["child", "grandchild"]
            assert await seen(tree=grandchild.id) == ["grandchild"]
            assert await find(store, "needle", session_id=other.id) == ["needle other"]
            assert await find(store, "needle", session_id="ses_none") == []
            bob = Visibility(principal="bob")
            assert await find(store, "needle", session_id=root.id, within=bob) == []

    async def test_what_was_not_committed_is_not_found(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:
            session = a_session()
            await put(store, session)

            def undone(tx: Transaction) -> None:
                tx.append(session.id, drafts("needle undone"), NOW)
                found, _ = tx.search(Search(phrases_of("needle")), limit=10)
                assert [one.text for one in found] == ["needle undone"]
                raise LookupError

            with pytest.raises(LookupError):
                await store.transact(undone)
            assert await find(store, "needle") == []
            found_in: list[int] = []

            async def attempt(number: int) -> None:
                def change(tx: Transaction) -> None:
                    tx.append(session.id, drafts(f"needle {number}"), NOW)
                    if number == 1:
                        found_in.append(len(tx.search(Search(phrases_of("needle 1")), limit=10)[0]))
                    if number % 2 == 0:
                        raise LookupError

                with contextlib.suppress(LookupError):
                    await store.transact(change)

            async with anyio.create_task_group() as tasks:
                for number in range(6):
                    tasks.start_soon(attempt, number)
            assert set(found_in) == {1}
            assert sorted(await find(store, "needle")) == ["needle 1", "needle 3", "needle 5"]
            await say(store, session, "needle made")
            assert (await find(store, "needle"))[0] == "needle made"
            assert await store.read(methodcaller("search_is_complete"))
