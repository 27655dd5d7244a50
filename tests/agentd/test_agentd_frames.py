"""What clients send to a stream: heads, WebSocket frames, cursors. Each bad one gets its error or close code.

None leaves a traceback in the log, disturbs another reader or stays in memory.
"""

import json
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import psutil
from attrs import define, field
from serving import Process, agentd
from websockets.sync.client import connect

TOKEN = "correct-horse-battery-staple-and-more"
BEARER = f"Authorization: Bearer {TOKEN}\r\n".encode()
UPGRADE = (
    b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"Sec-WebSocket-Version: 13\r\n"
)
HOST = b"Host: 127.0.0.1\r\n"
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
MOST_BYTES = 32 * 2**20
"""By how much the daemon may grow."""


def frame(opcode: int, data: bytes = b"", *, is_last: bool = True, masked: int = 0x80) -> bytes:
    """Return a frame of a client."""
    length = (
        bytes([masked | len(data)])
        if len(data) < 126
        else bytes([masked | 126]) + struct.pack(">H", len(data))
        if len(data) < 2**16
        else bytes([masked | 127]) + struct.pack(">Q", len(data))
    )
    return bytes([opcode | 0x80 * is_last]) + length + (bytes(4) if masked else b"") + data


def text(data: bytes) -> bytes:
    return frame(TEXT, data)


def auth(**fields: Any) -> bytes:
    return text(json.dumps({"type": "auth", "token": "a", **fields}).encode())


REFUSED = (4400, "invalid_request", ["frame"])
UNAUTHORIZED = (4401, "unauthorized", None)

FIRST = {
    "empty": (text(b""), REFUSED),
    "empty and binary": (frame(BINARY), REFUSED),
    "binary": (frame(BINARY, b"\xff\0"), REFUSED),
    "not JSON": (text(b"hello"), REFUSED),
    "NUL": (text(b"\0"), REFUSED),
    "two values": (text(b'{"type":"auth"}{}'), REFUSED),
    "a key twice": (text(b'{"type":"auth","token":"a","token":"b"}'), REFUSED),
    "NaN": (text(b'{"type":"auth","token":NaN}'), REFUSED),
    "as many bytes as are allowed": (text("é".encode() * 2_048), REFUSED),
    "digits": (text(b'{"type":"auth","token":' + b"9" * 3000 + b"}"), REFUSED),
    "nested": (text(b"[" * 2000 + b"]" * 2000), REFUSED),
    "infinite": (text(b'{"type":"auth","token":1e999}'), UNAUTHORIZED),
    "a list": (text(b"[]"), UNAUTHORIZED),
    "a text": (text(b'"auth"'), UNAUTHORIZED),
    "null": (text(b"null"), UNAUTHORIZED),
    "no type": (text(b'{"token":"a"}'), UNAUTHORIZED),
    "no token": (text(b'{"type":"auth"}'), UNAUTHORIZED),
    "another type": (auth(type="subscribe", sessionId="ses_1"), UNAUTHORIZED),
    "a list as type": (auth(type=["auth"]), UNAUTHORIZED),
    "null as token": (auth(token=None), UNAUTHORIZED),
    "an object as token": (auth(token={"token": "a"}), UNAUTHORIZED),
    "an empty token": (auth(token=""), UNAUTHORIZED),
    "half a surrogate pair": (auth(token="\ud800"), UNAUTHORIZED),
    "NUL in a token": (auth(token=f"{TOKEN}\0"), UNAUTHORIZED),
}
"""First messages of a caller without a token, with close code, error and its fields."""

TOO_LONG = (1009, None, None)
WRONG = (1002, None, None)
NOT_UTF8 = (1007, None, None)

