"""Files of sessions: what is exported comes back, and nothing of a bad file does."""

import errno
import hashlib
import json
import os
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
from attrs import evolve
from loops import ON_ONE_LOOP

from agent_orchestrator import Client, Outcome, RunContext, open_embedded
from agent_orchestrator.domain.errors import Conflict, Internal, InvalidRequest, Unavailable
from agent_orchestrator.domain.ids import SortableIds, form_problem
from agent_orchestrator.engine import imports
from agent_orchestrator.runners.function import FunctionRunner
from agent_orchestrator.session_files import read_parts, write_session
from agent_orchestrator.stores.memory import MemoryStore
from agent_orchestrator.wire import session_file
from agent_orchestrator.wire.codec import to_plain

pytestmark = [pytest.mark.anyio, ON_ONE_LOOP]

Lines = list[dict[str, Any]]


async def talk(context: RunContext) -> Outcome:
    await context.emit("agent.message.delta", {"text": "wo", "item_id": "1"})
    await context.emit("agent.message", {"text": f"word of {context.prompt}", "item_id": "1"})
    if context.prompt == "hold":
        await context.emit("agent.message", {"text": "held"})
        await anyio.sleep_forever()
    return Outcome(context.prompt)


@asynccontextmanager
async def opened(store: Any = None) -> AsyncIterator[Client]:
    async with open_embedded(store or MemoryStore(), runners=[FunctionRunner("talk", talk)]) as one:
        yield one


async def told(client: Client, *texts: str) -> str:
    """Return the id of a session with a turn for each text."""
    session = await client.create_session(title="the story", metadata={"ticket": 7})
    for text in texts:
        sent = await client.send_message(session.id, text)
        assert sent.run is not None
        with anyio.fail_after(60):
            await client.wait_run(sent.run.id)
    return session.id


async def exported(client: Client, session_id: str) -> bytes:
    async with client.export_session(session_id) as parts:
        return b"".join([part async for part in parts])


async def bring(client: Client, data: bytes, size: int = 1000, **options: Any) -> Any:
    async def parts() -> AsyncIterator[bytes]:
        for start in range(0, len(data), size):
            yield data[start : start + size]

    return await client.import_session(parts(), **options)


async def log_of(client: Client, session_id: str) -> list[Any]:
    return [to_plain(event) async for event in client.events(session_id)]


def lines_of(data: bytes) -> Lines:
    return [json.loads(line) for line in data.splitlines()]


def file_of(lines: Lines) -> bytes:
    """Return lines as a file with a valid end."""
    rest = lines[:-1] if lines and lines[-1].get("kind") == "end" else lines
    body = b"".join(json.dumps(line).encode() + b"\n" for line in rest)
    kinds = ("run", "message", "request", "event")
    counts = {kind: sum(line.get("kind") == kind for line in rest) for kind in kinds}
    end = {"kind": "end", "counts": counts, "sha256": hashlib.sha256(body).hexdigest()}
    return body + json.dumps(end).encode() + b"\n"


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_a_session_is_moved_with_its_whole_story(kind: str, tmp_path: Path) -> None:
    async with opened() as one:
        session_id = await told(one, "first", "second")
        path = tmp_path / "a.jsonl"
        written = await write_session(one, session_id, path)
        log, runs = await log_of(one, session_id), (await one.list_runs(session_id=session_id)).runs
        messages = (await one.list_messages(session_id)).messages
        with pytest.raises(FileExistsError):
            await write_session(one, session_id, path)
        assert [entry.operation for entry in (await one.list_audit()).entries] == ["export_session"]
    assert (written.events, written.runs, written.last_seq) == (len(log), 2, len(log))
    assert os.listdir(tmp_path) == ["a.jsonl"]  # noqa: PTH208
    header, *_, end = lines_of(path.read_bytes())
    assert (header["format"], header["version"]) == ("agent-orchestrator.session", 1)
    assert header["counts"] == {"runs": 2, "events": len(log)}
    assert end["counts"] == {"run": 2, "message": 2, "request": 0, "event": len(log)}
    async with opened(tmp_path / "b.db" if kind == "sqlite" else None) as other:
        reply = await other.import_session(read_parts(path))
        session = reply.session
        assert (session.id, session.title, session.status) == (session_id, "the story", "closed")
        assert (session.owner, session.notices, session.metadata) == (
            "local",
            "none",
            {"ticket": 7},
        )
        assert (session.last_seq, session.threads) == (len(log) + 1, {})
        new_log = await log_of(other, session_id)
        assert new_log[:-1] == log
        assert new_log[-1]["event_type"] == "session.imported"
        assert (await other.list_runs(session_id=session_id)).runs == tuple(
            evolve(run, worker_id=None) for run in runs
        )
        assert (await other.list_messages(session_id)).messages == tuple(messages)
        found = await other.search("word of second")
        assert [hit.session_id for hit in found.hits] == [session_id]
        assert (await other.check_store()).findings == ()
        last = (await other.list_audit()).entries[-1]
        assert (last.operation, last.target, last.detail["events"]) == (
            "import_session", session_id, len(log),
        )  # fmt: skip
        with pytest.raises(Conflict, match="new_id"):
            await other.import_session(read_parts(path))
        # With new ids, nothing of the first is touched, and the session can go on.
        second = (await other.import_session(read_parts(path), new_id=True)).session
        assert second.id != session_id
        assert not json.dumps((await log_of(other, second.id))[:-1]).count(session_id)
        texts = [one.text for one in (await other.list_messages(second.id)).messages]
        assert texts == ["first", "second"]
        assert (await other.check_store()).findings == ()
        await other.update_session(second.id, status="open")
        sent = await other.send_message(second.id, "third")
        assert sent.run is not None
        assert (await other.wait_run(sent.run.id)).run.status == "completed"


