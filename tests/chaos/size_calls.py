"""The call of each operation at its largest: with as much as may be given, or of as much as may be stored.

An operation that takes and returns only few short values has a reason instead. Its hostile bodies and queries are
sent by ``tests/agentd/test_agentd_sizes.py``, which makes them from the table of operations.
"""

import json
import subprocess
from collections.abc import Callable, Mapping
from typing import Any, Final

import httpx
from attrs import field, frozen
from tests.chaos.daemon import Daemon

TEXT: Final = 1_000_000
"""Characters of the longest text of a call."""

METADATA: Final = 60_000
"""Bytes of metadata or details of one object."""

PAGES: Final = 16 * 2**20
"""Bytes of stored objects: more than a page has."""

SMALL: Final = "takes and returns one object, or few, of bounded size"
HOST: Final = "asks the host, whose answer does not grow with what is said"


@frozen
class Site:
    """A daemon with what is stored, before a call.

    :param say: has the agent of chaos say a shape of a size; returns the ids of session and run.
    """

    daemon: Daemon
    client: httpx.Client
    say: Callable[[str], tuple[str, str]]

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Return the answer of a call that must succeed."""
        answer = self.client.post(path, json=dict(body or {}))
        assert answer.is_success, answer.text[:300]
        return answer.json()

    def session(self, **fields: Any) -> str:
        return str(self.post("/sessions", {"provider": "manual", **fields})["session"]["id"])

    def working(self, session: str) -> str:
        """Return a run of a session that has begun."""
        run = self.post("/runs", {"session_id": session})["run"]["id"]
        self.post(f"/runs/{run}/transition", {"to_status": "running"})
        return str(run)


@frozen
class Request:
    """A call.

    :param body: JSON; None for none.
    :param media_type: of the body.
    """

    path: str
    body: bytes | None = None
    method: str = "GET"
    media_type: str = "application/json"

    def raw(self, port: int, token: str) -> bytes:
        """Return its bytes on a connection."""
        head = (
            f"{self.method} {self.path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n"
            f"Authorization: Bearer {token}\r\n"
        )
        if self.body is not None:
            head += f"Content-Type: {self.media_type}\r\nContent-Length: {len(self.body)}\r\n"
        return f"{head}\r\n".encode() + (self.body or b"")


@frozen
class CallCase:
    """The largest call of an operation.

    :param full: its size in bytes, or that of what it reads.
    :param prepare: stores what it reads, about so many bytes, and returns the call.
    """

    operation: str
    full: int
    prepare: Callable[[Site, int], Request] = field(repr=False)

    @property
    def name(self) -> str:
        return f"{self.operation} of {self.full:,} bytes"


def _post(path: str, body: Mapping[str, Any]) -> Request:
    return Request(path, json.dumps(body, ensure_ascii=False).encode(), "POST")


def _text(size: int) -> str:
    return "中" * (size // 3)


def _create(site: Site, size: int) -> Request:
    return _post("/sessions", {"provider": "manual", "text": _text(size)})


def _send(site: Site, size: int) -> Request:
    return _post(f"/sessions/{site.session(provider='large')}/messages", {"text": _text(size)})


def _spawn_from_session(site: Site, size: int) -> Request:
    return _post(f"/sessions/{site.session()}/spawn", {"task": _text(size)})


def _spawn_from_run(site: Site, size: int) -> Request:
    return _post(f"/runs/{site.working(site.session())}/spawn", {"task": _text(size)})


def _send_to_session(site: Site, size: int) -> Request:
    return _post(f"/sessions/{site.session()}/send", {"text": _text(size)})


def _child(site: Site) -> str:
    """Return a run of a child that has begun."""
    spawned = site.post(f"/sessions/{site.session()}/spawn", {"task": "work"})
    site.post(f"/runs/{spawned['run']['id']}/transition", {"to_status": "running"})
    return str(spawned["run"]["id"])


def _reply(site: Site, size: int) -> Request:
    return _post(f"/runs/{_child(site)}/reply-parent", {"text": _text(size)})


def _ask(site: Site, run: str, text: str = "Well?") -> str:
    body = {"text": text, "request_kind": "input_request"}
    return str(site.post(f"/runs/{run}/reply-parent", body)["request"]["id"])


def _resolve(site: Site, size: int) -> Request:
    request = _ask(site, _child(site))
    return _post(f"/requests/{request}/resolve", {"decision": "answer", "text": _text(size)})


def _create_run(site: Site, size: int) -> Request:
    return _post("/runs", {"session_id": site.session(), "text": _text(size)})


def _transition(site: Site, size: int) -> Request:
    run = site.working(site.session())
    result = {"text": _text(size)}
    return _post(f"/runs/{run}/transition", {"to_status": "completed", "result": result})


def _many_sessions(path: str) -> Callable[[Site, int], Request]:
    def prepare(site: Site, size: int) -> Request:
        for _ in range(size // METADATA):
            site.session(metadata={"a": "中" * (METADATA // 3)})
        return Request(path)

    return prepare


def _messages(site: Site, size: int) -> Request:
    session = site.session()
    for _ in range(size // TEXT):
        site.post(f"/sessions/{session}/messages", {"text": _text(TEXT)})
    return Request(f"/sessions/{session}/messages?limit=1000")


def _search(site: Site, size: int) -> Request:
    session = site.session()
    for _ in range(size // 96_000):  # what is searched of a text
        site.post(f"/sessions/{session}/messages", {"text": "中文" * 16_000})
    return Request("/search?q=%E4%B8%AD%E6%96%87&limit=1000")


def _requests(site: Site, size: int) -> Request:
    run = ""
    for number in range(size // METADATA):
        if number % 60 == 0:  # a run may have 64
            run = _child(site)
        _ask(site, run, "中" * (METADATA // 3))
    return Request("/requests?limit=1000")


def _runs(site: Site, size: int) -> Request:
    session = site.session()
    for _ in range(size // TEXT):
        run = site.working(session)
        done = {"to_status": "completed", "result": {"text": _text(TEXT)}}
        site.post(f"/runs/{run}/transition", done)
    return Request("/runs?limit=1000")


def _tree(site: Site, size: int) -> Request:
    parent = site.session()
    for _ in range(size // METADATA):
        body = {"task": "work", "metadata": {"a": "中" * (METADATA // 3)}}
        site.post(f"/sessions/{parent}/spawn", body)
    return Request(f"/sessions/{parent}/tree?limit=1000")


def _cascade(site: Site, size: int) -> Request:
    parent = site.session()
    for _ in range(size // 1000):
        site.post(f"/sessions/{parent}/spawn", {"task": "work"})
    return _post(f"/sessions/{parent}/close", {"cascade": True})


def _cancel(site: Site, size: int) -> Request:
    parent = site.session()
    run = site.working(parent)
    for _ in range(size // 1000):
        site.post(f"/runs/{run}/spawn", {"task": "work"})
    return _post(f"/runs/{run}/cancel", {})


def _of_log(shape: str, path: str, *, body: Mapping[str, Any] | None = None) -> Any:
    """Prepare a call of a session in which an agent has said much."""

    def prepare(site: Site, size: int) -> Request:
        session, run = site.say(f"{shape} {size}")
        target = path.format(session=session, run=run)
        return Request(target) if body is None else _post(target, body)

    return prepare


def _reported_diff(site: Site, size: int) -> Request:
    session, _ = site.say(f"changes {size}")
    return Request(f"/sessions/{session}/diff")


def _checkout_diff(site: Site, size: int) -> Request:
    place = site.daemon.directory / "checkout"
    place.mkdir()
    subprocess.run(["git", "init", "-q", str(place)], check=True)
    session = site.session(cwd=str(place))
    for number in range(size // 2_000):
        (place / f"{number}.txt").write_text("中\n" * 500)
    return Request(f"/sessions/{session}/diff")


def _back_up(site: Site, size: int) -> Request:
    site.say(f"cjk {size}")
    return _post("/daemon/backup", {"path": str(site.daemon.directory / "copy.db")})


def _many(count_bytes: int, make: Callable[[Site, int], None], path: str) -> Any:
    """Prepare a list of objects, each of about so many bytes."""

    def prepare(site: Site, size: int) -> Request:
        for number in range(size // count_bytes):
            make(site, number)
        return Request(path)

    return prepare


def _import(shape: str) -> Callable[[Site, int], Request]:
    of_log = _of_log(shape, "/sessions/{session}/export")

    def prepare(site: Site, size: int) -> Request:
        exported = site.client.get(of_log(site, size).path)
        path = "/sessions/import?new_id=true"
        return Request(path, exported.content, "POST", "application/x-ndjson")

    return prepare


def _token(site: Site, number: int) -> None:
    site.post("/tokens", {"name": f"{number:0>250}", "principal": "somebody"})


def _device(site: Site, number: int) -> None:
    site.post("/devices", {"name": f"{number:0>250}"})


def _links(site: Site, size: int) -> Request:
    session = site.session()
    for number in range(size // 500):
        site.post(f"/sessions/{session}/links", {"name": f"{number:0>250}"})
    return Request(f"/sessions/{session}/links?limit=1000")


def _audit(site: Site, size: int) -> Request:
    for number in range(size // 500):
        _token(site, number)
    return Request("/daemon/audit?limit=1000")


def _set_access(site: Site, size: int) -> Request:
    parent = site.session()
    for _ in range(size // 1000):
        site.post(f"/sessions/{parent}/spawn", {"task": "work"})
    grants = [{"principal": f"{number:0>64}", "role": "reader"} for number in range(100)]
    body = json.dumps({"grants": grants}).encode()
    return Request(f"/sessions/{parent}/access", body, "PUT")


CALLS: Final[tuple[CallCase, ...]] = (
    CallCase("create_session", 3 * TEXT, _create),
    CallCase("send_message", 3 * TEXT, _send),
    CallCase("spawn_from_session", 3 * TEXT, _spawn_from_session),
    CallCase("spawn_from_run", 3 * TEXT, _spawn_from_run),
    CallCase("send_to_session", 3 * TEXT, _send_to_session),
    CallCase("reply_parent", 3 * TEXT, _reply),
    CallCase("resolve_request", 3 * TEXT, _resolve),
    CallCase("create_run", 3 * TEXT, _create_run),
    CallCase("transition_run", 3 * TEXT, _transition),
    CallCase("list_sessions", PAGES, _many_sessions("/sessions?limit=1000&activity=true")),
    CallCase("list_sessions", PAGES, _many_sessions("/sessions?limit=1000&q=nothing")),
    CallCase("list_messages", PAGES, _messages),
    CallCase("list_requests", PAGES // 4, _requests),
    CallCase("list_runs", PAGES, _runs),
    CallCase("search", PAGES // 2, _search),
    CallCase("get_tree", PAGES, _tree),
    CallCase("close_session", 500_000, _cascade),
    CallCase("cancel_run", 500_000, _cancel),
    CallCase("get_diff", 63 * 2**20, _reported_diff),
    CallCase("get_diff", 4 * 10**6, _checkout_diff),
    CallCase(
        "prune_session",
        2**20,
        _of_log("small-lines", "/sessions/{session}/prune", body={"retain_events": 1}),
    ),
    CallCase(
        "prune_session",
        63 * 2**20,
        _of_log("lines-of-1000000", "/sessions/{session}/prune", body={"retain_bytes": 1}),
    ),
    CallCase("export_session", 63 * 2**20, _of_log("cjk", "/sessions/{session}/export")),
    CallCase("export_session", 2**20, _of_log("small-lines", "/sessions/{session}/export")),
    CallCase("import_session", 63 * 2**20, _import("cjk")),
    CallCase("import_session", 63 * 2**20, _import("escapes")),
    CallCase("import_session", 2**20, _import("small-lines")),
    CallCase("wait_run", 63 * 2**20, _of_log("cjk", "/runs/{run}/wait?timeout_s=1")),
    CallCase("diagnose_run", 63 * 2**20, _of_log("cjk", "/runs/{run}/diagnose")),
    CallCase("get_session", 63 * 2**20, _of_log("cjk", "/sessions/{session}?activity=true")),
    CallCase("check_store", 63 * 2**20, _of_log("cjk", "/daemon/check")),
    CallCase("check_store", 2**20, _of_log("small-lines", "/daemon/check")),
    CallCase("back_up", 63 * 2**20, _back_up),
    CallCase("status", 63 * 2**20, _of_log("cjk", "/daemon/status")),
    CallCase("list_tokens", 500_000, _many(500, _token, "/tokens?limit=1000")),
    CallCase("list_devices", 500_000, _many(500, _device, "/devices?limit=1000")),
    CallCase("list_links", 500_000, _links),
    CallCase("list_audit", 500_000, _audit),
    CallCase("set_access", 100_000, _set_access),
)

BESIDE: Final[Mapping[str, str]] = {
    "get_run": "is read in the cases of what an agent says",
    "list_events": "is read in the cases of what an agent says",
    **dict.fromkeys(
        (
            "mark_seen",
            "update_session",
            "attach_session",
            "get_access",
            "create_link",
            "revoke_link",
            "get_request",
            "extend_request",
            "create_token",
            "revoke_token",
            "add_device",
            "claim_device",
            "revoke_device",
            "get_notice",
            "test_notice",
            "retry_notice",
            "subscribe_push",
            "list_push",
            "update_push",
            "unsubscribe_push",
            "get_push_key",
            "report_notice",
        ),
        SMALL,
    ),
    "list_notices": "a notice has few hundred characters of what it is about",
    "adopt_session": HOST,
    "doctor": HOST,
}
"""Why an operation has no case."""