INVALID = {
    "a long text": (text(b"a" * (2**20 + 1)), TOO_LONG),
    "more bytes than characters": (text("é".encode() * 2_049), TOO_LONG),
    "more bytes than characters, in parts": (
        frame(TEXT, "é".encode() * 1_000, is_last=False) + frame(0, "é".encode() * 1_049),
        TOO_LONG,
    ),
    "very nested": (text(b"[" * 100_000), TOO_LONG),
    "parts without an end": (
        frame(TEXT, b"a", is_last=False) + frame(0, b"a" * 100, is_last=False) * 50,
        TOO_LONG,
    ),
    "text that is not UTF-8": (text(b"\xff"), NOT_UTF8),
    "half a surrogate pair in UTF-8": (text(b"\xed\xa0\x80"), NOT_UTF8),
    "a cut character": (text("é".encode()[:1]), NOT_UTF8),
    "an unknown opcode": (frame(3, b"a"), WRONG),
    "an unknown control opcode": (frame(11, b"a"), WRONG),
    "no mask": (frame(TEXT, b"a", masked=0), WRONG),
    "a reserved bit": (b"\xc1" + text(b"a")[1:], WRONG),
    "a part of nothing": (frame(0, b"a"), WRONG),
    "a message in a message": (frame(TEXT, b"a", is_last=False) + text(b"a"), WRONG),
    "a ping in parts": (frame(PING, b"a", is_last=False), WRONG),
    "a long ping": (frame(PING, b"a" * 126), WRONG),
    "a short length in two bytes": (b"\x81\xfe\0\1" + bytes(4) + b"a", WRONG),
    "a negative length": (b"\x81\xff" + b"\xff" * 8 + bytes(4), WRONG),
    "half a close code": (frame(CLOSE, b"\3"), WRONG),
    "a close code that is none": (frame(CLOSE, struct.pack(">H", 999)), WRONG),
    "a close code that is not sent": (frame(CLOSE, struct.pack(">H", 1006)), WRONG),
    "a reason that is not UTF-8": (frame(CLOSE, struct.pack(">H", 1000) + b"\xff"), NOT_UTF8),
}
"""Frames that are not valid, of any caller."""

HEADS = {
    "a subprotocol that is not ASCII": (
        b"GET /stream HTTP/1.1\r\n" + HOST + UPGRADE + b"Sec-WebSocket-Protocol: b\xe9arer\r\n",
        400,
    ),
    "a connection that is not ASCII": (
        b"GET /stream HTTP/1.1\r\n" + HOST + UPGRADE.replace(b"n: Upgrade", b"n: Upgrade,\xe9"),
        400,
    ),
    "an extension without a number": (
        b"GET /stream HTTP/1.1\r\n"
        + HOST
        + UPGRADE
        + b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits=x\r\n",
        101,
    ),
    "an extension that is not ASCII": (
        b"GET /stream HTTP/1.1\r\n" + HOST + UPGRADE + b"Sec-WebSocket-Extensions: \xe9\r\n",
        101,
    ),
    "no path": (b"GET ?a=b HTTP/1.1\r\n" + HOST, 400),
    "no path of a WebSocket": (b"GET ?a=b HTTP/1.1\r\n" + HOST + UPGRADE, 400),
    "half an address": (b"GET http://[ HTTP/1.1\r\nHost: [\r\n", 400),
    "half an address of a WebSocket": (b"GET http://[ HTTP/1.1\r\nHost: [\r\n" + UPGRADE, 400),
    "an escaped host": (b"GET http://%E2%84%80/ HTTP/1.1\r\nHost: %E2%84%80\r\n", 400),
    "a host with an empty label": (b"GET /sessions HTTP/1.1\r\nHost: a..b\r\n", 421),
    "a host of a dot": (b"GET /health HTTP/1.1\r\nHost: .\r\n", 421),
    "a long label": (b"GET /stream HTTP/1.1\r\nHost: " + b"a" * 64 + b"\r\n" + UPGRADE, 421),
}
"""Heads of callers without a token, and the status of their answer."""

ELSEWHERE = f"5.{'0' * 12}"
"""A cursor of another store."""

