"""What agents and servers send, at size and in the worst shapes, as agentctl shows it.

Twice the text takes at most 2.5 times the processor time, nothing ends in a traceback.
"""

import gzip
import json
import os
import socket
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
from pace import is_linear

from agent_orchestrator.domain.events import EventType
from agent_orchestrator.domain.model import Event
from agentctl import terminal
from agentctl.console import screen_lines
from agentctl.diffs import changes_of, diff_blocks
from agentctl.document import Card, Column, Table, Text, plain_lines
from agentctl.event_text import activity_of, bare_command
from agentctl.failures import EXIT_CODES, FAILED
from agentctl.main import invoke
from agentctl.output import Output, compact
from agentctl.settings import CallSettings
from agentctl.transcript import Transcript

SESSION: Final = f"ses_{0:026}"
"""A whole id, which is not looked up."""

SIZE: Final = 10_000

UNITS: Final = {
    "letters": "x",
    "words": "ab ",
    "spaces": " ",
    "tabs": "\t",
    "tabs and letters": "\ta",
    "no-break spaces": "\xa0",
    "lines": "\n",
    "carriage returns": "\r",
    "line separators": "\u2028",
    "C1 line ends": "\x85",
    "escapes": "\x1b",
    "CSI": "\x1b[",
    "CSI with parameters": "\x1b[0;",
    "OSC": "\x1b]",
    "OSC in C1": "\x9d",
    "DCS in C1": "\x90a",
    "string ends in C1": "\x9c",
    "NUL": "\0",
    "DEL": "\x7f",
    "half pairs": "\ud800",
    "emoji": "\U0001f600",
    "wide": "中",
    "combining": "e\u0301",
    "joiners": "\u200d",
    "right to left": "\u202e",
    "quotes": "'",
    "backslashes": "\\",
    "hunks": "@@ -1 +1 @@\n",
    "digits": "@@ -1,9",
    "shells": "sh -c ",
}
COLUMNS: Final = [Column("A", lambda row: row[0], flexible=True), Column("B", lambda row: row[1])]


def blocks_of(text: str) -> list[Any]:
    card = Card(Text("title"), [("name", text), ("other", Text(text, fit=True))])
    return [
        Text("    " + text + " x"),
        Text(text, reveal=True),
        card,
        Table(COLUMNS, [[text, text]]),
    ]


SHOWN: Final[dict[str, Callable[[str], Any]]] = {
    "clean": terminal.clean,
    "revealed": terminal.revealed,
    "one line": terminal.one_line,
    "width": terminal.width,
    "in a pipe": lambda text: [*plain_lines(blocks_of(text))],
    "on a terminal": lambda text: screen_lines(blocks_of(text), 80),
    "JSON": compact,
    "a command": bare_command,
    "a diff": lambda text: diff_blocks(changes_of({"changes": [{"kind": "update", "diff": text}]})),
}


