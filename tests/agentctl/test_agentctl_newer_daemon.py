"""agentctl and a daemon of a later version, whose answers have more fields, words and events."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, ClassVar

import httpx
import pytest
from attrs import frozen
from driving import Ctl, Daemon

MORE = {"came_later": {"list": [1, {"came_later": None}]}}


def properties(document: Any) -> Iterator[tuple[str, Any]]:
    """Yield the properties of all schemas in a document."""
    if isinstance(document, dict):
        yield from document.get("properties", {}).items()
        for inner in document.values():
            yield from properties(inner)
    elif isinstance(document, list):
        for inner in document:
            yield from properties(inner)


@frozen
class Version:
    """What a later version adds.

    :param words: fields whose values become unknown words.
    :param maps: fields whose objects have any names, so that a further name would be data.
    """

    maps: frozenset[str]
    words: frozenset[str] = frozenset()

    def answer(self, value: Any) -> Any:
        """Return an answer of this version."""
        if isinstance(value, list):
            return [self.answer(one) for one in value]
        if not isinstance(value, dict):
            return value
        return {name: self.field(name, inner) for name, inner in value.items()} | MORE

    def field(self, name: str, value: Any) -> Any:
        if name in self.maps:
            return value
        if name in self.words and isinstance(value, str):
            return f"{value}_later"
        return self.answer(value)


class Later(BaseHTTPRequestHandler):
    """Passes requests on to a daemon, and makes its answers those of a later version."""

    protocol_version = "HTTP/1.1"
    port: ClassVar[int]
    version: ClassVar[Version]

    def do_GET(self) -> None:
        self.close_connection = True
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        upstream = HTTPConnection("127.0.0.1", self.port, timeout=60)
        own = {name: value for name, value in self.headers.items() if name != "Host"}
        upstream.request(self.command, self.path, body, own | {"Connection": "close"})
        answer = upstream.getresponse()
        kind = answer.headers.get_content_type()
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()
        if kind == "text/event-stream":
            self.wfile.write(b"event: later.kind\ndata: {}\n\n")
            for line in answer:
                with suppress(BrokenPipeError):
                    self.wfile.write(self.line(line))
                    self.wfile.flush()
        else:
            data = answer.read()
            is_json = kind.endswith("json") and data
            self.wfile.write(self.changed(data) if is_json else data)
        upstream.close()

    do_POST = do_GET  # noqa: N815 - the name that the base class looks for

    def line(self, line: bytes) -> bytes:
        is_json = line.startswith(b"data: {")
        return b"data: " + self.changed(line[6:]) + b"\n" if is_json else line

    def changed(self, data: bytes) -> bytes:
        return json.dumps(self.version.answer(json.loads(data))).encode()

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def later(daemon: Daemon, *, is_worded: bool = False) -> Iterator[Ctl]:
    """Return agentctl for the daemon as of a later version.

    :param is_worded: whether it has other words, too.
    """
    document = httpx.get(f"{daemon.ctl.url}/openapi.json", trust_env=False).json()
    words, maps = {"event_type"}, set()
    for name, schema in properties(document):
        if "enum" in schema or any("enum" in part for part in schema.get("anyOf", ())):
            words.add(name)
        if "object" in schema.get("type", ()) and "properties" not in schema:
            maps.add(name)
    assert {"status", "kind", "role", "code", "level"} <= words
    assert {"data", "metadata", "threads"} <= maps
    version = Version(frozenset(maps), frozenset(words if is_worded else ()))
    handler = type("Handler", (Later,), {"port": daemon.port, "version": version})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield Ctl(f"http://127.0.0.1:{server.server_port}", daemon.directory)
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def calls(shared: Daemon) -> list[list[str]]:
    """Calls that read what is there: a run that ended, one that failed, and one that asks."""
    ctl = shared.ctl
    session = ctl.field("session.id", "session", "create", "--title", "one")
    run = ctl.field("run.id", "message", "send", "--session-id", session, "--text", "hi", "--wait")
    failed = ctl("ask", "--provider", "bad", "--format", "json", "go").json["run"]["id"]
    with httpx.Client(base_url=ctl.url, trust_env=False) as client:
        made = client.post("/sessions", json={"provider": "manual"}).json()["session"]["id"]
        asking = client.post("/runs", json={"session_id": made}).json()["run"]["id"]
        question = {"text": "May I?", "request_kind": "approval_request"}
        asked = client.post(f"/runs/{asking}/reply-parent", json=question).json()["request"]["id"]
    ctl("session", "share", session, "--reader", "bob")
    lines = f"""
        session list
        session get {session}
        session share {session}
        session tree --session-id {session}
        message list --session-id {session}
        run get {run}
        run list
        run wait --run-id {run}
        run diagnose {run}
        run diagnose {failed}
        run diagnose {asking}
        request list --session-id {made}
        request show {asked}
        events list --session-id {session}
        events tail --session-id {session}
        events tail --session-id {made}
        daemon status
        provider list
        daemon check
        daemon audit
        doctor
    """
    return [line.split() for line in lines.strip().splitlines()]


def comparable(text: str) -> str:
    """Return a text without what changes from call to call."""
    text = re.sub(r"\bnow\b|\d+ (s|min|h) ago", "then", text)
    text = re.sub(r"\b\d[\d.]* (ms|s|min|h|d)( \d+ (s|min|h))?\b", "a while", text)
    return re.sub(r"\s+", " ", re.sub(r"\d+([.,]\d+)*", "0", text))


def test_unknown_fields_of_a_newer_daemon_do_not_change_the_output(
    shared: Daemon, calls: list[list[str]]
) -> None:
    with later(shared) as ctl:
        for call in calls:
            now, then = (one(*call) for one in (shared.ctl, ctl))
            assert (then.code, then.err) == (now.code, now.err), call
            assert comparable(then.out).replace(ctl.url, "") == comparable(now.out), call


def test_unknown_values_of_a_newer_daemon_are_shown(shared: Daemon, calls: list[list[str]]) -> None:
    shown = ""
    with later(shared, is_worded=True) as ctl:
        for call in calls:
            then = ctl(*call)
            assert then.out, (call, then)
            assert "Traceback" not in then.err, (call, then)
            # The outcome of a run that ended in an unknown way is no success.
            assert then.code == (1 if call[:2] == ["run", "wait"] else 0), (call, then)
            shown += then.out
    for word in ("open_later", "completed_later", "delivered_later", "pending_later"):
        assert word in shown


def test_ask_works_with_a_newer_daemon(shared: Daemon) -> None:
    with later(shared) as ctl:
        done = ctl("ask", "hello")
        assert (done.code, done.out.strip()) == (0, "hello"), done
        session = ctl.field("session.id", "session", "create")
        sent = ctl("message", "send", "--session-id", session, "--text", "hi", "--wait")
        assert sent.code == 0, sent