CURSORS: dict[str, tuple[str, bytes | None, int, str, list[str] | None]] = {
    "a word": ("sessionId={session}&cursor=x", None, 400, "invalid_request", ["cursor"]),
    "negative": ("sessionId={session}&cursor=-1", None, 400, "invalid_request", ["cursor"]),
    "a float": ("sessionId={session}&cursor=1e3", None, 400, "invalid_request", ["cursor"]),
    "NUL": ("sessionId={session}&cursor=%00", None, 400, "invalid_request", ["cursor"]),
    "digits of another script": ("sessionId={session}&cursor=%D9%A3", None, 400, "invalid_request", ["cursor"]),
    "many digits": (f"sessionId={{session}}&cursor={'9' * 5000}", None, 400, "invalid_request", ["cursor"]),
    "two": ("sessionId={session}&cursor=1&cursor=2", None, 400, "invalid_request", ["cursor"]),
    "beyond the end": ("sessionId={session}&cursor=99", None, 409, "cursor_ahead", None),
    "an opaque one of one session": (f"sessionId={{session}}&cursor={ELSEWHERE}", None, 400, "invalid_request", ["cursor"]),
    "of another store": (f"cursor={ELSEWHERE}", None, 409, "cursor_ahead", None),
    "cut": ("cursor=1.", None, 400, "invalid_request", ["cursor"]),
    "a long one": (f"cursor={'9' * 5000}", None, 400, "invalid_request", ["cursor"]),
    "a header": ("sessionId={session}&cursor=1", b"x", 400, "invalid_request", ["cursor"]),
    "a header with two": ("sessionId={session}", b"1, 2", 400, "invalid_request", ["cursor"]),
    "a header that is not ASCII": ("sessionId={session}", b"\xd9\xa3", 400, "invalid_request", ["cursor"]),
    "a header that is not UTF-8": ("", b"\xff", 400, "invalid_request", ["cursor"]),
    "a long header": ("", b"9" * 10_000, 400, "invalid_request", ["cursor"]),
    "a header of another store": ("", ELSEWHERE.encode(), 409, "cursor_ahead", None),
    "an empty epoch": ("sessionId={session}&epoch=", None, 400, "invalid_request", ["epoch"]),
    "a long epoch": (f"sessionId={{session}}&epoch={'a' * 5000}", None, 400, "invalid_request", ["epoch"]),
    "an unknown parameter": ("limit=1", None, 400, "invalid_request", ["limit"]),
    "an empty session": ("sessionId=", None, 400, "invalid_request", ["sessionId"]),
    "a long session": (f"sessionId={'a' * 5000}", None, 400, "invalid_request", ["sessionId"]),
    "NUL as session": ("sessionId=%00", None, 404, "not_found", None),
    "half a surrogate pair": ("sessionId=%ED%A0%80", None, 400, "invalid_request", ["query"]),
    "many sessions": ("&".join(f"sessionId=s{n}" for n in range(101)), None, 400, "invalid_request", ["sessionId"]),
}  # fmt: skip
"""Queries and ``Last-Event-ID`` of a reader, with status, error and its fields."""

_places = count(1)


@define
class Line:
    """A connection. Each has an address for itself, so that none is locked out."""

    connection: socket.socket
    _unread: bytearray = field(factory=bytearray)

    @classmethod
    @contextmanager
    def to(cls, daemon: Process, head: bytes) -> Iterator["Line"]:
        host, _, port = daemon.url.partition("://")[2].rpartition(":")
        source = (f"127.0.2.{next(_places) % 250 + 1}", 0)
        with socket.create_connection((host, int(port)), 60, source) as connection:
            connection.sendall(head + b"\r\n")
            yield cls(connection)

    def take(self, size: int) -> bytes:
        """Return the next bytes.

        :raises EOFError: if they do not come.
        """
        while len(self._unread) < size:
            with suppress(ConnectionError):
                if part := self.connection.recv(65536):
                    self._unread += part
                    continue
            raise EOFError(bytes(self._unread))
        found = bytes(self._unread[:size])
        del self._unread[:size]
        return found

    def answer(self) -> tuple[int, bytes]:
        """Return status and body of an answer; that of an upgrade has no body."""
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += self.take(1)
        status = int(head.split(b" ", 2)[1])
        lengths = [
            int(line.partition(b":")[2])
            for line in head.splitlines()
            if line.lower().startswith(b"content-length:")
        ]
        return status, self.take(lengths[0]) if lengths else b""

    def frame(self) -> tuple[int, bytes]:
        """Return opcode and data of the next frame."""
        first, length = self.take(2)
        if length >= 126:
            length = int.from_bytes(self.take(2 if length == 126 else 8), "big")
        return first & 15, self.take(length)

    def end(self) -> tuple[int | None, str | None, list[str] | None]:
        """Return the close code, and code and fields of the error before it, if there is one."""
        code = fields = None
        while True:
            opcode, data = self.frame()
            if opcode == CLOSE:
                return int.from_bytes(data[:2], "big"), code, fields
            if opcode == TEXT and (message := json.loads(data))["type"] == "error":
                code, fields = code_and_fields(message)


def code_and_fields(body: Any) -> tuple[str, list[str] | None]:
    fields = body["error"]["details"].get("fields")
    return body["error"]["code"], None if fields is None else list(fields)