async def test_a_file_is_written_where_there_are_no_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refused)
    async with opened() as one:
        session_id = await told(one, "first")
        written = await write_session(one, session_id, tmp_path / "a.jsonl")
        assert os.listdir(tmp_path) == ["a.jsonl"]  # noqa: PTH208
        assert (tmp_path / "a.jsonl").stat().st_size == written.size
        with pytest.raises(FileExistsError):
            await write_session(one, session_id, tmp_path / "a.jsonl")


async def test_a_session_that_is_too_long_for_a_file_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_file, "MAX_LINES", 5)
    async with opened() as one:
        session_id = await told(one, "first")
        with pytest.raises(Internal, match="more than 5 lines: prune the session"):
            await write_session(one, session_id, tmp_path / "a.jsonl")
    assert os.listdir(tmp_path) == []  # noqa: PTH208


async def test_a_session_at_work_is_exported_as_of_one_moment_and_ends_at_the_import() -> None:
    async with opened() as one:
        session_id = await told(one, "first")
        sent = await one.send_message(session_id, "hold")
        waiting = await one.send_message(session_id, "later")
        assert sent.run is not None
        assert waiting.run is not None
        with anyio.fail_after(60):
            async for event in one.events(session_id, follow=True):
                if event.data.get("text") == "held":
                    break
        async with one.export_session(session_id) as parts:
            data = await anext(parts)
            # Both end while the file is written.
            for run_id in (waiting.run.id, sent.run.id):
                await one.cancel_run(run_id)
                await one.wait_run(run_id)
            await told(one, "of another session")
            data += b"".join([part async for part in parts])
    async with opened() as other:
        reply = await bring(other, data)
        assert reply.canceled == (sent.run.id, waiting.run.id)
        runs = (await other.list_runs(session_id=session_id)).runs
        assert [run.status for run in runs] == ["completed", "canceled", "canceled"]
        later = (await other.list_messages(session_id)).messages[-1]
        assert (later.text, later.delivery) == ("later", "undeliverable")
        assert (await other.check_store()).findings == ()
        assert (await other.list_runs(status="queued")).runs == ()


async def test_a_pruned_log_begins_where_it_was_pruned() -> None:
    async with opened() as one:
        session_id = await told(one, "first", "second")
        last = (await one.get_session(session_id)).last_seq
        await one.prune_session(session_id, retain_events=4)
        oldest = (await one.get_session(session_id)).oldest_cursor
        data = await exported(one, session_id)
        log = await log_of(one, session_id)
    async with opened() as other:
        session = (await bring(other, data)).session
        assert (session.oldest_cursor, session.last_seq) == (oldest, last + 1)
        assert (await log_of(other, session_id))[:-1] == log
        await other.prune_session(session_id, retain_events=2)
        assert [event["seq"] for event in await log_of(other, session_id)] == [last, last + 1]
        assert (await other.check_store()).findings == ()


def line(kind: str, **changes: Any) -> Callable[[Lines], Lines]:
    """Return a change of the first line of a kind: a field by its path, with __ for dots."""

    def change(lines: Lines) -> Lines:
        chosen = next(one for one in lines if one["kind"] == kind)
        for path, value in changes.items():
            *way, name = path.split("__")
            target = chosen
            for step in way:
                target = target[step]
            target[name] = value
        return lines

    return change


