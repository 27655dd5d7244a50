"""An agent's own record of a conversation, which anybody may have written."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
import pytest
from attrs import define, field
from loops import ON_ONE_LOOP

from agent_orchestrator.domain.errors import AgentFailed
from agent_orchestrator.domain.model import Thread, Usage
from agent_orchestrator.runners import record
from agent_orchestrator.runners.events import AgentEvent, JsonObject, UnexpectedShape, agent_event
from agent_orchestrator.runners.lines import MAX_LINE
from agent_orchestrator.testing.runners import RecordingContext

pytestmark = [pytest.mark.anyio, ON_ONE_LOOP]

PATH = Path("sessions/one.jsonl")


@define
class Reader:
    """Says each text of a record."""

    usage: Usage | None = None
    answer: str = ""
    state: Mapping[str, Any] = field(factory=dict)

    def feed(self, entry: JsonObject) -> list[AgentEvent]:
        if "text" not in entry:
            raise UnexpectedShape
        self.answer = entry["text"]
        return [agent_event("agent.message", text=self.answer)] if self.answer else []

    def finish(self) -> list[AgentEvent]:
        return []


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home/sessions").mkdir(parents=True)
    return (tmp_path / "home").resolve()


def entry(text: str, **more: Any) -> bytes:
    return json.dumps({"text": text, **more}).encode() + b"\n"


async def replayed(home: Path, *, state: Mapping[str, Any] | None = None) -> RecordingContext:
    context = RecordingContext("", cwd=home, thread=Thread("t", dict(state or {})))
    with anyio.fail_after(60):
        await record.replay(context, home, PATH, Reader())
    return context


def texts(context: RecordingContext) -> list[str]:
    return [data["text"] for kind, data in context.events if kind == "agent.message"]


def problems(context: RecordingContext) -> list[str]:
    return [data["message"] for kind, data in context.events if kind == "run.error"]


async def test_a_record_is_read_from_a_position_to_its_end(home: Path) -> None:
    first, second = entry("one", timestamp="2026-01-02T03:04:05.678Z"), entry("two")
    (home / PATH).write_bytes(first + second)
    context = await replayed(home, state={"kept": 1})
    assert context.events == [
        ("agent.message", {"text": "one", "recorded_at": "2026-01-02T03:04:05.678Z"}),
        ("agent.message", {"text": "two", "recorded_at": None}),
    ]
    assert context.thread is not None
    assert context.thread.state == {"kept": 1, record.PLACE: len(first + second)}
    later = await replayed(home, state={record.PLACE: len(first)})
    assert texts(later) == ["two"]
    assert texts(await replayed(home, state=context.thread.state)) == []


async def test_an_entry_that_is_still_being_written_is_left_to_the_next_reading(home: Path) -> None:
    whole = entry("one") + entry("two")
    (home / PATH).write_bytes(whole[:-5])
    context = await replayed(home)
    assert texts(context) == ["one"]
    (home / PATH).write_bytes(whole)
    assert context.thread is not None
    assert texts(await replayed(home, state=context.thread.state)) == ["two"]


@pytest.mark.parametrize(
    "line",
    [
        b"no JSON at all",
        b"[]",
        b'"text"',
        b"\xff\xfe\x00",
        b'{"text": ',
        b'{"other": 1}',
        b'{"text": NaN' + b"1" * 500 + b"}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"text": "' + b"x" * (MAX_LINE + 10) + b'"}',
    ],
    ids=range(10),
)
async def test_an_entry_that_cannot_be_read_is_counted_and_passed_over(
    home: Path, line: bytes
) -> None:
    (home / PATH).write_bytes(entry("before") + line + b"\n\n" + entry("after"))
    context = await replayed(home)
    assert texts(context) == ["before", "after"]
    [problem] = problems(context)
    assert problem.startswith("1 entry ")
    assert context.thread is not None
    assert context.thread.state[record.PLACE] == (home / PATH).stat().st_size


async def test_control_characters_halves_of_characters_and_long_texts_are_kept(home: Path) -> None:
    odd = ["\x1b]0;title\x07\x00\x9b31m", "\ud800", "x" * 5_000_000, "\u2028line\u0085"]
    lines = [b'{"text": ' + json.dumps(text).encode() + b"}\n" for text in odd]
    (home / PATH).write_bytes(b"".join(lines))
    assert texts(await replayed(home)) == [odd[0], "\ufffd", odd[2], odd[3]]


@pytest.mark.parametrize("at", ["yesterday", "2026-01-02T03:04:05Z\x1b[2J", 7, {"a": 1}, "9" * 999])
async def test_an_invalid_time_is_left_out(home: Path, at: Any) -> None:
    (home / PATH).write_bytes(entry("one", timestamp=at))
    context = await replayed(home)
    assert [data["recorded_at"] for _, data in context.events] == [None]


async def test_a_record_that_was_replaced_by_a_shorter_one_is_not_read(home: Path) -> None:
    (home / PATH).write_bytes(entry("other"))
    with pytest.raises(AgentFailed, match="shorter") as caught:
        await replayed(home, state={record.PLACE: 10_000})
    assert caught.value.code == "thread_missing"


@pytest.mark.parametrize("kind", ["link", "linked directory", "pipe", "directory", "missing"])
async def test_only_a_regular_file_below_the_home_is_read(
    home: Path, tmp_path: Path, kind: str
) -> None:
    secret = tmp_path / "secrets"
    secret.mkdir()
    (secret / PATH.name).write_bytes(entry("secret"))
    match kind:
        case "link":
            (home / PATH).symlink_to(secret / PATH.name)
        case "linked directory":
            (home / "sessions").rmdir()
            (home / "sessions").symlink_to(secret)
        case "pipe":
            os.mkfifo(home / PATH)
        case "directory":
            (home / PATH).mkdir()
    with pytest.raises(AgentFailed) as caught:
        await replayed(home)
    assert caught.value.code == "thread_missing"
    with pytest.raises(OSError):
        record.size_of(home, PATH)


def test_the_latest_record_of_a_directory_is_found(home: Path, tmp_path: Path) -> None:
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    here.mkdir()
    for age, (name, cwd) in enumerate(
        [("a", elsewhere), ("b", here), ("c", here), ("d", "/\0"), ("e", 7)]
    ):
        path = home / f"sessions/{name}.jsonl"
        path.write_bytes(entry("one", cwd=cwd if isinstance(cwd, int) else str(cwd)))
        os.utime(path, (1e9 - age, 1e9 - age))

    def directory_of(home: Path, path: Path) -> str | None:
        found = next(record.last_entries(home, path)).get("cwd")
        return found if isinstance(found, str) else None

    paths = record.records(home, "sessions/*.jsonl")
    assert [path.stem for path in paths] == ["a", "b", "c", "d", "e"]
    assert record.latest_of(home, paths, str(here), directory_of) == Path("sessions/b.jsonl")
    assert record.latest_of(home, paths, str(tmp_path), directory_of) is None


def test_only_the_end_of_a_record_is_searched(home: Path) -> None:
    (home / PATH).write_bytes(entry("first") + entry("x" * 300_000) + entry("last", cwd="/x"))
    assert [one["text"] for one in record.last_entries(home, PATH)] == ["last"]
    assert record.first_entry(home, PATH) == {"text": "first"}