def stream(query: str = "", more: bytes = b"") -> bytes:
    """Return the head of a request for a stream, without the line that ends it."""
    return b"GET /stream" + (f"?{query}" if query else "").encode() + b" HTTP/1.1\r\n" + HOST + more


@contextmanager
def undisturbed(directory: Path) -> Iterator[tuple[Process, str]]:
    """Run a daemon with a session and a reader, who must get each event whatever others send."""
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with (
        agentd(directory, "--db", "a.db", "--auth-token", TOKEN) as daemon,
        httpx.Client(base_url=daemon.url, headers=headers, timeout=60) as client,
    ):
        made = client.post("/sessions", json={"provider": "manual"})
        session = str(made.json()["session"]["id"])
        url = f"{daemon.url.replace('http', 'ws')}/stream?sessionId={session}"
        with connect(url, additional_headers=headers) as reader:
            assert [json.loads(reader.recv(60))["type"] for _ in range(2)] == ["event", "caught_up"]
            began = psutil.Process(daemon.pid).memory_info().rss
            yield daemon, session
            assert client.get("/health").status_code == 200
            changed = client.patch(f"/sessions/{session}", json={"title": "new"})
            assert changed.status_code == 200, changed.text
            while (message := json.loads(reader.recv(60)))["type"] == "ping":
                pass
            assert message["event"]["event_type"] == "session.updated"
            grown = psutil.Process(daemon.pid).memory_info().rss - began
        log = daemon.stderr()
        assert "Traceback" not in log, log[:5000]
        assert not [line for line in daemon.log() if line["level"] == "error"]
        assert grown < MOST_BYTES


def test_bad_first_messages_are_refused(tmp_path: Path) -> None:
    found = {}
    with undisturbed(tmp_path) as (daemon, _):
        for name, (sent, _) in (FIRST | INVALID).items():
            with Line.to(daemon, stream(more=UPGRADE)) as line:
                assert line.answer()[0] == 101
                with suppress(OSError):  # the daemon may have closed it
                    line.connection.sendall(sent)
                found[name] = line.end()
    assert found == {name: expected for name, (_, expected) in (FIRST | INVALID).items()}


def test_invalid_frames_end_a_reader_and_other_messages_are_ignored(tmp_path: Path) -> None:
    found = {}
    with undisturbed(tmp_path) as (daemon, session):
        head = stream(f"sessionId={session}", UPGRADE + BEARER)
        for name, (sent, _) in INVALID.items():
            with Line.to(daemon, head) as line:
                assert line.answer()[0] == 101
                with suppress(OSError):
                    line.connection.sendall(sent)
                found[name] = line.end()
        with Line.to(daemon, head) as line:
            assert line.answer()[0] == 101
            for sent, _ in FIRST.values():
                line.connection.sendall(sent)
            line.connection.sendall(frame(PONG, b"none asked") + frame(PING, b"there?"))
            while (said := line.frame())[0] != PONG:
                assert json.loads(said[1])["type"] in ("event", "caught_up", "ping")
            assert said[1] == b"there?"
            line.connection.sendall(frame(CLOSE, struct.pack(">H", 4999) + b"bye") + text(b"late"))
            assert line.end() == (4999, None, None)
    assert found == {name: expected for name, (_, expected) in INVALID.items()}


def test_bad_heads_are_refused(tmp_path: Path) -> None:
    found = {}
    with undisturbed(tmp_path) as (daemon, _):
        for name, (head, _) in HEADS.items():
            with Line.to(daemon, head) as line:
                found[name] = line.answer()[0]
    assert found == {name: status for name, (_, status) in HEADS.items()}


def test_bad_cursors_are_refused_in_both_streams(tmp_path: Path) -> None:
    found = {}
    with undisturbed(tmp_path) as (daemon, session):
        for name, (query, last, *_) in CURSORS.items():
            more = BEARER if last is None else BEARER + b"Last-Event-ID: " + last + b"\r\n"
            head = stream(query.format(session=session), more)
            with Line.to(daemon, head) as line:
                status, body = line.answer()
            with Line.to(daemon, head + UPGRADE) as line:
                assert line.answer()[0] == 101
                close, *refused = line.end()
            assert list(code_and_fields(json.loads(body))) == refused, name
            assert close == 4000 + status, name
            found[name] = (status, *refused)
    assert found == {name: tuple(expected) for name, (_, _, *expected) in CURSORS.items()}