def first_event(lines: Lines) -> dict[str, Any]:
    return next(one for one in lines if one["kind"] == "event")


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


FUTURE = "run_" + "v" * 25 + "s"

BAD: list[tuple[str, Callable[[Lines], Lines], str]] = [
    ("no header", lambda lines: lines[1:], "line 1, format"),
    ("two headers", lambda lines: [lines[0], *lines], "line 2, kind"),
    ("another format", line("header", format="x"), "line 1, format"),
    ("a later version", line("header", version=2), "line 1, version"),
    ("a later field", line("header", new=1), "line 1, new"),
    ("a later field of a run", line("run", run__new=1), "run.new"),
    ("an unknown kind", lambda lines: [lines[0], {"kind": "x"}, *lines[1:]], "line 2, kind"),
    ("an event first", lambda lines: [lines[0], first_event(lines), *lines[1:]], "line 3, kind"),
    ("a run twice", lambda lines: [lines[0], lines[1], *lines[1:]], "comes twice"),
    ("an event twice", lambda lines: [*lines[:-1], lines[-2]], "event.seq"),
    ("an event less", lambda lines: lines[:-2], "log ends with"),
    ("no message", lambda lines: [one for one in lines if one["kind"] != "message"], "is missing"),
    ("a run of the future", line("run", run__id=FUTURE), "line 2, run.id"),
    ("a run with a path", line("run", run__id="../x"), "line 2, run.id"),
    ("a run of another session", line("run", run__session_id="ses_x"), "run.session_id"),
    ("a run that goes on", line("run", run__status="running"), "is not as the events say"),
    ("a run without a state", line("run", run__status="new"), "run.status"),
    ("a run without a time", line("run", run__created_at="now"), "run.created_at"),
    ("a title of a megabyte", line("header", session__title="x" * 2**20), "session.title"),
    ("much metadata", line("header", session__metadata={"x": "x" * 2**20}), "session.metadata"),
    ("a huge seq", line("header", session__last_seq=2**62), "session.last_seq"),
    ("an event of another run", line("event", event__run_id="run_x"), "event.run_id"),
    ("data that is no object", line("event", event__data=[]), "event.data"),
    ("deep data", line("event", event__data={"x": deep(450)}), "event.data"),
    ("an event without its fields", line("event", event__data={}), "event.data."),
    ("half a character", line("event", event__data={"title": "\ud800", "cwd": "/"}), "Unicode"),
    ("a type with a path", line("event", event__event_type="a/b"), "event.event_type"),
    ("a message without text", line("message", message__text=None), "message.text"),
    ("an attempt of a process", line("run", attempts=[{"pid": 1}]), "attempts[0]"),
    ("half a character as a name", line("header", **{"\ud800": 1}), "line 1, \\ud800"),
    ("a long name", line("run", **{"x" * 10**6: 1}), "line 2, xxx"),
    (
        "a message without an id",
        line(
            "event",
            event__event_type="message.updated",
            event__data={"message_id": "", "delivery": ""},
        ),
        "event.data.message_id",
    ),
]


async def test_a_bad_file_is_refused_with_its_line_and_field_and_nothing_is_left() -> None:
    async with opened() as one:
        data = await exported(one, await told(one, "first"))
    async with opened() as other:
        head = (await other.status()).store.events

        async def refused(bad: bytes, problem: str, name: str) -> None:
            with pytest.raises(InvalidRequest) as error:
                await bring(other, bad, size=10**6)
            assert problem in error.value.message, (name, error.value.message)
            assert len(error.value.message.encode()) < 1_000, name
            assert error.value.details["fields"], name

        for name, change, problem in BAD:
            await refused(file_of(change(lines_of(data))), problem, name)
        body = data.splitlines(keepends=True)
        odd = {"title": None, "cwd": "/", "x": 12345.5}
        huge = file_of(line("event", event__data=odd)(lines_of(data)))
        await refused(huge.replace(b"12345.5", b"1e999"), "event.data", "infinite")
        await refused(b"", "is empty", "empty")
        await refused(b"".join(body[:-1]), "the file was cut", "no end")
        await refused(data[:-1], "the file was cut", "half an end")
        await refused(data.replace(b"word of", b"Word of"), "sha256", "changed")
        await refused(b"".join([*body[:3], *body[4:]]), "", "a line less")
        await refused(data + b"{}\n", "kind", "more after the end")
        await refused(b"\xff\n", "not UTF-8", "no text")
        await refused(b'{"kind":"header","kind":"header"}\n', "twice", "a key twice")
        await refused(b"[" * 10**5 + b"\n", "nested too deeply", "very deep")
        await refused(b"[]\n", "must be a JSON object", "a list")
        assert (await other.list_sessions()).sessions == ()
        assert (await other.list_runs()).runs == ()
        assert (await other.status()).store.events == head
        assert (await bring(other, data)).session.title == "the story"


