import hashlib
import itertools
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_orchestrator.runners.lines import Line, LineFramer, Truncation, json_object


def framed(chunks, **options):
    framer = LineFramer(**options)
    lines = [line for chunk in chunks for line in framer.feed(chunk)]
    return lines + list(framer.finish())


def expected(data: bytes) -> list[bytes]:
    lines = data.split(b"\n")
    return lines if lines[-1] else lines[:-1]


streams = st.lists(st.sampled_from([b"\n", b"a", b"\r", "\u2028".encode(), b"\x85", b"\0"])).map(
    b"".join
)


@given(streams, st.data())
def test_every_split_gives_the_same_lines(data, draw):
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(data)), max_size=6)))
    borders = [0, *cuts, len(data)]
    chunks = [data[a:b] for a, b in itertools.pairwise(borders)]
    assert [line.data for line in framed(chunks)] == expected(data)


@given(streams, st.integers(1, 6), st.integers(0, 3), st.integers(1, 5))
def test_a_line_over_the_limit_keeps_its_beginning_size_and_digest(data, cap, head, width):
    head = min(head, cap)
    chunks = [data[i : i + width] for i in range(0, len(data), width)]
    wanted = [
        Line(whole)
        if len(whole) <= cap
        else Line(whole[:head], Truncation(len(whole), hashlib.sha256(whole).hexdigest()))
        for whole in expected(data)
    ]
    assert framed(chunks, max_line=cap, head=head) == wanted


def test_a_huge_line_takes_linear_time():
    def seconds(size):
        chunk = b"x" * 65536
        began = time.thread_time()
        [line] = framed([chunk] * (size // 65536))
        assert len(line.data) == size
        return time.thread_time() - began

    seconds(2**22)  # warm up
    small, large = min(seconds(2**24) for _ in range(3)), seconds(2**26 - 2**16)
    assert large < 4 * 5 * small + 0.05


def test_a_million_tiny_lines_are_read_in_seconds():
    began = time.thread_time()
    assert len(framed([b"tiny\n" * 10_000] * 100)) == 1_000_000
    assert time.thread_time() - began < 10


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b'{"a": 1}', {"a": 1}),
        (b'  {"a": 1}\r', {"a": 1}),
        (b'{"t": "\\ud83d\\ude00 \\ud83d"}', {"t": "😀 \ufffd"}),
        (b'{"\\udc00": ["\\ud800"]}', {"\ufffd": ["\ufffd"]}),
        (b'{"t": "caf\xe9"}', {"t": "caf\ufffd"}),
        (b'{"n": NaN, "i": -Infinity, "x": 1e999}', {"n": "NaN", "i": "-Infinity", "x": "1e999"}),
        ('{"t": "a\u2028b"}'.encode(), {"t": "a\u2028b"}),
        (b'{"n": %s, "m": %s}' % (b"9" * 9999, b"9" * 100), {"n": "9" * 9999, "m": int("9" * 100)}),
    ],
)
def test_objects_are_read_and_made_storable(data, value):
    found = json_object(data)
    assert found == value
    json.dumps(found, allow_nan=False, ensure_ascii=False).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"text",
        b"[1]",
        b"1",
        b'"s"',
        b"{",
        b'{"a":}',
        b'{"a":' * 100_000,
    ],
)
def test_a_line_that_is_not_a_json_object_is_none(data):
    assert json_object(data) is None