def test_the_check_for_linear_time_detects_cubic_time() -> None:
    # Eight times as long: no busy moment makes that look like less than three.
    assert not is_linear(lambda size: lambda: [None for _ in range((size // 180) ** 3)], SIZE)


@pytest.mark.parametrize("shown", SHOWN)
def test_showing_a_text_takes_linear_time(shown: str) -> None:
    def is_slow(unit: str) -> bool:
        return not is_linear(lambda size: partial(SHOWN[shown], unit * (size // len(unit))), SIZE)

    assert [name for name, unit in UNITS.items() if is_slow(unit)] == []


# --- events ---------------------------------------------------------------------------------


class Everything(dict[str, Any]):
    """The data of an event that has the same value in whatever field is looked for."""

    def __init__(self, value: object) -> None:
        super().__init__(field=value)
        self.value = value

    def get(self, _name: str, _default: object = None) -> Any:
        return self.value

    def __getitem__(self, _: str) -> Any:
        return self.value

    def __contains__(self, _: object) -> bool:
        return True


def event(event_type: str, data: dict[str, Any]) -> Event:
    return Event(1, "ses_1", "run_1", 1, event_type, data, datetime(2026, 1, 1, tzinfo=UTC))


def nested(depth: int) -> Any:
    value: Any = {}
    for _ in range(depth):
        value = {"a": [value]}
    return value


TYPES: Final = [*EventType, "some.other"]
VALUES: Final[dict[str, Any]] = {
    "text": "x",
    "digits": "9" * 5_000,
    "a long hunk": f"@@ -1,{'9' * 5000} +1 @@\n-a\n+b",
    "a number": 10**90,
    "a negative": -(10**90),
    "a fraction": 1e308,
    "true": True,
    "nothing": None,
    "lists": [1, "a", None, {}, []],
    "an empty object": {},
    "nested": nested(100),
    "objects of text": Everything("t"),
    "lists of objects": [Everything(5), Everything("t"), Everything([None])],
    "objects of lists": Everything([Everything(5)]),
    "objects of objects": Everything(Everything([3])),
    "a long hunk of a file": [Everything(f"@@ -1,{'9' * 5000} +1 @@\n-a\n+b")],
}


@pytest.mark.parametrize("event_type", TYPES)
def test_any_value_in_an_event_can_be_shown(event_type: str) -> None:
    for value in VALUES.values():
        told = event(event_type, Everything(value))
        transcript = Transcript(diffs=True)
        blocks = [*transcript.entries(told), *transcript.entries(told)]
        assert isinstance("".join(plain_lines(blocks)), str)
        assert isinstance("".join(screen_lines(blocks, 80)), str)
        activity_of(told)


@pytest.mark.parametrize("unit", ["letters", "spaces", "OSC in C1", "emoji"])
def test_a_long_event_of_each_type_takes_linear_time(unit: str) -> None:
    def telling(event_type: str, size: int) -> Callable[[], object]:
        text = UNITS[unit] * (size // len(UNITS[unit]))
        told = event(event_type, Everything(text))
        listed = event(event_type, Everything([Everything(text)]))
        return lambda: [
            [*plain_lines(Transcript().entries(told))],
            screen_lines(Transcript(diffs=True).entries(listed), 80),
        ]

    assert [one for one in TYPES if not is_linear(partial(telling, one), SIZE)] == []


def test_one_wide_cell_does_not_widen_all_rows() -> None:
    rows = [["x" * 100_000, "b"], *[["a", "b"]] * 1000]
    lines = [*plain_lines([Table(COLUMNS, rows)])]
    assert len(lines) == 1002
    assert sum(map(len, lines)) < 100_000 + 1_000 * 400
    assert lines[1].split()[0] == rows[0][0]  # an id can always be copied


def test_long_lines_are_written_without_copies_of_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    size = 4 * 2**20
    lines = ["a", "x" * size, "", "中" * (size // 3), "b"]
    with (tmp_path / "out").open("w", encoding="utf-8") as file:
        monkeypatch.setattr(sys, "stdout", file)
        output = Output(CallSettings())
        tracemalloc.start()
        output.lines(lines)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert (tmp_path / "out").read_text() == "".join(f"{line}\n" for line in lines)
    assert peak < size


# --- a server that is none ------------------------------------------------------------------


@contextmanager
def answering(answer: bytes) -> Iterator[str]:
    """Serve this answer to every request; yield the URL."""

    def talk() -> None:
        with suppress(OSError):
            while True:
                line, _ = listener.accept()
                with line:
                    line.recv(65536)
                    with suppress(OSError):
                        line.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=talk)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def whole(body: bytes, *lines: bytes, status: bytes = b"200 OK") -> bytes:
    head = [b"HTTP/1.1 " + status, b"Connection: close", b"Content-Length: %d" % len(body), *lines]
    return b"\r\n".join([*head, b"", body])


def page(depth: int) -> bytes:
    """Return a page of events, one of which has deep data."""
    made = {"seq": 1, "session_id": "s", "run_id": None, "attempt": None, "event_type": "x"}
    deep = b'{"a":' * depth + b"0" + b"}" * depth
    time = b'"created_at":"2026-01-01T00:00:00Z"'
    one = json.dumps(made).encode()[:-1] + b',"data":' + deep + b"," + time + b"}"
    return b'{"events":[' + one + b'],"next_cursor":1}'


ANSWERS: Final[dict[str, tuple[bytes, set[int]]]] = {
    "deep": (whole(page(100_000)), {FAILED}),
    "a bomb": (whole(gzip.compress(b" " * 10**7), b"Content-Encoding: gzip"), {FAILED}),
    "values": (whole(b'{"events":[' + b"[]," * 100_000 + b"0]}"), {FAILED}),
    "a long refusal": (
        whole(
            json.dumps({"error": {"code": "x", "message": "\x1b]0;a\x9d" * 10**5}}).encode(),
            status=b"409 Conflict",
        ),
        {*EXIT_CODES.values()},
    ),
}


@pytest.mark.parametrize("format_", ["text", "json"])
@pytest.mark.parametrize("shape", ANSWERS)
def test_a_hostile_answer_of_the_daemon_is_a_one_line_error(
    shape: str, format_: str, capsys: pytest.CaptureFixture[str]
) -> None:
    answer, codes = ANSWERS[shape]
    with answering(answer) as url:
        found = invoke(
            ["--url", url, "--format", format_, "events", "list", SESSION, "--limit", "1"]
        )
    assert found in codes
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "Traceback" not in told
    assert told.isprintable() or told[:-1].isprintable()


@pytest.mark.parametrize("format_", ["text", "json"])
def test_deep_data_is_shown_or_refused(format_: str, capsys: pytest.CaptureFixture[str]) -> None:
    for depth in (30, 300, 600, 800, 850, 900, 925, 950, 975, 1000, 5_000):
        with answering(whole(page(depth))) as url:
            found = invoke(
                ["--url", url, "--format", format_, "events", "list", SESSION, "--limit", "1"]
            )
        out, told = capsys.readouterr()
        assert found in (0, FAILED)
        assert ('"a"' in out) == (found == 0)
        assert told.count("\n") == found
        assert depth > 30 or found == 0


MEMORY: Final = 4
LARGE: Final = 2**19


def told(text: str) -> bytes:
    """Return a page with an event that holds a text."""
    made = {"seq": 1, "session_id": "s", "run_id": None, "attempt": None}
    made |= {"event_type": "agent.message", "data": {"text": text}}
    made |= {"created_at": "2026-01-01T00:00:00Z"}
    return json.dumps({"events": [made], "next_cursor": 1}, ensure_ascii=False).encode()


@pytest.mark.parametrize(
    ("unit", "format_"),
    [
        *((unit, "text") for unit in ("x", "ab ", "ab\n", "\n", "\t", "\x85", "\x85a", "\u2028")),
        *((unit, form) for unit in ("中", "\x01") for form in ("text", "json")),
        *((unit, "json") for unit in ("x", "ab\n")),
    ],
)
def test_an_answer_takes_little_memory(
    unit: str, format_: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = unit * (LARGE // len(unit.encode()))
    with open(os.devnull, "w", encoding="utf-8") as nowhere:  # noqa: PTH123
        monkeypatch.setattr(sys, "stdout", nowhere)
        body = told(text)
        with answering(whole(told("x"))) as url:  # loads modules, which are not measured
            assert invoke(["--url", url, "--format", format_, "events", "list", SESSION]) == 0
        with answering(whole(body)) as url:
            tracemalloc.start()
            found = invoke(["--url", url, "--format", format_, "events", "list", SESSION])
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
    assert found == 0
    # Python reserves four bytes for each of a text while it decodes it, and uses few of them.
    assert peak < MEMORY * len(body) + 2 * LARGE