async def test_what_a_file_says_of_others_is_not_used() -> None:
    """A session of a file gets no rights, no directory, no process and no place in another's tree."""
    async with opened() as one:
        data = await exported(one, await told(one, "first"))
    async with opened() as other:
        victim = await told(other, "mine")
        run_id = (await other.list_runs(session_id=victim)).runs[0].id
        lines = lines_of(data)
        line(
            "header",
            session__owner="root",
            session__cwd="/etc",
            session__host="elsewhere",
            session__parent_session_id=victim,
            session__root_session_id=victim,
            session__approvals="allow",
            session__sandbox="danger-full-access",
            session__notices="all",
            session__threads={"talk": "theirs"},
        )(lines)
        line("run", run__parent_run_id=run_id, run__worker_id="w/1", run__thread_id="theirs")(lines)
        source = {"kind": "child", "session_id": victim, "run_id": run_id, "principal": "root"}
        line("message", message__source=source, message__own_run_id=run_id)(lines)
        session = (await bring(other, file_of(lines))).session
        assert (session.owner, session.parent_session_id) == ("local", None)
        assert session.root_session_id == session.id
        assert (session.cwd, session.approvals, session.sandbox) == (str(Path.cwd()), None, None)
        assert (session.threads, session.notices) == ({}, "none")
        run = (await other.list_runs(session_id=session.id)).runs[0]
        assert (run.parent_run_id, run.worker_id, run.thread_id) == (None, None, None)
        message = (await other.list_messages(session.id)).messages[0]
        assert (message.source.session_id, message.source.run_id) == (None, None)
        tree = await other.get_tree(victim)
        assert tree.children == ()


async def test_a_long_text_comes_back() -> None:
    async def long(context: RunContext) -> Outcome:
        await context.emit("agent.message", {"text": "ä" * 2_000_000})
        return Outcome("ä" * 2_000_000)

    async with open_embedded(MemoryStore(), runners=[FunctionRunner("long", long)]) as one:
        session_id = await told(one, "go")
        data = await exported(one, session_id)
        log = await log_of(one, session_id)
    async with opened() as other:
        await bring(other, data, size=2**16)
        assert (await log_of(other, session_id))[:-1] == log
        assert (await other.check_store()).findings == ()


async def test_what_the_api_and_agents_may_say_comes_back() -> None:
    """NUL, numbers with many digits, and texts that JSON escapes."""

    async def odd(context: RunContext) -> Outcome:
        context.note_stderr("a\0b")
        return Outcome("c\0d")

    metadata = {"lines": "\n" * 40_000, "numbers": [0.12345678901234568] * 2_000}
    async with open_embedded(MemoryStore(), runners=[FunctionRunner("odd", odd)]) as one:
        session = await one.create_session(title="the\0story", metadata=metadata)
        sent = await one.send_message(session.id, "go\0")
        assert sent.run is not None
        await one.wait_run(sent.run.id)
        data = await exported(one, session.id)
        log = await log_of(one, session.id)
    async with opened() as other:
        imported = (await bring(other, data)).session
        assert (imported.title, imported.metadata) == ("the\0story", metadata)
        assert (await log_of(other, session.id))[:-1] == log
        again = await exported(other, session.id)
    for file in (data, again):
        [attempt] = lines_of(file)[1]["attempts"]
        assert attempt["stderr_tail"] == "a\0b"


async def test_a_run_that_begins_while_the_file_is_written_is_left_out() -> None:
    """A message that steers a run keeps an id for a later run, in case the agent does not take it."""
    ready, go_on = anyio.Event(), anyio.Event()

    async def deaf(context: RunContext) -> Outcome:
        if context.prompt == "work":
            async with context.steering():
                ready.set()
                await go_on.wait()
        return Outcome(context.prompt)

    async with open_embedded(MemoryStore(), runners=[FunctionRunner("deaf", deaf)]) as one:
        session = await one.create_session()
        sent = await one.send_message(session.id, "work")
        assert sent.run is not None
        with anyio.fail_after(60):
            await ready.wait()
            steering = await one.send_message(session.id, "and this", when_busy="steer")
            assert steering.run is not None
            assert steering.run.id == sent.run.id
            async with one.export_session(session.id) as parts:
                data = await anext(parts)
                go_on.set()
                await one.wait_run(sent.run.id)
                later = (await one.list_runs(session_id=session.id)).runs[1]
                await one.wait_run(later.id)
                data += b"".join([part async for part in parts])
    async with opened() as other:
        reply = await bring(other, data)
        assert (reply.runs, reply.canceled) == (1, (sent.run.id,))
        message = (await other.list_messages(session.id)).messages[1]
        assert (message.text, message.run_id) == ("and this", None)
        assert (await other.check_store()).findings == ()


class Slow(MemoryStore):
    """Lets the questions of agents wait before they are stored."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.go_on = anyio.Event(), anyio.Event()

    async def transact(self, change: Callable[[Any], Any], *, reserve: bool = False) -> Any:
        if "._ask." in getattr(change, "__qualname__", ""):
            self.asked.set()
            await self.go_on.wait()
        return await super().transact(change, reserve=reserve)


async def test_a_question_that_is_stored_while_the_file_is_written_is_left_out() -> None:
    async def ask(context: RunContext) -> Outcome:
        request = await context.ask_parent("May I?", kind="approval_request")
        return Outcome(str(request.decision))

    store = Slow()
    async with open_embedded(store, runners=[FunctionRunner("ask", ask)]) as one:
        session = await one.create_session()
        sent = await one.send_message(session.id, "go")
        assert sent.run is not None
        with anyio.fail_after(60):
            await store.asked.wait()
            async with one.export_session(session.id) as parts:
                data = await anext(parts)
                store.go_on.set()
                async for event in one.events(session.id, follow=True):
                    if event.event_type == "request.created":
                        break
                data += b"".join([part async for part in parts])
            [request] = (await one.requests(session_id=session.id)).requests
            await one.resolve_request(request.id, "approve")
            await one.wait_run(sent.run.id)
            whole = await exported(one, session.id)
    async with opened() as other:
        reply = await bring(other, data)
        assert (reply.requests, reply.canceled) == (0, (sent.run.id,))
        assert (await other.check_store()).findings == ()
    # A state that is none is refused at its event.
    lines = lines_of(whole)
    events = [one["event"] for one in lines if one["kind"] == "event"]
    created = next(one for one in events if one["event_type"] == "request.created")
    created["data"]["status"] = "x" * 10_000
    async with opened() as other:
        with pytest.raises(InvalidRequest, match=r"event\.data\.status"):
            await bring(other, file_of(lines))
        assert (await bring(other, whole)).requests == 1


async def test_an_id_that_is_another_word_replaces_nothing() -> None:
    async with opened() as one:
        session_id = await told(one, "first")
        data = await exported(one, session_id)
        run_id = (await one.list_runs(session_id=session_id)).runs[0].id
    bad = data.replace(run_id.encode(), b"completed")
    async with opened() as other:
        for new_id in (False, True):
            with pytest.raises(InvalidRequest, match=r"line 2, run\.id"):
                await bring(other, bad, new_id=new_id)


async def test_later_ids_follow_those_of_a_machine_whose_clock_is_ahead() -> None:
    ahead = SortableIds(lambda: time.time_ns() + 30 * 10**9)
    async with opened() as one:
        data = await exported(one, await told(one, "first"))
    for kind in ("ses", "run", "msg"):
        for found in sorted({*re.findall(rb'"(%s_\w{26})"' % kind.encode(), data)}):
            data = data.replace(found, ahead(kind).encode())  # type: ignore[arg-type]
    async with opened() as other:
        session = (await bring(other, file_of(lines_of(data)))).session
        assert (await other.create_session()).id > session.id


def open_full() -> Any:
    return Path("/dev/full").open("r+b")


async def test_a_disk_without_room_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imports, "_open", lambda _: open_full())
    async with opened() as one:
        short = await exported(one, await told(one, "first"))
        long = await exported(one, await told(one, "x" * 900_000))
        for data in (short, long):
            with pytest.raises(Unavailable, match="No space left"):
                await bring(one, data, size=10**6, new_id=True)
        assert len((await one.list_sessions()).sessions) == 2


def test_an_id_that_is_kept_is_not_of_the_future() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    moments = (now, now + timedelta(minutes=5))
    ids = [SortableIds(lambda at=at: int(at.timestamp() * 10**9))("ses") for at in moments]
    now_ms = int(now.timestamp() * 1000)
    assert form_problem("ses", ids[0], now_ms=now_ms) is None
    assert form_problem("ses", ids[1], now_ms=now_ms) is not None
    assert form_problem("run", ids[0], now_ms=now_ms) is not None
    assert form_problem("ses", ids[0].upper(), now_ms=now_ms) is not None
